//! Streams and sockets: bytes, ends, resets, silence, and what a stalled reader costs.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::net::Faults;
use super::world::{limits, Dial, Pair, Serve, Side, World, MS, S};
use crate::arena::Id;
use crate::events::{End, Event};
use crate::relay::Timeouts;
use crate::stream::stream_id;
use crate::transport::Limits;

pub const TIMEOUTS: Timeouts = Timeouts { idle: None, half_closed: Duration::from_secs(60) };

/// A user's connection through both engines to a service.
struct Tunnel {
    user: UnixStream,
    service: UnixStream,
    /// Of the server, which has the user's socket.
    near: Id,
    /// Of the client, which has the service's.
    far: Id,
}

/// A socket whose other end is relayed from now on, and the relay.
pub fn relay(side: &mut Side, conn: Id, stream: u64, timeouts: Timeouts, now: std::time::Instant) -> (UnixStream, Id) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    for socket in [&ours, &theirs] {
        socket.set_nonblocking(true).expect("an open socket");
    }
    let relay = side.engine.start_relay(conn, stream_id(stream), theirs.into(), timeouts, None, now);
    (ours, relay.expect("epoll takes a socket"))
}

fn tunnel_with(world: &mut World, pair: &Pair, timeouts: Timeouts) -> Tunnel {
    let stream = world.server.open(pair.server);
    world.server.write(pair.server, stream, b"head");
    world.until(|world| world.client.has(|event| opened(event, stream)));
    world.client.take(|event| opened(event, stream).then_some(()));
    assert_eq!(world.client.read(pair.client, stream, 4).as_deref(), Some(&b"head"[..]));
    let (user, near) = relay(&mut world.server, pair.server, stream, timeouts, world.now);
    let (service, far) = relay(&mut world.client, pair.client, stream, timeouts, world.now);
    Tunnel { user, service, near, far }
}

fn opened(event: &Event, wanted: u64) -> bool {
    matches!(event, Event::StreamOpened { stream, .. } if *stream == wanted)
}

fn tunnel(world: &mut World, pair: &Pair) -> Tunnel {
    tunnel_with(world, pair, TIMEOUTS)
}

/// What a socket has now; the bool: whether it has reached FIN.
fn read_all(socket: &mut UnixStream) -> (Vec<u8>, bool) {
    let (mut data, mut piece) = (Vec::new(), [0; 65_536]);
    loop {
        match socket.read(&mut piece) {
            Ok(0) => return (data, true),
            Ok(count) => data.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (data, false),
            Err(error) => panic!("{error}"),
        }
    }
}

/// As much as the socket takes now.
fn write_some(socket: &mut UnixStream, data: &[u8]) -> usize {
    if data.is_empty() {
        return 0;
    }
    match socket.write(data) {
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

/// How a relay ended, with its bytes to the socket and to the stream.
fn done(side: &Side, wanted: Id) -> Option<(End, u64, u64)> {
    side.events.iter().find_map(|event| match event {
        Event::RelayDone { relay, end, to_socket, to_stream } if *relay == wanted => {
            Some((*end, *to_socket, *to_stream))
        }
        _ => None,
    })
}

fn both_done(world: &World, tunnel: &Tunnel) -> bool {
    done(&world.server, tunnel.near).is_some() && done(&world.client, tunnel.far).is_some()
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|number| ((number * 31 + number / 251 + seed) % 256) as u8).collect()
}

#[test]
fn bytes_and_ends_go_both_ways() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let mut tunnel = tunnel(&mut world, &pair);
    let (request, response) = (pattern(3_000_000, 1), pattern(5_000_000, 2));
    let (mut written, mut answered) = (0, 0);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    let (mut requested, mut responded) = (false, false);
    world.until(|_| {
        written += write_some(&mut tunnel.user, &request[written..]);
        if written == request.len() && !std::mem::replace(&mut requested, true) {
            tunnel.user.shutdown(std::net::Shutdown::Write).expect("an open socket");
        }
        let (data, ended) = read_all(&mut tunnel.service);
        there.extend(data);
        // The service answers when it has the end of the request: the other direction flows on.
        if ended {
            answered += write_some(&mut tunnel.service, &response[answered..]);
        }
        if answered == response.len() && !std::mem::replace(&mut responded, true) {
            tunnel.service.shutdown(std::net::Shutdown::Write).expect("an open socket");
        }
        let (data, ended) = read_all(&mut tunnel.user);
        back.extend(data);
        ended
    });
    assert!(there == request && back == response);
    world.until(|world| both_done(world, &tunnel));
    assert_eq!(done(&world.server, tunnel.near), Some((End::Finished, 5_000_000, 3_000_000)));
    assert_eq!(done(&world.client, tunnel.far), Some((End::Finished, 3_000_000, 5_000_000)));
    assert!(world.server.conn(pair.server).streams.is_empty() && world.client.conn(pair.client).streams.is_empty());
}

#[test]
fn what_was_written_before_the_relay_is_sent_first() {
    let mut world = World::new(Faults::default());
    let pair = world.pair_with(Dial { limits: Limits { stream_window: 10_000, ..limits() }, ..Dial::default() });
    let stream = world.server.open(pair.server);
    let first = pattern(50_000, 3);
    assert!(world.server.write(pair.server, stream, &first) > 0, "not all of it was sent");
    let (mut user, _) = relay(&mut world.server, pair.server, stream, TIMEOUTS, world.now);
    user.write_all(b"then this").expect("there is room");
    world.until(|world| world.client.has(|event| opened(event, stream)));
    let (mut service, _) = relay(&mut world.client, pair.client, stream, TIMEOUTS, world.now);
    let mut got = Vec::new();
    world.until(|_| {
        got.extend(read_all(&mut service).0);
        got.len() >= 50_009
    });
    assert!(got == [&first[..], b"then this"].concat());
}

#[test]
fn a_half_closed_relay_has_its_time() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let timeouts = Timeouts { idle: Some(600 * S), half_closed: 20 * S };
    let tunnel = tunnel_with(&mut world, &pair, timeouts);
    world.pass(100 * S);
    assert!(done(&world.server, tunnel.near).is_none(), "idle is not half closed");
    tunnel.user.shutdown(std::net::Shutdown::Write).expect("an open socket");
    let closed = world.now;
    world.until(|world| done(&world.server, tunnel.near).is_some());
    assert_eq!(done(&world.server, tunnel.near), Some((End::HalfClosedTimeout, 0, 0)));
    assert_eq!(world.now - closed, 20 * S);
    world.until(|world| both_done(world, &tunnel));
}

#[test]
fn traffic_keeps_a_relay_and_silence_ends_it() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let timeouts = Timeouts { idle: Some(30 * S), ..TIMEOUTS };
    let mut tunnel = tunnel_with(&mut world, &pair, timeouts);
    for _ in 0..5 {
        world.pass(20 * S);
        tunnel.user.write_all(b"x").expect("there is room");
    }
    world.settle();
    let last = world.now;
    world.until(|world| both_done(world, &tunnel));
    assert_eq!(done(&world.server, tunnel.near), Some((End::IdleTimeout, 0, 5)));
    assert!((30 * S..31 * S).contains(&(world.now - last)), "{:?}", world.now - last);
    let far = done(&world.client, tunnel.far).expect("both are done");
    assert!(matches!(far.0, End::IdleTimeout | End::StreamReset));
    assert_eq!(read_all(&mut tunnel.service).0, b"xxxxx");
}

#[test]
fn a_reset_goes_through() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let mut tunnel = tunnel(&mut world, &pair);
    tunnel.service.write_all(b"never read").expect("there is room");
    world.pass(S);
    drop(tunnel.user); // with bytes unread: the kernel resets it
    world.until(|world| done(&world.server, tunnel.near).is_some() && done(&world.client, tunnel.far).is_some());
    assert_eq!(done(&world.server, tunnel.near).map(|done| done.0), Some(End::SocketReset));
    assert_eq!(done(&world.client, tunnel.far).map(|done| done.0), Some(End::StreamReset));
}

#[test]
fn an_aborted_relay_ends_at_both_ends() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let tunnel = tunnel(&mut world, &pair);
    world.server.engine.end_relay(tunnel.near, End::Aborted);
    world.pass(S);
    assert_eq!(done(&world.server, tunnel.near), Some((End::Aborted, 0, 0)));
    assert_eq!(done(&world.client, tunnel.far), Some((End::StreamReset, 0, 0)));
    assert_eq!((world.server.engine.relays.len(), world.client.engine.relays.len()), (0, 0));
}

#[test]
fn a_lost_connection_ends_its_relays() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let mut tunnels: Vec<_> = (0..3).map(|_| tunnel(&mut world, &pair)).collect();
    world.server.engine.close_connection(pair.server, 1, b"", world.now);
    world.until(|world| tunnels.iter().all(|tunnel| both_done(world, tunnel)));
    for tunnel in &mut tunnels {
        assert_eq!(done(&world.server, tunnel.near).map(|done| done.0), Some(End::ConnectionLost));
        assert_eq!(done(&world.client, tunnel.far).map(|done| done.0), Some(End::ConnectionLost));
        assert!(tunnel.user.read(&mut [0]).is_ok_and(|count| count == 0), "closed");
    }
    let closed = world.client.events.iter().position(|event| matches!(event, Event::Closed { .. }));
    let last = world.client.events.iter().rposition(|event| matches!(event, Event::RelayDone { .. }));
    assert!(last < closed, "its relays are reported first");
}

#[test]
fn a_relay_of_what_is_over_is_over() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"!");
    world.client.engine.abort_stream(pair.client, stream_id(stream), 1u32.into());
    world.pass(S);
    let (_, late) = relay(&mut world.server, pair.server, stream, TIMEOUTS, world.now);
    world.settle();
    assert_eq!(done(&world.server, late), Some((End::StreamReset, 0, 0)));
    world.server.engine.close_connection(pair.server, 1, b"", world.now);
    world.pass(60 * S);
    let (_, later) = relay(&mut world.server, pair.server, stream, TIMEOUTS, world.now);
    world.settle();
    assert_eq!(done(&world.server, later), Some((End::ConnectionLost, 0, 0)));
}

#[test]
fn a_stalled_reader_costs_a_window_and_stops_no_other_stream() {
    let window = 1 << 20;
    let mut world = World::with(
        Faults { delay: MS, ..Faults::default() },
        1,
        Serve { limits: Limits { stream_window: window, ..limits() }, ..Serve::default() },
    );
    let pair = world.pair();
    let mut stalled = tunnel(&mut world, &pair);
    let mut lively = tunnel(&mut world, &pair);
    let data = pattern(65_536, 4);
    let (mut into_stalled, mut sent, mut got) = (0, 0, 0);
    world.until(|_| {
        // The service of one tunnel sends and its user does not read; the other tunnel is read.
        into_stalled += write_some(&mut stalled.service, &data);
        sent += write_some(&mut lively.service, &data);
        got += read_all(&mut lively.user).0.len();
        got > 20_000_000
    });
    let (_, taken) = world
        .client
        .engine
        .relays
        .get(stalled.far)
        .map(|relay| (relay.bytes_to_socket, relay.bytes_to_stream))
        .expect("it runs");
    assert!(taken <= 4 << 20, "{taken} bytes are kept for a reader that does not read");
    assert!(got <= sent);
    // When it reads again, all of it is there.
    let mut late = 0;
    world.until(|_| {
        late += read_all(&mut stalled.user).0.len();
        late == into_stalled
    });
}

#[test]
fn small_answers_do_not_wait_behind_a_bulk_stream() {
    // 8 Gbit/s: an answer waits for what was sent before it, which is not more than the least send window.
    let faults = Faults { delay: Duration::from_micros(20), bytes_per_s: 1e9, ..Faults::default() };
    let mut world = World::new(faults);
    let pair = world.pair();
    let mut bulk: Vec<_> = (0..4).map(|_| tunnel(&mut world, &pair)).collect();
    let mut small = tunnel(&mut world, &pair);
    let data = pattern(1 << 16, 5);
    let mut waits = Vec::new();
    for _ in 0..50 {
        small.service.write_all(b"answer").expect("there is room");
        let requested_at = world.now;
        let mut got = 0;
        world.until(|_| {
            for tunnel in &mut bulk {
                while write_some(&mut tunnel.service, &data) > 0 {}
                read_all(&mut tunnel.user);
            }
            got += read_all(&mut small.user).0.len();
            got == 6
        });
        waits.push(world.now - requested_at);
    }
    waits.sort();
    assert!(waits[25] < Duration::from_micros(1500), "{waits:?}");
}

#[test]
fn a_bulk_stream_has_its_turn_beside_many_small_ones() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let mut tunnel = tunnel(&mut world, &pair);
    let data = pattern(1 << 16, 5);
    let moved = |world: &World, tunnel: &Tunnel| {
        world.client.engine.relays.get(tunnel.far).expect("nothing ended it").bytes_to_stream
    };
    let mut written = 0;
    while written < 3 * data.len() {
        written += write_some(&mut tunnel.service, &data);
        world.settle();
    }
    assert_eq!(moved(&world, &tunnel), written as u64);
    write_some(&mut tunnel.service, &data);
    world.client.engine.relay_polled(tunnel.far, libc::EPOLLIN);
    assert_eq!(world.client.engine.bulk, [tunnel.far]);
    // Those that move little have read more than a share together.
    world.client.engine.share.moved(false, 1 << 20, world.now);
    world.client.engine.pump_relays(world.now);
    assert!(moved(&world, &tunnel) > written as u64);
}

#[test]
fn every_byte_arrives_over_a_bad_path() {
    let faults = Faults { loss: 0.05, duplicates: 0.05, jitter: 10 * MS, ..Faults::default() };
    let mut world = World::new(faults);
    let pair = world.pair();
    let mut tunnel = tunnel(&mut world, &pair);
    let data = pattern(2_000_000, 6);
    let (mut written, mut got) = (0, Vec::new());
    world.until(|_| {
        written += write_some(&mut tunnel.service, &data[written..]);
        got.extend(read_all(&mut tunnel.user).0);
        got.len() >= data.len()
    });
    assert!(got == data);
}
