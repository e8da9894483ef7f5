//! Which kernel modules an initramfs has.
//!
//! It is a row of cpio archives (`newc`), each as it is or compressed, with zeroes between them: often a
//! small one with the processor's microcode, then a large compressed one. It is read as a stream: memory is
//! bounded by the window of the compression, and names of modules alone are kept.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};

/// Bytes that all archives may have when they are decompressed.
const PLAIN_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the longest name in an archive.
const NAME_BYTES_MAX: usize = 4096;
/// Modules that are remembered.
const MODULES_MAX: usize = 50_000;
/// Bytes that are read from the file at once.
const BUFFER_BYTES: usize = 64 << 10;
/// The window that compressors of initramfs use is smaller; a larger one would take much memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
const XZ_MEMORY_KIB_MAX: u32 = 48 << 10;
/// The kernel's form of LZ4 has blocks of this many bytes.
const LZ4_BLOCK_BYTES: usize = 8 << 20;
/// What does not get smaller gets a little larger.
const LZ4_PACKED_BYTES_MAX: u32 = (8 << 20) + (8 << 20) / 255 + 16;

/// The modules below `modules/RELEASE/` in an initramfs, by the kernel's names with underscores. Or one
/// clause that says why that cannot be told.
pub(crate) fn modules(file: &mut dyn Read, release: &str) -> Result<BTreeSet<String>, String> {
    let mut found = Found { place: format!("modules/{release}/"), modules: BTreeSet::new(), plain: 0 };
    found.archives(&mut Input::new(file), false)?;
    Ok(found.modules)
}

struct Found {
    place: String,
    modules: BTreeSet<String>,
    plain: u64,
}

impl Found {
    /// Reads archives up to the end of the input, which may be what a compressed stream holds.
    fn archives(&mut self, input: &mut Input<'_>, is_plain: bool) -> Result<(), String> {
        let mut is_empty = true;
        loop {
            let magic = input.peek().map_err(|error| unreadable(&error))?;
            match magic.first() {
                None if is_empty => return Err("it is empty".into()),
                None => return Ok(()),
                Some(0) => {
                    input.consume(1);
                    self.count(1)?;
                    continue;
                }
                Some(_) if magic.starts_with(b"070701") || magic.starts_with(b"070702") => {
                    self.entries(input)?;
                }
                Some(_) if is_plain => return Err("what is compressed in it is no archive".into()),
                Some(_) => self.compressed(input)?,
            }
            is_empty = false;
        }
    }

    /// Reads the archives in one compressed stream.
    fn compressed(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        let magic = input.peek().map_err(|error| unreadable(&error))?;
        let unread = |what: &str| Err(format!("it is compressed with {what}, which the agent does not read"));
        match magic {
            [0x1f, 0x8b, ..] => {
                self.archives(&mut Input::new(&mut flate2::bufread::GzDecoder::new(input)), true)
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Ok(decoder.single_frame())
                });
                self.archives(&mut Input::new(&mut decoder.map_err(|error| unreadable(&error))?), true)
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => self.archives(&mut Input::new(&mut xz(input)), true),
            [0x02, 0x21, 0x4c, 0x18, ..] => {
                input.consume(4);
                let mut decoder = Lz4 { input, packed: Vec::new(), plain: Vec::new(), at: 0 };
                self.archives(&mut Input::new(&mut decoder), true)
            }
            [b'B', b'Z', b'h', ..] => unread("bzip2"),
            [0x5d, 0, 0, ..] => unread("lzma"),
            [0x89, b'L', b'Z', b'O', ..] => unread("lzo"),
            _ => {
                Err("it has no archive and no compression that the agent knows where one should begin".into())
            }
        }
    }

    /// Reads entries up to the last one of an archive.
    fn entries(&mut self, plain: &mut Input<'_>) -> Result<(), String> {
        loop {
            let mut header = [0; 110];
            self.exactly(plain, &mut header)?;
            if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
                return Err("an archive in it is damaged: an entry begins with no header".into());
            }
            let field = |number: usize| {
                let digits = std::str::from_utf8(&header[6 + number * 8..][..8]).ok();
                let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                value.ok_or("an archive in it is damaged: a header has no number where one belongs")
            };
            let (bytes, name_bytes) = (u64::from(field(6)?), field(11)? as usize);
            if !(1..=NAME_BYTES_MAX).contains(&name_bytes) {
                return Err(format!("an archive in it is damaged: a name has {name_bytes} bytes"));
            }
            // Both the name and the content are padded to a multiple of four.
            let mut name = vec![0; (110 + name_bytes).next_multiple_of(4) - 110];
            self.exactly(plain, &mut name)?;
            let name = name[..name_bytes].split(|byte| *byte == 0).next().unwrap_or_default();
            if name == b"TRAILER!!!" {
                return Ok(());
            }
            self.note(&String::from_utf8_lossy(name));
            self.skip(plain, bytes.next_multiple_of(4))?;
        }
    }

    fn note(&mut self, path: &str) {
        if self.modules.len() < MODULES_MAX && path.contains(&self.place) {
            self.modules.extend(module_name(path));
        }
    }

    fn exactly(&mut self, plain: &mut Input<'_>, buffer: &mut [u8]) -> Result<(), String> {
        self.count(buffer.len() as u64)?;
        plain.read_exact(buffer).map_err(|error| unreadable(&error))
    }

    fn skip(&mut self, plain: &mut Input<'_>, bytes: u64) -> Result<(), String> {
        self.count(bytes)?;
        let skipped =
            io::copy(&mut plain.take(bytes), &mut io::sink()).map_err(|error| unreadable(&error))?;
        if skipped == bytes { Ok(()) } else { Err(unreadable(&io::ErrorKind::UnexpectedEof.into())) }
    }

    fn count(&mut self, bytes: u64) -> Result<(), String> {
        self.plain = self.plain.saturating_add(bytes);
        if self.plain > PLAIN_BYTES_MAX {
            return Err(format!("it has more than {} GiB", PLAIN_BYTES_MAX >> 30));
        }
        Ok(())
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("it is damaged or cut off: {error}")
}

/// The kernel's name of a module's file, with underscores.
pub(super) fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".gz" | ".xz" | ".zst").then(|| name.replace('-', "_"))
}

/// A stream that can be looked into without reading on.
struct Input<'a> {
    stream: &'a mut dyn Read,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Input<'a> {
    fn new(stream: &'a mut dyn Read) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0 }
    }

    /// The next bytes: at least six of them, but at the end.
    fn peek(&mut self) -> io::Result<&[u8]> {
        while self.end - self.start < 6 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek()
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

fn xz(input: &mut Input<'_>) -> impl Read {
    lzma_rust2::XzReader::new_mem_limit(input, false, XZ_MEMORY_KIB_MAX)
}

/// What `lz4 -l` writes: blocks, each after its length.
struct Lz4<'a, 'b> {
    input: &'a mut Input<'b>,
    packed: Vec<u8>,
    plain: Vec<u8>,
    at: usize,
}

impl Lz4<'_, '_> {
    /// Unpacks the next block; without one, `plain` is empty.
    fn next_block(&mut self) -> io::Result<()> {
        self.plain.clear();
        self.at = 0;
        let Some(length) = self.input.peek()?.first_chunk::<4>() else { return Ok(()) };
        let length = u32::from_le_bytes(*length);
        // Zeroes, another archive, or another stream.
        if length == 0 || length > LZ4_PACKED_BYTES_MAX {
            return Ok(());
        }
        self.input.consume(4);
        self.packed.resize(length as usize, 0);
        self.input.read_exact(&mut self.packed)?;
        self.plain.resize(LZ4_BLOCK_BYTES, 0);
        let count = lz4_flex::block::decompress_into(&self.packed, &mut self.plain);
        self.plain.truncate(count.map_err(io::Error::other)?);
        Ok(())
    }
}

impl Read for Lz4<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.plain.len() {
            self.next_block()?;
        }
        let count = buffer.len().min(self.plain.len() - self.at);
        buffer[..count].copy_from_slice(&self.plain[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
