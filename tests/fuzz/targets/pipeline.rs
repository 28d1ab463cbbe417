//! Pipeline files: read, checked and shown.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_spec::fuzzing::pipeline(bytes));
