//! Vector files of an index, and searches in them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_index::fuzzing::vector_file(bytes));
