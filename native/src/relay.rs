//! The relay: one stream, one socket, bytes in both directions with backpressure.
//!
//! Socket → stream reads only what quinn takes (the stream's window, and the send window of the connection); stream →
//! socket gives the window back only for what was taken here, at most a turn's worth ahead of the socket. So a stalled
//! relay holds little more than the window of its stream at the far end. FIN ↔ half-close, RST ↔ RESET_STREAM and
//! STOP_SENDING, as docs/architecture.md says.

mod engine;
mod read_buffer;
mod share;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use quinn_proto::{ReadError, StreamId, VarInt, WriteError};

pub use read_buffer::ReadBuffer;
use share::Pace;
pub use share::Share;

use crate::arena::Id;
use crate::connection::Conn;
use crate::counts::RelayedUser;
use crate::events::End;
use crate::sockets;

/// A read of less than this: the socket's sender does not fill it any more.
const SMALL_BYTES: usize = 16 << 10;

/// Read in a row from a socket that always had more: in quinn, such a stream waits behind those that ask for little.
/// (Turns here are decided by `share`, from what moves either way.)
const BULK_BYTES: usize = 256 << 10;
const BULK_PRIORITY: i32 = -1;

/// Chunks in one `sendmsg`.
const IOVECS: usize = 256;

// `qmux.protocol.frames.AppCode`
const CANCELLED: u32 = 0x11;
pub const SOCKET_RESET: u32 = 0x12;
const TIMED_OUT: u32 = 0x13;

impl End {
    /// The code for RESET_STREAM and STOP_SENDING; None where neither is sent.
    fn code(self) -> Option<VarInt> {
        match self {
            End::Finished | End::ConnectionLost => None,
            End::SocketReset => Some(SOCKET_RESET.into()),
            End::StreamReset | End::Aborted => Some(CANCELLED.into()),
            End::IdleTimeout | End::HalfClosedTimeout => Some(TIMED_OUT.into()),
        }
    }
}

/// Timeouts of one relay, as `qmux.quic.engine.RelayLimits`.
#[derive(Clone, Copy)]
pub struct Timeouts {
    pub idle: Option<Duration>,
    pub half_closed: Duration,
}

pub struct Relay {
    pub conn: Id,
    pub stream: StreamId,
    /// None: Python started it, and its end is reported.
    pub user: Option<RelayedUser>,
    socket: Option<OwnedFd>,
    timeouts: Timeouts,
    active_at: Instant,
    timer_at: Option<Instant>,
    /// Read from the socket, and not yet taken by quinn.
    inward: VecDeque<Bytes>,
    /// Read from the stream, and not yet taken by the socket.
    outward: VecDeque<Bytes>,
    outward_bytes: usize,
    // The result of the last attempt, until epoll or quinn reports a change.
    can_read: bool,
    can_write: bool,
    stream_readable: bool,
    stream_writable: bool,
    hung_up: bool,
    failed: bool,
    /// Urgent data was seen: a read ends at its mark (tcp(7), SIOCATMARK), and is short though there is more.
    has_urgent: bool,
    // How far each direction has ended.
    socket_ended: bool,
    fin_queued: bool,
    delivered: bool,
    stream_ended: bool,
    shut: bool,
    in_a_row: usize,
    pace: Pace,
    queued: bool,
    pub bytes_to_socket: u64,
    pub bytes_to_stream: u64,
}

/// The result of one turn of a relay.
#[derive(Default)]
struct Turn {
    /// quinn has something to send.
    touched: bool,
    /// There is more to do at once.
    again: bool,
    end: Option<End>,
}

impl Relay {
    fn pump(&mut self, conn: &mut Conn, buffer: &mut ReadBuffer, share: usize, now: Instant) -> Turn {
        let mut turn = Turn::default();
        let Some(fd) = self.socket.as_ref().map(AsRawFd::as_raw_fd) else { return turn };
        let mut result = Ok(());
        if !self.failed {
            result = self.fill_socket(conn, fd, &mut turn, share, now);
        }
        // Data from before an error is read first, as the kernel delivers it; the error itself is reported last.
        result = result.and_then(|()| self.fill_stream(conn, fd, buffer, &mut turn, share, now));
        let ended = self.fin_queued && self.shut;
        if self.failed && !ended && (self.fin_queued || !self.stream_writable) && socket_error(fd) != 0 {
            result = Err(End::SocketReset); // no read would get to it
        }
        turn.end = result.err();
        if ended {
            self.release(false); // done when the peer has it all
            if self.delivered {
                turn.end = turn.end.or(Some(End::Finished));
            }
            return turn;
        }
        let inward =
            self.stream_writable && !self.fin_queued && (self.can_read || self.socket_ended || !self.inward.is_empty());
        let outward = self.can_write
            && !self.failed
            && !self.shut
            && (self.stream_ended || self.stream_readable || !self.outward.is_empty());
        turn.again = turn.end.is_none() && (inward || outward);
        turn
    }

    fn fill_socket(
        &mut self,
        conn: &mut Conn,
        fd: RawFd,
        turn: &mut Turn,
        mut budget: usize,
        now: Instant,
    ) -> Result<(), End> {
        while self.can_write && budget > 0 {
            if self.stream_readable && self.outward_bytes < budget {
                self.take_from_stream(conn, budget)?;
                turn.touched = true;
            }
            if self.outward.is_empty() {
                break;
            }
            let sent = self.write_to_socket(fd)?;
            budget = budget.saturating_sub(sent);
            if sent > 0 {
                self.active_at = now;
            }
        }
        if self.stream_ended && self.outward.is_empty() && !self.shut {
            self.shut = true;
            self.active_at = now;
            // SAFETY: no pointers.
            if unsafe { libc::shutdown(fd, libc::SHUT_WR) } < 0 {
                return Err(End::SocketReset); // the other end reset it in the meantime
            }
        }
        Ok(())
    }

    fn take_from_stream(&mut self, conn: &mut Conn, limit: usize) -> Result<(), End> {
        let mut receive = conn.quic.recv_stream(self.stream);
        let Ok(mut chunks) = receive.read(true) else {
            (self.stream_readable, self.stream_ended) = (false, true); // read to its end before the relay started
            return Ok(());
        };
        let mut result = Ok(());
        while self.outward_bytes < limit {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    self.outward_bytes += chunk.bytes.len();
                    self.outward.push_back(chunk.bytes);
                    continue;
                }
                Ok(None) => (self.stream_readable, self.stream_ended) = (false, true),
                Err(ReadError::Blocked) => self.stream_readable = false,
                Err(ReadError::Reset(_)) => result = Err(End::StreamReset),
            }
            break;
        }
        let _ = chunks.finalize(); // the caller marks the connection in any case
        result
    }

    fn write_to_socket(&mut self, fd: RawFd) -> Result<usize, End> {
        let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; IOVECS];
        let mut wanted = 0;
        let mut count = 0;
        for (iovec, chunk) in iovecs.iter_mut().zip(&self.outward) {
            *iovec = libc::iovec { iov_base: chunk.as_ptr().cast_mut().cast(), iov_len: chunk.len() };
            wanted += chunk.len();
            count += 1;
        }
        // SAFETY: an all-zero msghdr is a valid one; its pointers are set below.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        message.msg_iovlen = count;
        // SAFETY: the iovecs point into chunks that live through the call, which only reads them.
        let sent = unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL) };
        let Ok(sent) = usize::try_from(sent) else {
            return match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => Ok(0),
                io::ErrorKind::WouldBlock => {
                    self.can_write = false;
                    Ok(0)
                }
                _ => Err(End::SocketReset),
            };
        };
        self.can_write = sent == wanted;
        self.bytes_to_socket += sent as u64;
        self.outward_bytes -= sent;
        let mut left = sent;
        while let Some(front) = self.outward.front_mut() {
            if left < front.len() {
                front.advance(left);
                break;
            }
            left -= front.len();
            self.outward.pop_front();
        }
        Ok(sent)
    }

    fn fill_stream(
        &mut self,
        conn: &mut Conn,
        fd: RawFd,
        buffer: &mut ReadBuffer,
        turn: &mut Turn,
        mut budget: usize,
        now: Instant,
    ) -> Result<(), End> {
        while self.stream_writable && !self.fin_queued && budget > 0 {
            let needs_data = self.inward.is_empty() && !self.socket_ended;
            if needs_data && !(self.can_read && self.read_from_socket(conn, fd, buffer, budget, now)?) {
                break;
            }
            let mut send = conn.quic.send_stream(self.stream);
            if self.inward.is_empty() {
                self.fin_queued = true;
                let _ = send.finish(); // Err: the peer stopped it, which an event reports
                turn.touched = true;
                break;
            }
            match send.write_chunks(self.inward.make_contiguous()) {
                Ok(written) => {
                    drop(self.inward.drain(..written.chunks));
                    budget = budget.saturating_sub(written.bytes);
                    turn.touched = true;
                }
                Err(WriteError::Blocked) => self.stream_writable = false,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => return Err(End::StreamReset),
            }
        }
        Ok(())
    }

    /// Whether there is something to be written to the stream: bytes or the end.
    fn read_from_socket(
        &mut self,
        conn: &mut Conn,
        fd: RawFd,
        buffer: &mut ReadBuffer,
        limit: usize,
        now: Instant,
    ) -> Result<bool, End> {
        let (data, more) = match buffer.read(fd, limit) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.can_read = false;
                return Ok(false);
            }
            Err(_) => return Err(End::SocketReset),
        };
        self.active_at = now;
        if data.is_empty() {
            self.socket_ended = true;
            return Ok(true);
        }
        self.bytes_to_stream += data.len() as u64;
        self.can_read = more || self.hung_up || self.has_urgent; // else epoll reports when there is more
        self.rate(conn, data.len());
        self.inward.push_back(data);
        Ok(true)
    }

    fn rate(&mut self, conn: &mut Conn, bytes: usize) {
        let was_bulk = self.in_a_row >= BULK_BYTES;
        self.in_a_row = if bytes < SMALL_BYTES { 0 } else { self.in_a_row.saturating_add(bytes) };
        let is_bulk = self.in_a_row >= BULK_BYTES;
        if is_bulk != was_bulk {
            let priority = if is_bulk { BULK_PRIORITY } else { 0 };
            let _ = conn.quic.send_stream(self.stream).set_priority(priority); // Err: it has ended
        }
    }

    /// When inactivity ends it, and by which timeout.
    fn deadline(&self) -> Option<(Instant, End)> {
        let half_closed = self.fin_queued || self.shut;
        let half_at = half_closed.then(|| (self.active_at + self.timeouts.half_closed, End::HalfClosedTimeout));
        let open = self.socket.is_some();
        let idle_at = self.timeouts.idle.filter(|_| open).map(|idle| (self.active_at + idle, End::IdleTimeout));
        [half_at, idle_at].into_iter().flatten().min_by_key(|&(at, _)| at)
    }

    /// Close the socket, with RST where it did not end by itself.
    fn release(&mut self, with_reset: bool) {
        let Some(socket) = self.socket.take() else { return };
        match with_reset {
            true => sockets::reset_on_close(&socket),
            false => sockets::finish(&socket),
        }
    }
}

/// The pending error of a socket, taken.
fn socket_error(fd: RawFd) -> libc::c_int {
    let mut error: libc::c_int = 0;
    let mut size = std::mem::size_of_val(&error) as libc::socklen_t;
    // SAFETY: both pointers are to locals of the size that `size` says.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &mut size) };
    error
}
