//! How connections are closed, what each end reports, and that no state is left.

use super::net::Faults;
use super::world::{Dial, Pair, Serve, World, MS, S};
use crate::events::Event;

/// The close reasons that both ends reported, as (kind, code, message).
fn reported(world: &World, pair: &Pair) -> [Option<(&'static str, u64, String)>; 2] {
    let reasons = [world.client.closed(pair.client), world.server.closed(pair.server)];
    reasons.map(|reason| reason.map(|reason| (reason.kind, reason.code, reason.message.clone())))
}

/// After some time no state of any connection is left: tables, timers, counters.
fn assert_nothing_is_left(world: &mut World) {
    world.pass(60 * S);
    assert!(world.client.is_empty(), "the client");
    assert!(world.server.is_empty(), "the server");
    assert_eq!(world.client.engine.endpoints.len(), 0);
    assert_eq!(world.client.engine.ports.len(), 0);
    let endpoint = world.endpoint();
    assert_eq!((endpoint.open, endpoint.half_open, endpoint.connections().len()), (0, 0, 0));
}

#[test]
fn a_client_closes_with_code_and_reason() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.client.engine.close_connection(pair.client, 0x42, b"enough", world.now);
    world.client.engine.close_connection(pair.client, 0x43, b"again", world.now);
    world.until(|world| world.server.closed(pair.server).is_some());
    // The end that closes reports nothing.
    assert_eq!(reported(&world, &pair), [None, Some(("application", 0x42, "enough".to_owned()))]);
    assert_nothing_is_left(&mut world);
}

#[test]
fn a_server_closes_with_code_and_reason() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.server.engine.close_connection(pair.server, 0x42, b"enough", world.now);
    world.until(|world| world.client.closed(pair.client).is_some());
    assert_eq!(reported(&world, &pair), [Some(("application", 0x42, "enough".to_owned())), None]);
    assert_nothing_is_left(&mut world);
}

#[test]
fn both_close_at_once() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.client.engine.close_connection(pair.client, 1, b"", world.now);
    world.server.engine.close_connection(pair.server, 2, b"", world.now);
    world.pass(S);
    assert_eq!(reported(&world, &pair), [None, None]);
    assert_nothing_is_left(&mut world);
}

#[test]
fn a_close_that_is_lost_is_said_again() {
    // The client removes at once what it closed; a server answers a peer that still sends.
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.net.set(|faults| faults.is_cut = true);
    world.server.engine.close_connection(pair.server, 7, b"enough", world.now);
    world.pass(10 * MS);
    world.net.set(|faults| faults.is_cut = false);
    assert!(world.client.closed(pair.client).is_none());
    world.client.conn(pair.client).quic.ping();
    world.client.engine.mark(pair.client);
    world.pass(S);
    assert_eq!(reported(&world, &pair)[0], Some(("application", 7, "enough".to_owned())));
    assert_nothing_is_left(&mut world);
}

#[test]
fn a_close_does_not_wait_for_the_congestion_window() {
    for from_client in [true, false] {
        let mut world = World::new(Faults::default());
        let pair = world.pair();
        let stream = world.stream(&pair, b"!");
        world.client.write(pair.client, stream, &[7; 4 << 20]);
        world.server.write(pair.server, stream, &[7; 4 << 20]);
        world.pass(5 * MS); // nothing was acknowledged yet
        let closed = world.now;
        match from_client {
            true => world.client.engine.close_connection(pair.client, 7, b"enough", world.now),
            false => world.server.engine.close_connection(pair.server, 7, b"enough", world.now),
        }
        world.until(|world| reported(world, &pair).iter().any(Option::is_some));
        assert_eq!(world.now - closed, 10 * MS, "one way");
        assert_nothing_is_left(&mut world);
    }
}

#[test]
fn an_endpoint_closes_all_of_its_connections() {
    let mut world = World::new(Faults::default());
    let pairs: Vec<_> = (0..5).map(|_| world.pair()).collect();
    let half_open = world.dial(Dial::default());
    world.pass(15 * MS);
    let (endpoint, now) = (world.endpoint, world.now);
    world.server.engine.close_endpoint(endpoint, 9, b"stopping", now);
    world.until(|world| world.client.closed(half_open).is_some());
    for pair in &pairs {
        assert_eq!(reported(&world, pair)[0], Some(("application", 9, "stopping".to_owned())));
    }
    // RFC 9000 §10.2.3: its code and words are for a peer that is known.
    let reason = world.client.closed(half_open).expect("looked for just now");
    assert_eq!((reason.kind, reason.code), ("application", 0));
    assert!(world.server.is_empty());
    assert_eq!((world.server.engine.endpoints.len(), world.server.engine.ports.len()), (0, 0));
}

#[test]
fn streams_of_a_closed_connection_are_closed() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"!");
    world.client.engine.close_connection(pair.client, 1, b"", world.now);
    world.until(|world| world.server.closed(pair.server).is_some());
    assert_eq!(world.server.read(pair.server, stream, 10), None);
    assert_eq!(world.server.write(pair.server, stream, b"x"), 0);
    assert_eq!(world.client.write(pair.client, stream, b"x"), 0);
    let streams_ended = |event: &Event| matches!(event, Event::StreamEnded { .. });
    assert!(!world.server.has(streams_ended), "the end of the connection says it all");
    assert_nothing_is_left(&mut world);
}

#[test]
fn a_connection_is_accepted_while_another_one_is_removed() {
    let mut world = World::new(Faults::default());
    let ending = world.pair();
    world.client.engine.close_connection(ending.client, 1, b"", world.now);
    world.until(|world| world.server.closed(ending.server).is_some());
    let newer = world.dial(Dial::default());
    world.pass(9 * MS);
    // It is drained, and a step has seen that; the next one accepts a new connection before the old one is removed.
    let drained_at = world.now + 5 * S;
    world.server.conn(ending.server).quic.handle_timeout(drained_at);
    world.server.engine.connection_events(ending.server, drained_at);
    world.server.engine.mark(ending.server);
    assert!(world.server.conn(ending.server).quic.is_drained());
    world.now += MS;
    let newer = world.connected(newer);
    assert!(world.server.engine.conns.get(ending.server).is_none());
    let stream = world.stream(&newer, b"hello");
    assert_eq!(world.server.read(newer.server, stream, 10), Some(b"hello".to_vec()));
    world.client.engine.close_connection(newer.client, 1, b"", world.now);
    assert_nothing_is_left(&mut world);
}

#[test]
fn connections_are_opened_and_closed() {
    let mut world = World::with(Faults::default(), 1, Serve { max_connections: 1000, ..Serve::default() });
    for round in 0..8 {
        let pairs: Vec<_> = (0..10).map(|_| world.pair()).collect();
        for (number, pair) in pairs.iter().enumerate() {
            let stream = world.stream(pair, b"!");
            match (round + number) % 3 {
                0 => world.client.engine.close_connection(pair.client, 1, b"", world.now),
                1 => world.server.engine.close_connection(pair.server, 1, b"", world.now),
                _ => {
                    world.server.finish(pair.server, stream);
                    world.client.engine.close_connection(pair.client, 1, b"", world.now);
                }
            }
        }
        world.client.events.clear();
        world.server.events.clear();
    }
    assert_nothing_is_left(&mut world);
    assert_eq!(world.endpoint().stats.handshakes_completed, 80);
}
