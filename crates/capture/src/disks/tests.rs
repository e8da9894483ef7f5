use super::*;

fn disk(bytes: u64, sector_bytes: u64) -> OpenDisk {
    OpenDisk { file: Arc::new(tempfile::tempfile().unwrap()), bytes, sector_bytes }
}

#[test]
fn reads_begin_and_end_with_sectors() {
    let number = DiskNumber(0);
    let place = disk(1 << 20, 512).place(number, Extent { first: 3, blocks: 2 }).unwrap();
    assert_eq!(place, Place { offset: 12288, lead: 0, len: 8192, read_len: 8192 });
    let place = disk(1 << 20, 16384).place(number, Extent { first: 3, blocks: 2 }).unwrap();
    assert_eq!(place, Place { offset: 0, lead: 12288, len: 8192, read_len: 32768 });
    let place = disk(4096 + 1536, 512).place(number, Extent { first: 1, blocks: 1 }).unwrap();
    assert_eq!(place, Place { offset: 4096, lead: 0, len: 1536, read_len: 1536 });
    assert!(disk(4096 + 1536, 512).place(number, Extent { first: 2, blocks: 1 }).is_err());
}

#[test]
fn any_read_fits_its_buffer() {
    for sector in [512, 4096, 16384, SECTOR_BYTES_MAX as u64] {
        for first in 0..40 {
            let extent = Extent { first, blocks: 64 };
            let place = disk(1 << 20, sector).place(DiskNumber(0), extent).unwrap();
            assert!(place.read_len <= BUFFER_BYTES && place.lead + place.len <= place.read_len);
        }
    }
}

#[test]
fn neighbours_are_named_as_one() {
    let mut list = Vec::new();
    for block in [5, 6, 7, 9] {
        let extent = Extent { first: block, blocks: 1 };
        add_unreadable(&mut list, Unreadable { disk: DiskNumber(1), extent, errno: libc::EIO });
    }
    let extents: Vec<_> = list.iter().map(|bad| (bad.extent.first, bad.extent.blocks)).collect();
    assert_eq!(extents, [(5, 3), (9, 1)]);
}
