//! Connections: commands and statistics.

use std::time::Instant;

use bytes::Bytes;
use pyo3::prelude::*;
use quinn_proto::Dir;

use super::Core;
use crate::connection::Conn;
use crate::stream::{Held, Use};

#[pymethods]
impl Core {
    /// Whether streams can be opened and written before CONNECTED: 0-RTT, which can be replayed.
    fn may_write_early(&self, conn: u64) -> bool {
        self.engine.conns.get(conn).is_some_and(Conn::may_write_early)
    }

    /// The number of a new stream; None where the peer allows no more.
    fn open_stream(&mut self, conn: u64) -> Option<u64> {
        let conn = self.engine.conns.get_mut(conn).filter(|conn| !conn.is_closed)?;
        let stream = conn.quic.streams().open(Dir::Bi)?;
        conn.streams.insert(stream, Use::Held(Held::default()));
        Some(stream.into())
    }

    fn send_datagram(&mut self, conn: u64, data: &[u8]) -> bool {
        let Some(found) = self.engine.conns.get_mut(conn) else { return false };
        let taken = found.quic.datagrams().send(Bytes::copy_from_slice(data), false).is_ok();
        self.engine.mark(conn);
        taken
    }

    fn ping(&mut self, conn: u64) {
        if let Some(found) = self.engine.conns.get_mut(conn) {
            found.quic.ping();
            self.engine.mark(conn);
        }
    }

    fn raise_limits(&mut self, conn: u64, max_streams: u32) {
        if let Some(found) = self.engine.conns.get_mut(conn) {
            found.raise_limits(max_streams);
            self.engine.mark(conn);
        }
    }

    /// CONNECTION_CLOSE; no event of this connection follows.
    fn close(&mut self, conn: u64, code: u64, reason: &[u8]) {
        self.engine.close_connection(conn, code, reason, Instant::now());
    }

    fn peer_address(&self, conn: u64) -> PyResult<(String, u16)> {
        let address = self.conn(conn)?.quic.remote_address();
        Ok((address.ip().to_string(), address.port()))
    }

    /// The first 16 bits of the peer's connection ID in use.
    fn peer_prefix(&self, conn: u64) -> PyResult<Option<u16>> {
        Ok(self.conn(conn)?.peer_prefix)
    }

    fn last_received_at(&self, conn: u64) -> PyResult<f64> {
        Ok(self.seconds_of(self.conn(conn)?.last_received_at))
    }

    fn ack_eliciting_outstanding(&self, conn: u64) -> PyResult<bool> {
        Ok(self.conn(conn)?.is_outstanding())
    }

    fn max_datagram_size(&mut self, conn: u64) -> usize {
        self.engine.conns.get_mut(conn).and_then(|conn| conn.quic.datagrams().max_size()).unwrap_or(0)
    }

    /// rtt_s, pto_s, sent_bytes, received_bytes, sent_packets, lost_packets, mtu_bytes, cwnd_bytes.
    #[allow(clippy::type_complexity)] // the fields of ConnectionStats, in order
    fn stats(&self, conn: u64) -> PyResult<(f64, f64, u64, u64, u64, u64, u16, u64)> {
        let quic = &self.conn(conn)?.quic;
        let stats = quic.stats();
        let (path, pto) = (&stats.path, crate::recovery::seen(quic).pto);
        Ok((
            path.rtt.as_secs_f64(),
            pto.as_secs_f64(),
            stats.udp_tx.bytes,
            stats.udp_rx.bytes,
            path.sent_packets,
            path.lost_packets,
            path.current_mtu,
            path.cwnd,
        ))
    }

    /// Streams that this connection still has here: held or relayed.
    fn streams(&self, conn: u64) -> PyResult<usize> {
        Ok(self.conn(conn)?.streams.len())
    }
}
