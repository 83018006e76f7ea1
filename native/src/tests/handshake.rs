//! Handshakes that succeed, and that fail.

use std::time::Duration;

use super::net::Faults;
use super::world::{limits, Dial, Say, Serve, World, MS, S};
use crate::events::Event;
use crate::verifier::Refusal;

/// RFC 8446 §6.
const CERTIFICATE_REVOKED: u8 = 44;
const BAD_CERTIFICATE: u8 = 42;

fn refusal(alert: u8) -> Say {
    Say::Refuse(Refusal { alert, reason: "not here".to_owned() })
}

#[test]
fn both_ends_report_the_connection() {
    let mut world = World::new(Faults::default());
    let started = world.now;
    let client = world.dial(Dial::default());
    world.until(|world| world.client.is_connected(client));
    // One round trip until the client is complete, and one until the server says that it took the certificate.
    assert_eq!(world.now - started, 40 * MS);
    let is_accepted = |event: &Event| matches!(event, Event::Accepted { .. });
    assert!(is_accepted(&world.server.events[0]));
    let identity = world.server.take(|event| match event {
        Event::Connected { identity, .. } => Some(identity.clone()),
        _ => None,
    });
    let identity = identity.flatten().expect("the server has the client's identity");
    assert_eq!(identity.downcast_ref(), Some(&"a client"));
    let rtt = world.client.conn(client).quic.rtt();
    assert!((20 * MS..25 * MS).contains(&rtt), "{rtt:?}");
    let endpoint = world.endpoint();
    assert_eq!((endpoint.open, endpoint.half_open, endpoint.stats.handshakes_completed), (1, 0, 1));
}

#[test]
fn loss_delays_a_handshake_only() {
    let mut slowest = Duration::ZERO;
    for seed in 0..30 {
        let faults = Faults { loss: 0.25, duplicates: 0.1, jitter: 5 * MS, ..Faults::default() };
        let mut world = World::with(faults, seed, Serve::default());
        let started = world.now;
        world.pair_with(Dial { limits: patient(), ..Dial::default() });
        slowest = slowest.max(world.now - started);
    }
    assert!(slowest > 100 * MS, "nothing was lost");
}

fn patient() -> crate::transport::Limits {
    crate::transport::Limits { handshake_timeout: 60 * S, ..limits() }
}

#[test]
fn a_handshake_has_its_time() {
    let mut world = World::new(Faults { is_cut: true, ..Faults::default() });
    let started = world.now;
    let client = world.dial(Dial::default());
    world.until(|world| world.client.closed(client).is_some());
    assert_eq!(world.now - started, limits().handshake_timeout);
    assert_eq!(world.client.closed(client).map(|reason| reason.kind), Some("timeout"));
    assert!(world.client.is_empty());
}

#[test]
fn a_silent_client_holds_no_server() {
    let mut world = World::new(Faults::default());
    world.dial(Dial::default());
    world.until(|world| world.server.has(|event| matches!(event, Event::Accepted { .. })));
    world.net.set(|faults| faults.is_cut = true);
    world.until(|world| world.server.has(|event| matches!(event, Event::Closed { .. })));
    assert!(world.server.is_empty());
    let endpoint = world.endpoint();
    assert_eq!((endpoint.open, endpoint.half_open, endpoint.stats.handshakes_failed), (0, 0, 1));
}

#[test]
fn a_server_refuses_a_certificate_with_its_reason() {
    let mut world = World::with(Faults::default(), 1, Serve { say: refusal(CERTIFICATE_REVOKED), ..Serve::default() });
    let client = world.dial(Dial::default());
    world.until(|world| world.client.closed(client).is_some());
    let reason = world.client.closed(client).expect("looked for just now");
    // The message was in the CONNECTION_CLOSE.
    assert_eq!((reason.kind, reason.code, &*reason.message), ("tls", u64::from(CERTIFICATE_REVOKED), "not here"));
    assert!(!world.client.has(|event| matches!(event, Event::Connected { .. })), "it is not identified");
    let ours = world.server.take(|event| match event {
        Event::Closed { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    let ours = ours.expect("the server's own end of it");
    assert_eq!((ours.kind, &*ours.message), ("certificate", "not here"));
    world.pass(60 * S);
    assert!(world.server.is_empty() && world.client.is_empty());
    assert_eq!(world.endpoint().stats.handshakes_failed, 1);
}

#[test]
fn a_client_refuses_a_certificate_with_its_reason() {
    let mut world = World::new(Faults::default());
    let client = world.dial(Dial { say: refusal(BAD_CERTIFICATE), ..Dial::default() });
    world.until(|world| world.client.closed(client).is_some());
    let reason = world.client.closed(client).expect("looked for just now");
    assert_eq!((reason.kind, &*reason.message), ("certificate", "not here"));
    world.pass(60 * S);
    assert!(world.server.is_empty() && world.client.is_empty());
    assert!(!world.server.has(|event| matches!(event, Event::Connected { .. })));
}

#[test]
fn an_address_is_validated_where_many_handshakes_are_open() {
    let mut world = World::with(Faults::default(), 1, Serve { retry_threshold: 2, ..Serve::default() });
    let clients: Vec<_> = (0..6).map(|_| world.dial(Dial::default())).collect();
    world.until(|world| clients.iter().all(|&client| world.client.is_connected(client)));
    let endpoint = world.endpoint();
    assert_eq!((endpoint.stats.retries_sent, endpoint.stats.handshakes_completed), (4, 6));
    let one_more = world.dial(Dial::default());
    world.until(|world| world.client.is_connected(one_more));
    assert_eq!(world.endpoint().stats.retries_sent, 4, "none is half open any more");
}

#[test]
fn validated_addresses_have_a_cap_too() {
    let mut world = World::with(Faults::default(), 1, Serve { retry_threshold: 1, ..Serve::default() });
    let clients: Vec<_> = (0..40).map(|_| world.dial(Dial { limits: patient(), ..Dial::default() })).collect();
    world.until(|world| clients.iter().filter(|&&client| world.client.is_connected(client)).count() >= 10);
    assert!(world.endpoint().stats.initials_refused > 0, "the cap was never reached");
    // The others are sent again, one packet after the other.
    world.until(|world| clients.iter().all(|&client| world.client.is_connected(client)));
}

#[test]
fn a_full_server_says_so() {
    let mut world = World::with(Faults::default(), 1, Serve { max_connections: 1, ..Serve::default() });
    let first = world.pair();
    let second = world.dial(Dial::default());
    world.until(|world| world.client.closed(second).is_some());
    let reason = world.client.closed(second).expect("looked for just now");
    assert_eq!((reason.kind, reason.code), ("transport", 2), "CONNECTION_REFUSED");
    assert!(world.client.is_connected(first.client));
    assert_eq!(world.endpoint().stats.initials_refused, 1);
}

#[test]
fn a_server_that_stops_accepts_no_connection() {
    let mut world = World::new(Faults::default());
    world.endpoint().refuse_new(true);
    let client = world.dial(Dial::default());
    world.until(|world| world.client.closed(client).is_some());
    assert_eq!(world.client.closed(client).map(|reason| reason.code), Some(2));
    world.endpoint().refuse_new(false);
    world.pair();
}

#[test]
fn what_the_kernel_does_not_take_is_sent_later() {
    let mut world = World::new(Faults::default());
    let address = super::world::client_address(0);
    world.net.block(address, true);
    let client = world.dial(Dial::default());
    world.pass(50 * MS); // nothing is missed yet
    assert!(!world.server.has(|event| matches!(event, Event::Accepted { .. })));
    world.unblock(address);
    let unblocked = world.now;
    world.until(|world| world.server.has(|event| matches!(event, Event::Accepted { .. })));
    assert_eq!(world.now - unblocked, 10 * MS, "what waited goes at once, not when its loss is noticed");
    world.until(|world| world.client.is_connected(client));
}
