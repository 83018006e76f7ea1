//! The native QUIC engine of QMux.
//!
//! Python decides, this crate moves the bytes. Without the feature `python` this is the engine alone: tests and fuzzing
//! need no interpreter.

#![cfg_attr(not(feature = "python"), allow(dead_code))] // Python calls it

mod arena;
mod attempts;
mod cid;
mod connection;
mod counts;
mod dial;
mod endpoint;
mod engine;
mod events;
pub mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod listener;
#[cfg(feature = "python")]
mod python;
mod recovery;
mod relay;
mod sockets;
mod stream;
#[cfg(test)]
mod tests;
mod tickets;
mod timers;
mod tls;
mod transport;
mod udp;
mod verifier;
