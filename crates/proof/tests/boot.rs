//! QEMU itself as a client: a machine that boots from a volume, reads and writes it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use lifeboat_proof::{LoopDisk, Site, run, scratch};

const MIB: u64 = 1 << 20;
/// Where the boot sector reads, and where it writes what it read: 1 MiB and 2 MiB.
const READ_AT: u64 = 2048 * 512;
const WRITTEN_AT: u64 = 4096 * 512;
const WORDS: &[u8; 16] = b"read from a copy";
/// What the machine's exit code becomes when the boot sector has come to its end.
const EXIT_CODE: i32 = 0x10 << 1 | 1;

/// A boot sector for a PC, assembled from:
///
/// ```text
///         cli; xor ax,ax; mov ds,ax; mov es,ax; mov ss,ax; mov sp,0x7c00; sti
///         mov si,read; mov ah,0x42; int 0x13; jc stop         ; the BIOS reads sector 2048
///         mov si,write; mov ax,0x4300; int 0x13; jc stop      ; and writes it to sector 4096
///         mov si,0x8000; mov cx,16; mov dx,0x3f8
/// next:   lodsb; out dx,al; loop next                         ; its first words go to the serial line
/// stop:   mov dx,0x501; mov al,0x10; out dx,al                ; QEMU ends
/// halt:   hlt; jmp halt
/// read:   db 16,0; dw 1,0x8000,0; dq 2048
/// write:  db 16,0; dw 1,0x8000,0; dq 4096
/// ```
const BOOT_SECTOR: [u8; 86] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0xbe, 0x36, 0x7c, 0xb4,
    0x42, 0xcd, 0x13, 0x72, 0x17, 0xbe, 0x46, 0x7c, 0xb8, 0x00, 0x43, 0xcd, 0x13, 0x72, 0x0d, 0xbe, 0x00,
    0x80, 0xb9, 0x10, 0x00, 0xba, 0xf8, 0x03, 0xac, 0xee, 0xe2, 0xfc, 0xba, 0x01, 0x05, 0xb0, 0x10, 0xee,
    0xf4, 0xeb, 0xfd, 0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00,
];

#[test]
fn a_machine_boots_from_a_volume_and_writes_to_it() {
    let disk = LoopDisk::new(16 * MIB);
    let mut sector = [0; 512];
    sector[..BOOT_SECTOR.len()].copy_from_slice(&BOOT_SECTOR);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let device = File::options().write(true).open(&disk.device).unwrap();
    device.write_all_at(&sector, 0).unwrap();
    device.write_all_at(WORDS, READ_AT).unwrap();
    device.sync_all().unwrap();
    let site = Site::start(&[&disk], "2s");
    site.await_first_point();
    let point = site.take_point("crash");
    let opened = site.json(["volume", "open", "source", "--point", &point]);
    let uri = opened["disks"][0]["nbd_uri"].as_str().unwrap();

    let out = tempfile::tempdir_in(scratch()).unwrap();
    let serial = out.path().join("serial");
    let mut machine = Command::new("qemu-system-x86_64");
    machine.args(["-machine", "pc,accel=tcg", "-m", "32", "-display", "none", "-nodefaults"]);
    machine.args(["-device", "isa-debug-exit,iobase=0x501,iosize=2", "-serial"]);
    machine.arg(format!("file:{}", serial.display()));
    machine.arg("-drive").arg(format!("file={uri},format=raw,if=ide,cache=writeback"));
    let output = machine.stdin(Stdio::null()).output().expect("qemu-system-x86_64: install qemu-system-x86");
    assert_eq!(output.status.code(), Some(EXIT_CODE), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(&serial).unwrap(), WORDS);

    // What it wrote is in the volume, and nowhere else.
    let image = out.path().join("image");
    run("nbdcopy", [uri, image.to_str().unwrap()]);
    let words = |file: &File| {
        let mut words = [0; 16];
        file.read_exact_at(&mut words, WRITTEN_AT).unwrap();
        words
    };
    assert_eq!(words(&File::open(&image).unwrap()), *WORDS);
    assert_eq!(words(&File::open(&disk.device).unwrap()), [0; 16]);
    site.json(["volume", "close", opened["volume"].as_str().unwrap()]);
    let again = site.copy_out(&point, out.path());
    assert_eq!(words(&File::open(&again[0]).unwrap()), [0; 16], "the point itself never changes");
}
