//! Manifests of an index.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_index::fuzzing::manifest(bytes));
