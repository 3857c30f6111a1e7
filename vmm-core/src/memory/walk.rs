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
/// In PAE's top table bits 1, 2 and 5 to 8 are reserved: it holds no permissions (SDM table 4-8).
const PAE_TOP_RESERVED: u64 = 0x1e6;

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
#[inline]
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
    match pass(memory, paging, linear, access, marking) {
        Ok(translation) => Ok(translation),
        Err(Stop::Fault(fault)) => Err(fault),
        Err(Stop::Changed) => translate_again(memory, paging, linear, access),
    }
}

#[cold]
fn translate_again(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<Translation, PageFault> {
    for attempt in 0..RESTARTS {
        let marking = if attempt < RESTARTS.saturating_sub(1) { Marking::Mark } else { Marking::Leave };
        match pass(memory, paging, linear, access, marking) {
            Ok(translation) => return Ok(translation),
            Err(Stop::Fault(fault)) => return Err(fault),
            Err(Stop::Changed) => {}
        }
    }
    // Not reached: the last pass marks nothing, so it cannot find that an entry changed.
    Err(paging.fault(access, 0))
}

#[inline]
fn pass(
    memory: &GuestMemory,
    paging: &Paging,
    linear: u64,
    access: Access,
    marking: Marking,
) -> Result<Translation, Stop> {
    if paging.efer & EFER_LMA != 0 {
        let shift = if paging.cr4 & CR4_LA57 == 0 { 39 } else { 48 };
        // Bits 52 to 62 are the system's to use.
        let reserved = paging.reserved() & ADDRESS | paging.no_execute_reserved();
        let walk = Walk { memory, paging, linear, access, marking, reserved };
        walk.descend(paging.cr3 & ADDRESS, shift)
    } else if paging.cr4 & CR4_PAE != 0 {
        let linear = linear & 0xffff_ffff;
        let reserved = paging.reserved() & !NO_EXECUTE | paging.no_execute_reserved();
        let walk = Walk { memory, paging, linear, access, marking, reserved };
        let at = GuestPhys::new(paging.cr3 & 0xffff_ffe0 | linear >> 27 & 0x18);
        let entry = memory.read_u64(at).unwrap_or(u64::MAX);
        if entry & PRESENT == 0 {
            return Err(Stop::Fault(paging.fault(access, 0)));
        }
        if entry & (paging.reserved() | PAE_TOP_RESERVED) != 0 {
            return Err(Stop::Fault(paging.fault(access, PageFault::PRESENT | PageFault::RESERVED)));
        }
        walk.descend(entry & ADDRESS, 21)
    } else {
        Walk { memory, paging, linear: linear & 0xffff_ffff, access, marking, reserved: 0 }.descend_narrow()
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
    #[inline]
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
                return Ok(self.leaf(entry & ADDRESS, page_mask));
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
            return Ok(self.leaf(high << 32 | directory & 0xffc0_0000, 0x3f_ffff));
        }
        self.mark_narrow(at, directory, ACCESSED)?;
        let at = GuestPhys::new(directory & 0xffff_f000 | self.linear >> 10 & 0xffc);
        let entry = u64::from(self.memory.read_u32(at).unwrap_or(u32::MAX));
        if entry & PRESENT == 0 {
            return Err(self.fault(0));
        }
        self.permit(directory & entry, false)?;
        self.mark_narrow(at, entry, self.leaf_flags())?;
        Ok(self.leaf(entry & 0xffff_f000, 0xfff))
    }

    /// Whether entries whose common bits are `common` allow the access (SDM 4.6.1).
    #[inline]
    fn permit(&self, common: u64, no_execute: bool) -> Result<(), Stop> {
        let (user_page, writable) = (common & USER != 0, common & WRITABLE != 0);
        let cr4 = self.paging.cr4;
        let unfetchable = user_page && cr4 & CR4_SMEP != 0;
        let allowed = if self.access.user {
            user_page
                && match self.access.kind {
                    AccessKind::Read => true,
                    AccessKind::Write => writable,
                    AccessKind::Fetch => !no_execute,
                }
        } else {
            let shielded = user_page && cr4 & CR4_SMAP != 0 && !self.access.alignment_check;
            match self.access.kind {
                AccessKind::Read => !shielded,
                AccessKind::Write => !shielded && (writable || self.paging.cr0 & CR0_WP == 0),
                AccessKind::Fetch => !(no_execute || unfetchable),
            }
        };
        if allowed { Ok(()) } else { Err(self.fault(PageFault::PRESENT)) }
    }

    #[inline]
    fn leaf(&self, page: u64, page_mask: u64) -> Translation {
        let offset = self.linear & page_mask;
        Translation {
            address: GuestPhys::new(page & !page_mask | offset),
            remaining: (page_mask ^ offset).wrapping_add(1),
        }
    }

    /// What an access leaves in the entry of its page.
    #[inline]
    fn leaf_flags(&self) -> u64 {
        if self.access.kind == AccessKind::Write { ACCESSED | DIRTY } else { ACCESSED }
    }

    #[inline]
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

    #[cold]
    fn fault(&self, flags: u32) -> Stop {
        Stop::Fault(self.paging.fault(self.access, flags))
    }
}

impl Paging {
    /// Whether the linear addresses have 57 bits; else 48 in long mode and 32 outside.
    pub const fn five_levels(&self) -> bool {
        self.cr4 & CR4_LA57 != 0 && self.efer & EFER_LMA != 0
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
