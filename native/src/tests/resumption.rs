//! Sessions that are resumed, with what is sent before the handshake is complete.

use std::rc::Rc;

use super::net::{Fate, Faults, State, JUMBO_PAYLOAD, LOOPBACK_PAYLOAD};
use super::world::{identity_that, limits, Dial, Say, Serve, World, MS, S, SERVER};
use crate::arena::Id;
use crate::events::Event;
use crate::tickets::Session;
use crate::tls::Client;
use crate::transport::Limits;

/// A client, and the ticket that its first connection brought.
fn first(world: &mut World) -> (Rc<Client>, Session) {
    let identity = identity_that(Say::Accept("a server"));
    let pair = world.pair_with(Dial { identity: Some(identity.clone()), ..Dial::default() });
    let is_ticket = |event: &Event| matches!(event, Event::Ticket { .. });
    world.until(|world| world.client.has(is_ticket));
    let at = world.client.events.iter().position(is_ticket).expect("looked for just now");
    let Event::Ticket { ticket, .. } = world.client.events.remove(at) else { unreachable!("it is one") };
    world.client.engine.close_connection(pair.client, 0, b"", world.now);
    world.pass(S);
    world.server.events.clear();
    (identity, ticket)
}

/// What an end reported when it was connected: (resumed, early_data).
fn reported(events: &[Event], wanted: Option<Id>) -> Option<(bool, bool)> {
    events.iter().find_map(|event| match event {
        Event::Connected { conn, resumed, early_data, .. } if wanted.is_none_or(|wanted| wanted == *conn) => {
            Some((*resumed, *early_data))
        }
        _ => None,
    })
}

/// Dial with a ticket, and write at once; the connection and its stream.
fn resume(world: &mut World, identity: &Rc<Client>, ticket: Session) -> (Id, u64) {
    let conn = world.dial(Dial { identity: Some(identity.clone()), ticket: Some(ticket), ..Dial::default() });
    assert!(world.client.conn(conn).may_write_early());
    let stream = world.client.open(conn);
    world.client.write(conn, stream, b"early");
    (conn, stream)
}

fn opened(event: &Event) -> Option<(Id, u64)> {
    match event {
        Event::StreamOpened { conn, stream, .. } => Some((*conn, *stream)),
        _ => None,
    }
}

#[test]
fn early_data_saves_a_round_trip() {
    let mut world = World::new(Faults::default());
    let (identity, ticket) = first(&mut world);
    let started = world.now;
    let (conn, stream) = resume(&mut world, &identity, ticket);
    world.until(|world| world.server.has(|event| opened(event).is_some()));
    // It was received with the first flight, and is reported when the client's Finished shows that it is no replay.
    assert_eq!(world.now - started, 30 * MS);
    let (server, _) = world.server.take(opened).expect("looked for just now");
    assert_eq!(world.server.read(server, stream, 100).as_deref(), Some(&b"early"[..]));
    world.until(|world| world.client.is_connected(conn));
    assert_eq!(reported(&world.client.events, Some(conn)), Some((true, true)));
    assert_eq!(reported(&world.server.events, None), Some((true, true)));
}

#[test]
fn a_restarted_server_gets_it_later() {
    let mut world = World::new(Faults::default());
    let (identity, ticket) = first(&mut world);
    world.serve(Serve::default());
    let (conn, stream) = resume(&mut world, &identity, ticket);
    world.until(|world| world.server.has(|event| opened(event).is_some()) && world.client.is_connected(conn));
    let (server, _) = world.server.take(opened).expect("looked for just now");
    assert_eq!(world.server.read(server, stream, 100).as_deref(), Some(&b"early"[..]), "once, and whole");
    assert_eq!(reported(&world.client.events, Some(conn)), Some((false, false)));
    assert_eq!(reported(&world.server.events, None), Some((false, false)));
}

#[test]
fn a_replayed_first_flight_opens_nothing() {
    let mut world = World::new(Faults::default());
    let (identity, ticket) = first(&mut world);
    world.net.state().tap = Some(Vec::new());
    let (conn, _) = resume(&mut world, &identity, ticket);
    world.settle();
    let flight = world.net.state().tap.take().expect("set above");
    world.until(|world| world.client.is_connected(conn));
    world.client.engine.close_connection(conn, 0, b"", world.now);
    world.pass(60 * S);
    world.server.events.clear();
    let before = world.endpoint().stats.handshakes_completed;
    for datagram in &flight {
        world.net.inject(super::world::client_address(77), datagram.to, &datagram.data);
    }
    world.pass(60 * S);
    assert!(!world.server.has(|event| matches!(event, Event::Connected { .. } | Event::StreamOpened { .. })));
    assert_eq!(world.endpoint().stats.handshakes_completed, before);
    assert!(world.server.is_empty());
}

/// A world in which a client dials again, and writes `early` bytes at once; its timeouts are long.
fn resumed(seed: u64, payload: u16, early: usize, spoil: impl FnOnce(&mut State)) -> (World, Id) {
    let limits = Limits { handshake_timeout: 300 * S, idle_timeout: 600 * S, ..limits() };
    let mut world = World::with(Faults::default(), seed, Serve { limits: limits.clone(), payload, ..Serve::default() });
    let (identity, ticket) = first(&mut world);
    spoil(&mut world.net.state());
    let dial = Dial { identity: Some(identity), ticket: Some(ticket), limits, payload, ..Dial::default() };
    let conn = world.dial(dial);
    let stream = world.client.open(conn);
    world.client.write(conn, stream, &vec![7; early]);
    (world, conn)
}

/// Each datagram meets what `decide` says.
fn decided(mut decide: impl FnMut(bool, usize) -> Fate + Send + 'static) -> impl FnOnce(&mut State) {
    let mut sent = [0, 0];
    move |state| {
        state.fate = Some(Box::new(move |datagram| {
            let from_server = datagram.from == SERVER;
            let count = &mut sent[usize::from(from_server)];
            *count += 1;
            decide(from_server, *count - 1)
        }));
    }
}

#[test]
fn the_handshake_goes_before_early_data() {
    // Initials that were sent again and early data fill the window when the Handshake packets of the server arrive.
    let (mut world, conn) = resumed(
        1,
        JUMBO_PAYLOAD,
        8 << 10,
        decided(|from_server, number| match (from_server, number) {
            (true, 0) | (false, 10) => Fate::Lost,
            _ => Fate::Arrives,
        }),
    );
    world.until(|world| world.client.is_connected(conn));
}

#[test]
fn the_handshake_goes_before_the_search_for_a_size() {
    // Half of what loopback carries is in flight before the Finished, and lost for a server that has no Finished.
    let (mut world, conn) = resumed(
        1,
        LOOPBACK_PAYLOAD,
        30_000,
        decided(|from_server, number| match (from_server, number) {
            (true, 0) => Fate::Lost,
            (false, 1) => Fate::Late(5 * MS),
            _ => Fate::Arrives,
        }),
    );
    world.until(|world| world.client.is_connected(conn));
}

#[test]
fn handshakes_with_early_data_survive_loss() {
    for early in [1, 8 << 10, 30_000] {
        for seed in 0..40 {
            let (mut world, conn) = resumed(seed, LOOPBACK_PAYLOAD, early, |state| state.faults.loss = 0.1);
            assert!(world.run(60 * S, |world| world.client.is_connected(conn)), "{early} bytes, seed {seed}");
        }
    }
}

#[test]
fn a_handshake_goes_on_when_the_network_is_back() {
    for seed in 0..150 {
        let (mut world, conn) = resumed(seed, JUMBO_PAYLOAD, 30_000, |state| state.faults.loss = 0.3);
        world.pass(S);
        world.net.set(|faults| faults.loss = 0.0);
        assert!(world.run(30 * S, |world| world.client.is_connected(conn)), "seed {seed}");
    }
}
