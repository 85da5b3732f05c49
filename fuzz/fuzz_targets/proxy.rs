//! Thin: the body is `carillon_fuzz::proxy::run`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| carillon_fuzz::proxy::run(data));
