//! Reads one fact out of the kernel's type information: how many arguments a tracepoint has.
//!
//! `block_rq_issue` lost its first argument in 5.11, and in some stable versions of older
//! kernels too, so the version does not tell. The format is the kernel's BTF.

const MAGIC: u16 = 0xeb9f;
const TYPE_BYTES: usize = 12;

const KIND_PTR: u32 = 2;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC_PROTO: u32 = 13;

/// The arguments of `tracepoint`, without the context that every probe gets; `Ok(None)` if
/// the kernel has no such tracepoint. The error says what in the data cannot be understood.
pub(crate) fn tracepoint_arguments(btf: &[u8], tracepoint: &str) -> Result<Option<u32>, String> {
    let types = Types::parse(btf)?;
    let wanted = format!("btf_trace_{tracepoint}");
    let Some(pointer) = types.find(|kind, name| kind == KIND_TYPEDEF && name == wanted.as_bytes())? else {
        return Ok(None);
    };
    let prototype = types.get(pointer.target)?;
    if prototype.kind != KIND_PTR {
        return Err(format!("{wanted} is no pointer"));
    }
    let prototype = types.get(prototype.target)?;
    if prototype.kind != KIND_FUNC_PROTO {
        return Err(format!("{wanted} points to no function"));
    }
    prototype.members.checked_sub(1).map(Some).ok_or_else(|| format!("{wanted} takes no context"))
}

struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

struct Type<'a> {
    kind: u32,
    members: u32,
    name: &'a [u8],
    /// The type it refers to, or its size.
    target: u32,
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Result<Self, String> {
        let magic = btf.get(..2).ok_or("it is empty")?;
        if magic != MAGIC.to_ne_bytes() {
            return Err("it does not begin as BTF does".into());
        }
        let header_bytes = number(btf, 4)?;
        let section = |offset_at: usize, length_at: usize| {
            let start = u64::from(header_bytes) + u64::from(number(btf, offset_at)?);
            let end = start + u64::from(number(btf, length_at)?);
            let range = crate::layout::index(start)..crate::layout::index(end);
            btf.get(range).ok_or_else(|| "a section lies beyond its end".to_owned())
        };
        Ok(Self { types: section(8, 12)?, strings: section(16, 20)? })
    }

    /// The first type that fits.
    fn find(&self, fits: impl Fn(u32, &[u8]) -> bool) -> Result<Option<Type<'a>>, String> {
        let mut rest = self.types;
        while !rest.is_empty() {
            let (found, after) = self.read(rest)?;
            if fits(found.kind, found.name) {
                return Ok(Some(found));
            }
            rest = after;
        }
        Ok(None)
    }

    /// The type with this number; numbers begin with 1.
    fn get(&self, id: u32) -> Result<Type<'a>, String> {
        let mut rest = self.types;
        for _ in 1..id {
            rest = self.read(rest)?.1;
        }
        if id == 0 || rest.is_empty() {
            return Err(format!("there is no type {id}"));
        }
        Ok(self.read(rest)?.0)
    }

    fn read(&self, from: &'a [u8]) -> Result<(Type<'a>, &'a [u8]), String> {
        let name_at = number(from, 0)?;
        let info = number(from, 4)?;
        let target = number(from, 8)?;
        let (kind, members) = ((info >> 24) & 0x1f, info & 0xffff);
        let extra = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            4 | 5 | 15 | 19 => 12 * members as usize,
            6 | KIND_FUNC_PROTO => 8 * members as usize,
            KIND_PTR | 7..=12 | 16 | 18 => 0,
            other => return Err(format!("it has a kind of type that is not known ({other})")),
        };
        let after = from.get(TYPE_BYTES + extra..).ok_or("it is cut short")?;
        let name = self.strings.get(name_at as usize..).ok_or("a name lies beyond its end")?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok((Type { kind, members, name, target }, after))
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u32, String> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    bytes.map(u32::from_ne_bytes).ok_or_else(|| "it is cut short".to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tiny BTF: the tracepoint with `arguments`, after a structure to be skipped.
    fn btf(arguments: u32) -> Vec<u8> {
        let mut strings = vec![0];
        strings.extend(b"request\0btf_trace_block_rq_issue\0");
        let mut types: Vec<u32> = vec![1, (4 << 24) | 1, 8];
        types.extend([0, 0, 0]);
        types.extend([0, (KIND_FUNC_PROTO << 24) | (arguments + 1), 0]);
        types.extend(std::iter::repeat_n(0, 2 * (arguments as usize + 1)));
        types.extend([0, KIND_PTR << 24, 2]);
        types.extend([9, KIND_TYPEDEF << 24, 3]);
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for number in [24, 0, types.len(), types.len(), strings.len()] {
            bytes.extend(u32::try_from(number).unwrap().to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn old_and_new_prototypes_are_told_apart() {
        assert_eq!(tracepoint_arguments(&btf(1), "block_rq_issue"), Ok(Some(1)));
        assert_eq!(tracepoint_arguments(&btf(2), "block_rq_issue"), Ok(Some(2)));
        assert_eq!(tracepoint_arguments(&btf(2), "block_rq_complete"), Ok(None));
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = btf(2);
        for length in 0..whole.len() {
            assert!(tracepoint_arguments(&whole[..length], "block_rq_issue").is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, at in 0usize..150, byte: u8) {
            let _ = tracepoint_arguments(&bytes, "block_rq_issue");
            bytes.splice(0..bytes.len().min(2), MAGIC.to_ne_bytes());
            let _ = tracepoint_arguments(&bytes, "block_rq_issue");
            let mut changed = btf(2);
            if let Some(place) = changed.get_mut(at) {
                *place = byte;
            }
            let _ = tracepoint_arguments(&changed, "block_rq_issue");
        }
    }
}
