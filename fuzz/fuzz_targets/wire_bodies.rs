//! Any text as each of the JSON bodies that roles and operators send: what is read is written and read
//! again as the same.

#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use lifeboat_api::{OpenVolume, Policy, TakePoint, Verify};
use lifeboat_wire::agent::{AgentReport, Assignment, DigestsOf, DiskDescription, RequestResult, SealPoint};
use lifeboat_wire::event::Event;
use lifeboat_wire::process_server::{
    Assignments, CommitPoint, DigestRequest, DiskRegistration, Grant, GrantRequest, ProcessServerReport,
    ServerResult, VaultHello,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|data: &[u8]| {
    let Some((which, text)) = data.split_first() else { return };
    match which % 18 {
        0 => same::<DiskDescription>(text),
        1 => same::<SealPoint>(text),
        2 => same::<AgentReport>(text),
        3 => same::<RequestResult>(text),
        4 => same::<DigestsOf>(text),
        5 => same::<Assignment>(text),
        6 => same::<Event>(text),
        7 => same::<Assignments>(text),
        8 => same::<CommitPoint>(text),
        9 => same::<DigestRequest>(text),
        10 => same::<GrantRequest>(text),
        11 => same::<Grant>(text),
        12 => same::<ProcessServerReport>(text),
        13 => same::<ServerResult>(text),
        14 => same::<VaultHello>(text),
        15 => same::<OpenVolume>(text),
        16 => same::<Policy>(text),
        _ => {
            same::<TakePoint>(text);
            same::<Verify>(text);
            // It holds a key and cannot be compared; it must not panic.
            let _ = serde_json::from_slice::<DiskRegistration>(text);
        }
    }
});

fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(text) else { return };
    let written = serde_json::to_vec(&value).unwrap();
    let again: T = serde_json::from_slice(&written).unwrap();
    assert_eq!(value, again);
}
