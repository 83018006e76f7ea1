//! Options of TCP sockets, of user connections and to services, as `qmux.sockets`.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// No Nagle delay, keep-alive, and closed with RST by whatever closes it without `finish`: also by the kernel, when this
/// process is killed. Sockets accepted by a socket with these inherit them.
pub fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)?; // the stream has no urgent data: its byte is passed on in its place
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))
}

/// Both directions have ended: closing the socket delivers what is still to be sent.
pub fn finish(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(None); // Err: a kind of socket without it, which needs none
}

/// close() then sends RST (socket(7), SO_LINGER with 0); no effect on Unix sockets.
pub fn reset_on_close(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO)); // Err: as above
}

/// Which of `events`, POLLERR and POLLHUP hold now (poll(2)); 0 where none does.
pub fn polled(fd: RawFd, events: libc::c_short) -> libc::c_short {
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the pointer is to one pollfd, as the count says.
    match unsafe { libc::poll(&mut polled, 1, 0) } {
        1 => polled.revents,
        _ => 0,
    }
}
