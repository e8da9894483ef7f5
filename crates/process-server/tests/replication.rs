//! The process server over real TLS, between agents and a vault that checks what it gets.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may fail where it stands")]

mod common;
mod site;

use std::io::Cursor;
use std::time::Duration;

use bytes::Bytes;
use common::{files_ending, seal_disk, seal_of};
use lifeboat_hrl::verify_file_with_key;
use lifeboat_model::{DiskNumber, Epoch, Extent, Part, PointId, ReplicationPolicy, ServerId};
use lifeboat_transport::ClientError;
use lifeboat_trust::Identity;
use lifeboat_wire::agent::{
    AgentReport, Assignment, CaptureMode, DigestRequest, DigestsOf, Outcome, RequestResult,
};
use lifeboat_wire::agent_path;
use lifeboat_wire::event::{Event, Severity};
use lifeboat_wire::process_server::SpoolState;
use site::{Change, Site, data, encode, object_name, until};

const SERVER: ServerId = ServerId::new(0x51);
const OTHER: ServerId = ServerId::new(0x52);

fn code(error: &ClientError) -> &str {
    error.code().unwrap_or_else(|| panic!("no refusal but {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_travel_from_an_agent_to_a_committed_point() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    let changes = vec![
        data(0, 64, 1),
        Change::Zeroes(Extent { first: 100, blocks: 5000 }),
        data(64, 3, 2),
        data(10, 1, 3),
    ];
    for disk in 0..2 {
        let state = agent.describe(disk).await.unwrap();
        assert_eq!((state.epoch, state.next_part, state.sealed), (Epoch(1), Part(0), None));
    }
    let receipt = agent.send(0, 1, 0, encode(&changes)).await.unwrap();
    assert_eq!((receipt.data_blocks, receipt.zero_blocks), (68, 5000));
    agent.send(0, 1, 1, encode(&[data(7, 1, 4)])).await.unwrap();
    // A part of nothing is a part.
    agent.send(1, 1, 0, encode(&[])).await.unwrap();
    let seal = seal_of(1, vec![seal_disk(0, 1, 2), seal_disk(1, 1, 1)]);
    agent.seal(&seal).await.unwrap();
    agent.seal(&seal).await.unwrap();
    until("the point is committed", || site.vault().committed.len() == 1).await;
    let commit = site.vault().committed[0].clone();
    assert_eq!((commit.server, &commit.seal), (SERVER, &seal));
    assert_eq!(commit.files.len(), 3);
    assert!(commit.sealed_at <= commit.uploaded_at);

    let object = site.vault().objects[&object_name(SERVER, DiskNumber(0), Epoch(1), Part(0))].clone();
    let key = common::disk_key(SERVER, DiskNumber(0));
    let verified = verify_file_with_key(Cursor::new(&object), &key).unwrap();
    assert_eq!(verified.summary.digest, commit.files[0].digest);
    assert_eq!(verified.summary.plain_bytes, 68 * 4096);
    let (footer, index) = open_index(&object, &key);
    assert_eq!(footer.header.identity.server, SERVER);
    for (number, change) in [(0, &changes[0]), (1, &changes[2]), (2, &changes[3])] {
        let Change::Data(extent, bytes) = change else { panic!() };
        let (found, frame) = index.frame(number).unwrap();
        assert_eq!(found, *extent);
        let sealed = &object[frame.offset as usize..][..frame.stored_bytes as usize];
        assert_eq!(index.open_frame(number, sealed).unwrap(), bytes[..]);
    }

    until("the spool is empty", || files_ending(&site.state_dir().join("spool"), ".hrl").is_empty()).await;
    let state = agent.describe(0).await.unwrap();
    assert_eq!((state.epoch, state.next_part), (Epoch(2), Part(0)));
    assert_eq!((state.sealed, state.copy_bytes), (Some(PointId::new(1)), Some(common::DISK_BYTES)));
    running.stop().await;
}

fn open_index(object: &Bytes, key: &lifeboat_hrl::DiskKey) -> (lifeboat_hrl::Footer, lifeboat_hrl::Index) {
    let footer = lifeboat_hrl::Footer::parse(object, object.len() as u64).unwrap();
    let range = footer.index_range();
    let sealed = &object[range.start as usize..range.end as usize];
    (footer, lifeboat_hrl::Index::open(&footer, sealed, key).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_go_on_while_the_vault_is_away_also_over_a_restart() {
    let mut site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    agent.send(0, 1, 0, encode(&[data(0, 64, 1)])).await.unwrap();
    agent.seal(&seal_of(1, vec![seal_disk(0, 1, 1)])).await.unwrap();
    until("the first point is committed", || site.vault().committed.len() == 1).await;
    site.stop_vault();
    for epoch in 2..5 {
        agent.send(0, epoch, 0, encode(&[data(epoch, 64, epoch)])).await.unwrap();
        agent.seal(&seal_of(epoch, vec![seal_disk(0, epoch, 1)])).await.unwrap();
    }
    let new_disk = agent.describe(1).await.unwrap_err();
    assert_eq!(code(&new_disk), "vault_unreachable");
    let state = agent.describe(0).await.unwrap();
    assert_eq!((state.epoch, state.sealed), (Epoch(5), Some(PointId::new(4))));
    running.stop().await;

    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    assert!(agent.assigned().await.replicate, "the last assignment holds over a restart");
    assert_eq!(agent.describe(0).await.unwrap(), state);
    agent.send(0, 5, 0, encode(&[data(5, 1, 5)])).await.unwrap();
    agent.seal(&seal_of(5, vec![seal_disk(0, 5, 1)])).await.unwrap();
    site.vault().cuts_uploads = true;
    site.start_vault().await;
    until("all points are committed", || site.vault().committed.len() == 5).await;
    let order: Vec<_> = site.vault().committed.iter().map(|commit| commit.seal.point.number()).collect();
    assert_eq!(order, [1, 2, 3, 4, 5]);
    until("the spool is empty", || files_ending(&site.state_dir().join("spool"), ".hrl").is_empty()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_with_a_word_and_a_sentence_and_the_agent_goes_on() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    let good = encode(&[data(0, 64, 1), data(64, 64, 2)]);
    assert_eq!(code(&agent.send(0, 1, 0, good.clone()).await.unwrap_err()), "unknown_disk");
    agent.describe(0).await.unwrap();
    for (epoch, part, word) in [(1, 1, "wrong_part"), (2, 0, "wrong_epoch"), (0, 0, "wrong_epoch")] {
        assert_eq!(code(&agent.send(0, epoch, part, good.clone()).await.unwrap_err()), word);
    }
    let cut: Vec<Bytes> = good[..good.len() - 1].to_vec();
    assert_eq!(code(&agent.send(0, 1, 0, cut).await.unwrap_err()), "stream_damaged");
    let mut altered = good.clone();
    let mut bytes = altered[4].to_vec();
    bytes[99_999] ^= 1;
    altered[4] = bytes.into();
    let error = agent.send(0, 1, 0, altered).await.unwrap_err();
    assert_eq!(code(&error), "data_damaged");
    assert!(error.to_string().contains("blocks 64..128"), "{error}");
    let beyond = common::DISK_BYTES / 4096;
    let error = agent.send(0, 1, 0, encode(&[data(beyond, 1, 1)])).await.unwrap_err();
    assert_eq!(code(&error), "stream_damaged");
    assert_eq!(files_ending(&site.state_dir().join("spool"), "").len(), 0, "a refused part left a file");
    agent.send(0, 1, 0, good.clone()).await.unwrap();
    assert_eq!(code(&agent.send(0, 1, 0, good).await.unwrap_err()), "part_already_durable");
    let error = agent.seal(&seal_of(1, vec![seal_disk(0, 1, 2)])).await.unwrap_err();
    assert_eq!(code(&error), "parts_differ");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_connection_takes_over_and_a_cut_one_leaves_nothing() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    let pieces = encode(&[data(0, 64, 1)]);
    // Sends all but the end, then stays silent.
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    for piece in &pieces[..pieces.len() - 1] {
        sender.unbounded_send(Ok(piece.clone())).unwrap();
    }
    let path = agent_path::part(DiskNumber(0), Epoch(1), Part(0));
    let call = agent.client.call(lifeboat_transport::Method::PUT, &path).stream(receiver, None);
    let hanging = tokio::spawn(call.send::<serde_json::Value>());
    let spool = site.state_dir().join("spool");
    until("the first connection writes", || !files_ending(&spool, ".partial").is_empty()).await;
    agent.send(0, 1, 0, encode(&[data(0, 64, 2)])).await.unwrap();
    assert_eq!(code(&hanging.await.unwrap().unwrap_err()), "superseded");
    drop(sender);
    until("the partial file is gone", || files_ending(&spool, ".partial").is_empty()).await;

    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    sender.unbounded_send(Ok(pieces[0].clone())).unwrap();
    let path = agent_path::part(DiskNumber(0), Epoch(1), Part(1));
    let call = agent.client.call(lifeboat_transport::Method::PUT, &path).stream(receiver, None);
    let cut = tokio::spawn(call.send::<serde_json::Value>());
    until("the second part is being written", || !files_ending(&spool, ".partial").is_empty()).await;
    cut.abort();
    until("the partial file is gone", || files_ending(&spool, ".partial").is_empty()).await;
    assert_eq!(agent.describe(0).await.unwrap().next_part, Part(1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_anothers_disks() {
    let site = Site::new().await;
    let running = site.start().await;
    let (agent, other) = (site.agent(SERVER, running.address), site.agent(OTHER, running.address));
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    agent.send(0, 1, 0, encode(&[data(0, 1, 1)])).await.unwrap();
    assert_eq!(code(&other.send(0, 1, 1, encode(&[data(0, 1, 2)])).await.unwrap_err()), "unknown_disk");
    let error = other.seal(&seal_of(1, vec![seal_disk(0, 1, 1)])).await.unwrap_err();
    assert_eq!(code(&error), "unknown_disk");
    assert_eq!(other.describe(0).await.unwrap().next_part, Part(0));
    assert_eq!(agent.describe(0).await.unwrap().next_part, Part(1));
    // Another role has no disks at all.
    for identity in
        [Identity::Operator("anna".into()), Identity::ProcessServer("hall-2".into()), Identity::Vault]
    {
        let credentials = site.issue(&identity).credentials().unwrap();
        let stranger = site::Agent::new(SERVER, running.address, &credentials);
        assert_eq!(code(&stranger.describe(0).await.unwrap_err()), "wrong_role");
    }
    // A certificate that the vault revoked is refused, also on an open connection.
    let revoked = site.issue(&Identity::Agent(SERVER));
    let agent = site::Agent::new(SERVER, running.address, &revoked.credentials().unwrap());
    agent.describe(0).await.unwrap();
    site.vault().revoked.push(revoked.serial.to_string());
    let reports = site.vault().reports.len();
    until("the process server has heard of it", || site.vault().reports.len() > reports + 2).await;
    let error = agent.describe(0).await.unwrap_err();
    assert!(matches!(error, ClientError::Tls { .. }), "{error}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_server_is_told_and_refused() {
    let site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    let before = agent.assigned().await;
    agent.describe(0).await.unwrap();
    let fenced = Assignment {
        revision: 1,
        policy: ReplicationPolicy::default(),
        replicate: false,
        reason: Some("the server was failed over".into()),
        commands: Vec::new(),
        committed: None,
        throttle_bytes_per_second: None,
    };
    {
        let mut vault = site.vault();
        vault.assignments.insert(SERVER, fenced);
        vault.revision += 1;
    }
    let query = [("wait_ms", 20_000), ("seen", before.revision)];
    let call = agent.client.call(lifeboat_transport::Method::GET, agent_path::ASSIGNMENT).query(&query);
    let assignment: Assignment = call.send().await.unwrap();
    assert_eq!(assignment.reason.as_deref(), Some("the server was failed over"));
    let error = agent.send(0, 1, 0, encode(&[data(0, 1, 1)])).await.unwrap_err();
    assert_eq!(code(&error), "not_replicating");
    assert!(error.to_string().contains("failed over"), "{error}");
    let error = agent.seal(&seal_of(1, vec![seal_disk(0, 1, 0)])).await.unwrap_err();
    assert_eq!(code(&error), "not_replicating");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_events_and_results_reach_the_vault_also_after_an_outage() {
    let mut site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    site.stop_vault();
    let event = Event {
        time: jiff::Timestamp::now(),
        severity: Severity::Warning,
        code: "point_not_taken".into(),
        server: Some(OTHER),
        disk: None,
        message: "It did not work.".into(),
        next_step: String::new(),
    };
    let report = AgentReport {
        time: jiff::Timestamp::now(),
        server_name: "db-1".into(),
        version: "0.1.0".into(),
        kernel: "6.1".into(),
        boot_id: "b".into(),
        capture: CaptureMode::Optimistic,
        captured: None,
        disks: Vec::new(),
        cpu_ms: 1,
        memory_bytes: 1,
        events: vec![event],
    };
    agent.client.post::<()>(agent_path::REPORT, &report).await.unwrap();
    let result = RequestResult { request: 5, outcome: Outcome::Done };
    agent.client.post::<()>(agent_path::RESULTS, &result).await.unwrap();
    running.stop().await;

    site.start_vault().await;
    let running = site.start().await;
    until("the event is there", || site.vault().events.iter().any(|event| event.code == "point_not_taken"))
        .await;
    until("the result is there", || !site.vault().results.is_empty()).await;
    let told = site.vault().events.iter().find(|event| event.code == "point_not_taken").cloned().unwrap();
    assert_eq!(told.server, Some(SERVER), "an agent speaks for its own server only");
    let taken = site.vault().results[0].clone();
    assert_eq!((taken.server, &taken.result), (SERVER, &result));
    let agent = site.agent(SERVER, running.address);
    agent.client.post::<()>(agent_path::REPORT, &report).await.unwrap();
    agent.send(0, 1, 0, encode(&[data(0, 64, 1)])).await.unwrap();
    until("a report tells of the agent and its spool", || {
        site.vault().reports.iter().any(|report| {
            report.servers.iter().any(|server| {
                server.server == SERVER
                    && server
                        .agent
                        .as_ref()
                        .is_some_and(|agent| agent.kernel == "6.1" && agent.events.is_empty())
                    && server.spool.files == 1
            })
        })
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_wait_for_the_upload_and_name_what_no_point_has() {
    let site = Site::new().await;
    let running = site.start_in(&site.state_dir(), "").await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    agent.send(0, 1, 0, encode(&[data(0, 64, 1)])).await.unwrap();
    agent.seal(&seal_of(1, vec![seal_disk(0, 1, 1)])).await.unwrap();
    site.vault().takes_no_uploads = true;
    agent.send(0, 2, 0, encode(&[data(0, 64, 2)])).await.unwrap();
    let request = DigestRequest { point: None, of: DigestsOf::Chunks { first: 0, count: 4 } };
    let asking = {
        let (agent, request) = (agent.clone(), request.clone());
        tokio::spawn(async move {
            let path = agent_path::digests(DiskNumber(0));
            agent
                .client
                .call(lifeboat_transport::Method::POST, &path)
                .json(&request)
                .send_for_bytes(1000)
                .await
        })
    };
    until("an upload was tried", || site.vault().uploads >= 2).await;
    assert!(site.vault().digest_requests.is_empty(), "the vault was asked before it had everything");
    site.vault().takes_no_uploads = false;
    assert_eq!(asking.await.unwrap().unwrap(), Bytes::from(vec![7; 64]));
    let asked = site.vault().digest_requests[0].clone();
    let named: Vec<_> = asked.open_files.iter().map(|file| (file.epoch, file.part)).collect();
    assert_eq!(named, [(Epoch(2), Part(0))]);
    assert_eq!(asked.of, request.of);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_spool_reaches_the_vault_as_a_critical_event() {
    let mut site = Site::new().await;
    let running = site.start().await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    site.stop_vault();
    agent.send(0, 1, 0, encode(&[data(0, 64, 1)])).await.unwrap();
    agent.send(0, 1, 1, encode(&[data(64, 64, 1)])).await.unwrap();
    running.stop().await;
    // Damage in the middle is not seen at the start, but before the upload.
    let file = site.state_dir().join(format!("spool/{SERVER}/0/1-1.hrl"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5000] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    site.start_vault().await;
    let running = site.start().await;
    until("the event is there", || site.vault().events.iter().any(|event| event.code == "spool_damaged"))
        .await;
    let event = site.vault().events.iter().find(|event| event.code == "spool_damaged").cloned().unwrap();
    assert_eq!((event.severity, event.server), (Severity::Critical, Some(SERVER)));
    assert!(event.message.contains("1-1.hrl"), "{}", event.message);
    let agent = site.agent(SERVER, running.address);
    assert_eq!(code(&agent.send(0, 1, 2, encode(&[])).await.unwrap_err()), "spool_damaged");
    assert!(file.exists());
    assert!(!site.vault().objects.contains_key(&object_name(SERVER, DiskNumber(0), Epoch(1), Part(1))));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_keep_to_the_bandwidth_of_the_settings() {
    const LIMIT: u64 = 384 << 10;
    let site = Site::new().await;
    let window = format!("[[bandwidth]]\nfrom = \"00:00\"\nto = \"24:00\"\nbytes_per_second = {LIMIT}\n");
    let running = site.start_in(&site.state_dir(), &window).await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    // 3 MiB that cannot be compressed, in two files, which share the line.
    let begun = std::time::Instant::now();
    let mut stored = 0;
    for part in 0..2 {
        let first = u64::from(part) * 384;
        let changes: Vec<_> = (0..6).map(|n| data(first + n * 64, 64, first + n)).collect();
        stored += agent.send(0, 1, part, encode(&changes)).await.unwrap().stored_bytes;
    }
    agent.seal(&seal_of(1, vec![seal_disk(0, 1, 2)])).await.unwrap();
    until("the point is committed", || site.vault().committed.len() == 1).await;
    let took = begun.elapsed().as_millis();
    // However busy the machine is, it cannot have been faster; a quarter of a second may be caught up.
    let least = u128::from(stored) * 1000 / u128::from(LIMIT) - 500;
    assert!(took >= least, "{stored} bytes took {took} ms, not {least} or more");
    assert!(stored > 3 << 20, "{stored} bytes were to be sent");
    running.stop().await;
}

/// A small file system of its own, for as long as it lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=700"), "tmpfs"])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(mounted.status.success(), "tests run as root, who may mount: {mounted:?}");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_refuses_and_goes_on_when_there_is_room() {
    let disk = SmallDisk::mount(16);
    let mut site = Site::new().await;
    let running = site.start_in(disk.0.path(), "").await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    site.stop_vault();
    let mut sent = 0;
    let error = loop {
        // Random data of 3 MiB a part.
        let changes: Vec<_> =
            (0..12).map(|n| data(u64::from(sent) * 768 + n * 64, 64, n + u64::from(sent))).collect();
        match agent.send(0, 1, sent, encode(&changes)).await {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10, "16 MiB hold no 30");
    };
    assert_eq!(code(&error), "spool_full");
    assert!(error.is_retryable());
    assert!(sent >= 3, "only {sent} parts of 3 MiB fit into 16 MiB");
    assert!(files_ending(&disk.0.path().join("spool"), ".partial").is_empty());
    assert_eq!(agent.describe(0).await.unwrap().next_part, Part(sent));
    // Sealing is possible in the reserve, and is what empties the spool.
    agent.seal(&seal_of(1, vec![seal_disk(0, 1, sent)])).await.unwrap();
    site.start_vault().await;
    until("the point is committed", || site.vault().committed.len() == 1).await;
    until("there is room again", || files_ending(&disk.0.path().join("spool"), ".hrl").is_empty()).await;
    let changes: Vec<_> = (0..12).map(|n| data(n * 64, 64, n)).collect();
    agent.send(0, 2, 0, encode(&changes)).await.unwrap();
    until("the vault was told", || {
        let vault = site.vault();
        vault
            .events
            .iter()
            .any(|event| event.severity == Severity::Critical && event.code.starts_with("spool_"))
            && vault.reports.last().is_some_and(|report| report.spool_state == SpoolState::Good)
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_initial_copy_may_be_larger_than_the_spool() {
    let disk = SmallDisk::mount(16);
    let site = Site::new().await;
    let running = site.start_in(disk.0.path(), "").await;
    let agent = site.agent(SERVER, running.address);
    agent.assigned().await;
    agent.describe(0).await.unwrap();
    for part in 0..16 {
        let changes: Vec<_> = (0..12).map(|n| data(n * 64, 64, n + 100 * u64::from(part))).collect();
        let pieces = encode(&changes);
        loop {
            match agent.send(0, 1, part, pieces.clone()).await {
                Ok(_) => break,
                Err(error) => assert_eq!(code(&error), "spool_full"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    agent.seal(&seal_of(1, vec![seal_disk(0, 1, 16)])).await.unwrap();
    until("the point is committed", || site.vault().committed.len() == 1).await;
    assert_eq!(site.vault().committed[0].files.len(), 16);
    until("the spool is empty", || files_ending(&disk.0.path().join("spool"), "").is_empty()).await;
    running.stop().await;
}
