//! The guest's own page tables: from a linear address to a guest-physical one, as its CPU would go.

use super::{GuestMemory, GuestPhys};
use core::fmt;

/// What decides how a guest CPU translates addresses (SDM 4.1, APM 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0: PG and WP.
    pub cr0: u64,
    /// CR3: where the tables begin.
    pub cr3: u64,
    /// CR4: PSE, PAE, LA57, SMEP and SMAP.
    pub cr4: u64,
    /// EFER: LMA and NXE.
    pub efer: u64,
    /// MAXPHYADDR, 32 to 52: entry bits from here on are reserved.
    pub physical_bits: u8,
}

const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

/// What an instruction wants to do at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// Read data.
    Read,
    /// Write data, or read and then write it.
    Write,
    /// Fetch instruction bytes.
    Fetch,
}

/// An access and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What is done.
    pub kind: AccessKind,
    /// Whether it is made at privilege level 3.
    pub user: bool,
    /// RFLAGS.AC: the supervisor may touch user pages although CR4.SMAP is set.
    pub alignment_check: bool,
}

/// Whether a walk sets the Accessed and Dirty flags, as the CPU does, or leaves the tables alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marking {
    /// Set them.
    Mark,
    /// Leave everything as it is.
    Leave,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address, of memory, a device or nothing.
    pub address: GuestPhys,
    /// Bytes from there to the end of the page, itself included: 1 to 1 GiB, and more without paging.
    pub remaining: u64,
}

/// A translation failed: #PF with this error code (SDM 4.7). CR2 is the linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// What the CPU pushes.
    pub error_code: u32,
}

impl PageFault {
    /// P: the page is there, the access is not allowed.
    pub const PRESENT: u32 = 1 << 0;
    /// W/R: the access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// U/S: the access was made at privilege level 3.
    pub const USER: u32 = 1 << 2;
    /// RSVD: an entry has a reserved bit set.
    pub const RESERVED: u32 = 1 << 3;
    /// I/D: the access was an instruction fetch, and fetches can be forbidden.
    pub const FETCH: u32 = 1 << 4;
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page fault with error code {:#x}", self.error_code)
    }
}

impl core::error::Error for PageFault {}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 12..=51 of an 8-byte entry: where it points.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// In PAE's top table bits 1, 2 and 5 to 8 are reserved: it holds no permissions (SDM table 4-8). Bit 5 is left
/// out, since QEMU 7.2 sets it as Accessed.
const PAE_TOP_RESERVED: u64 = 0x1c6;

/// How often a walk starts again because another CPU changed the entry it was about to mark. A guest that
/// manages more than this loses an Accessed or Dirty flag, and nobody else loses anything.
const RESTARTS: u32 = 16;

/// Why one pass over the tables did not lead to an address.
enum Stop {
    Fault(PageFault),
    /// Another CPU changed an entry that this walk read and then wanted to mark.
    Changed,
}

/// Translates the linear address `linear`. Canonical form and segment limits are the caller's; outside long
/// mode only the low 32 bits count.
///
/// Table entries where the guest has no memory read as all ones, like any address nothing answers at.
#[inline(always)]
pub fn translate(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
    marking: Marking,
) -> Result<Translation, PageFault> {
    if paging.cr0 & CR0_PG == 0 {
        let linear = linear & 0xffff_ffff;
        return Ok(Translation {
            address: GuestPhys::new(linear),
            remaining: 0x1_0000_0000_u64.saturating_sub(linear),
        });
    }
    match look(memory, paging, linear, access, marking) {
        Some(translation) => Ok(translation),
        None => walk(memory, paging, linear, access, marking),
    }
}

/// Where `linear` leads in long mode, whoever may go there. For an instruction that the CPU has just fetched
/// from there: it has checked the rights. `None` where only [`translate`] can tell.
#[inline(always)]
pub fn locate(memory: &GuestMemory, paging: &Paging, linear: u64) -> Option<Translation> {
    let leaf = find(memory, paging, linear)?;
    (leaf.common & PRESENT != 0).then(|| page(leaf.entry & ADDRESS, leaf.page_mask, linear))
}

/// [`translate`] for the common case alone: nothing to refuse and nothing to mark. `None` is no answer.
#[inline(always)]
fn look(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
    marking: Marking,
) -> Option<Translation> {
    let Leaf { entry, page_mask, common, any, mut reserved } = find(memory, paging, linear)?;
    // A large page starts at a multiple of its size (bit 12 is its PAT flag).
    reserved |= any & paging.wide_reserved() | entry & page_mask & ADDRESS & !0x1000;
    if common & PRESENT == 0 || reserved != 0 {
        return None;
    }
    let unmarked = common & ACCESSED == 0 || access.kind == AccessKind::Write && entry & DIRTY == 0;
    if marking == Marking::Mark && unmarked || !paging.permits(access, common, any & NO_EXECUTE != 0) {
        return None;
    }
    Some(page(entry & ADDRESS, page_mask, linear))
}

/// The end of a walk in which nothing was checked.
struct Leaf {
    /// The last entry, and the bits that are an offset in its page.
    entry: u64,
    page_mask: u64,
    /// The bits that all entries on the way have, and those that any has.
    common: u64,
    any: u64,
    /// Not zero where an entry makes a page that is too high for it.
    reserved: u64,
}

/// Goes through long mode's tables in as few steps as there are, if they are all in one region. Every exit
/// that skips an instruction comes through here. An entry that is not present leads astray, but not far.
#[inline(always)]
fn find(memory: &GuestMemory, paging: &Paging, linear: u64) -> Option<Leaf> {
    if paging.efer & EFER_LMA == 0 {
        return None;
    }
    let words = memory.words_around(GuestPhys::new(paging.cr3 & ADDRESS))?;
    let (mut common, mut any) = (u64::MAX, 0);
    // `shift` is a constant at every place this is written out.
    let mut below = |table: u64, shift: u32| {
        let index = linear.wrapping_shr(shift.wrapping_sub(3)) & 0xff8;
        let entry = words.read(GuestPhys::new(table & ADDRESS | index))?;
        common &= entry;
        any |= entry;
        Some(entry)
    };
    let five = if paging.cr4 & CR4_LA57 == 0 { paging.cr3 & ADDRESS } else { below(paging.cr3, 48)? };
    let four = below(five, 39)?;
    // Bit 7 is reserved so far; from here on it makes a page.
    let reserved = (five | four) & LARGE;
    let mut entry = below(four, 30)?;
    let mut page_mask = 0x3fff_ffff;
    if entry & LARGE == 0 {
        entry = below(entry, 21)?;
        page_mask = 0x1f_ffff;
        if entry & LARGE == 0 {
            entry = below(entry, 12)?;
            page_mask = 0xfff;
        }
    }
    Some(Leaf { entry, page_mask, common, any, reserved })
}

/// Every other case.
#[cold]
fn walk(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
    marking: Marking,
) -> Result<Translation, PageFault> {
    for _ in 0..RESTARTS {
        match pass(memory, paging, linear, access, marking) {
            Ok(translation) => return Ok(translation),
            Err(Stop::Fault(fault)) => return Err(fault),
            Err(Stop::Changed) => {}
        }
    }
    match pass(memory, paging, linear, access, Marking::Leave) {
        Ok(translation) => Ok(translation),
        Err(Stop::Fault(fault)) => Err(fault),
        // Not reached: a pass that marks nothing does not find out that an entry changed.
        Err(Stop::Changed) => Err(paging.fault(access, 0)),
    }
}

fn pass(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
    marking: Marking,
) -> Result<Translation, Stop> {
    if paging.efer & EFER_LMA != 0 {
        let shift = if paging.cr4 & CR4_LA57 == 0 { 39 } else { 48 };
        let walk = Walk { memory, paging, linear, access, marking, reserved: paging.wide_reserved() };
        walk.descend(paging.cr3 & ADDRESS, shift)
    } else if paging.cr4 & CR4_PAE != 0 {
        let linear = linear & 0xffff_ffff;
        let reserved = paging.reserved() & !NO_EXECUTE | paging.no_execute_reserved();
        let walk = Walk { memory, paging, linear, access, marking, reserved };
        let at = GuestPhys::new(paging.cr3 & 0xffff_ffe0 | linear >> 27 & 0x18);
        let entry = memory.read_u64(at).unwrap_or(u64::MAX);
        if entry & PRESENT == 0 {
            return Err(walk.fault(0));
        }
        if entry & (paging.reserved() | PAE_TOP_RESERVED) != 0 {
            return Err(walk.fault(PageFault::PRESENT | PageFault::RESERVED));
        }
        walk.descend(entry & ADDRESS, 21)
    } else {
        Walk { memory, paging, linear: linear & 0xffff_ffff, access, marking, reserved: 0 }.descend_narrow()
    }
}

/// The place in the page at `start`, whose offsets have the bits of `page_mask`, that `linear` leads to.
#[inline]
fn page(start: u64, page_mask: u64, linear: u64) -> Translation {
    let offset = linear & page_mask;
    Translation {
        address: GuestPhys::new(start & !page_mask | offset),
        remaining: (page_mask ^ offset).wrapping_add(1),
    }
}

/// One pass over the tables.
struct Walk<'a> {
    memory: &'a GuestMemory,
    paging: &'a Paging,
    linear: u64,
    access: Access,
    marking: Marking,
    /// Bits that no 8-byte entry may have.
    reserved: u64,
}

impl Walk<'_> {
    /// Through tables of 8-byte entries, from the one at `table`, whose entries each cover 1 << `shift` bytes.
    fn descend(&self, mut table: u64, mut shift: u32) -> Result<Translation, Stop> {
        // A page is writable or the user's only if every entry on the way says so.
        let mut common = u64::MAX;
        let mut no_execute = 0;
        loop {
            let at = GuestPhys::new(table | self.linear.wrapping_shr(shift.wrapping_sub(3)) & 0xff8);
            let entry = self.memory.read_u64(at).unwrap_or(u64::MAX);
            if entry & PRESENT == 0 {
                return Err(self.fault(0));
            }
            if entry & self.reserved != 0 {
                return Err(self.fault(PageFault::PRESENT | PageFault::RESERVED));
            }
            common &= entry;
            no_execute |= entry & NO_EXECUTE;
            if shift == 12 || entry & LARGE != 0 {
                let page_mask = 1_u64.wrapping_shl(shift).wrapping_sub(1);
                // A large page starts at a multiple of its size (bit 12 is its PAT flag), and is at most 1 GiB.
                if shift > 30 || entry & ADDRESS & page_mask & !0x1000 != 0 {
                    return Err(self.fault(PageFault::PRESENT | PageFault::RESERVED));
                }
                self.permit(common, no_execute != 0)?;
                self.mark_wide(at, entry, self.leaf_flags())?;
                return Ok(page(entry & ADDRESS, page_mask, self.linear));
            }
            self.mark_wide(at, entry, ACCESSED)?;
            table = entry & ADDRESS;
            shift = shift.wrapping_sub(9);
        }
    }

    /// Through the two levels of 4-byte entries.
    fn descend_narrow(&self) -> Result<Translation, Stop> {
        let at = GuestPhys::new(self.paging.cr3 & 0xffff_f000 | self.linear >> 20 & 0xffc);
        let directory = u64::from(self.memory.read_u32(at).unwrap_or(u32::MAX));
        if directory & PRESENT == 0 {
            return Err(self.fault(0));
        }
        if directory & LARGE != 0 && self.paging.cr4 & CR4_PSE != 0 {
            // PSE-36: bits 13 to 20 are address bits 32 to 39, as far as the CPU has them; bit 21 is reserved.
            let high = directory >> 13 & 0xff;
            if directory & 1 << 21 != 0 || high << 32 & self.paging.reserved() != 0 {
                return Err(self.fault(PageFault::PRESENT | PageFault::RESERVED));
            }
            self.permit(directory, false)?;
            self.mark_narrow(at, directory, self.leaf_flags())?;
            return Ok(page(high << 32 | directory & 0xffc0_0000, 0x3f_ffff, self.linear));
        }
        self.mark_narrow(at, directory, ACCESSED)?;
        let at = GuestPhys::new(directory & 0xffff_f000 | self.linear >> 10 & 0xffc);
        let entry = u64::from(self.memory.read_u32(at).unwrap_or(u32::MAX));
        if entry & PRESENT == 0 {
            return Err(self.fault(0));
        }
        self.permit(directory & entry, false)?;
        self.mark_narrow(at, entry, self.leaf_flags())?;
        Ok(page(entry & 0xffff_f000, 0xfff, self.linear))
    }

    fn permit(&self, common: u64, no_execute: bool) -> Result<(), Stop> {
        if self.paging.permits(self.access, common, no_execute) {
            Ok(())
        } else {
            Err(self.fault(PageFault::PRESENT))
        }
    }

    /// What an access leaves in the entry of its page.
    fn leaf_flags(&self) -> u64 {
        if self.access.kind == AccessKind::Write { ACCESSED | DIRTY } else { ACCESSED }
    }

    fn mark_wide(&self, at: GuestPhys, entry: u64, flags: u64) -> Result<(), Stop> {
        if entry & flags == flags || self.marking == Marking::Leave {
            return Ok(());
        }
        match self.memory.compare_exchange_u64(at, entry, entry | flags) {
            Ok(false) => Err(Stop::Changed),
            // Where there is no memory there is nothing to mark.
            Ok(true) | Err(_) => Ok(()),
        }
    }

    fn mark_narrow(&self, at: GuestPhys, entry: u64, flags: u64) -> Result<(), Stop> {
        if entry & flags == flags || self.marking == Marking::Leave {
            return Ok(());
        }
        match self.memory.compare_exchange_u32(at, entry as u32, (entry | flags) as u32) {
            Ok(false) => Err(Stop::Changed),
            Ok(true) | Err(_) => Ok(()),
        }
    }

    fn fault(&self, flags: u32) -> Stop {
        Stop::Fault(self.paging.fault(self.access, flags))
    }
}

impl Paging {
    /// Whether the linear addresses have 57 bits; else 48 in long mode and 32 outside.
    pub const fn five_levels(&self) -> bool {
        self.cr4 & CR4_LA57 != 0 && self.efer & EFER_LMA != 0
    }

    /// Whether entries whose common bits are `common` allow the access (SDM 4.6.1).
    #[inline]
    const fn permits(&self, access: Access, common: u64, no_execute: bool) -> bool {
        let (user_page, writable) = (common & USER != 0, common & WRITABLE != 0);
        if access.user {
            return user_page
                && match access.kind {
                    AccessKind::Read => true,
                    AccessKind::Write => writable,
                    AccessKind::Fetch => !no_execute,
                };
        }
        let shielded = user_page && self.cr4 & CR4_SMAP != 0 && !access.alignment_check;
        let unfetchable = user_page && self.cr4 & CR4_SMEP != 0;
        match access.kind {
            AccessKind::Read => !shielded,
            AccessKind::Write => !shielded && (writable || self.cr0 & CR0_WP == 0),
            AccessKind::Fetch => !(no_execute || unfetchable),
        }
    }

    /// What long mode reserves at every level; bits 52 to 62 are the system's to use.
    #[inline]
    const fn wide_reserved(&self) -> u64 {
        self.reserved() & ADDRESS | self.no_execute_reserved()
    }

    /// Entry bits past the physical address width.
    #[inline]
    const fn reserved(&self) -> u64 {
        u64::MAX.wrapping_shl(self.physical_bits as u32)
    }

    /// Bit 63 is reserved where pages cannot be made no-execute.
    #[inline]
    const fn no_execute_reserved(&self) -> u64 {
        if self.efer & EFER_NXE == 0 { NO_EXECUTE } else { 0 }
    }

    /// The fault for `access` with the error code's P and RSVD flags as given.
    const fn fault(&self, access: Access, flags: u32) -> PageFault {
        let mut error_code = flags;
        match access.kind {
            AccessKind::Read => {}
            AccessKind::Write => error_code |= PageFault::WRITE,
            AccessKind::Fetch => {
                let no_execute = self.cr4 & CR4_PAE != 0 && self.efer & EFER_NXE != 0;
                if no_execute || self.cr4 & CR4_SMEP != 0 {
                    error_code |= PageFault::FETCH;
                }
            }
        }
        if access.user {
            error_code |= PageFault::USER;
        }
        PageFault { error_code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HeapBlock, Region};
    use alloc::boxed::Box;
    use alloc::vec;

    const READ: Access = Access { kind: AccessKind::Read, user: false, alignment_check: false };
    const WRITE: Access = Access { kind: AccessKind::Write, ..READ };
    const FETCH: Access = Access { kind: AccessKind::Fetch, ..READ };
    const ALL: u64 = PRESENT | WRITABLE | USER;

    const LONG: Paging = Paging {
        cr0: CR0_PG | CR0_WP,
        cr3: 0x1000,
        cr4: CR4_PAE,
        efer: EFER_LMA | EFER_NXE,
        physical_bits: 40,
    };
    const PAE: Paging = Paging { cr3: 0x1020, efer: EFER_NXE, ..LONG };
    const NARROW: Paging = Paging { cr4: CR4_PSE, efer: 0, ..LONG };

    fn memory() -> GuestMemory {
        let block = HeapBlock::zeroed(0x10000, 4096).unwrap();
        GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]).unwrap()
    }

    fn memory_with(entries: &[(u64, u64)]) -> GuestMemory {
        let memory = memory();
        for (at, entry) in entries {
            memory.write_u64(GuestPhys::new(*at), *entry).unwrap();
        }
        memory
    }

    /// Walks twice: the second time there is nothing left to mark, and the short way may answer.
    #[track_caller]
    fn walk(memory: &GuestMemory, paging: &Paging, linear: u64, access: Access) -> Result<(u64, u64), u32> {
        let first = translate(memory, paging, linear, access, Marking::Mark);
        assert_eq!(translate(memory, paging, linear, access, Marking::Mark), first);
        assert_eq!(translate(memory, paging, linear, access, Marking::Leave), first);
        first.map(|found| (found.address.get(), found.remaining)).map_err(|fault| fault.error_code)
    }

    #[test]
    fn without_paging_addresses_are_physical() {
        let paging = Paging { cr0: 0, ..LONG };
        assert_eq!(walk(&memory(), &paging, 0x1_1234_5678, WRITE), Ok((0x1234_5678, 0xedcb_a988)));
    }

    #[test]
    fn four_levels_lead_to_pages_of_every_size() {
        // 0xffff_8080_4020_1xxx has index 257, 1, 1, 1 at its levels.
        let memory = memory_with(&[
            (0x1000 + 257 * 8, 0x2000 | ALL),
            (0x2008, 0x3000 | ALL),
            (0x3008, 0x4000 | ALL),
            (0x4008, 0x12_3456_7000 | ALL),
            (0x3010, 0x12_3460_0000 | ALL | LARGE | 0x1000),
            (0x2010, 0x13_4000_0000 | ALL | LARGE),
            (0x3018, 0x12_3460_2000 | ALL | LARGE),
            (0x1000, 0x2000 | ALL | LARGE),
        ]);
        let to = |linear| walk(&memory, &LONG, linear, READ);
        assert_eq!(to(0xffff_8080_4020_1abc), Ok((0x12_3456_7abc, 0x544)));
        assert_eq!(to(0xffff_8080_4041_2345), Ok((0x12_3461_2345, 0x1e_dcbb)));
        assert_eq!(to(0xffff_8080_8123_4567), Ok((0x13_4123_4567, 0x3edc_ba99)));
        assert_eq!(to(0xffff_8080_4060_0000), Err(9), "a large page's low address bits are reserved");
        assert_eq!(to(0), Err(9), "the top table maps no pages");
        assert_eq!(to(0xffff_8080_4020_2000), Err(0));
        assert_eq!(to(0xffff_8180_0000_0000), Err(0));
    }

    #[test]
    fn five_levels_begin_one_higher() {
        let paging = Paging { cr4: CR4_PAE | CR4_LA57, ..LONG };
        let memory = memory_with(&[
            (0x1000 + 511 * 8, 0x2000 | ALL),
            (0x2000 + 8, 0x3000 | ALL),
            (0x3000 + 16, 0x4000 | ALL),
            (0x4000 + 24, 0x5000 | ALL),
            (0x5000 + 32, 0x8000 | ALL),
        ]);
        assert_eq!(walk(&memory, &paging, 0xffff_0080_8060_4005, READ), Ok((0x8005, 0xffb)));
    }

    #[test]
    fn pae_has_a_small_top_table_without_permissions() {
        let memory = memory_with(&[
            (0x1020, 0x2000 | PRESENT),
            (0x1038, 0x2000 | PRESENT),
            (0x1028, 0x2000 | PRESENT | WRITABLE),
            (0x2000, 0x3000 | ALL),
            (0x2008, 0x1_0020_0000 | PRESENT | LARGE),
            (0x2010, 0x3000 | ALL | 1 << 62),
            (0x3ff8, 0x9000 | ALL),
        ]);
        let user = Access { user: true, ..WRITE };
        assert_eq!(walk(&memory, &PAE, 0xc01f_fff0, user), Ok((0x9ff0, 16)));
        assert_eq!(walk(&memory, &PAE, 0xffff_ffff_c01f_fff0, user), Ok((0x9ff0, 16)));
        assert_eq!(walk(&memory, &PAE, 0x20_0010, READ), Ok((0x1_0020_0010, 0x1f_fff0)));
        assert_eq!(walk(&memory, &PAE, 0x20_0010, WRITE), Err(3));
        assert_eq!(walk(&memory, &PAE, 0x4000_0000, READ), Err(9));
        assert_eq!(walk(&memory, &PAE, 0x8000_0000, FETCH), Err(0x10));
        assert_eq!(walk(&memory, &PAE, 0x40_0000, READ), Err(9), "bit 62 is reserved in PAE only");
        assert_eq!(walk(&memory, &Paging { cr3: 0x1000, ..LONG }, 0, READ), Err(0));
    }

    #[test]
    fn four_byte_entries_know_pages_of_4_mib_with_40_bits() {
        let memory = memory();
        let set = |at, entry| memory.write_u32(GuestPhys::new(at), entry).unwrap();
        set(0x1004, 0x2007);
        set(0x2008, 0x9005);
        // Bits 13 to 20 hold 0x81.
        set(0x1008, 0x00c0_0087 | 0x81 << 13);
        set(0x100c, 0x0020_0087);
        let to = |linear, access| walk(&memory, &NARROW, linear, access);
        assert_eq!(to(0x40_2010, READ), Ok((0x9010, 0xff0)));
        assert_eq!(to(0x40_2010, WRITE), Err(3));
        assert_eq!(to(0x40_3010, WRITE), Err(2));
        assert_eq!(to(0x80_1234, WRITE), Ok((0x81_00c0_1234, 0x3f_edcc)));
        assert_eq!(to(0xc0_0000, READ), Err(9), "bit 21 is reserved");
        let narrower = Paging { physical_bits: 39, ..NARROW };
        assert_eq!(walk(&memory, &narrower, 0x80_0000, READ), Err(9));
        set(0x1004, 0x2087);
        let no_large = Paging { cr4: 0, ..NARROW };
        assert_eq!(walk(&memory, &no_large, 0x40_2010, READ), Ok((0x9010, 0xff0)));
        assert_eq!(memory.read_u32(GuestPhys::new(0x1008)).unwrap() & 0x60, 0x60, "accessed and dirty");
    }

    /// The rules as SDM 4.6.1 lists them: an access right by right, and not in the walker's order.
    fn allowed(paging: &Paging, access: Access, entry: u64) -> bool {
        let set = |register: u64, bit: u64| register & bit != 0;
        let nx = set(entry, NO_EXECUTE) && set(paging.efer, EFER_NXE);
        match (access.user, set(entry, USER), access.kind) {
            (true, false, _) => false,
            (true, true, AccessKind::Read) => true,
            (true, true, AccessKind::Write) => set(entry, WRITABLE),
            (true, true, AccessKind::Fetch) => !nx,
            (false, false, AccessKind::Read) => true,
            (false, false, AccessKind::Write) => set(entry, WRITABLE) || !set(paging.cr0, CR0_WP),
            (false, false, AccessKind::Fetch) => !nx,
            (false, true, AccessKind::Fetch) => !set(paging.cr4, CR4_SMEP) && !nx,
            (false, true, kind) => {
                let open = !set(paging.cr4, CR4_SMAP) || access.alignment_check;
                let writable = set(entry, WRITABLE) || !set(paging.cr0, CR0_WP);
                open && (kind == AccessKind::Read || writable)
            }
        }
    }

    #[test]
    fn every_combination_of_rights_is_decided_as_the_manual_says() {
        let memory = memory_with(&[(0x1000, 0x2000 | ALL), (0x2000, 0x3000 | ALL), (0x3000, 0x4000 | ALL)]);
        let leaf = GuestPhys::new(0x4000);
        for bits in 0..1 << 11 {
            let bit = |index: u32, value: u64| if bits >> index & 1 != 0 { value } else { 0 };
            let entry = PRESENT | bit(0, WRITABLE) | bit(1, USER) | bit(2, NO_EXECUTE);
            let access = Access {
                user: bit(3, 1) != 0,
                alignment_check: bit(4, 1) != 0,
                kind: match bit(5, 1) + bit(6, 2) {
                    0 => AccessKind::Read,
                    1 => AccessKind::Write,
                    _ => AccessKind::Fetch,
                },
            };
            let paging = Paging {
                cr0: CR0_PG | bit(7, CR0_WP),
                cr4: CR4_PAE | bit(8, CR4_SMEP) | bit(9, CR4_SMAP),
                efer: EFER_LMA | bit(10, EFER_NXE),
                ..LONG
            };
            memory.write_u64(leaf, entry | 0x5000).unwrap();
            let fetch_flag = paging.efer & EFER_NXE != 0 || paging.cr4 & CR4_SMEP != 0;
            let error = 1
                | if access.kind == AccessKind::Write { 2 } else { 0 }
                | if access.user { 4 } else { 0 }
                | if entry & NO_EXECUTE != 0 && paging.efer & EFER_NXE == 0 { 8 } else { 0 }
                | if access.kind == AccessKind::Fetch && fetch_flag { 16 } else { 0 };
            let expected = if error & 8 == 0 && allowed(&paging, access, entry) {
                Ok((0x5010, 0xff0))
            } else {
                Err(error)
            };
            assert_eq!(walk(&memory, &paging, 0x10, access), expected, "{paging:x?} {access:?} {entry:#x}");
            let flags = match (expected, access.kind) {
                (Err(_), _) => 0,
                (Ok(_), AccessKind::Write) => ACCESSED | DIRTY,
                (Ok(_), _) => ACCESSED,
            };
            assert_eq!(memory.read_u64(leaf), Ok(entry | 0x5000 | flags));
        }
    }

    #[test]
    fn rights_are_those_that_all_levels_give() {
        for (level, at) in [0x1000, 0x2000, 0x3000, 0x4000].into_iter().enumerate() {
            let memory = memory_with(&[
                (0x1000, 0x2000 | ALL),
                (0x2000, 0x3000 | ALL),
                (0x3000, 0x4000 | ALL),
                (0x4000, 0x5000 | ALL),
            ]);
            let user = |kind| walk(&memory, &LONG, 0, Access { user: true, kind, alignment_check: false });
            assert!(user(AccessKind::Write).is_ok());
            let entry = memory.read_u64(GuestPhys::new(at)).unwrap();
            let set = |entry| memory.write_u64(GuestPhys::new(at), entry).unwrap();
            set(entry & !WRITABLE);
            assert_eq!((user(AccessKind::Read).is_ok(), user(AccessKind::Write)), (true, Err(7)), "{level}");
            set(entry & !USER);
            assert_eq!(user(AccessKind::Read), Err(5), "{level}");
            set(entry | NO_EXECUTE);
            assert_eq!(
                (user(AccessKind::Read).is_ok(), user(AccessKind::Fetch)),
                (true, Err(0x15)),
                "{level}"
            );
            set(entry | 1 << 40);
            assert_eq!(user(AccessKind::Read), Err(0xd), "{level}");
            set(entry | 0x7ff << 52);
            assert!(user(AccessKind::Read).is_ok(), "bits 52 to 62 are free at level {level}");
        }
    }

    #[test]
    fn locating_asks_for_no_rights() {
        let memory = memory_with(&[(0x1000, 0x2001), (0x2000, 0x3001), (0x3000, 0x81 | NO_EXECUTE)]);
        let found = Translation { address: GuestPhys::new(0x1234), remaining: 0x1f_edcc };
        assert_eq!(locate(&memory, &LONG, 0x1234), Some(found));
        assert_eq!(locate(&memory, &LONG, 0x20_1234), None, "not present");
        assert_eq!(locate(&memory, &PAE, 0x1234), None);
        assert_eq!(locate(&memory, &Paging { cr3: 0x10_0000, ..LONG }, 0x1234), None);
    }

    #[test]
    fn a_look_leaves_no_mark() {
        let memory = memory_with(&[(0x1000, 0x2000 | ALL), (0x2000, ALL | LARGE)]);
        let found = translate(&memory, &LONG, 5, WRITE, Marking::Leave).unwrap();
        assert_eq!(found.address, GuestPhys::new(5));
        assert_eq!(memory.read_u64(GuestPhys::new(0x1000)), Ok(0x2000 | ALL));
        walk(&memory, &LONG, 5, WRITE).unwrap();
        assert_eq!(memory.read_u64(GuestPhys::new(0x1000)), Ok(0x2000 | ALL | ACCESSED));
        assert_eq!(memory.read_u64(GuestPhys::new(0x2000)), Ok(ALL | LARGE | ACCESSED | DIRTY));
    }

    #[test]
    fn tables_outside_memory_read_as_all_ones() {
        let far = Paging { cr3: 0x10_0000, ..LONG };
        assert_eq!(walk(&memory(), &far, 0, READ), Err(9));
        assert_eq!(walk(&memory(), &Paging { efer: 0, ..far }, 0, READ), Err(9));
        assert_eq!(walk(&memory(), &Paging { efer: 0, cr4: CR4_PSE, ..far }, 0, READ), Err(9));
    }
}
