//! How quinn is configured for a connection: its limits, its windows, the sizes of its datagrams.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::recovery::WatchedCubic;

/// What every path carries (RFC 9000 §14): the search begins here, and a black hole leads back.
const SMALLEST_DATAGRAM: u16 = 1200;

/// What the loopback interface carries under IPv6. Other paths end the search at the MTU of their interface. From 8,952
/// bytes to this the cost of a byte falls by 15 to 25 %: less to do for each packet, and fewer writes to sockets.
const LARGEST_DATAGRAM: u16 = 65_488;

/// Sent and not acknowledged, in all streams together: on a path with nearly no delay, such as loopback, all
/// of it waits in the receiver's socket, and small requests wait behind it.
const LEAST_SEND_WINDOW_BYTES: u64 = 1 << 20;
pub const SEND_WINDOW_BYTES: u64 = 2 << 20;

/// What the path itself can hold is on top: 20 Gbit/s times its delay.
const SEND_WINDOW_BYTES_PER_S: f64 = 2.5e9;

pub fn send_window(min_rtt: Duration) -> u64 {
    let on_the_way = (min_rtt.as_secs_f64() * SEND_WINDOW_BYTES_PER_S) as u64;
    (LEAST_SEND_WINDOW_BYTES + on_the_way).min(SEND_WINDOW_BYTES)
}

/// A lost first packet is sent again after three times this; RFC 9002 §6.2.2 has 333 ms, a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

const DATAGRAMS_OUT_BYTES: usize = 256 << 10;
const DATAGRAMS_IN_BYTES: usize = 1 << 20;

/// Streams × their window bound a peer, never the connection: one stalled stream must not stop its siblings.
pub const UNLIMITED: VarInt = VarInt::MAX;

/// Limits that a connection is created with.
#[derive(Clone)]
pub struct Limits {
    pub idle_timeout: Duration,
    pub keep_alive: Duration,
    pub handshake_timeout: Duration,
    pub max_streams: u32,
    pub stream_window: u64,
    /// None: unlimited.
    pub connection_window: Option<u64>,
    /// Whether the peer may send DATAGRAM frames: one that nothing uses costs a call into Python.
    pub datagrams: bool,
}

/// quinn's configuration for a path whose interface takes `payload` bytes.
pub fn transport(limits: &Limits, payload: Option<u16>) -> Arc<TransportConfig> {
    let window = |bytes: u64| VarInt::from_u64(bytes).unwrap_or(UNLIMITED);
    let largest = largest_datagram(payload);
    let mut config = TransportConfig::default();
    config
        // Longer than a VarInt of milliseconds: no timeout.
        .max_idle_timeout(IdleTimeout::try_from(limits.idle_timeout).ok())
        .keep_alive_interval(Some(limits.keep_alive))
        .max_concurrent_bidi_streams(limits.max_streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window(limits.stream_window))
        .receive_window(limits.connection_window.map_or(UNLIMITED, window))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_send_buffer_size(DATAGRAMS_OUT_BYTES)
        .datagram_receive_buffer_size(limits.datagrams.then_some(DATAGRAMS_IN_BYTES))
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(SMALLEST_DATAGRAM)
        .min_mtu(SMALLEST_DATAGRAM)
        .congestion_controller_factory(Arc::new(WatchedCubic::for_datagrams(largest)));
    let mut search = MtuDiscoveryConfig::default();
    search.upper_bound(largest);
    config.mtu_discovery_config(Some(search));
    Arc::new(config)
}

/// Up to where the size is searched for.
pub fn largest_datagram(payload: Option<u16>) -> u16 {
    payload.unwrap_or(LARGEST_DATAGRAM).clamp(SMALLEST_DATAGRAM, LARGEST_DATAGRAM)
}
