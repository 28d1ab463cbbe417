//! Lines of JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_formats::fuzzing::jsonl(bytes));
