#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

/// A disk of 64 MiB that sfdisk has divided.
fn divided(script: &str) -> File {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file_mut().set_len(64 * MIB).unwrap();
    let mut sfdisk =
        Command::new("sfdisk").arg("--quiet").arg(file.path()).stdin(Stdio::piped()).spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    file.reopen().unwrap()
}

fn beginning(file: &File) -> Beginning {
    let bytes = file.metadata().unwrap().len();
    read(bytes, 512, &mut |offset, length| {
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    })
    .unwrap()
}

fn partition(number: u32, start: u64, bytes: u64, kind: &str) -> Partition {
    Partition { number, start, bytes, kind: kind.into() }
}

#[test]
fn what_sfdisk_divided_is_read() {
    let gpt = beginning(&divided(
        "label: gpt\nstart=1MiB,size=16MiB,type=uefi\nstart=17MiB,size=8MiB,type=linux\n",
    ));
    let table = PartitionTable {
        kind: TableKind::Gpt,
        partitions: vec![partition(1, MIB, 16 * MIB, "efi-system"), partition(2, 17 * MIB, 8 * MIB, "linux")],
    };
    assert_eq!(gpt, Beginning { boot_code: BootCode::None, table: Ok(Some(table)) });

    let mbr = beginning(&divided(
        "label: dos\nstart=1MiB,size=8MiB,type=83\nstart=9MiB,size=40MiB,type=5\nstart=10MiB,size=4MiB,type=8e\n\
         start=20MiB,size=4MiB,type=82\n",
    ));
    let table = PartitionTable {
        kind: TableKind::Mbr,
        partitions: vec![
            partition(1, MIB, 8 * MIB, "linux"),
            partition(2, 9 * MIB, 40 * MIB, "extended"),
            partition(5, 10 * MIB, 4 * MIB, "linux-lvm"),
            partition(6, 20 * MIB, 4 * MIB, "linux-swap"),
        ],
    };
    assert_eq!(mbr.table, Ok(Some(table)));
}

#[test]
fn the_second_copy_of_a_table_does_when_the_first_is_damaged_and_else_it_is_said() {
    let mut disk = divided("label: gpt\nstart=1MiB,size=16MiB,type=linux\n");
    disk.seek(SeekFrom::Start(512 + 20)).unwrap();
    disk.write_all(b"x").unwrap();
    assert_eq!(beginning(&disk).table.unwrap().unwrap().partitions.len(), 1);
    disk.write_all_at(b"x", 64 * MIB - 512 + 20).unwrap();
    assert!(beginning(&disk).table.unwrap_err().contains("check sum"));
}

#[test]
fn a_disk_without_a_table_has_none() {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(MIB).unwrap();
    assert_eq!(beginning(&disk), Beginning { boot_code: BootCode::None, table: Ok(None) });
    // A boot sector that is no partition table: text where the entries would be.
    let mut sector = [b'x'; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&sector, 0).unwrap();
    assert_eq!(beginning(&disk), Beginning { boot_code: BootCode::Other, table: Ok(None) });
    sector[..446].fill(0);
    sector[100..104].copy_from_slice(b"GRUB");
    disk.write_all_at(&sector, 0).unwrap();
    assert_eq!(beginning(&disk).boot_code, BootCode::Grub);
}

#[test]
fn a_chain_of_logical_partitions_that_leads_in_a_circle_ends() {
    let disk =
        divided("label: dos\nstart=1MiB,size=40MiB,type=5\nstart=2MiB,size=4MiB\nstart=10MiB,size=4MiB\n");
    // The second record's link leads to the second record.
    let second = beginning(&disk).table.unwrap().unwrap().partitions[2].start - MIB;
    let mut link = [0; 16];
    link[4] = 5;
    link[8..12].copy_from_slice(&u32::try_from((second - MIB) / 512).unwrap().to_le_bytes());
    link[12..].copy_from_slice(&100_u32.to_le_bytes());
    disk.write_all_at(&link, second + 446 + 16).unwrap();
    assert!(beginning(&disk).table.unwrap_err().contains("more than 128"));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(
        seed in prop::collection::vec(any::<u8>(), 512..4096),
        kinds in prop::array::uniform4(prop::sample::select(vec![0, 5, 0x83, 0xee])),
        bytes in 512u64..1 << 40,
    ) {
        let mut first = seed.clone();
        first[510] = 0x55;
        first[511] = 0xaa;
        for (number, kind) in kinds.into_iter().enumerate() {
            first[MBR_AT + number * 16] &= 0x80;
            first[MBR_AT + number * 16 + 4] = kind;
        }
        let mut read_at = |offset: u64, length: usize| {
            let source = if offset.is_multiple_of(1024) { &first } else { &seed };
            Ok(source.iter().copied().cycle().take(length).collect())
        };
        let _ = read(bytes, 512, &mut read_at).unwrap();
        let _ = gpt_at(512, bytes, 512, &mut |_, length| {
            let mut header = seed.clone();
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[16..20].fill(0);
            let crc = crc32(&header[..92]);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            Ok(header.into_iter().cycle().take(length).collect())
        });
    }
}
