//! Flat FAISS indices.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_index::fuzzing::faiss(bytes));
