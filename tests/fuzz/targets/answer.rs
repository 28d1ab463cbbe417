//! Answers of language models.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| groundloom_llm::fuzzing::answer(bytes));
