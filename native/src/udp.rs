//! UDP sockets: receive with GRO, send with GSO, answers from the address that the peer sent to (quinn-udp).

mod buffers;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use quinn_proto::Transmit;
use quinn_udp::{EcnCodepoint, RecvMeta, UdpSockRef, UdpSocketState};

use crate::arena::Id;

pub use buffers::Buffers;

/// The kernel drops a larger GSO batch silently (its IP length field has 16 bits).
const MAX_BATCH_BYTES: usize = 65_507;

/// Linux: the MTU of a connected socket's route (ipv6(7); not in every libc).
const IPV6_MTU: libc::c_int = 24;

/// The result of sending a datagram.
pub enum Sent {
    Done,
    Blocked,
    Failed(io::Error),
}

/// What carries datagrams: a socket; in tests, a simulated network.
pub trait Wire: Send + Sync {
    /// What epoll watches; None where there is no descriptor.
    fn fd(&self) -> Option<RawFd>;

    /// Datagrams that one `Transmit` may hold.
    fn max_segments(&self) -> usize;

    /// The UDP payload that the interface towards `peer` carries; None where it is unknown.
    fn payload_towards(&self, peer: SocketAddr) -> Option<u16>;

    fn send(&mut self, transmit: &quinn_udp::Transmit<'_>) -> io::Result<()>;

    /// Fill the first of these buffers; how many were filled.
    fn receive(&mut self, slices: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize>;
}

/// After one send with EINVAL or EIO quinn-udp sends each datagram alone and without ECN, for as long as its state lives. The
/// cause may be one packet, such as one to an address that the interface has lost: try again after this time, and after
/// twice of it each time that it fails again.
const RETRY_OFFLOAD_AFTER: Duration = Duration::from_secs(5);
const RETRY_OFFLOAD_AFTER_MOST: Duration = Duration::from_secs(320);

/// One non-blocking UDP socket.
pub struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Of a new state.
    segments: usize,
    fell_at: Option<Instant>,
    retry_after: Duration,
}

impl Socket {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = UdpSocket::from(fd);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let segments = state.max_gso_segments();
        Ok(Self { socket, state, segments, fell_at: None, retry_after: RETRY_OFFLOAD_AFTER })
    }

    /// Segmentation again, where it was lost some time ago.
    fn retry_offload(&mut self, now: Instant) {
        let fell_at = *self.fell_at.get_or_insert(now);
        if now - fell_at < self.retry_after {
            return;
        }
        if let Ok(state) = UdpSocketState::new(UdpSockRef::from(&self.socket)) {
            self.state = state;
        }
        self.fell_at = None;
        self.retry_after = (2 * self.retry_after).min(RETRY_OFFLOAD_AFTER_MOST);
    }
}

/// Whether a datagram to this address may be answered: a multicast or broadcast address is none to send from, and the
/// attempt would cost the socket its segmentation.
pub fn is_own(destination: Option<IpAddr>) -> bool {
    match destination {
        Some(IpAddr::V4(ip)) => !ip.is_multicast() && !ip.is_broadcast(),
        Some(IpAddr::V6(ip)) => !ip.is_multicast(),
        None => true,
    }
}

impl Wire for Socket {
    fn fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn max_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn payload_towards(&self, peer: SocketAddr) -> Option<u16> {
        match self.socket.peer_addr() {
            Ok(_) => route_bytes(&self.socket),
            Err(_) => payload_towards(peer), // a server's, which is not connected
        }
    }

    fn send(&mut self, transmit: &quinn_udp::Transmit<'_>) -> io::Result<()> {
        if self.state.max_gso_segments() < self.segments {
            self.retry_offload(Instant::now());
        }
        self.state.try_send(UdpSockRef::from(&self.socket), transmit)
    }

    fn receive(&mut self, slices: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.socket), slices, meta)
    }
}

/// One wire of an endpoint, and what waits until it is writable.
pub struct Port {
    wire: Box<dyn Wire>,
    pub endpoint: Id,
    pub readable: bool,
    pub writable: bool,
    /// What the kernel did not take; sent before anything else.
    pub blocked: Option<(Transmit, Vec<u8>)>,
    /// Connections that wait until it is writable.
    pub waiting: Vec<Id>,
}

impl Port {
    pub fn new(wire: Box<dyn Wire>, endpoint: Id) -> Self {
        Self { wire, endpoint, readable: true, writable: true, blocked: None, waiting: Vec::new() }
    }

    /// The socket's descriptor; None on a network of a test.
    pub fn fd(&self) -> Option<RawFd> {
        self.wire.fd()
    }

    /// Datagrams that one `Transmit` may hold at this size.
    pub fn segments(&self, mtu: u16) -> usize {
        self.wire.max_segments().min(MAX_BATCH_BYTES / usize::from(mtu.max(1))).max(1)
    }

    pub fn send(&mut self, transmit: &Transmit, data: &[u8]) -> Sent {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
            contents: &data[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match self.wire.send(&transmit) {
            Ok(()) => Sent::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Sent::Blocked
            }
            Err(error) => Sent::Failed(error),
        }
    }

    pub fn receive(&mut self, buffers: &mut Buffers) -> io::Result<usize> {
        let (mut slices, meta) = buffers.parts();
        let count = self.wire.receive(&mut slices, meta)?;
        self.readable = count == slices.len();
        Ok(count)
    }

    pub fn payload_towards(&self, peer: SocketAddr) -> Option<u16> {
        self.wire.payload_towards(peer)
    }
}

/// Read from a temporary socket that is connected to `peer`.
fn payload_towards(peer: SocketAddr) -> Option<u16> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    route_bytes(&socket)
}

fn route_bytes(socket: &UdpSocket) -> Option<u16> {
    let (level, option, headers) = match socket.peer_addr().ok()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU, 20 + 8),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_MTU, 40 + 8),
    };
    let mut mtu: libc::c_int = 0;
    let mut size = std::mem::size_of_val(&mtu) as libc::socklen_t;
    // SAFETY: both pointers are to locals of the size that `size` says.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &mut size) };
    (result == 0).then(|| (mtu - headers).clamp(0, i32::from(u16::MAX)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segmented(socket: &mut Socket, to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
        let contents = [7; 300];
        socket.send(&quinn_udp::Transmit {
            destination: to,
            ecn: None,
            contents: &contents,
            segment_size: Some(100),
            src_ip: from,
        })
    }

    #[test]
    fn segmentation_comes_back_after_a_send_that_failed() {
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let to = peer.local_addr().expect("it is bound");
        let bound = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
        let mut socket = Socket::new(bound.into()).expect("a UDP socket");
        assert!(socket.max_segments() > 1, "the kernel has GSO");
        let _ = segmented(&mut socket, to, Some(Ipv4Addr::BROADCAST.into())); // EINVAL
        assert_eq!(socket.max_segments(), 1);
        let now = Instant::now();
        socket.retry_offload(now);
        assert_eq!(socket.max_segments(), 1);
        socket.retry_offload(now + RETRY_OFFLOAD_AFTER);
        assert!(socket.max_segments() > 1);
        assert_eq!(socket.retry_after, 2 * RETRY_OFFLOAD_AFTER);
    }

    #[test]
    fn datagrams_to_everybody_are_not_answered() {
        for own in ["127.0.0.1", "10.1.2.3", "2001:db8::1", "::1"] {
            assert!(is_own(Some(own.parse().expect("an address"))));
        }
        for other in ["255.255.255.255", "224.0.0.1", "ff02::1"] {
            assert!(!is_own(Some(other.parse().expect("an address"))));
        }
        assert!(is_own(None));
    }
}
