//! What a path does to a connection that stands: silence, a new address, another size.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use quinn_udp::RecvMeta;

use super::net::{Faults, JUMBO_PAYLOAD, LOOPBACK_PAYLOAD};
use super::world::{client_address, limits, Dial, Pair, Serve, World, MS, S, SERVER};
use crate::arena::Id;
use crate::events::Event;
use crate::transport::{largest_datagram, Limits};

/// UDP payload of a packet of 1500 bytes.
const ETHERNET: u16 = 1472;

fn mtu(world: &mut World, pair: &Pair) -> (u16, u16) {
    (world.client.conn(pair.client).quic.current_mtu(), world.server.conn(pair.server).quic.current_mtu())
}

/// Send `bytes` from the client to the server, and see them all arrive, each as it was written.
fn transfer(world: &mut World, pair: &Pair, bytes: usize) {
    let stream = world.stream(pair, b"!");
    let sent: Vec<u8> = (0..bytes).map(|number| (number % 251) as u8).collect();
    world.client.write(pair.client, stream, &sent);
    world.client.finish(pair.client, stream);
    let mut got = Vec::new();
    let mut ended = false;
    world.until(|world| {
        while let Some(data) = world.server.read(pair.server, stream, 1 << 20) {
            ended |= data.is_empty();
            got.extend(data);
            if ended {
                break;
            }
        }
        ended
    });
    assert_eq!(got.len(), bytes + 1);
    assert!(got[1..] == sent);
}

#[test]
fn silence_ends_a_connection_at_its_time() {
    let quiet = Limits { keep_alive: 3600 * S, ..limits() };
    let mut world = World::with(Faults::default(), 1, Serve { limits: quiet.clone(), ..Serve::default() });
    let pair = world.pair_with(Dial { limits: quiet, ..Dial::default() });
    world.pass(5 * S); // the search for the size is over
    let last = world.client.conn(pair.client).last_received_at;
    world.until(|world| world.client.closed(pair.client).is_some() && world.server.closed(pair.server).is_some());
    assert_eq!(world.client.closed(pair.client).map(|reason| reason.kind), Some("idle"));
    assert_eq!(world.server.closed(pair.server).map(|reason| reason.kind), Some("idle"));
    let late = (world.now - last).abs_diff(limits().idle_timeout);
    assert!(late < S, "{late:?}");
    assert!(world.client.is_empty() && world.server.is_empty());
}

#[test]
fn keep_alive_keeps_it() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.pass(600 * S);
    assert!(world.client.closed(pair.client).is_none() && world.server.closed(pair.server).is_none());
    let silence = world.now - world.server.conn(pair.server).last_received_at;
    assert!(silence <= limits().keep_alive + S, "{silence:?}");
}

#[test]
fn a_connection_waits_through_a_black_hole() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"!");
    world.net.set(|faults| faults.is_cut = true);
    world.client.write(pair.client, stream, b"through");
    world.pass(20 * S);
    assert!(world.client.conn(pair.client).is_outstanding());
    assert!(world.now - world.client.conn(pair.client).last_received_at >= 19 * S);
    world.net.set(|faults| faults.is_cut = false);
    let cut = world.now;
    let mut got = Vec::new();
    world.until(|world| {
        got.extend(world.server.read(pair.server, stream, 100).unwrap_or_default());
        got == b"!through"
    });
    assert!(world.now - cut < 20 * S, "{:?}", world.now - cut);
    world.pass(S);
    assert!(!world.client.conn(pair.client).is_outstanding());
}

#[test]
fn a_black_hole_that_lasts_ends_both_ends() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.net.set(|faults| faults.is_cut = true);
    let cut = world.now;
    world.until(|world| world.client.closed(pair.client).is_some() && world.server.closed(pair.server).is_some());
    // A keep-alive that is not answered restarts the idle timeout, once (RFC 9000 §10.1).
    assert!(world.now - cut <= limits().idle_timeout + limits().keep_alive + S, "{:?}", world.now - cut);
    assert!(world.client.is_empty() && world.server.is_empty());
}

#[test]
fn a_connection_survives_new_addresses() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    for number in 0..10 {
        world.net.rebind(client_address(0), client_address(100 + number));
        transfer(&mut world, &pair, 100_000);
        world.pass(S);
        assert_eq!(world.server.conn(pair.server).quic.remote_address(), client_address(100 + number));
    }
    assert_eq!(world.server.conn(pair.server).streams.len(), 10, "the server has not ended its halves");
}

#[test]
fn the_size_of_datagrams_grows_to_what_the_path_carries() {
    let loopback = (LOOPBACK_PAYLOAD, u16::MAX, largest_datagram(Some(LOOPBACK_PAYLOAD)));
    let jumbo = (JUMBO_PAYLOAD, u16::MAX, largest_datagram(Some(JUMBO_PAYLOAD)));
    for (interface, path, at_most) in [loopback, jumbo, (JUMBO_PAYLOAD, ETHERNET, ETHERNET), (1400, 1200, 1200)] {
        let faults = Faults { payload: path, ..Faults::default() };
        let mut world = World::with(faults, 1, Serve { payload: interface, ..Serve::default() });
        let pair = world.pair_with(Dial { payload: interface, ..Dial::default() });
        world.pass(30 * S);
        let (client, server) = mtu(&mut world, &pair);
        // The search ends when little can be won.
        let expected = (at_most - 60).max(1200)..=at_most;
        assert!(expected.contains(&client) && expected.contains(&server), "{client} {server}, {expected:?}");
        transfer(&mut world, &pair, 1_000_000);
    }
}

#[test]
fn the_search_ends_at_the_mtu_of_the_interface() {
    let (ours, theirs) = (1452, 4000);
    let mut world = World::with(Faults::default(), 1, Serve { payload: theirs, ..Serve::default() });
    world.net.state().tap = Some(Vec::new());
    let pair = world.pair_with(Dial { payload: ours, ..Dial::default() });
    world.pass(30 * S);
    let sent = world.net.state().tap.take().expect("set above");
    let largest = |from_server: bool| {
        let of_one_side = sent.iter().filter(|datagram| (datagram.from == SERVER) == from_server);
        of_one_side.map(|datagram| datagram.data.len()).max()
    };
    assert_eq!(largest(false), Some(ours.into()));
    assert!(largest(true).is_some_and(|largest| largest > 1452 && largest <= usize::from(theirs)));
    assert_eq!(mtu(&mut world, &pair).0, ours);
}

#[test]
fn a_path_that_shrinks_is_found_out() {
    let mut world = World::new(Faults { payload: 9000, ..Faults::default() });
    let pair = world.pair();
    world.pass(10 * S);
    assert!(mtu(&mut world, &pair).0 > 8000);
    world.net.set(|faults| faults.payload = 1400);
    transfer(&mut world, &pair, 1_000_000);
    assert!(mtu(&mut world, &pair).0 <= 1400);
    // It is searched again later, and found.
    world.pass(120 * S);
    let size = mtu(&mut world, &pair).0;
    assert!((1300..=1400).contains(&size), "{size}");
}

#[test]
fn another_port_may_be_another_path() {
    let mut world = World::new(Faults { payload: 9000, ..Faults::default() });
    let pair = world.pair();
    let stream = world.stream(&pair, b"!");
    world.pass(10 * S);
    assert!(mtu(&mut world, &pair).1 > 8000);
    // A NAT that restarts, in front of a smaller path, while the server sends.
    world.net.set(|faults| faults.payload = 1200);
    world.net.rebind(client_address(0), client_address(100));
    world.server.write(pair.server, stream, &[7; 200_000]);
    world.client.write(pair.client, stream, b"here");
    let mut got = 0;
    world.until(|world| {
        got += world.client.read(pair.client, stream, 1 << 20).map_or(0, |data| data.len());
        got == 200_000
    });
}

#[test]
fn a_path_that_reorders_packets_loses_nothing() {
    let mut world = World::new(Faults { delay: 5 * MS, jitter: 20 * MS, duplicates: 0.2, ..Faults::default() });
    let pair = world.pair();
    transfer(&mut world, &pair, 2_000_000);
}

#[test]
fn the_send_window_follows_the_delay() {
    let long = Faults { delay: 100 * MS, ..Faults::default() };
    let short = Faults { delay: Duration::from_micros(20), ..Faults::default() };
    let mut times = Vec::new();
    for faults in [long, short] {
        let mut world = World::new(faults);
        let pair = world.pair();
        let started = world.now;
        transfer(&mut world, &pair, 4_000_000);
        times.push(world.now - started);
    }
    assert!(times[0] < 5 * S && times[1] < 100 * MS, "{times:?}");
}

#[test]
fn what_arrived_while_the_process_stood_still_counts_before_its_timers() {
    let idle = Limits { idle_timeout: 3 * S, keep_alive: 30 * S, ..limits() };
    let mut world = World::with(Faults::default(), 1, Serve { limits: idle.clone(), ..Serve::default() });
    let [talks, chats] = [0, 1].map(|_| world.pair_with(Dial { limits: idle.clone(), ..Dial::default() }));
    world.pass(2 * S);
    world.is_server_paused = true;
    for _ in 0..300 {
        // More of the one than is received at once, before anything of the other.
        world.client.conn(chats.client).quic.ping();
        world.client.engine.mark(chats.client);
        world.pass(MS);
    }
    world.client.conn(talks.client).quic.ping();
    world.client.engine.mark(talks.client);
    world.pass(2 * S); // the server heard nothing for longer than its idle timeout
    world.resume_server();
    world.pass(S);
    for pair in [talks, chats] {
        assert!(world.server.closed(pair.server).is_none());
        assert!(world.client.closed(pair.client).is_none());
    }
}

#[test]
fn while_its_socket_is_full_a_connection_still_hears_its_peer() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let stream = world.stream(&pair, b"!");
    world.net.block(SERVER, true);
    world.server.write(pair.server, stream, b"what waits for room");
    world.pass(20 * MS);
    assert_eq!(world.server.read(pair.server, stream, 10), Some(b"!".to_vec()));
    assert_eq!(world.server.read(pair.server, stream, 10), None); // it is to be told of more
    let readable = |event: &Event| matches!(event, Event::Readable { .. });
    world.server.events.retain(|event| !readable(event));
    world.client.write(pair.client, stream, b"more");
    world.pass(20 * MS);
    assert!(world.server.has(readable));
    world.client.engine.close_connection(pair.client, 7, b"enough", world.now);
    world.pass(20 * MS);
    assert!(world.server.closed(pair.server).is_some());
    world.unblock(SERVER);
    world.pass(60 * S);
    assert!(world.server.is_empty());
}

fn arrives_through(world: &mut World, port: Id, from: SocketAddr, data: &[u8]) {
    let meta = RecvMeta { addr: from, len: data.len(), stride: data.len(), ecn: None, dst_ip: Some(SERVER.ip()) };
    let (endpoint, now) = (world.endpoint, world.now);
    world.server.engine.datagram(port, endpoint, &meta, BytesMut::from(data), now);
}

#[test]
fn a_forged_packet_does_not_move_a_connection_to_another_socket() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    let other = client_address(99);
    let wire = world.net.wire(other, JUMBO_PAYLOAD);
    let endpoint = world.endpoint;
    let port = world.server.engine.add_port(endpoint, wire).expect("no descriptor for epoll");
    let before = world.server.conn(pair.server).port;
    world.net.state().tap = Some(Vec::new());
    world.client.conn(pair.client).quic.ping();
    world.client.engine.mark(pair.client);
    world.pass(50 * MS);
    let tapped = world.net.state().tap.take().expect("set above");
    let genuine = tapped.into_iter().find(|datagram| datagram.to == SERVER).expect("a PING");
    let mut forged = genuine.data.clone();
    *forged.last_mut().expect("a packet has bytes") ^= 1;
    arrives_through(&mut world, port, genuine.from, &forged);
    world.settle();
    assert_eq!(world.server.conn(pair.server).port, before);
    // An authentic one does.
    world.net.state().tap = Some(Vec::new());
    world.net.set(|faults| faults.is_cut = true);
    world.client.conn(pair.client).quic.ping();
    world.client.engine.mark(pair.client);
    world.pass(5 * MS);
    let tapped = world.net.state().tap.take().expect("set above");
    let genuine = tapped.into_iter().find(|datagram| datagram.to == SERVER).expect("a PING");
    arrives_through(&mut world, port, genuine.from, &genuine.data);
    world.settle();
    assert_eq!(world.server.conn(pair.server).port, port);
}
