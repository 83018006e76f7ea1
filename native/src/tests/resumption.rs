//! Sessions that are resumed, with what is sent before the handshake is complete.

use std::rc::Rc;

use super::net::Faults;
use super::world::{identity_that, Dial, Say, Serve, World, MS, S};
use crate::arena::Id;
use crate::events::Event;
use crate::tickets::Session;
use crate::tls::Client;

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

/// What an end was told of its being connected: (resumed, early_data).
fn told(events: &[Event], wanted: Option<Id>) -> Option<(bool, bool)> {
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
    // It came with the first flight, and is told when the client's own end of the handshake shows that it is no replay.
    assert_eq!(world.now - started, 30 * MS);
    let (server, _) = world.server.take(opened).expect("looked for just now");
    assert_eq!(world.server.read(server, stream, 100).as_deref(), Some(&b"early"[..]));
    world.until(|world| world.client.is_connected(conn));
    assert_eq!(told(&world.client.events, Some(conn)), Some((true, true)));
    assert_eq!(told(&world.server.events, None), Some((true, true)));
}

#[test]
fn a_server_that_began_anew_gets_it_later() {
    let mut world = World::new(Faults::default());
    let (identity, ticket) = first(&mut world);
    world.serve(Serve::default());
    let (conn, stream) = resume(&mut world, &identity, ticket);
    world.until(|world| world.server.has(|event| opened(event).is_some()) && world.client.is_connected(conn));
    let (server, _) = world.server.take(opened).expect("looked for just now");
    assert_eq!(world.server.read(server, stream, 100).as_deref(), Some(&b"early"[..]), "once, and whole");
    assert_eq!(told(&world.client.events, Some(conn)), Some((false, false)));
    assert_eq!(told(&world.server.events, None), Some((false, false)));
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
