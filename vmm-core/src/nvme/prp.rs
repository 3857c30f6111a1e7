//! Physical region pages: where in guest memory a command's data lies (NVMe 1.4, 4.3).

use super::command::{Command, Status};
use crate::memory::{GuestMemory, GuestPhys, scattered};
use alloc::sync::Arc;
use alloc::vec::Vec;
use storage::Buffer;

/// The size of a memory page in bytes: the only one offered.
pub(super) const PAGE: u64 = 4096;
/// The most pages that a command moves: with half as many, a system that reads files takes twice the requests, and
/// notices.
pub(super) const MOST_PAGES: u64 = 128;
/// The most bytes that a command moves.
pub(super) const MOST_BYTES: u64 = MOST_PAGES * PAGE;

const ENTRY: u64 = size_of::<u64>() as u64;

/// The `len` bytes that a command's two entries name.
pub(super) fn buffer(memory: &Arc<GuestMemory>, command: &Command, len: u64) -> Result<Buffer, Status> {
    let ranges = ranges(memory, command.prp, len)?;
    scattered(memory, ranges).map_err(|_| Status::DATA_TRANSFER)
}

fn ranges(
    memory: &GuestMemory,
    [first, second]: [u64; 2],
    len: u64,
) -> Result<Vec<(GuestPhys, u64)>, Status> {
    if len > MOST_BYTES {
        return Err(Status::INVALID_FIELD);
    }
    let here = len.min(PAGE.saturating_sub(first & PAGE.wrapping_sub(1)));
    let mut left = len.saturating_sub(here);
    let mut ranges = Vec::with_capacity(left.div_ceil(PAGE).saturating_add(1) as usize);
    ranges.push((GuestPhys::new(first), here));
    if first & 3 != 0 {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    if left == 0 {
        return Ok(ranges);
    }
    if left <= PAGE {
        ranges.push((whole_page(second)?, left));
        return Ok(ranges);
    }
    // A list, which begins anywhere in its page. Where it does not end there, the page's last entry names the next
    // page of it, and so many entries as there can be end in that one.
    let mut list = second;
    if list & ENTRY.wrapping_sub(1) != 0 {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    while left > 0 {
        let room = PAGE.saturating_sub(list & PAGE.wrapping_sub(1)) / ENTRY;
        let wanted = left.div_ceil(PAGE);
        let goes_on = wanted > room;
        let entries = if goes_on { room } else { wanted };
        let mut bytes = [0; (MOST_PAGES * ENTRY) as usize];
        let bytes = bytes.get_mut(..entries.saturating_mul(ENTRY) as usize).ok_or(Status::INTERNAL)?;
        memory.read(GuestPhys::new(list), bytes).map_err(|_| Status::DATA_TRANSFER)?;
        let (mut entries, _) = bytes.as_chunks::<8>();
        if goes_on {
            let Some((next, before)) = entries.split_last() else { return Err(Status::INVALID_PRP_OFFSET) };
            (list, entries) = (whole_page(u64::from_le_bytes(*next))?.get(), before);
        }
        for entry in entries {
            let here = left.min(PAGE);
            ranges.push((whole_page(u64::from_le_bytes(*entry))?, here));
            left = left.saturating_sub(here);
        }
    }
    Ok(ranges)
}

/// All entries but a command's first begin a page.
fn whole_page(entry: u64) -> Result<GuestPhys, Status> {
    let page = GuestPhys::new(entry);
    if page.is_aligned(PAGE) { Ok(page) } else { Err(Status::INVALID_PRP_OFFSET) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::tests::memory;
    use crate::nvme::command::ENTRY_BYTES;

    fn pages(prp: [u64; 2], len: u64, lists: &[(u64, &[u64])]) -> Result<Vec<(u64, u64)>, Status> {
        let memory = memory();
        for (at, entries) in lists {
            for (n, entry) in (0..).zip(*entries) {
                memory.write_u64(GuestPhys::new(at + n * 8), *entry).unwrap();
            }
        }
        let ranges = ranges(&memory, prp, len)?;
        Ok(ranges.into_iter().map(|(at, len)| (at.get(), len)).collect())
    }

    #[test]
    fn two_pages_need_no_list() {
        assert_eq!(pages([0x1000, 0], 0x1000, &[]), Ok(vec![(0x1000, 0x1000)]));
        assert_eq!(pages([0x1e00, 0x5000], 0x400, &[]), Ok(vec![(0x1e00, 0x200), (0x5000, 0x200)]));
        assert_eq!(pages([0x1004, 7], 0x200, &[]), Ok(vec![(0x1004, 0x200)]), "the second is not used");
        assert_eq!(pages([0x1e00, 0x5200], 0x400, &[]), Err(Status::INVALID_PRP_OFFSET));
        assert_eq!(pages([0x1e01, 0x5000], 0x400, &[]), Err(Status::INVALID_PRP_OFFSET));
    }

    #[test]
    fn lists_go_on_where_their_page_ends() {
        let expected = vec![(0x1800, 0x800), (0x9000, 0x1000), (0x7000, 0x1000), (0x8000, 0x800)];
        assert_eq!(
            pages([0x1800, 0x2010], 0x3000, &[(0x2010, &[0x9000, 0x7000, 0x8000])]),
            Ok(expected.clone())
        );
        let lists: [(u64, &[u64]); 2] = [(0x2ff0, &[0x9000, 0x4000]), (0x4000, &[0x7000, 0x8000])];
        assert_eq!(pages([0x1800, 0x2ff0], 0x3000, &lists), Ok(expected));
        let lists: [(u64, &[u64]); 2] = [(0x2ff8, &[0x4000]), (0x4000, &[0x7000, 0x8000])];
        let expected = vec![(0x1000, 0x1000), (0x7000, 0x1000), (0x8000, 0x1000)];
        assert_eq!(pages([0x1000, 0x2ff8], 0x3000, &lists), Ok(expected), "nothing but where it goes on");
        for list in [0x2ff4, 0x2ff8] {
            let lists: [(u64, &[u64]); 1] = [(0x2ff8, &[0x4008])];
            assert_eq!(pages([0x1000, list], 0x3000, &lists), Err(Status::INVALID_PRP_OFFSET));
        }
        let lists: [(u64, &[u64]); 1] = [(0x2000, &[0x7000, 0x8800])];
        assert_eq!(pages([0x1000, 0x2000], 0x3000, &lists), Err(Status::INVALID_PRP_OFFSET));
        assert_eq!(pages([0x1000, 0x20_0000], 0x3000, &[]), Err(Status::DATA_TRANSFER), "no memory there");
        assert_eq!(pages([0x1000, !7], 0x3000, &[]), Err(Status::DATA_TRANSFER));
        assert_eq!(pages([0x1000, 0x2000], MOST_BYTES + 1, &[]), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn a_buffer_is_all_of_it() {
        let memory = memory();
        let mut bytes = [0; ENTRY_BYTES];
        bytes[24..32].copy_from_slice(&0x1ff8_u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x7000_u64.to_le_bytes());
        let command = Command::read(&bytes);
        let buffer = buffer(&memory, &command, 16).unwrap();
        buffer.write(0, b"0123456789abcdef");
        assert_eq!(memory.read_u64(GuestPhys::new(0x7000)), Ok(u64::from_le_bytes(*b"89abcdef")));
        bytes[32..40].copy_from_slice(&0x1000_0000_u64.to_le_bytes());
        assert_eq!(super::buffer(&memory, &Command::read(&bytes), 16).err(), Some(Status::DATA_TRANSFER));
    }
}
