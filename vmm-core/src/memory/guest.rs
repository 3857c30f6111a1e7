//! A guest's memory: bounds-checked, by copy or single access, never a Rust reference to what the guest may
//! change under our feet.
// Unsafe because guest memory is reached by raw pointer: no reference may exist to it.
#![allow(unsafe_code)]

use super::{GuestPhys, HostPhys};
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;
use core::ptr::NonNull;

/// A contiguous piece of host memory that can be given to a guest.
///
/// # Safety
///
/// From construction to drop, the `len()` bytes at `host()` are readable and writable at the virtual address
/// equal to `host()` (the monitor runs identity-mapped), belong to this value alone, and no Rust reference
/// to them exists. `host()` and `len()` always answer the same.
pub unsafe trait HostBlock: Send + Sync {
    /// Where the block starts.
    fn host(&self) -> HostPhys;
    /// Its length in bytes.
    fn len(&self) -> u64;
    /// Whether the block holds no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A block from the heap, zeroed: for host-side tests and for small guests.
pub struct HeapBlock {
    bytes: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is owned memory without thread affinity.
unsafe impl Send for HeapBlock {}
// SAFETY: `HeapBlock` itself gives no access to its bytes.
unsafe impl Sync for HeapBlock {}

impl HeapBlock {
    /// `len` zero bytes aligned to `align` (a power of two), or `None` when the heap cannot give them.
    pub fn zeroed(len: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(1), align).ok()?;
        // SAFETY: the layout's size is not zero.
        let bytes = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { bytes, layout })
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: `bytes` came from `alloc_zeroed` with this very layout, and is freed once.
        unsafe { dealloc(self.bytes.as_ptr(), self.layout) }
    }
}

// SAFETY: the heap's memory is mapped where it is allocated, is owned by this value, and no reference to it
// is ever made.
unsafe impl HostBlock for HeapBlock {
    fn host(&self) -> HostPhys {
        HostPhys::new(self.bytes.as_ptr().expose_provenance() as u64)
    }
    fn len(&self) -> u64 {
        self.layout.size() as u64
    }
}

/// One contiguous range of guest-physical addresses backed by one host block.
pub struct Region {
    base: GuestPhys,
    // What the block says of itself, asked once: these are read at every access.
    host: HostPhys,
    len: u64,
    _block: Box<dyn HostBlock>,
}

impl Region {
    /// The block `block` seen by the guest from `base` on.
    pub fn new(base: GuestPhys, block: Box<dyn HostBlock>) -> Self {
        Self { base, host: block.host(), len: block.len(), _block: block }
    }
    /// The region's first guest-physical address.
    pub fn base(&self) -> GuestPhys {
        self.base
    }
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether the region holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Where its first byte lies on the host.
    pub fn host(&self) -> HostPhys {
        self.host
    }
}

/// An access touched guest-physical addresses that no memory backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// Where the access began.
    pub address: GuestPhys,
    /// How many bytes it wanted.
    pub len: u64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at guest-physical {} are not memory", self.len, self.address)
    }
}

impl core::error::Error for OutOfRange {}

/// The regions given for a guest do not form a guest-physical space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The region at this address begins inside the one before it.
    Overlap(GuestPhys),
    /// The region at this address runs past the end of the address space.
    PastEnd(GuestPhys),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap(at) => write!(f, "the memory region at {at} overlaps another"),
            Self::PastEnd(at) => write!(f, "the memory region at {at} runs past the address space"),
        }
    }
}

impl core::error::Error for LayoutError {}

/// All memory of one guest.
pub struct GuestMemory {
    /// Sorted by base, without overlap.
    regions: Vec<Region>,
}

/// One region's 8-byte words. All of them lie at multiples of 8, the guest's and the host's.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    region: &'a Region,
}

impl Words<'_> {
    /// The word that `at`, a multiple of 8, is the address of; `None` outside the region.
    #[inline]
    pub(super) fn read(self, at: GuestPhys) -> Option<u64> {
        let offset = (at.get() & !7).wrapping_sub(self.region.base.get());
        if offset >= self.region.len {
            return None;
        }
        let host = self.region.host.get().wrapping_add(offset) as usize;
        // SAFETY: the region's length is a multiple of 8 and so is the offset, so the whole word is the
        // guest's, and aligned; volatile, since the guest may write it at any time.
        Some(unsafe { core::ptr::with_exposed_provenance::<u64>(host).read_volatile() })
    }
}

macro_rules! compare_exchange {
    ($name:ident, $int:ty, $instruction:literal, $accumulator:tt) => {
        #[doc = concat!("Atomically replaces the little-endian `", stringify!($int), "` at `at` by `new` if it is `current`;")]
        /// says whether it was.
        pub fn $name(&self, at: GuestPhys, current: $int, new: $int) -> Result<bool, OutOfRange> {
            let len = size_of::<$int>() as u64;
            let pointer = self.pointer(at, len).ok_or(OutOfRange { address: at, len })?;
            let replaced: u8;
            // SAFETY: `pointer` checked that the bytes are this guest's memory, to which no reference exists.
            unsafe {
                asm!($instruction, "sete {replaced}", pointer = in(reg) pointer, new = in(reg) new,
                    replaced = out(reg_byte) replaced, inout($accumulator) current => _, options(nostack));
            }
            Ok(replaced != 0)
        }
    };
}

macro_rules! single_access {
    ($read:ident, $write:ident, $int:ty, $class:ident, $load:literal, $store:literal) => {
        #[doc = concat!("Reads a little-endian `", stringify!($int), "`, in one access where it does not cross a region.")]
        #[inline]
        pub fn $read(&self, at: GuestPhys) -> Result<$int, OutOfRange> {
            let Some(pointer) = self.pointer(at, size_of::<$int>() as u64) else {
                let mut bytes = [0; size_of::<$int>()];
                self.read(at, &mut bytes)?;
                return Ok(<$int>::from_le_bytes(bytes));
            };
            let value;
            // SAFETY: `pointer` checked that the bytes are this guest's. The load is the CPU's, which needs
            // no alignment, and not the language's, which the guest's writes would race with.
            unsafe {
                asm!($load, value = lateout($class) value, pointer = in(reg) pointer,
                    options(nostack, preserves_flags, readonly));
            }
            Ok(value)
        }

        #[doc = concat!("Writes a little-endian `", stringify!($int), "`, in one access where it does not cross a region.")]
        #[inline]
        pub fn $write(&self, at: GuestPhys, value: $int) -> Result<(), OutOfRange> {
            let Some(pointer) = self.pointer(at, size_of::<$int>() as u64) else {
                return self.write(at, &value.to_le_bytes());
            };
            // SAFETY: as for the read; nothing of ours refers to guest memory.
            unsafe {
                asm!($store, value = in($class) value, pointer = in(reg) pointer,
                    options(nostack, preserves_flags));
            }
            Ok(())
        }
    };
}

impl GuestMemory {
    /// A guest-physical space of these regions.
    pub fn new(given: Vec<Region>) -> Result<Self, LayoutError> {
        // A handful: sorting by insertion is small and quick enough.
        let mut regions: Vec<Region> = Vec::with_capacity(given.len());
        for region in given {
            regions.insert(regions.partition_point(|before| before.base <= region.base), region);
        }
        let mut end = GuestPhys::new(0);
        for region in &regions {
            if region.base < end {
                return Err(LayoutError::Overlap(region.base));
            }
            end = region.base.checked_add(region.len()).ok_or(LayoutError::PastEnd(region.base))?;
        }
        Ok(Self { regions })
    }

    /// The regions, by rising address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// All bytes together.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(Region::len).fold(0, u64::saturating_add)
    }

    /// Where `len` bytes from `at` lie on the host, when they lie in one region.
    #[inline]
    pub fn host_address(&self, at: GuestPhys, len: u64) -> Option<HostPhys> {
        // Every exit asks several times, mostly about the first few: no more per region than this.
        self.regions.iter().find_map(|region| {
            // An address before the region is an offset past its end.
            let offset = at.get().wrapping_sub(region.base.get());
            let room = region.len.checked_sub(offset)?;
            (room >= len).then(|| HostPhys::new(region.host.get().wrapping_add(offset)))
        })
    }

    /// Whether all of `len` bytes from `at` on are memory.
    pub fn contains(&self, at: GuestPhys, len: u64) -> bool {
        self.host_address(at, len).is_some() || self.check(at, len).is_ok()
    }

    /// Where the byte at `at` lies on the host, and how many from there on lie in one piece.
    pub fn piece(&self, at: GuestPhys) -> Option<(HostPhys, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = at.offset_from(region.base)?;
            let room = region.len.checked_sub(offset).filter(|room| *room > 0)?;
            Some((region.host.checked_add(offset)?, room))
        })
    }

    /// The region of `at`, for reading many 8-byte words around there; `None` where no memory is, or where
    /// words at multiples of 8 are not aligned on the host.
    #[inline]
    pub(super) fn words_around(&self, at: GuestPhys) -> Option<Words<'_>> {
        let holds = |region: &&Region| at.get().wrapping_sub(region.base.get()) < region.len;
        let region = self.regions.iter().find(holds)?;
        ((region.base.get() | region.host.get() | region.len) & 7 == 0).then_some(Words { region })
    }

    /// Copies guest memory from `at` into `buffer`; nothing is copied unless all of it is memory.
    pub fn read(&self, at: GuestPhys, buffer: &mut [u8]) -> Result<(), OutOfRange> {
        if let Some(pointer) = self.pointer(at, buffer.len() as u64) {
            // SAFETY: `pointer` checked that so many bytes are this guest's, which overlap no Rust object.
            unsafe { copy(pointer, buffer.as_mut_ptr(), buffer.len()) };
            return Ok(());
        }
        self.check(at, buffer.len() as u64)?;
        self.for_each_chunk(at, buffer.len(), |guest, offset, len| {
            if let Some(part) = buffer.get_mut(offset..offset.saturating_add(len)) {
                // SAFETY: `for_each_chunk` gives `len` bytes of this guest's memory, `part` is as long, and
                // guest memory overlaps no Rust object.
                unsafe { copy(guest, part.as_mut_ptr(), part.len()) }
            }
        });
        Ok(())
    }

    /// Copies `bytes` into guest memory from `at` on; nothing is copied unless all of it is memory.
    pub fn write(&self, at: GuestPhys, bytes: &[u8]) -> Result<(), OutOfRange> {
        if let Some(pointer) = self.pointer(at, bytes.len() as u64) {
            // SAFETY: as in `read`, the other way round.
            unsafe { copy(bytes.as_ptr(), pointer, bytes.len()) };
            return Ok(());
        }
        self.check(at, bytes.len() as u64)?;
        self.for_each_chunk(at, bytes.len(), |guest, offset, len| {
            if let Some(part) = bytes.get(offset..offset.saturating_add(len)) {
                // SAFETY: as in `read`, the other way round.
                unsafe { copy(part.as_ptr(), guest, part.len()) }
            }
        });
        Ok(())
    }

    /// Sets `len` bytes from `at` to `value`; none unless all of it is memory.
    pub fn fill(&self, at: GuestPhys, len: usize, value: u8) -> Result<(), OutOfRange> {
        self.check(at, len as u64)?;
        self.for_each_chunk(at, len, |guest, _, len| {
            // SAFETY: `len` bytes at `guest` are this guest's memory, to which no reference exists.
            unsafe {
                asm!("rep stosb", inout("rcx") len => _, inout("rdi") guest => _, in("al") value,
                    options(nostack, preserves_flags));
            }
        });
        Ok(())
    }

    single_access!(read_u8, write_u8, u8, reg_byte, "mov {value}, [{pointer}]", "mov [{pointer}], {value}");
    single_access!(read_u16, write_u16, u16, reg, "mov {value:x}, [{pointer}]", "mov [{pointer}], {value:x}");
    single_access!(read_u32, write_u32, u32, reg, "mov {value:e}, [{pointer}]", "mov [{pointer}], {value:e}");
    single_access!(read_u64, write_u64, u64, reg, "mov {value}, [{pointer}]", "mov [{pointer}], {value}");
    compare_exchange!(compare_exchange_u32, u32, "lock cmpxchg dword ptr [{pointer}], {new:e}", "eax");
    compare_exchange!(compare_exchange_u64, u64, "lock cmpxchg qword ptr [{pointer}], {new}", "rax");

    /// Whether all of `len` bytes from `at` are memory, across adjacent regions.
    fn check(&self, at: GuestPhys, len: u64) -> Result<(), OutOfRange> {
        let error = OutOfRange { address: at, len };
        let end = at.checked_add(len).ok_or(error)?;
        let mut covered = at;
        for region in &self.regions {
            let region_end = region.base.checked_add(region.len()).ok_or(error)?;
            if region.base <= covered && covered < region_end {
                covered = region_end;
            }
        }
        if covered >= end { Ok(()) } else { Err(error) }
    }

    /// Calls `each` with the pointer, offset and length of every region's part of a checked range.
    fn for_each_chunk(&self, at: GuestPhys, len: usize, mut each: impl FnMut(*mut u8, usize, usize)) {
        let mut done = 0_usize;
        for region in &self.regions {
            let Some(here) = at.checked_add(done as u64) else { return };
            let Some(offset) = here.offset_from(region.base) else { continue };
            let Some(room) = region.len().checked_sub(offset).filter(|room| *room > 0) else { continue };
            let part = room.min(len.saturating_sub(done) as u64);
            if part == 0 {
                return;
            }
            let Some(pointer) = self.pointer(here, part) else { return };
            each(pointer, done, part as usize);
            done = done.saturating_add(part as usize);
        }
    }

    fn pointer(&self, at: GuestPhys, len: u64) -> Option<*mut u8> {
        let host = self.host_address(at, len)?;
        Some(core::ptr::with_exposed_provenance_mut(host.get() as usize))
    }
}

/// Copies by the CPU's string instruction, which is not a Rust access: a guest that changes the bytes
/// meanwhile races with the CPU, not with the language.
///
/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes; they do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let (words, rest) = (len >> 3, len & 7);
    // SAFETY: the caller's promise; the direction flag is clear as the ABI demands.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) rest,
            inout("rcx") words => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(regions: &[(u64, usize)]) -> GuestMemory {
        let regions = regions
            .iter()
            .map(|(base, len)| {
                Region::new(GuestPhys::new(*base), Box::new(HeapBlock::zeroed(*len, 4096).unwrap()))
            })
            .collect();
        GuestMemory::new(regions).unwrap()
    }

    #[test]
    fn accesses_cross_adjacent_regions_only() {
        let memory = memory(&[(0, 0x1000), (0x1000, 0x1000), (0x4000, 0x1000)]);
        let bytes: Vec<u8> = (0..64).collect();
        memory.write(GuestPhys::new(0xfe3), &bytes).unwrap();
        let mut back = [0; 64];
        memory.read(GuestPhys::new(0xfe3), &mut back).unwrap();
        assert_eq!(back, bytes[..]);
        let error = memory.write(GuestPhys::new(0x1fff), &[1, 2]).unwrap_err();
        assert_eq!(error, OutOfRange { address: GuestPhys::new(0x1fff), len: 2 });
        assert_eq!(memory.read_u8(GuestPhys::new(0x1fff)), Ok(0), "a refused write must leave no trace");
        assert!(memory.read(GuestPhys::new(u64::MAX), &mut back).is_err());
        assert!(memory.fill(GuestPhys::new(0x4000), 0x1001, 1).is_err());
    }

    #[test]
    fn integers_are_little_endian_aligned_or_not() {
        let memory = memory(&[(0, 0x1000), (0x1000, 0x1000)]);
        for at in [0x10, 0x13, 0xffc, 0xffd] {
            memory.write_u64(GuestPhys::new(at), 0x1122_3344_5566_7788).unwrap();
            assert_eq!(memory.read_u64(GuestPhys::new(at)), Ok(0x1122_3344_5566_7788));
            assert_eq!(memory.read_u16(GuestPhys::new(at)), Ok(0x7788));
            assert_eq!(memory.read_u8(GuestPhys::new(at + 7)), Ok(0x11));
        }
        memory.fill(GuestPhys::new(0x10), 3, 0xaa).unwrap();
        assert_eq!(memory.read_u32(GuestPhys::new(0x10)).unwrap() & 0xff_ffff, 0xaa_aaaa);
    }

    #[test]
    fn an_exchange_happens_only_on_the_expected_value() {
        let memory = memory(&[(0, 0x1000)]);
        memory.write_u64(GuestPhys::new(8), 7 << 32 | 5).unwrap();
        assert_eq!(memory.compare_exchange_u64(GuestPhys::new(8), 5, 9), Ok(false));
        assert_eq!(memory.compare_exchange_u64(GuestPhys::new(8), 7 << 32 | 5, 9 << 32 | 6), Ok(true));
        assert_eq!(memory.compare_exchange_u32(GuestPhys::new(8), 6, 8), Ok(true));
        assert_eq!(memory.compare_exchange_u32(GuestPhys::new(8), 6, 1), Ok(false));
        assert_eq!(memory.read_u64(GuestPhys::new(8)), Ok(9 << 32 | 8));
        assert!(memory.compare_exchange_u64(GuestPhys::new(0xff9), 0, 1).is_err());
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let block = || Box::new(HeapBlock::zeroed(0x2000, 4096).unwrap());
        let regions = alloc::vec![
            Region::new(GuestPhys::new(0x1000), block()),
            Region::new(GuestPhys::new(0), block())
        ];
        assert_eq!(GuestMemory::new(regions).err(), Some(LayoutError::Overlap(GuestPhys::new(0x1000))));
        let regions = alloc::vec![Region::new(GuestPhys::new(u64::MAX - 0xfff), block())];
        assert!(GuestMemory::new(regions).is_err());
    }
}
