//! The smallest guests: boot sectors that say something on the serial port.

/// At 0x7c00, with 16 bits: says the text that follows from `TEXT_AT` on, and goes on after the loop.
const SAY: [u8; 19] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xbe, 0x00, 0x00, // mov si, text
    0xac, // next: lodsb
    0x08, 0xc0, // or al, al
    0x74, 0x06, // jz end
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xf5, // jmp next
    0x90, // end: nop
];
const HALT: [u8; 3] = [
    0xf4, // rest: hlt
    0xeb, 0xfd, // jmp rest
];
const ECHO: [u8; 15] = [
    0xba, 0xfd, 0x03, // poll: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x01, // test al, 1
    0x74, 0xf8, // jz poll
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec, // in al, dx
    0xee, // out dx, al
    0xeb, 0xf1, // jmp poll
];

/// Has the power button heard, with the power management's ports where QEMU's BIOS puts them, at 0x600. The bits are
/// those of the ACPI specification, 4.8.3.
const HEAR: [u8; 8] = [
    0xfa, // cli
    0xba, 0x02, 0x06, // mov dx, 0x602
    0xb8, 0x00, 0x01, // mov ax, 0x0100
    0xef, // out dx, ax
];
/// Waits for the power button, and powers off.
const OBEY: [u8; 20] = [
    0xba, 0x00, 0x06, // poll: mov dx, 0x600
    0xed, // in ax, dx
    0xf6, 0xc4, 0x01, // test ah, 1
    0x74, 0xf7, // jz poll
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 0x2000: into S5
    0xef, // out dx, ax
    0xf4, // rest: hlt
    0xeb, 0xfd, // jmp rest
    0x90, // nop
];

/// A boot sector of 512 bytes that writes a text of at most 480 bytes to the first serial port and halts.
pub fn boot_sector(text: &str) -> Vec<u8> {
    sector(&[], text, &HALT)
}

/// The same, which then answers each byte that is typed on the port with that byte.
pub fn echoing_boot_sector(text: &str) -> Vec<u8> {
    sector(&[], text, &ECHO)
}

/// The same, which then powers itself off when its power button is pressed.
pub fn obedient_boot_sector(text: &str) -> Vec<u8> {
    // Heard before it says so: what is pressed too early is not lost.
    sector(&HEAR, text, &OBEY)
}

fn sector(first: &[u8], text: &str, then: &[u8]) -> Vec<u8> {
    let text_at = 0x7c00 + u16::try_from(first.len() + SAY.len() + then.len()).unwrap();
    let mut sector = [first, &SAY].concat();
    sector[first.len() + 5..first.len() + 7].copy_from_slice(&text_at.to_le_bytes());
    sector.extend_from_slice(then);
    sector.extend_from_slice(text.as_bytes());
    // A zero ends the text.
    assert!(sector.len() < 510, "the text is too long for a sector");
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}
