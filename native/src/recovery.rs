//! What quinn passes only to its congestion controller, about acknowledgements: Cubic, watched.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::{Connection, RttEstimator};

/// The peer may delay an acknowledgement by this (RFC 9000 §18.2, the default).
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);
const GRANULARITY: Duration = Duration::from_millis(1);

/// Neither congestion nor pacing holds a packet back.
const UNLIMITED: u64 = u64::MAX / 2;

/// RFC 9002 §7.2.
const INITIAL_WINDOW_BYTES: u64 = 14_720;

/// Makes the controllers of new connections.
pub struct WatchedCubic(Arc<CubicConfig>);

impl WatchedCubic {
    /// The window begins with room for two of the largest datagrams that a path may carry (RFC 9002 §7.2): the search
    /// for the size does not ask whether there is room, and what it has in flight must not hold everything else back.
    pub fn for_datagrams(largest: u16) -> Self {
        let largest = u64::from(largest);
        let mut config = CubicConfig::default();
        config.initial_window(INITIAL_WINDOW_BYTES.clamp(2 * largest, 10 * largest));
        Self(Arc::new(config))
    }
}

impl ControllerFactory for WatchedCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.0.clone().build(now, current_mtu);
        Box::new(Watched { inner, is_open: Arc::default(), acked_sent_at: None, sample: None, variance: None })
    }
}

/// Cubic, when the newest acknowledged packet was sent, and how far round-trip times vary.
pub struct Watched {
    inner: Box<dyn Controller>,
    /// The window is unlimited, whatever Cubic computes.
    is_open: Arc<AtomicBool>,
    acked_sent_at: Option<Instant>,
    sample: Option<(Duration, Duration)>, // smoothed, latest
    variance: Option<Duration>,
}

impl Controller for Watched {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.acked_sent_at = self.acked_sent_at.max(Some(sent));
        self.sample = Some((rtt.get(), now.saturating_duration_since(sent)));
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        if let Some((smoothed, latest)) = self.sample.take() {
            // RFC 9002 §5.3
            self.variance = Some(match self.variance {
                Some(variance) => (variance * 3 + smoothed.abs_diff(latest)) / 4,
                None => latest / 2,
            });
        }
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        match self.is_open.load(Relaxed) {
            true => UNLIMITED,
            false => self.inner.window(),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), is_open: self.is_open.clone(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// What `Watched` saw on this connection.
pub struct Seen {
    /// When the newest acknowledged packet was sent.
    pub acked_sent_at: Option<Instant>,
    /// Probe timeout without backoff (RFC 9002 §6.2.1).
    pub pto: Duration,
}

/// A copy of the controller: quinn gives no access to its own.
fn watched(quic: &Connection) -> Option<Box<Watched>> {
    quic.congestion_state().clone_box().into_any().downcast().ok()
}

/// Send what quinn 0.11 holds back although no acknowledgement will open the window. A CONNECTION_CLOSE: it waits
/// behind stream data, and a closed connection handles no acknowledgement. A client's Finished: it waits behind 0-RTT
/// data, and a server that has no Finished can read no probe. Limited again once the handshake is confirmed.
pub fn open_window(quic: &Connection) {
    set_open(quic, true);
}

pub fn limit_window(quic: &Connection) {
    set_open(quic, false);
}

fn set_open(quic: &Connection, is_open: bool) {
    if let Some(watched) = watched(quic) {
        watched.is_open.store(is_open, Relaxed);
    }
}

pub fn seen(quic: &Connection) -> Seen {
    let (acked_sent_at, variance) = watched(quic).map_or((None, None), |w| (w.acked_sent_at, w.variance));
    let rtt = quic.rtt();
    let variance = variance.unwrap_or(rtt / 2);
    Seen { acked_sent_at, pto: rtt + (variance * 4).max(GRANULARITY) + MAX_ACK_DELAY }
}
