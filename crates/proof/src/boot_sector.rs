//! The smallest guest: a boot sector that says something on the serial port and halts.

/// A boot sector of 512 bytes that writes a text of at most 480 bytes to the first serial port.
pub fn boot_sector(text: &str) -> Vec<u8> {
    let mut sector = vec![
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xbe, 0x15, 0x7c, // mov si, text
        0xac, // next: lodsb
        0x08, 0xc0, // or al, al
        0x74, 0x06, // jz end
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xf5, // jmp next
        0xf4, // end: hlt
        0xeb, 0xfd, // jmp end
    ];
    sector.extend_from_slice(text.as_bytes());
    assert!(sector.len() <= 510, "the text is too long for a sector");
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}
