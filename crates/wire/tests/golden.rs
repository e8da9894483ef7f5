//! What version 1 sent, as it was sent then: it is still understood, and still said in the same words.
//!
//! `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-wire golden` writes a missing stream. Files of a
//! released version are never changed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use lifeboat_model::{Digest, Extent};
use lifeboat_wire::agent::{
    AgentReport, Assignment, DigestRequest, DiskDescription, DiskState, PartReceipt, RequestResult, SealPoint,
};
use lifeboat_wire::event::Event;
use lifeboat_wire::facts::ServerFacts;
use lifeboat_wire::process_server::{
    self, Assignments, CommitPoint, CommitReceipt, DiskRegistration, Grant, GrantRequest,
    ProcessServerReport, ServerResult, VaultHello,
};
use lifeboat_wire::stream::{self, Decoder, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Reads a body and writes it again. A later version may add fields with a default.
fn same<T: Serialize + DeserializeOwned>(name: &str) {
    let text = fs::read_to_string(golden(&format!("v1-{name}.json"))).unwrap();
    let body: T =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name} is not understood: {error}"));
    let stored: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(&body).unwrap(), stored, "{name} is said otherwise now");
}

#[test]
fn bodies_of_version_1_are_read_and_written() {
    same::<DiskDescription>("disk-description");
    same::<DiskState>("disk-state");
    same::<PartReceipt>("part-receipt");
    same::<SealPoint>("seal-point");
    same::<Event>("event");
    same::<AgentReport>("agent-report");
    same::<Assignment>("assignment");
    same::<Assignments>("assignments");
    same::<RequestResult>("result-point");
    same::<RequestResult>("result-compared");
    same::<ServerResult>("result-failed");
    same::<DigestRequest>("digests");
    same::<process_server::DigestRequest>("digest-request");
    same::<GrantRequest>("grant-request");
    same::<Grant>("grant");
    same::<CommitPoint>("commit-point");
    same::<CommitReceipt>("commit-receipt");
    same::<ProcessServerReport>("process-server-report");
    same::<VaultHello>("hello");
    same::<DiskRegistration>("registration");
    same::<ServerFacts>("facts");
}

fn messages() -> Vec<Message> {
    let data = |first, blocks: u64, byte: u8| {
        let extent = Extent::new(first, blocks).unwrap();
        let bytes = Bytes::from(vec![byte; usize::try_from(extent.len_bytes()).unwrap()]);
        Message::Data { extent, digest: Digest::of(&bytes), bytes }
    };
    let zeroes = Message::Zeroes { extent: Extent::new(1 << 33, 1 << 20).unwrap() };
    vec![data(0, 1, 0xa5), zeroes, data(77, 2, 0x5a)]
}

fn stream() -> Vec<u8> {
    let mut all = stream::begin().to_vec();
    for message in messages() {
        match message {
            Message::Data { extent, digest, bytes } => {
                stream::data(extent, digest, bytes).iter().for_each(|part| all.extend_from_slice(part));
            }
            Message::Zeroes { extent } => all.extend_from_slice(&stream::zeroes(extent)),
        }
    }
    all.extend_from_slice(&stream::end(messages().len() as u64));
    all
}

#[test]
fn a_stream_of_version_1_is_read_and_written() {
    let path = golden("v1-part.stream");
    if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !path.exists() {
        fs::write(&path, stream()).unwrap();
    }
    let stored = fs::read(&path).unwrap();
    assert!(stored == stream(), "the stream is written otherwise now");
    let mut decoder = Decoder::new(1 << 34);
    decoder.push(stored.into());
    let mut read = Vec::new();
    while let Some(message) = decoder.next_message().unwrap() {
        read.push(message);
    }
    decoder.finish().unwrap();
    assert!(read == messages());
}
