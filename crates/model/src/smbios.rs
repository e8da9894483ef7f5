//! The SMBIOS tables of a machine, as far as Lifeboat tells its copies something by them.

const TYPE_OEM_STRINGS: u8 = 11;
const TYPE_END: u8 = 127;

/// The OEM strings (type 11) in the tables of a machine (the content of `/sys/firmware/dmi/tables/DMI`), as
/// far as they are UTF-8 and the tables are whole.
pub(crate) fn oem_strings(tables: &[u8]) -> impl Iterator<Item = &str> {
    let mut rest = tables;
    let structures = std::iter::from_fn(move || {
        let (kind, strings, next) = structure(rest)?;
        rest = next;
        (kind != TYPE_END).then_some((kind, strings))
    });
    structures
        .filter(|(kind, _)| *kind == TYPE_OEM_STRINGS)
        .flat_map(|(_, strings)| strings.split(|byte| *byte == 0))
        .filter_map(|text| std::str::from_utf8(text).ok())
}

/// The first structure's type, its strings with their zeroes, and what follows it.
fn structure(table: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, formatted) = (*table.first()?, usize::from(*table.get(1)?));
    // A structure is at least its header; less would never end.
    let strings = table.get(formatted.max(4)..)?;
    let end = strings.windows(2).position(|pair| pair == [0, 0])?;
    Some((kind, &strings[..end], &strings[end + 2..]))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The tables of a machine with these OEM strings, beside another program's.
    pub(crate) fn tables(strings: &[&str]) -> Vec<u8> {
        let mut tables = b"\x01\x06\x00\x01\x01\x02Lifeboat\0Recovery copy\0\0".to_vec();
        tables.extend(b"\x20\x04\x01\x01\0\0");
        tables.extend(b"\x0b\x05\x02\x01\x02other\0");
        tables.extend(strings.join("\0").as_bytes());
        tables.extend(b"\0\0\x7f\x04\x03\x01\0\0");
        tables
    }

    #[test]
    fn strings_of_one_structure_and_of_several_are_found() {
        let once = tables(&["one", "two"]);
        assert_eq!(oem_strings(&once).collect::<Vec<_>>(), ["other", "one", "two"]);
        let twice = [b"\x0b\x05\x02\x01\x01first\0\0".as_slice(), &once].concat();
        assert_eq!(oem_strings(&twice).collect::<Vec<_>>(), ["first", "other", "one", "two"]);
    }

    proptest! {
        #[test]
        fn any_tables_are_read_without_harm(tables in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(oem_strings(&tables).count() <= tables.len());
        }
    }
}
