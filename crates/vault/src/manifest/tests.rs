use lifeboat_hrl::MasterKey;
use lifeboat_model::{DiskNumber, Epoch, Part, PointKind};
use lifeboat_wire::agent::{CaptureFigures, SealDisk};
use proptest::prelude::*;

use super::*;

const NAME: &str =
    "vault/0000000000000001/servers/0000000000000002/points/000000000003-0000000000000004.json";

fn key() -> ManifestKey {
    MasterKey::new([7; 32]).manifest_key()
}

fn manifest(number: u64, files: u32) -> PointManifest {
    let time = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
    let file = |part| StoredFile {
        disk: DiskNumber(0),
        first_epoch: Epoch(1),
        last_epoch: Epoch(3),
        part: Part(part),
        object: format!("file-{part}"),
        bytes: 123,
        digest: Digest::of(&part.to_le_bytes()),
        plain_bytes: 4096,
    };
    PointManifest {
        server: ServerManifest {
            server: ServerId::new(2),
            name: "db \"1\"\n".into(),
            registered: time,
            policy: ReplicationPolicy::default(),
            fenced: None,
            disks: vec![DiskRow {
                disk: DiskNumber(0),
                path: "/dev/sda".into(),
                hardware_id: None,
                bytes: 1 << 30,
                removed: false,
            }],
            keys: Vec::new(),
        },
        number,
        previous: Some(PointId::new(3)),
        seal: SealPoint {
            point: PointId::new(4),
            time,
            kind: PointKind::Crash,
            disks: vec![SealDisk { disk: DiskNumber(0), epoch: Epoch(3), parts: files, bytes: 1 << 30 }],
            removed: Vec::new(),
            capture: CaptureFigures {
                duration_us: 5,
                window_us: 4,
                frozen_us: 0,
                attempts: 1,
                blocks_in_window: 9,
            },
        },
        sealed: time,
        uploaded: time,
        committed: time,
        commit_digest: Digest::of(b"commit"),
        files: (0..files).map(file).collect(),
    }
}

fn decoded(name: &str, bytes: &[u8]) -> Result<PointManifest, ManifestError> {
    decode(&key(), name, bytes)
}

/// `LIFEBOAT_WRITE_GOLDEN=1 cargo test -p lifeboat-vault golden` writes it when it is missing. That of
/// a released version is never written again.
#[test]
fn a_golden_manifest_is_still_read_and_still_written() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1-point-manifest.json");
    let written = encode(&key(), NAME, &manifest(12, 3)).unwrap();
    if std::env::var_os("LIFEBOAT_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, &written).unwrap();
    }
    let stored = std::fs::read(&path).unwrap();
    assert_eq!(decoded(NAME, &stored), Ok(manifest(12, 3)));
    assert!(stored == written, "a manifest would be written otherwise now");
}

proptest! {
    #[test]
    fn a_manifest_reads_back(number in any::<u64>(), files in 0_u32..20) {
        let manifest = manifest(number, files);
        let bytes = encode(&key(), NAME, &manifest).unwrap();
        prop_assert_eq!(decoded(NAME, &bytes), Ok(manifest));
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decoded(NAME, &bytes).is_err());
    }

    #[test]
    fn any_lines_are_refused(content in ".{0,80}", signature in "[0-9a-f]{64}") {
        let text = format!("{content}\n{{\"signature\":\"{signature}\"}}\n");
        let refused = matches!(decoded(NAME, text.as_bytes()), Err(ManifestError::Signature { .. }));
        prop_assert!(refused);
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let bytes = encode(&key(), NAME, &manifest(3, 1)).unwrap();
    for len in 0..bytes.len() {
        assert!(decoded(NAME, &bytes[..len]).is_err(), "{len} bytes");
    }
    for bit in 0..bytes.len() * 8 {
        let mut altered = bytes.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(decoded(NAME, &altered).is_err(), "bit {bit}");
    }
}

#[test]
fn a_manifest_counts_under_its_own_name_and_for_its_own_vault_alone() {
    let bytes = encode(&key(), NAME, &manifest(3, 1)).unwrap();
    let error = decoded(&NAME.replace("000000000003-", "000000000004-"), &bytes).unwrap_err();
    assert!(error.to_string().contains("000000000004-"), "the refusal names it: {error}");
    let other = MasterKey::new([8; 32]).manifest_key();
    assert!(decode::<PointManifest>(&other, NAME, &bytes).is_err());
}

#[test]
fn another_format_is_refused_with_both_named() {
    #[derive(Serialize)]
    struct Later {
        format: u32,
        content: u8,
    }
    let mut bytes = serde_json::to_vec(&Later { format: 2, content: 0 }).unwrap();
    let signature = key().sign(&signed_bytes(NAME, &bytes));
    bytes.extend(format!("\n{{\"signature\":\"{signature}\"}}\n").into_bytes());
    let error = decoded(NAME, &bytes).unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("format 1"), "{error}");
}

/// A manifest of a point that follows `previous`, for tests of other modules.
pub(crate) fn chained(point: u64, number: u64, previous: Option<u64>) -> PointManifest {
    let mut chained = manifest(number, 0);
    chained.seal.point = PointId::new(point);
    chained.previous = previous.map(PointId::new);
    chained
}
