//! Fields at fixed places of header and footer, and the numbers of the index.

/// Copies `N` bytes from `at`.
///
/// The callers have checked the length of `bytes`; places are constants of the format.
pub(crate) fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

/// A length of the format, which is a small constant.
#[allow(clippy::cast_possible_truncation, reason = "checked in the line before")]
pub(crate) const fn u32_of(length: usize) -> u32 {
    assert!(length < 1 << 16);
    length as u32
}

/// Puts a field to its place.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Appends a varint.
pub(crate) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Takes a varint off the front; `None` if there is none or it is larger than 64 bits.
pub(crate) fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Small numbers of either sign to small numbers without one.
pub(crate) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(crate) const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_read_back(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            push_varint(&mut bytes, value);
            prop_assert_eq!(take_varint(&mut bytes.as_slice()), Some(value));
            bytes.pop();
            prop_assert_eq!(take_varint(&mut bytes.as_slice()), None, "cut short");
            prop_assert_eq!(unzigzag(zigzag(value.cast_signed())), value.cast_signed());
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        assert_eq!(take_varint(&mut [0xff; 10].as_slice()), None);
        let mut large = [0xff; 10];
        large[9] = 1;
        assert_eq!(take_varint(&mut large.as_slice()), Some(u64::MAX));
        large[9] = 2;
        assert_eq!(take_varint(&mut large.as_slice()), None);
    }
}
