//! A record of version 1, as it was written then.
//!
//! `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-agent golden` writes it when it is missing. That of a
//! released version is never written again.

use std::path::Path;

use super::*;

fn record() -> Record {
    let mut record = Record::default();
    let syncs = [
        Sync::New,
        Sync::Copy { next_block: 7, end_block: 9, send_zeroes: true },
        Sync::Resync { reason: "The server was restarted.".into(), next_chunk: 3 },
        Sync::Following,
    ];
    for (index, sync) in syncs.into_iter().enumerate() {
        let number = record.number_of(&format!("/dev/sd{index}"), Some(&format!("serial:{index}")));
        let disk = record.disks.get_mut(&number).unwrap();
        disk.sync = sync;
        disk.bytes = 1 << 30;
        disk.attaching = index == 1;
        disk.sent = (index == 3).then_some(Sent { epoch: Epoch(5), parts: 2 });
        disk.sealed = (index == 3).then(|| PointId::new(0xaa));
    }
    record.pending =
        Some(PendingSeal { point: PointId::new(0xab), epochs: [(DiskNumber(3), Epoch(5))].into() });
    record.last_point = Some("2026-11-24T19:13:00.123456789Z".parse().unwrap());
    record.resync_request = Some(u64::MAX);
    record
}

#[test]
fn a_golden_record_is_still_read_and_still_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-record.json");
    if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !path.exists() {
        record().save(&path).unwrap();
    }
    assert_eq!(Record::load(&path).unwrap(), (record(), None));
    let dir = tempfile::tempdir().unwrap();
    let now = dir.path().join("record.json");
    record().save(&now).unwrap();
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(text(&now), text(&path), "a record would be written otherwise now");
}
