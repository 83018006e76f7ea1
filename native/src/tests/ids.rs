//! Connection IDs on the wire: every packet is steered to its worker, and unknown ones are recognised.

use proptest::prelude::*;

use super::net::{Datagram, Faults};
use super::world::{client_address, Dial, Serve, World, S, SERVER};
use crate::cid;

/// The destination ID of what clients sent.
fn destinations(sent: &[Datagram]) -> impl Iterator<Item = (bool, &[u8])> {
    sent.iter().filter(|datagram| datagram.to == SERVER).map(|datagram| {
        let is_long = datagram.data[0] & 0x80 != 0;
        (is_long, cid::destination(&datagram.data).expect("our client writes whole headers"))
    })
}

#[test]
fn every_packet_of_a_connection_steers_to_its_worker() {
    let mut world = World::with(Faults::default(), 1, Serve { slot: 258, ..Serve::default() });
    world.net.state().tap = Some(Vec::new());
    let pair = world.pair_with(Dial { lane: Some(17), ..Dial::default() });
    let stream = world.stream(&pair, b"x");
    // Every new path takes a new ID: more of them than the peer was given at once.
    for number in 0..12 {
        world.net.rebind(client_address(0), client_address(100 + number));
        world.client.write(pair.client, stream, b"x");
        world.pass(S);
    }
    let sent = world.net.state().tap.take().expect("set above");
    let initial = destinations(&sent).next().expect("an Initial");
    assert_eq!((initial.0, &initial.1[..2]), (true, &[0x80, 17][..]), "the lane that was requested");
    let later: Vec<_> = destinations(&sent).filter(|(_, id)| !cid::has_initial_form(id)).collect();
    assert!(later.len() > 24);
    assert!(later.iter().all(|(_, id)| cid::issued_slot(id) == Some(258)), "{later:?}");
    let all_short = destinations(&sent).filter(|(is_long, _)| !is_long).all(|(_, id)| !cid::has_initial_form(id));
    assert!(all_short, "a short header always has an issued ID");
    assert_eq!(world.client.conn(pair.client).peer_prefix, Some(258));
}

#[test]
fn a_client_without_a_lane_draws_one() {
    let mut world = World::new(Faults::default());
    world.net.state().tap = Some(Vec::new());
    for _ in 0..8 {
        world.dial(Dial::default());
    }
    world.settle();
    let sent = world.net.state().tap.take().expect("set above");
    let mut prefixes: Vec<_> = destinations(&sent).map(|(_, id)| [id[0], id[1]]).collect();
    assert!(prefixes.iter().all(|prefix| prefix[0] & 0x80 != 0));
    prefixes.sort_unstable();
    prefixes.dedup();
    assert!(prefixes.len() > 4, "{prefixes:?}");
}

#[test]
fn a_restarted_server_resets_its_old_connections() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.serve(Serve::default());
    world.client.engine.mark(pair.client);
    world.client.conn(pair.client).quic.ping();
    world.until(|world| world.client.closed(pair.client).is_some());
    assert_eq!(world.client.closed(pair.client).map(|reason| reason.kind), Some("reset"));
    let endpoint = world.endpoint();
    assert!(endpoint.stats.stateless_resets_sent > 0);
    assert_eq!(endpoint.stats.stateless_resets_sent, endpoint.unknown_connection());
    assert!(world.client.is_empty());
}

#[test]
fn another_key_resets_nothing() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    world.serve(Serve { reset_key: b"another server's", ..Serve::default() });
    world.until(|world| world.client.closed(pair.client).is_some());
    assert_eq!(world.client.closed(pair.client).map(|reason| reason.kind), Some("idle"));
    assert!(world.endpoint().stats.stateless_resets_sent > 0, "it was answered, and the client knew better");
}

#[test]
fn a_packet_of_another_live_worker_is_left_alone() {
    let mut world = World::new(Faults::default());
    let pair = world.pair();
    // The worker that comes up in its place has another slot, and the old one still lives elsewhere.
    world.serve(Serve { slot: 4, ..Serve::default() });
    world.endpoint().set_live_slots(vec![3, 4]);
    world.client.conn(pair.client).quic.ping();
    world.client.engine.mark(pair.client);
    world.pass(S);
    assert!(world.client.closed(pair.client).is_none());
    let endpoint = world.endpoint();
    assert!(endpoint.foreign_packets() > 0);
    assert_eq!((endpoint.stats.stateless_resets_sent, endpoint.unknown_connection()), (0, 0));
}

#[test]
fn resets_have_a_rate() {
    let mut world = World::new(Faults::default());
    for _ in 0..1000 {
        let stranger = [&[0x40][..], &cid::issued(3), &[0; 40]].concat();
        world.net.inject(client_address(0), SERVER, &stranger);
    }
    world.settle();
    let endpoint = world.endpoint();
    assert_eq!(endpoint.unknown_connection(), 1000);
    // By the real clock: a slow machine earns some more while it looks.
    assert!((200..1000).contains(&endpoint.stats.stateless_resets_sent), "{}", endpoint.stats.stateless_resets_sent);
}

proptest! {
    #[test]
    fn destination_is_a_part_of_the_header(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
        match cid::destination(&datagram) {
            None => prop_assert!(datagram.len() < 6 + 255),
            Some(id) => {
                let start = if datagram[0] & 0x80 == 0 { 1 } else { 6 };
                prop_assert_eq!(id, &datagram[start..start + id.len()]);
                if start == 1 {
                    prop_assert_eq!(id.len(), cid::BYTES);
                } else {
                    prop_assert_eq!(id.len(), usize::from(datagram[5]));
                }
                prop_assert!(!(cid::has_initial_form(id) && cid::issued_slot(id).is_some()));
            }
        }
    }

    #[test]
    fn an_issued_id_names_its_slot(slot in 0..=cid::MAX_SLOT) {
        let id = cid::issued(slot);
        prop_assert_eq!(cid::issued_slot(&id), Some(slot));
        prop_assert!(!cid::has_initial_form(&id));
        let datagram = [&[0x40][..], &id, b"payload"].concat();
        prop_assert_eq!(cid::destination(&datagram), Some(&id[..]));
        let first = cid::initial(Some(slot));
        prop_assert!(cid::has_initial_form(&first) && cid::issued_slot(&first).is_none());
    }
}
