//! Any text as the configuration of a network, in each of its forms, in which an address is changed.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((form, text)) = data.split_first()
        && let Ok(text) = str::from_utf8(text)
    {
        lifeboat_agent::fuzz::network_configuration(*form, text);
    }
});
