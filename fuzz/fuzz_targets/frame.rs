//! Thin: the body is `carillon_fuzz::frame::run`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| carillon_fuzz::frame::run(data));
