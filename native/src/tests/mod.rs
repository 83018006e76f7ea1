//! Engines of ours against each other: the network and the time are simulated, quinn, rustls and the engine are real.
//!
//! Nothing here waits or sends. A test says what the network does to datagrams, runs the world until something is so,
//! and checks what would be reported to Python. Relays have real descriptors (socket pairs), because they are about
//! those.

mod anything;
mod closing;
mod faults;
mod handshake;
mod ids;
mod net;
mod paths;
mod relays;
mod resumption;
mod streams;
mod world;
