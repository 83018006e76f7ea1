//! The head of a datagram, and the head of a stream: what is parsed before anybody is known.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qmux_native::fuzzing;

fuzz_target!(|data: &[u8]| {
    fuzzing::destination(data);
    fuzzing::stream_head(data);
});
