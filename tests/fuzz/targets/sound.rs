//! Sounds: WAV, FLAC, MP3 and Ogg.
#![no_main]

use std::{panic, sync::Once};

use libfuzzer_sys::fuzz_target;

static QUIET: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    // A decoder's panic is caught where sounds are decoded; libFuzzer's hook would end the run at it. One that is not caught still ends it.
    QUIET.call_once(|| panic::set_hook(Box::new(|_| {})));
    groundloom_data::fuzzing::sound(bytes);
});
