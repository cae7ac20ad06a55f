#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| delo_fuzz::manifest(bytes));
