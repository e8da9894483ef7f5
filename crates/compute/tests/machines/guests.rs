//! Guests of one sector, that say what they do to the first serial port.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Says UP on the console and the screen and rests.
pub const UP: &str = r#"
        leaw    words, %si
        call    say
        leaw    words, %si
screen: lodsb
        testb   %al, %al
        jz      rest
        movb    $0x0e, %ah
        movw    $7, %bx
        int     $0x10
        jmp     screen
words:  .asciz  "UP\r\n"
"#;

/// Says UP, and then whatever is typed on its serial port.
pub const ECHOES: &str = r#"
        leaw    words, %si
        call    say
poll:   movw    $0x3fd, %dx
        inb     %dx, %al
        testb   $1, %al
        jz      poll
        movw    $0x3f8, %dx
        inb     %dx, %al
        outb    %al, %dx
        jmp     poll
words:  .asciz  "UP\r\n"
"#;

/// Says what the second sector of its disk says.
pub const READS: &str = r#"
        movb    $0x42, %ah
        call    disk
        jc      failed
        movw    $0x8000, %si
        call    say
        jmp     rest
packet: .byte   16, 0
        .word   1, 0x8000, 0
        .quad   1
"#;

/// Counts upwards, and says each number once it is written to the third sector.
pub const COUNTS: &str = r#"
again:  incl    number
        movl    number, %ecx
        movw    $0x8000, %di
        movw    $8, %bx
digit:  roll    $4, %ecx
        movb    %cl, %al
        andb    $15, %al
        addb    $'a', %al
        stosb
        decw    %bx
        jnz     digit
        movl    $0x000a0d, %eax
        stosl
        movw    $0x4300, %ax
        call    disk
        jc      failed
        movw    $0x8000, %si
        call    say
        movb    $0x86, %ah
        xorw    %cx, %cx
        movw    $20000, %dx
        int     $0x15
        jmp     again
        .balign 4
number: .long   0
packet: .byte   16, 0
        .word   1, 0x8000, 0
        .quad   2
"#;

/// Says UP, waits for the power button, says OFF and takes its power away (ACPI as on the q35 chipset).
pub const BUTTON: &str = r#"
        cli
        movw    $0x602, %dx
        movw    $0x100, %ax
        outw    %ax, %dx
        leaw    words, %si
        call    say
        movw    $0x600, %dx
wait:   inw     %dx, %ax
        testw   $0x100, %ax
        jz      wait
        leaw    off, %si
        call    say
        movw    $0x604, %dx
        movw    $0x2000, %ax
        outw    %ax, %dx
        jmp     rest
words:  .asciz  "UP\r\n"
off:    .asciz  "OFF\r\n"
"#;

/// Says its SMBIOS tables byte for byte, after `<` and before `>`.
pub const SMBIOS: &str = r#"
        lgdtl   register
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        movw    $8, %ax
        movw    %ax, %fs
        movl    %cr0, %eax
        andb    $0xfe, %al
        movl    %eax, %cr0
        movl    $0xf0000, %esi
search: cmpl    $0x5f4d535f, %fs:(%esi)
        je      found
        addl    $16, %esi
        cmpl    $0x100000, %esi
        jb      search
        jmp     failed
found:  movzwl  %fs:0x16(%esi), %ecx
        movl    %fs:0x18(%esi), %esi
        movw    $0x3f8, %dx
        movb    $'<', %al
        outb    %al, %dx
byte:   movb    %fs:(%esi), %al
        outb    %al, %dx
        incl    %esi
        decl    %ecx
        jnz     byte
        movb    $'>', %al
        outb    %al, %dx
        jmp     rest
        .balign 8
table:  .quad   0, 0x00cf92000000ffff
register:
        .word   15
        .long   table
"#;

const BEGIN: &str = r#"
        .code16
        cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movb    %dl, drive
        cld
        sti
"#;

const END: &str = r#"
rest:   hlt
        jmp     rest
failed: leaw    sorry, %si
        call    say
        jmp     rest
say:    movw    $0x3fd, %dx
ready:  inb     %dx, %al
        testb   $0x20, %al
        jz      ready
        lodsb
        testb   %al, %al
        jz      said
        movw    $0x3f8, %dx
        outb    %al, %dx
        jmp     say
said:   ret
disk:   movb    drive, %dl
        leaw    packet, %si
        int     $0x13
        ret
drive:  .byte   0
sorry:  .asciz  "FAILED\r\n"
        .weak   packet
        .org    510
        .word   0xaa55
"#;

/// The boot sector of a guest.
pub fn boot_sector(guest: &str) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        assert!(command.current_dir(place.path()).args(arguments).status().unwrap().success());
    };
    fs::write(place.path().join("g.s"), format!("{BEGIN}{guest}{END}")).unwrap();
    run("as", &["--32", "g.s", "-o", "g.o"]);
    run("ld", &["-m", "elf_i386", "-Ttext=0x7c00", "-e", "0", "--oformat=binary", "-o", "g.bin", "g.o"]);
    let sector = fs::read(place.path().join("g.bin")).unwrap();
    assert_eq!(sector.len(), 512);
    sector
}

/// A disk that starts the guest, with this text in its second sector.
pub fn disk(path: &Path, guest: &str, bytes: u64, text: &str) {
    let mut image = boot_sector(guest);
    image.extend(text.as_bytes());
    fs::write(path, image).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// The number that a line of the guest that counts stands for.
pub fn number(line: &str) -> Option<u32> {
    let digits = line.trim_end_matches('\r');
    if digits.len() != 8 || !digits.bytes().all(|digit| (b'a'..=b'p').contains(&digit)) {
        return None;
    }
    Some(digits.bytes().fold(0, |number, digit| number * 16 + u32::from(digit - b'a')))
}
