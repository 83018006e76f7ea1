//! Streams in Python's hands, and DATAGRAMs.

use bytes::Bytes;

use super::net::Faults;
use super::world::{limits, Dial, Pair, Serve, World, MS, S};
use crate::events::Event;
use crate::stream::stream_id;
use crate::transport::Limits;

fn readable(event: &Event) -> Option<u64> {
    match event {
        Event::Readable { stream, .. } => Some(*stream),
        _ => None,
    }
}

fn ended(event: &Event) -> Option<u64> {
    match event {
        Event::StreamEnded { code, .. } => Some(*code),
        _ => None,
    }
}

fn datagram(event: &Event) -> Option<Bytes> {
    match event {
        Event::Datagram { data, .. } => Some(data.clone()),
        _ => None,
    }
}

fn small(world: &mut World) -> Pair {
    world.pair_with(Dial { limits: Limits { stream_window: 10_000, ..limits() }, ..Dial::default() })
}

#[test]
fn a_read_takes_no_more_than_it_asks_for() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"frame, and what follows");
    world.client.finish(pair.client, stream);
    world.pass(S);
    assert_eq!(world.server.read(pair.server, stream, 5).as_deref(), Some(&b"frame"[..]));
    assert_eq!(world.server.read(pair.server, stream, 0).as_deref(), None, "nothing was requested");
    assert_eq!(world.server.read(pair.server, stream, 100).as_deref(), Some(&b", and what follows"[..]));
    assert_eq!(world.server.read(pair.server, stream, 100).as_deref(), Some(&b""[..]), "the end");
    assert_eq!(world.server.read(pair.server, stream, 100).as_deref(), Some(&b""[..]), "and again");
}

#[test]
fn readable_is_reported_once_and_only_after_a_read_without_data() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"x");
    world.client.write(pair.client, stream, b"y");
    world.pass(S);
    assert_eq!(world.server.take(readable), None, "no read waited");
    assert_eq!(world.server.read(pair.server, stream, 10).as_deref(), Some(&b"xy"[..]));
    world.client.write(pair.client, stream, b"z");
    world.pass(S);
    assert_eq!(world.server.take(readable), None, "after a read with data the reader reads again");
    assert_eq!(world.server.read(pair.server, stream, 10).as_deref(), Some(&b"z"[..]));
    assert_eq!(world.server.read(pair.server, stream, 10), None);
    for more in [b"z", b"!"] {
        world.client.write(pair.client, stream, more);
        world.pass(S);
    }
    assert_eq!((world.server.take(readable), world.server.take(readable)), (Some(stream), None));
}

#[test]
fn a_writer_waits_for_the_reader() {
    let mut world = World::new(Faults::default());
    let pair = small(&mut world);
    let stream = world.stream(&pair, b"?");
    let waiting = world.server.write(pair.server, stream, &[7; 50_000]);
    assert_eq!(waiting, 40_000, "a window full is quinn's");
    world.pass(S);
    let is_writable = |event: &Event| matches!(event, Event::Writable { .. }).then_some(());
    assert_eq!(world.server.take(is_writable), None);
    let mut got = 0;
    while got < 50_000 {
        let piece = world.client.read(pair.client, stream, 1000).expect("more comes for what was read");
        got += piece.len();
        assert!(got <= 50_000 && piece.iter().all(|&byte| byte == 7));
        world.pass(100 * MS);
    }
    assert_eq!((world.server.take(is_writable), world.server.take(is_writable)), (Some(()), None));
}

#[test]
fn a_reset_ends_both_directions_with_its_code() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"x");
    world.client.engine.abort_stream(pair.client, stream_id(stream), 0x17u32.into());
    world.pass(S);
    assert_eq!((world.server.take(ended), world.server.take(ended)), (Some(0x17), None));
    assert!(world.server.conn(pair.server).streams.is_empty() && world.client.conn(pair.client).streams.is_empty());
    assert_eq!(world.server.read(pair.server, stream, 10), None);
    assert_eq!(world.server.write(pair.server, stream, b"x"), 0, "it is not kept");
}

#[test]
fn one_direction_that_is_reset_takes_the_other_with_it() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    for of_sending in [true, false] {
        let stream = world.stream(&pair, b"x");
        let quic = &mut world.client.conn(pair.client).quic;
        match of_sending {
            true => quic.send_stream(stream_id(stream)).reset(0x17u32.into()).expect("it is open"),
            false => quic.recv_stream(stream_id(stream)).stop(0x17u32.into()).expect("it is open"),
        }
        world.client.engine.mark(pair.client);
        world.pass(S);
        assert_eq!((world.server.take(ended), world.server.take(ended)), (Some(0x17), None));
        // The other half was aborted in return: nothing is left of it at either end.
        assert_eq!((world.client.take(ended), world.client.take(ended)), (Some(0x17), None));
        assert!(world.server.conn(pair.server).streams.is_empty() && world.client.conn(pair.client).streams.is_empty());
    }
}

#[test]
fn what_arrived_before_the_end_is_read_before_it() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.client.open(pair.client);
    world.client.write(pair.client, stream, b"all of it");
    world.client.finish(pair.client, stream);
    world.until(|world| world.server.has(|event| matches!(event, Event::StreamOpened { .. })));
    assert_eq!(world.server.read(pair.server, stream, 100).as_deref(), Some(&b"all of it"[..]));
    assert_eq!(world.server.read(pair.server, stream, 100).as_deref(), Some(&b""[..]));
    world.server.finish(pair.server, stream);
    world.pass(S);
    assert!(world.server.conn(pair.server).streams.is_empty(), "both directions are over");
    assert_eq!(world.client.read(pair.client, stream, 100).as_deref(), Some(&b""[..]));
    assert!(world.client.conn(pair.client).streams.is_empty());
}

#[test]
fn a_peer_opens_what_it_may() {
    let limits = Limits { max_streams: 1, ..limits() };
    let mut world = World::with(Faults::default(), 1, Serve { limits, ..Serve::default() });
    let pair = world.pair();
    world.client.open(pair.client);
    let open = |world: &mut World| world.client.conn(pair.client).quic.streams().open(quinn_proto::Dir::Bi);
    assert_eq!(open(&mut world), None);
    world.server.conn(pair.server).raise_limits(3);
    world.server.engine.mark(pair.server);
    world.pass(S);
    assert!(open(&mut world).is_some() && open(&mut world).is_some());
    assert_eq!(open(&mut world), None);
}

#[test]
fn an_unregistered_client_may_send_little() {
    let limits = Limits { connection_window: Some(20_000), max_streams: 1, ..limits() };
    let mut world = World::with(Faults::default(), 1, Serve { limits, ..Serve::default() });
    let pair = world.pair();
    let stream = world.stream(&pair, b"!");
    world.client.write(pair.client, stream, &[7; 100_000]);
    world.pass(S);
    let mut got = 0;
    while let Some(data) = world.server.read(pair.server, stream, 1 << 20) {
        got += data.len();
        world.pass(S);
    }
    assert_eq!(got, 20_000, "what is read gives nothing back");
    world.server.conn(pair.server).raise_limits(64);
    world.server.engine.mark(pair.server);
    world.pass(S);
    while let Some(data) = world.server.read(pair.server, stream, 1 << 20) {
        got += data.len();
        world.pass(S);
    }
    assert_eq!(got, 100_001);
}

#[test]
fn datagrams_keep_their_boundaries() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.pass(10 * S);
    let largest = world.client.conn(pair.client).quic.datagrams().max_size().expect("the peer takes them");
    assert!(largest > 8000, "it follows the size of the path: {largest}");
    for size in [0, 1, largest] {
        assert!(world.client.conn(pair.client).quic.datagrams().send(vec![7; size].into(), false).is_ok());
        world.client.engine.mark(pair.client);
        world.pass(S);
        assert_eq!(world.server.take(datagram).map(|data| data.len()), Some(size));
    }
    let too_large = world.client.conn(pair.client).quic.datagrams().send(vec![7; largest + 1].into(), false);
    assert!(too_large.is_err());
}

#[test]
fn what_arrives_before_connected_is_reported_waits_for_it() {
    // The client's handshake is complete a round trip before it is reported; the server's data may arrive with it.
    let mut world = World::new(Faults::default());
    let client = world.dial(Dial::default());
    world.until(|world| world.server.has(|event| matches!(event, Event::Connected { .. })));
    let server = world.server.take(|event| match event {
        Event::Connected { conn, .. } => Some(*conn),
        _ => None,
    });
    let server = server.expect("looked for just now");
    assert!(!world.client.is_connected(client));
    world.server.conn(server).quic.datagrams().send(Bytes::from_static(b"early"), false).expect("it fits");
    let stream = world.server.open(server);
    world.server.write(server, stream, b"early, too");
    world.until(|world| world.client.has(|event| datagram(event).is_some()));
    let first = world.client.events.iter().find(|event| !matches!(event, Event::Ticket { .. }));
    assert!(matches!(first, Some(Event::Connected { .. })), "nothing is reported before it");
    world.until(|world| world.client.has(|event| matches!(event, Event::StreamOpened { .. })));
    assert_eq!(world.client.read(client, stream, 100).as_deref(), Some(&b"early, too"[..]));
}
