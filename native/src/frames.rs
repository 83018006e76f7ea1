//! The head of a user connection's stream, as `qmux.protocol` defines it: the stream's type, and one frame in each
//! direction.
//!
//! Only the usual frames are parsed here. Anything else is passed to Python, which has every rule and every message; so
//! nothing here is a protocol error. Nothing is allocated, and `Wants` never reaches beyond the frame.

mod msgpack;

use msgpack::{fields, put_int, put_str, Value};

/// `qmux.protocol.frames.StreamType.TCP`
const TCP_STREAM: u8 = 0x02;

// `qmux.protocol.frames.FRAME_TYPES`: types and largest bodies.
const NEW_CONN: u8 = 0x10;
const CONN_READY: u8 = 0x11;
const CONN_REFUSED: u8 = 0x12;
const NEW_CONN_BYTES: usize = 1024;
const CONN_READY_BYTES: usize = 256;
const CONN_REFUSED_BYTES: usize = 1024;

/// `qmux.protocol.values.MAX_NAME`
const MAX_NAME: usize = 128;

/// RFC 9000 §16
const MAX_VARINT: u64 = (1 << 62) - 1;

/// ConnReady as it goes on the wire: its type, its length, an empty map.
pub const READY: [u8; 3] = [CONN_READY, 1, 0x80];

/// The result of parsing the start of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// Not complete: read at most this many bytes more, and parse all of them again.
    Wants(usize),
    /// The frame, which ends where the bytes end.
    Whole(T),
    /// Something else, or something wrong: left to Python, from the first byte on.
    Unusual,
}

/// A request for a user connection: the head of a stream that a server opened.
#[derive(Debug, PartialEq, Eq)]
pub struct NewConn<'a> {
    pub conn_id: u64,
    pub service: &'a str,
    pub source: &'a str,
    pub dest: &'a str,
}

/// A client's answer to it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    Ready,
    /// The code is printable, the reason need not be.
    Refused {
        code: &'a str,
        reason: &'a str,
    },
}

/// The head of a user connection's stream, stream type included. None: longer than a NewConn may be.
pub fn encode_new_conn(new: &NewConn<'_>) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(192);
    body.push(0x80 | 4); // a map of four
    put_str(&mut body, "conn_id");
    put_int(&mut body, new.conn_id);
    for (key, value) in [("service", new.service), ("source", new.source), ("dest", new.dest)] {
        put_str(&mut body, key);
        put_str(&mut body, value);
    }
    if body.len() > NEW_CONN_BYTES {
        return None;
    }
    let mut head = Vec::with_capacity(body.len() + 4);
    head.extend_from_slice(&[TCP_STREAM, NEW_CONN]);
    match body.len() {
        short @ 0..=63 => head.push(short as u8),
        long => head.extend_from_slice(&(long as u16 | 0x4000).to_be_bytes()),
    }
    head.append(&mut body);
    Some(head)
}

/// A stream that a server opened, from its type on.
pub fn new_conn(data: &[u8]) -> Parsed<NewConn<'_>> {
    let Some((&first, rest)) = data.split_first() else { return Parsed::Wants(3) };
    if first != TCP_STREAM {
        return Parsed::Unusual;
    }
    frame(rest, |kind| (kind == NEW_CONN).then_some(NEW_CONN_BYTES), |_, body| new_conn_of(body))
}

/// A client's answer, from its type on.
pub fn answer(data: &[u8]) -> Parsed<Answer<'_>> {
    let cap = |kind| match kind {
        CONN_READY => Some(CONN_READY_BYTES),
        CONN_REFUSED => Some(CONN_REFUSED_BYTES),
        _ => None,
    };
    frame(data, cap, |kind, body| match kind {
        CONN_READY => fields(body, |_, _| Some(())).map(|()| Answer::Ready),
        _ => refused_of(body),
    })
}

/// Type, length, body. The types that are known here have one byte.
fn frame<'a, T>(
    data: &'a [u8],
    cap: impl Fn(u8) -> Option<usize>,
    read: impl Fn(u8, &'a [u8]) -> Option<T>,
) -> Parsed<T> {
    let [kind, rest @ ..] = data else { return Parsed::Wants(2) };
    let Some(cap) = cap(*kind) else { return Parsed::Unusual };
    let Some(&first) = rest.first() else { return Parsed::Wants(1) };
    let size = 1 << (first >> 6);
    if rest.len() < size {
        return Parsed::Wants(size - rest.len());
    }
    let (length, body) = rest.split_at(size);
    let length = length.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)) & ((1 << (8 * size - 2)) - 1);
    let Some(length) = usize::try_from(length).ok().filter(|&length| length <= cap) else { return Parsed::Unusual };
    if body.len() < length {
        return Parsed::Wants(length - body.len());
    }
    match body.len() == length {
        true => read(*kind, body).map_or(Parsed::Unusual, Parsed::Whole),
        false => Parsed::Unusual,
    }
}

fn new_conn_of(body: &[u8]) -> Option<NewConn<'_>> {
    let (mut conn_id, mut service, mut source, mut dest) = (None, None, None, None);
    fields(body, |key, value| {
        match (key, value) {
            ("conn_id", Value::Int(value)) if value <= MAX_VARINT => conn_id = Some(value),
            // A name that is not one is no service here: Python finds that out.
            ("service", value) => service = Some(printable(value)?),
            ("source", value) => source = Some(printable(value)?),
            ("dest", value) => dest = Some(printable(value)?),
            ("conn_id", _) => return None,
            _ => {}
        }
        Some(())
    })?;
    Some(NewConn { conn_id: conn_id?, service: service?, source: source?, dest: dest? })
}

fn refused_of(body: &[u8]) -> Option<Answer<'_>> {
    let (mut code, mut reason) = (None, "");
    fields(body, |key, value| {
        match (key, value) {
            ("code", value) => code = Some(printable(value)?),
            ("reason", Value::Str(text)) => reason = text,
            ("reason", _) => return None,
            _ => {}
        }
        Some(())
    })?;
    Some(Answer::Refused { code: code?, reason })
}

/// Text of the kind that QMux itself writes. Other text that can be printed is Python's.
fn printable(value: Value<'_>) -> Option<&str> {
    let Value::Str(text) = value else { return None };
    let is_plain = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    (text.len() <= MAX_NAME && is_plain).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("a test writes hexadecimal digits");
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// As `qmux.protocol.codec.encode` writes them, behind the stream's type.
    const FROM_PYTHON: &str =
        "02103f84a7636f6e6e5f6964cf0000030000000005a773657276696365a3776562a6736f75726365ab3132372e302e302e\
         313a35a464657374a85b3a3a315d3a3830";

    fn example(conn_id: u64, service: &str) -> NewConn<'_> {
        NewConn { conn_id, service, source: "127.0.0.1:5", dest: "[::1]:80" }
    }

    #[test]
    fn both_ends_write_the_same_bytes() {
        let new = example((3 << 40) | 5, "web");
        assert_eq!(encode_new_conn(&new), Some(bytes(FROM_PYTHON)));
        let name = "w".repeat(40);
        let head = encode_new_conn(&example(200, &name)).expect("short enough");
        assert!(head.starts_with(&bytes("0210405e84a7636f6e6e5f6964ccc8a773657276696365d928")));
        assert_eq!(READY.to_vec(), bytes("110180"));
        let refused = bytes("121782a4636f6465a772656675736564a6726561736f6ea178");
        assert_eq!(answer(&refused), Parsed::Whole(Answer::Refused { code: "refused", reason: "x" }));
        assert_eq!(answer(&READY), Parsed::Whole(Answer::Ready));
    }

    #[test]
    fn fields_of_a_newer_release_are_skipped() {
        let mut body = bytes("85a7636f6e6e5f696405a773657276696365a3776562a6736f75726365a0a464657374a0a56e65776572");
        body.extend(bytes("92c093d9017881a161c403aabbcc")); // [None, ["x", {"a": bytes}, …
        body.extend(bytes("cb3ff0000000000000")); // … 1.0]]
        let mut head = vec![TCP_STREAM, NEW_CONN, 0x40, body.len() as u8];
        head.append(&mut body);
        assert_eq!(new_conn(&head), Parsed::Whole(NewConn { conn_id: 5, service: "web", source: "", dest: "" }));
        assert_eq!(answer(&bytes("110481a17805")), Parsed::Whole(Answer::Ready));
    }

    #[test]
    fn what_python_refuses_is_not_taken() {
        let unusual = |hex: &str| assert_eq!(new_conn(&bytes(hex)), Parsed::Unusual, "{hex}");
        unusual("01"); // a control stream
        unusual("0211"); // another frame
        unusual("02104401"); // 1025 bytes are announced
        unusual("0210c0000000ffffffff");
        let body = |conn_id: &str, source: &str, behind: &str| {
            let fields = "a773657276696365a0a6736f75726365";
            let body = bytes(&format!("84a7636f6e6e5f6964{conn_id}{fields}{source}a464657374a0{behind}"));
            [&[TCP_STREAM, NEW_CONN, body.len() as u8], &body[..]].concat()
        };
        assert!(matches!(new_conn(&body("05", "a0", "")), Parsed::Whole(_)));
        assert_eq!(new_conn(&body("ff", "a0", "")), Parsed::Unusual, "-1");
        assert_eq!(new_conn(&body("cf4000000000000000", "a0", "")), Parsed::Unusual, "more than a varint holds");
        assert_eq!(new_conn(&body("05", "a10a", "")), Parsed::Unusual, "a line feed");
        assert_eq!(new_conn(&body("05", "05", "")), Parsed::Unusual, "no text");
        assert_eq!(new_conn(&body("05", "a0", "c0")), Parsed::Unusual, "something behind the map");
        unusual("02100180"); // no field
        unusual("021002810a"); // half a map
        assert_eq!(answer(&bytes("1001")), Parsed::Unusual);
        assert_eq!(answer(&bytes("120180")), Parsed::Unusual);
        assert_eq!(answer(&bytes("1102dfff")), Parsed::Unusual);
        assert_eq!(answer(&bytes("110781a178ddffffffff")), Parsed::Unusual);
    }

    /// Feed `data` as a stream gives it, never more than is wanted.
    fn read_by_wants<T>(data: &[u8], parse: impl Fn(&[u8]) -> Parsed<T>) -> (usize, Parsed<T>) {
        let mut end = 0;
        loop {
            match parse(&data[..end]) {
                Parsed::Wants(more) if end < data.len() => end = (end + more).min(data.len()),
                parsed => return (end, parsed),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            conn_id in 0..=MAX_VARINT, service in "[a-z]{1,128}", source in "[ -~]{0,128}", dest in "[ -~]{0,128}",
            rest in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let new = NewConn { conn_id, service: &service, source: &source, dest: &dest };
            let head = encode_new_conn(&new).expect("short enough");
            let stream = [&head[..], &rest].concat();
            let (end, parsed) = read_by_wants(&stream, |data| match new_conn(data) {
                Parsed::Whole(read) => Parsed::Whole(read == new),
                Parsed::Wants(more) => Parsed::Wants(more),
                Parsed::Unusual => Parsed::Unusual,
            });
            prop_assert_eq!((end, parsed), (head.len(), Parsed::Whole(true)));
        }

        #[test]
        fn anything_may_come(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            for head in [&[][..], &[TCP_STREAM, NEW_CONN], &[TCP_STREAM, NEW_CONN, 0x20, 0x84], &[CONN_READY, 0x10, 0x81]] {
                let data = [head, &data].concat();
                for parsed in [new_conn(&data).wants(), answer(&data).wants()].into_iter().flatten() {
                    prop_assert!((1..=NEW_CONN_BYTES).contains(&parsed));
                }
            }
        }
    }

    impl<T> Parsed<T> {
        fn wants(&self) -> Option<usize> {
            match self {
                Parsed::Wants(more) => Some(*more),
                Parsed::Whole(_) | Parsed::Unusual => None,
            }
        }
    }
}
