#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const RELEASE: &str = "6.1.0-28-amd64";

/// What a program makes of its input.
fn through(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    output.stdout
}

/// An archive with these files, as cpio makes it.
fn archive(files: &[(&str, usize)]) -> Vec<u8> {
    let root = tempfile::tempdir().unwrap();
    let mut names = String::new();
    for (name, bytes) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![0xa5; *bytes]).unwrap();
        names += &format!("{name}\n");
    }
    let directory = root.path().to_str().unwrap();
    through("cpio", &["--quiet", "--create", "--format=newc", "--directory", directory], names.as_bytes())
}

fn microcode() -> Vec<u8> {
    archive(&[("kernel/x86/microcode/GenuineIntel.bin", 5001)])
}

fn main_archive() -> Vec<u8> {
    archive(&[
        ("init", 17),
        ("usr/lib/modules/6.1.0-28-amd64/kernel/drivers/block/virtio_blk.ko", 40_003),
        ("usr/lib/modules/6.1.0-28-amd64/kernel/drivers/nvme/host/nvme.ko.xz", 12 << 20),
        ("usr/lib/modules/6.1.0-28-amd64/kernel/drivers/net/virtio-net.ko.zst", 1),
        ("usr/lib/modules/6.1.0-28-amd64/modules.dep", 100),
        ("usr/lib/modules/5.10.0-1-amd64/kernel/drivers/ata/ahci.ko", 100),
    ])
}

fn read(bytes: &[u8]) -> Result<Vec<String>, String> {
    Ok(modules(&mut &*bytes, RELEASE)?.into_iter().collect())
}

const EXPECTED: [&str; 3] = ["nvme", "virtio_blk", "virtio_net"];

#[test]
fn archives_of_each_compression_are_read() {
    let plain = main_archive();
    assert_eq!(read(&plain).unwrap(), EXPECTED);
    for (program, arguments) in [
        ("gzip", &["-9", "--stdout"][..]),
        ("zstd", &["-q", "-9", "-T0"]),
        ("zstd", &["-q", "-19"]),
        ("xz", &["-8", "--check=crc32"]),
        ("xz", &["--check=crc32", "--x86", "--lzma2=dict=1MiB"]),
        ("lz4", &["-9", "-l"]),
    ] {
        assert_eq!(read(&through(program, arguments, &plain)).unwrap(), EXPECTED, "{program} {arguments:?}");
    }
}

#[test]
fn archives_in_a_row_are_all_read() {
    for (program, arguments) in
        [("gzip", &["--stdout"][..]), ("zstd", &["-q"]), ("xz", &["--check=crc32"]), ("lz4", &["-l"])]
    {
        let more = archive(&[("lib/modules/6.1.0-28-amd64/updates/e1000e.ko", 3)]);
        let mut row = microcode();
        // As tools pad it up to a sector.
        row.resize(row.len().next_multiple_of(512), 0);
        row.extend(through(program, arguments, &main_archive()));
        row.extend([0; 12]);
        row.extend(through(program, arguments, &more));
        row.extend(&archive(&[("lib/modules/6.1.0-28-amd64/kernel/sd_mod.ko", 3)]));
        let found = read(&row).unwrap();
        assert_eq!(found, ["e1000e", "nvme", "sd_mod", "virtio_blk", "virtio_net"], "{program}");
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let plain = main_archive();
    assert!(read(&[]).unwrap_err().contains("empty"));
    assert!(read(b"no archive at all").unwrap_err().contains("no archive and no compression"));
    assert!(read(&plain[..plain.len() / 2]).unwrap_err().contains("cut off"));
    let packed = through("zstd", &["-q"], &plain);
    assert!(read(&packed[..packed.len() / 2]).unwrap_err().contains("cut off"));
    assert!(read(b"BZh91AY&SY").unwrap_err().contains("bzip2"));
    // A window that would take more memory than the agent may.
    let wide = through("zstd", &["-q", "--long=27", "--no-check"], &vec![7; 40 << 20]);
    assert!(read(&wide).unwrap_err().contains("damaged or cut off"));
    let wide = through("xz", &["--lzma2=dict=128MiB"], &plain);
    assert!(read(&wide).unwrap_err().contains("memory"), "{:?}", read(&wide));
    // A name of many bytes, or a number that is none.
    let mut damaged = plain.clone();
    damaged[6 + 11 * 8..][..8].copy_from_slice(b"00100000");
    assert!(read(&damaged).unwrap_err().contains("a name has"));
    damaged[6 + 11 * 8..][..8].copy_from_slice(b"-0000001");
    assert!(read(&damaged).unwrap_err().contains("no number"));
}

#[test]
fn a_module_is_named_as_the_kernel_does() {
    assert_eq!(module_name("kernel/drivers/net/virtio-net.ko.xz").as_deref(), Some("virtio_net"));
    for other in ["modules.dep", "x.ko.txt", "x.kox", ""] {
        assert_eq!(module_name(other), None, "{other}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_read_without_harm(
        magic in prop::sample::select(vec![
            &b"070701"[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x02\x21\x4c\x18", b"",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let _ = read(&[magic, &rest].concat());
    }

    #[test]
    fn a_damaged_archive_is_read_without_harm(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        tool in 0_usize..5,
    ) {
        let plain = archive(&[("lib/modules/6.1.0-28-amd64/a.ko", 2000), ("b", 3000)]);
        let mut bytes = match tool {
            0 => plain,
            1 => through("gzip", &["--stdout"], &plain),
            2 => through("zstd", &["-q"], &plain),
            3 => through("xz", &["--check=crc32"], &plain),
            _ => through("lz4", &["-l"], &plain),
        };
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}
