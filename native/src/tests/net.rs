//! A network that is not there: what is sent at one address arrives at another one, in simulated time, or not.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use quinn_proto::TimeSource;
use quinn_udp::{EcnCodepoint, RecvMeta};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::udp::Wire;

/// What interfaces carry, as `route_bytes` tells it: loopback, and one with jumbo frames.
pub const LOOPBACK_PAYLOAD: u16 = 65_507;
pub const JUMBO_PAYLOAD: u16 = 9000 - 28;

/// Segments that the simulated kernel takes at once, and merges.
const SEGMENTS: usize = 16;

/// What the network does to every datagram.
#[derive(Clone, Debug)]
pub struct Faults {
    /// One way.
    pub delay: Duration,
    /// Up to so much more: what was sent later may arrive earlier.
    pub jitter: Duration,
    /// Shares of all datagrams.
    pub loss: f64,
    pub duplicates: f64,
    pub corrupt: f64,
    /// What a link carries, each way; the rest waits in front of it. Infinite: at once.
    pub bytes_per_s: f64,
    /// Larger ones are lost.
    pub payload: u16,
    /// Nothing arrives.
    pub is_cut: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicates: 0.0,
            corrupt: 0.0,
            bytes_per_s: f64::INFINITY,
            payload: u16::MAX,
            is_cut: false,
        }
    }
}

#[derive(Clone)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub data: Vec<u8>,
    ecn: Option<EcnCodepoint>,
}

/// What happens to one datagram, whatever happens to all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    Late(Duration),
    Lost,
}

type Decide = Box<dyn FnMut(&Datagram) -> Fate + Send>;

pub struct State {
    started: Instant,
    now: Instant,
    pub faults: Faults,
    random: StdRng,
    /// By arrival; the number keeps those apart that arrive together.
    flying: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    inboxes: HashMap<SocketAddr, VecDeque<Datagram>>,
    /// When the link away from there has sent what waits.
    links: HashMap<IpAddr, Instant>,
    /// What an address is called outside of its NAT.
    outside: HashMap<SocketAddr, SocketAddr>,
    /// Addresses whose kernel takes nothing more.
    blocked: Vec<SocketAddr>,
    /// Everything that was sent, where a test asks for it.
    pub tap: Option<Vec<Datagram>>,
    /// Where a test decides for each datagram.
    pub fate: Option<Decide>,
}

/// All of it; one handle for the test and for each wire.
#[derive(Clone)]
pub struct Net(Arc<Mutex<State>>);

impl Net {
    pub fn new(now: Instant, seed: u64, faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State {
            started: now,
            now,
            faults,
            random: StdRng::seed_from_u64(seed),
            flying: BTreeMap::new(),
            sent: 0,
            inboxes: HashMap::new(),
            links: HashMap::new(),
            outside: HashMap::new(),
            blocked: Vec::new(),
            tap: None,
            fate: None,
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test goes on after a panic")
    }

    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// A new end of the network, behind an interface that carries `payload`.
    pub fn wire(&self, address: SocketAddr, payload: u16) -> Box<dyn Wire> {
        self.state().inboxes.insert(address, VecDeque::new());
        Box::new(End { net: self.clone(), address, payload })
    }

    /// The peer sees `address` as `outside` from now on, as behind a NAT that forgot it.
    pub fn rebind(&self, address: SocketAddr, outside: SocketAddr) {
        self.state().outside.insert(address, outside);
    }

    pub fn block(&self, address: SocketAddr, is_blocked: bool) {
        let mut state = self.state();
        state.blocked.retain(|&other| other != address);
        if is_blocked {
            state.blocked.push(address);
        }
    }

    pub fn inject(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) {
        let datagram = Datagram { from, to, data: data.to_vec(), ecn: None };
        let mut state = self.state();
        let (now, number) = (state.now, state.number());
        state.flying.insert((now, number), datagram);
    }

    /// What has arrived by `now` is put into its inbox; the addresses that have something.
    pub fn arrive(&self, now: Instant) -> Vec<SocketAddr> {
        let mut state = self.state();
        state.now = now;
        while let Some(entry) = state.flying.first_entry().filter(|entry| entry.key().0 <= now) {
            let datagram = entry.remove();
            let inside = state.inside(datagram.to);
            if let Some(inbox) = inside.and_then(|inside| state.inboxes.get_mut(&inside)) {
                inbox.push_back(datagram);
            }
        }
        state.inboxes.iter().filter(|(_, inbox)| !inbox.is_empty()).map(|(&address, _)| address).collect()
    }

    pub fn next_arrival(&self) -> Option<Instant> {
        self.state().flying.first_key_value().map(|(&(at, _), _)| at)
    }
}

impl TimeSource for Net {
    fn now(&self) -> SystemTime {
        let state = self.state();
        SystemTime::UNIX_EPOCH + state.now.duration_since(state.started)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// Whose address this is at the moment; a NAT keeps no old one.
    fn inside(&self, address: SocketAddr) -> Option<SocketAddr> {
        match self.outside.iter().find(|(_, &outside)| outside == address) {
            Some((&inside, _)) => Some(inside),
            None => (!self.outside.contains_key(&address)).then_some(address),
        }
    }

    fn send(&mut self, mut datagram: Datagram) {
        if let Some(tap) = &mut self.tap {
            tap.push(datagram.clone());
        }
        let fate = self.fate.as_mut().map_or(Fate::Arrives, |decide| decide(&datagram));
        let late = match fate {
            Fate::Arrives => Duration::ZERO,
            Fate::Late(late) => late,
            Fate::Lost => return,
        };
        let faults = self.faults.clone();
        let is_too_large = datagram.data.len() > usize::from(faults.payload);
        if faults.is_cut || is_too_large || self.random.random_bool(faults.loss) {
            return;
        }
        let link = self.links.entry(datagram.from.ip()).or_insert(self.now);
        *link = self.now.max(*link) + Duration::from_secs_f64(datagram.data.len() as f64 / faults.bytes_per_s);
        let sent = *link;
        if self.random.random_bool(faults.corrupt) {
            let at = self.random.random_range(0..datagram.data.len());
            datagram.data[at] ^= 1 << self.random.random_range(0..8);
        }
        for _ in 0..=u32::from(self.random.random_bool(faults.duplicates)) {
            let at = sent + late + faults.delay + faults.jitter.mul_f64(self.random.random());
            let number = self.number();
            self.flying.insert((at, number), datagram.clone());
        }
    }
}

/// What an engine sends through, and receives from.
struct End {
    net: Net,
    address: SocketAddr,
    payload: u16,
}

impl Wire for End {
    fn fd(&self) -> Option<RawFd> {
        None
    }

    fn max_segments(&self) -> usize {
        SEGMENTS
    }

    fn payload_towards(&self, _: SocketAddr) -> Option<u16> {
        Some(self.payload)
    }

    fn send(&mut self, transmit: &quinn_udp::Transmit<'_>) -> io::Result<()> {
        let mut state = self.net.state();
        if state.blocked.contains(&self.address) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let from = state.outside.get(&self.address).copied().unwrap_or(self.address);
        let segments = transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()));
        assert!(segments.len() <= SEGMENTS);
        for data in segments {
            if data.len() > usize::from(self.payload) {
                continue; // EMSGSIZE, which quinn-udp does not tell
            }
            state.send(Datagram { from, to: transmit.destination, data: data.to_vec(), ecn: transmit.ecn });
        }
        Ok(())
    }

    fn receive(&mut self, slices: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let mut state = self.net.state();
        let inbox = state.inboxes.get_mut(&self.address).expect("made with the wire");
        let mut count = 0;
        for (slice, meta) in slices.iter_mut().zip(meta) {
            let Some(first) = inbox.pop_front() else { break };
            let stride = first.data.len();
            let mut merged = first.data;
            // As GRO: datagrams of one size that came in a row, the last one may be shorter.
            for _ in 1..SEGMENTS {
                let room = slice.len() - merged.len();
                let fits =
                    |next: &Datagram| (1..=stride.min(room)).contains(&next.data.len()) && next.from == first.from;
                if merged.len() % stride.max(1) != 0 || !inbox.front().is_some_and(fits) {
                    break;
                }
                merged.extend_from_slice(&inbox.pop_front().expect("looked at just now").data);
            }
            slice[..merged.len()].copy_from_slice(&merged);
            let (addr, ecn, dst_ip) = (first.from, first.ecn, Some(self.address.ip()));
            *meta = RecvMeta { addr, len: merged.len(), stride, ecn, dst_ip };
            count += 1;
        }
        match count {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}
