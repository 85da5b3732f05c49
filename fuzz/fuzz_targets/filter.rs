//! Thin: the body is `carillon_fuzz::filter::run`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| carillon_fuzz::filter::run(data));
