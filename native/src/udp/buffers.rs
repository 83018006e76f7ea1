//! Receive buffers; datagrams are passed on in them without a copy, or copied.

use std::io::IoSliceMut;

use bytes::BytesMut;
use quinn_udp::RecvMeta;

/// Buffers in one receive call; each takes what GRO merged, up to the largest datagram.
const RECEIVE_BATCH: usize = 4;
const DATAGRAM_BYTES: usize = 65_536;

/// A batch of at least this size is passed on without a copy.
const LENT_BYTES: usize = 8 << 10;

/// Buffers that may be passed on at a time: each is kept as long as a stream keeps any part of it.
const MOST_LENT: usize = 16;

/// Datagrams of a batch that share an allocation where they are copied. What a stalled stream has of each keeps all of
/// it: three times the window of the stream at most.
const GROUP: usize = 3;

/// Where datagrams are received into, shared by all sockets.
pub struct Buffers {
    data: [BytesMut; RECEIVE_BATCH],
    meta: [RecvMeta; RECEIVE_BATCH],
    /// What is left of those that were passed on; a whole buffer again once no part of it is in use.
    lent: Vec<BytesMut>,
}

impl Buffers {
    pub fn new() -> Self {
        Self {
            data: std::array::from_fn(|_| BytesMut::zeroed(DATAGRAM_BYTES)),
            meta: [RecvMeta::default(); RECEIVE_BATCH],
            lent: Vec::new(),
        }
    }

    /// For one receive call.
    pub fn parts(&mut self) -> ([IoSliceMut<'_>; RECEIVE_BATCH], &mut [RecvMeta]) {
        (self.data.each_mut().map(|buffer| IoSliceMut::new(buffer)), &mut self.meta)
    }

    /// The `index`th batch received: its sender, and the datagrams.
    pub fn received(&mut self, index: usize) -> (RecvMeta, impl Iterator<Item = BytesMut> + '_) {
        let meta = self.meta[index];
        let stride = meta.stride.max(1);
        let (mut group, mut left) = match self.lend(index, meta.len) {
            Some(batch) => (batch, &[][..]),
            None => (BytesMut::new(), &self.data[index][..meta.len]),
        };
        // An empty datagram is one, too, and is counted.
        let datagrams = (0..meta.len.div_ceil(stride).max(1)).map(move |_| {
            if group.is_empty() {
                let (head, rest) = left.split_at(left.len().min(stride * GROUP));
                (group, left) = (BytesMut::from(head), rest);
            }
            group.split_to(group.len().min(stride))
        });
        (meta, datagrams)
    }

    /// All of a large batch, unless too many buffers are kept already: another takes the place of its buffer.
    fn lend(&mut self, index: usize, bytes: usize) -> Option<BytesMut> {
        if bytes < LENT_BYTES {
            return None;
        }
        // The newest first: the processor's cache still has it.
        let mut next = match self.lent.iter_mut().rposition(|buffer| buffer.try_reclaim(DATAGRAM_BYTES)) {
            Some(free) => self.lent.remove(free),
            None if self.lent.len() < MOST_LENT => BytesMut::zeroed(DATAGRAM_BYTES),
            None => return None,
        };
        // SAFETY: `next` has this capacity, and all of it was zeroed when it was made.
        unsafe { next.set_len(DATAGRAM_BYTES) };
        let mut rest = std::mem::replace(&mut self.data[index], next);
        let batch = rest.split_to(bytes);
        rest.clear();
        self.lent.push(rest);
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIDE: usize = 1400;
    const BATCH_BYTES: usize = 44 * STRIDE - 1; // the last of a batch may be shorter

    /// As if one batch had been received, with every byte of this value.
    fn receive(buffers: &mut Buffers, value: u8, bytes: usize) -> Vec<BytesMut> {
        buffers.data[0][..bytes].fill(value);
        buffers.meta[0].len = bytes;
        buffers.meta[0].stride = STRIDE;
        buffers.received(0).1.collect()
    }

    #[test]
    fn what_is_kept_does_not_change() {
        let mut buffers = Buffers::new();
        let kept: Vec<_> = (0..3 * MOST_LENT).map(|n| receive(&mut buffers, n as u8, BATCH_BYTES)).collect();
        for (value, datagrams) in kept.iter().enumerate() {
            assert_eq!(datagrams.iter().map(|datagram| datagram.len()).sum::<usize>(), BATCH_BYTES);
            assert!(datagrams.iter().flatten().all(|byte| usize::from(*byte) == value));
            assert!(datagrams[..43].iter().all(|datagram| datagram.len() == STRIDE));
        }
    }

    #[test]
    fn buffers_that_are_kept_have_a_bound() {
        let mut buffers = Buffers::new();
        // One datagram of each batch.
        let kept: Vec<_> = (0..1000).map(|_| receive(&mut buffers, 1, BATCH_BYTES).swap_remove(7)).collect();
        assert_eq!(buffers.lent.len(), MOST_LENT);
        drop(kept);
        let lent = buffers.lent.len();
        (0..1000).for_each(|_| drop(receive(&mut buffers, 2, BATCH_BYTES)));
        assert_eq!(buffers.lent.len(), lent, "the same ones are used again");
        assert!(buffers.lent.iter_mut().all(|buffer| buffer.try_reclaim(DATAGRAM_BYTES)));
    }

    #[test]
    fn an_empty_datagram_and_small_ones_are_passed_on_too() {
        let mut buffers = Buffers::new();
        assert_eq!(receive(&mut buffers, 1, 0), [BytesMut::new()]);
        let sizes: Vec<_> = receive(&mut buffers, 1, 2 * STRIDE + 5).iter().map(BytesMut::len).collect();
        assert_eq!(sizes, [STRIDE, STRIDE, 5]);
        assert!(buffers.lent.is_empty());
    }
}
