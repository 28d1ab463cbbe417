//! Moments and spans of time in HTTP headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_llm::fuzzing::http_date(bytes));
