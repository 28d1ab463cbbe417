//! COCO annotation files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_formats::fuzzing::annotations(bytes));
