//! Datagrams from strangers to a server, one after the other: two bytes of length, then the datagram.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use qmux_native::fuzzing::Server;

/// The server's certificate and key, as DER.
fn identity() -> &'static (Vec<u8>, Vec<u8>) {
    static MADE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["qmux".to_owned()]).expect("a name that can be one");
        (made.cert.der().to_vec(), made.signing_key.serialize_der())
    })
}

fuzz_target!(|data: &[u8]| {
    let (chain, key) = identity();
    let mut server = Server::new(chain.clone(), key.clone());
    let mut rest = data;
    while let Some(([high, low], behind)) = rest.split_first_chunk::<2>() {
        let (datagram, after) = behind.split_at(behind.len().min(usize::from(u16::from_be_bytes([*high, *low]))));
        server.feed(datagram);
        rest = after;
    }
});
