//! What sockets are read into.

use std::io;
use std::os::fd::RawFd;

use bytes::{Bytes, BytesMut};

use super::share::SHARE_BYTES;

/// A read buffer with less room than this is replaced.
const READ_BYTES: usize = 64 << 10;

/// A piece smaller than this is copied, so that it does not hold the whole read buffer: what the peer does not take would
/// otherwise keep up to `SHARE_BYTES` for each piece.
const COPIED_BYTES: usize = 64 << 10;

/// Sockets are read into this; large pieces are passed on without a copy.
pub struct ReadBuffer(BytesMut);

impl ReadBuffer {
    pub fn new() -> Self {
        Self(BytesMut::new())
    }

    /// At most `limit` bytes, and whether the kernel may have more.
    pub fn read(&mut self, fd: RawFd, limit: usize) -> io::Result<(Bytes, bool)> {
        if self.0.capacity() < READ_BYTES {
            self.0 = BytesMut::with_capacity(SHARE_BYTES); // zeroing it would cost 5 % of a transfer
        }
        let room = self.0.spare_capacity_mut();
        let wanted = room.len().min(limit);
        // SAFETY: the pointer is to at least `wanted` bytes that are ours; the kernel only writes them.
        let count = unsafe { libc::recv(fd, room.as_mut_ptr().cast(), wanted, 0) };
        let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
        // SAFETY: the kernel has just written that many bytes, and `self.0` was empty before.
        unsafe { self.0.set_len(count) };
        if count < COPIED_BYTES {
            let copy = Bytes::copy_from_slice(&self.0);
            self.0.clear();
            return Ok((copy, count == wanted));
        }
        Ok((self.0.split().freeze(), count == wanted))
    }
}
