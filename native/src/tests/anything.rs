//! Datagrams of unknown origin: all are counted, cost little, and do not disturb established connections.

use std::collections::HashMap;

use proptest::prelude::*;

use super::net::{Datagram, Faults};
use super::world::{client_address, credentials, Dial, Pair, Say, Serve, World, S, SERVER};
use crate::events::Event;
use crate::fuzzing;

/// An address without a wire: what is sent there is only counted.
const STRANGER: u16 = 9000;

/// Something with the head of a QUIC packet, or not even that.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![Just(1u32), Just(0), Just(0x0a0a_0a0a), any::<u32>()];
    let slots = prop_oneof![Just(3u16), Just(4), Just(0x8003), any::<u16>()];
    let body = proptest::collection::vec(any::<u8>(), 0..1400);
    let long = (0x80u8.., version, any::<u8>(), slots.clone(), body.clone()).prop_map(
        |(first, version, id_bytes, slot, body)| {
            [&[first][..], &version.to_be_bytes(), &[id_bytes], &slot.to_be_bytes(), &body].concat()
        },
    );
    let short = (0x40u8..0x80, slots, body.clone())
        .prop_map(|(first, slot, body)| [&[first][..], &slot.to_be_bytes(), &body].concat());
    prop_oneof![long, short, body]
}

/// The datagrams of a whole connection from a client.
fn recorded() -> Vec<Datagram> {
    let mut world = World::new(Faults::default());
    world.net.state().tap = Some(Vec::new());
    let pair = world.pair();
    world.stream(&pair, b"some bytes");
    world.client.engine.close_connection(pair.client, 1, b"", world.now);
    world.pass(S);
    let sent = world.net.state().tap.take().expect("set above");
    sent.into_iter().filter(|datagram| datagram.to == SERVER).collect()
}

/// One change to a datagram.
#[derive(Clone, Debug)]
enum Change {
    Set { at: prop::sample::Index, byte: u8 },
    Cut { at: prop::sample::Index },
    Swap { at: prop::sample::Index, with: prop::sample::Index },
    Append(Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set { at, byte }),
        any::<prop::sample::Index>().prop_map(|at| Change::Cut { at }),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(at, with)| Change::Swap { at, with }),
        proptest::collection::vec(any::<u8>(), 1..50).prop_map(Change::Append),
    ]
}

fn changed(mut data: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        match change {
            _ if data.is_empty() => {}
            Change::Set { at, byte } => *at.get_mut(&mut data) = *byte,
            Change::Cut { at } => data.truncate(at.index(data.len())),
            Change::Swap { at, with } => {
                let (at, with) = (at.index(data.len()), with.index(data.len()));
                data.swap(at, with);
            }
            Change::Append(more) => data.extend_from_slice(more),
        }
    }
    data
}

/// One client is connected, and strangers send `datagrams`; how many bytes each was answered with.
fn attack(datagrams: &[Vec<u8>]) -> (World, Pair, HashMap<u16, usize>) {
    let mut world = World::with(Faults::default(), 1, Serve::default());
    world.endpoint().set_live_slots(vec![3, 4]);
    let pair = world.pair();
    let before = world.endpoint().stats.datagrams_received;
    world.net.state().tap = Some(Vec::new());
    for (number, data) in datagrams.iter().enumerate() {
        world.net.inject(client_address(STRANGER + number as u16), SERVER, data);
    }
    world.settle();
    assert_eq!(world.endpoint().stats.datagrams_received - before, datagrams.len() as u64);
    world.pass(8 * S);
    let mut answered = HashMap::new();
    for sent in world.net.state().tap.take().expect("set above") {
        *answered.entry(sent.to.port()).or_default() += sent.data.len();
    }
    (world, pair, answered)
}

/// The established connection still works, and a new one is accepted.
fn assert_all_is_well(world: &mut World, pair: &Pair) {
    let stream = world.stream(pair, b"as before");
    assert_eq!(world.server.read(pair.server, stream, 100).as_deref(), Some(&b"as before"[..]));
    world.pair_with(Dial::default());
    let endpoint = world.endpoint();
    assert_eq!((endpoint.open, endpoint.half_open), (2, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn strangers_are_counted_and_disturb_no_connection(datagrams in proptest::collection::vec(datagram(), 1..24)) {
        let (mut world, pair, answered) = attack(&datagrams);
        for (number, data) in datagrams.iter().enumerate() {
            let got = answered.get(&client_address(STRANGER + number as u16).port()).copied().unwrap_or_default();
            prop_assert!(got <= 3 * data.len(), "{} bytes for {}", got, data.len());
        }
        assert_all_is_well(&mut world, &pair);
    }

    #[test]
    fn a_garbled_connection_disturbs_no_other(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), proptest::collection::vec(change(), 0..6)), 1..12),
    ) {
        let recorded = recorded();
        let datagrams: Vec<_> =
            changes.iter().map(|(which, changes)| changed(which.get(&recorded).data.clone(), changes)).collect();
        let (mut world, pair, answered) = attack(&datagrams);
        let strangers = client_address(STRANGER).port()..;
        let got: usize = answered.iter().filter(|(port, _)| strangers.contains(port)).map(|(_, bytes)| bytes).sum();
        let sent: usize = datagrams.iter().map(Vec::len).sum();
        let accepted = world.server.events.iter().filter(|event| matches!(event, Event::Accepted { .. })).count();
        // quinn checks whether one byte more is allowed, and then sends a datagram.
        prop_assert!(got <= 3 * sent + 1200 * accepted, "{got} bytes for {sent}");
        assert_all_is_well(&mut world, &pair);
    }

    #[test]
    fn a_client_is_not_confused_by_strangers(datagrams in proptest::collection::vec(datagram(), 1..24)) {
        let mut world = World::new(Faults::default());
        let pair = world.pair();
        for data in &datagrams {
            world.net.inject(SERVER, client_address(0), data);
        }
        world.pass(S);
        prop_assert!(world.client.closed(pair.client).is_none());
        let stream = world.stream(&pair, b"x");
        prop_assert_eq!(world.server.read(pair.server, stream, 100), Some(b"x".to_vec()));
    }

    #[test]
    fn merged_datagrams_are_counted_each(sizes in proptest::collection::vec(0usize..1500, 1..200)) {
        let mut world = World::new(Faults::default());
        for size in &sizes {
            world.net.inject(client_address(STRANGER), SERVER, &vec![0x40; *size]);
        }
        world.settle();
        prop_assert_eq!(world.endpoint().stats.datagrams_received, sizes.len() as u64);
    }

    #[test]
    fn the_entrances_for_fuzzing_hold(datagrams in proptest::collection::vec(datagram(), 1..24)) {
        let credentials = credentials(Say::Accept("a client"));
        let mut server = fuzzing::Server::new(credentials.chain[0].clone(), credentials.key);
        for data in &datagrams {
            fuzzing::destination(data);
            fuzzing::stream_head(data);
            server.feed(data);
        }
    }
}
