//! A word of the guest's memory that spares a virtual CPU its EOI writes, each of which may be an exit (Linux:
//! Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN).
//!
//! While the word is 1, the guest may end its interrupt by clearing it, with one instruction. We set and clear it only
//! while its virtual CPU is out of the guest.

use crate::memory::{GuestMemory, GuestPhys};

/// Where a vCPU wants its word; bit 0 switches it on.
pub const MSR: u32 = 0x4b56_4d04;
const ENABLE: u64 = 1;
/// The bit that must be zero: the word is aligned to four bytes.
const RESERVED: u64 = 1 << 1;

/// A vCPU's word.
#[derive(Clone, Copy, Debug, Default)]
pub struct EoiWord {
    msr: u64,
    /// It is 1, unless the guest has cleared it.
    offered: bool,
}

impl EoiWord {
    /// What the guest wrote to [`MSR`].
    pub fn msr(&self) -> u64 {
        self.msr
    }

    /// The guest names a place; `None` when it may not be there (#GP).
    pub fn set_msr(&mut self, value: u64, memory: &GuestMemory) -> Option<()> {
        let named = Self { msr: value, offered: false };
        if value & RESERVED != 0 || named.place().is_some_and(|place| memory.read_u32(place).is_err()) {
            return None;
        }
        *self = named;
        Some(())
    }

    /// Whether the guest may end its interrupt by clearing the word, or has done so.
    pub fn is_offered(&self) -> bool {
        self.offered
    }

    /// Lets the guest end its interrupt by clearing the word.
    pub fn offer(&mut self, memory: &GuestMemory) {
        self.offered = self.place().is_some_and(|place| memory.write_u32(place, 1).is_ok());
    }

    /// From now on the guest ends its interrupt by writing EOI. Says whether it has ended it already.
    pub fn withdraw(&mut self, memory: &GuestMemory) -> bool {
        if !core::mem::take(&mut self.offered) {
            return false;
        }
        let Some(place) = self.place() else { return false };
        let ended = memory.read_u32(place).is_ok_and(|word| word & 1 == 0);
        // It was there when it was offered.
        let _ = memory.write_u32(place, 0);
        ended
    }

    fn place(&self) -> Option<GuestPhys> {
        (self.msr & ENABLE != 0).then(|| GuestPhys::new(self.msr & !ENABLE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HeapBlock, Region};

    const PLACE: GuestPhys = GuestPhys::new(0x40);

    fn memory() -> GuestMemory {
        let block = Box::new(HeapBlock::zeroed(0x1000, 0x1000).unwrap());
        GuestMemory::new(alloc::vec![Region::new(GuestPhys::new(0), block)]).unwrap()
    }

    #[test]
    fn the_guest_names_a_place_in_memory() {
        let (memory, mut word) = (memory(), EoiWord::default());
        for wrong in [0x43, 0x1001, 0xffff_ffff_ffff_fffd] {
            assert_eq!(word.set_msr(wrong, &memory), None, "{wrong:#x}");
            assert_eq!(word.msr(), 0);
        }
        word.set_msr(0x41, &memory).unwrap();
        assert_eq!(word.msr(), 0x41);
        // Switched off, it may say what it likes.
        word.set_msr(0x1_0000, &memory).unwrap();
        word.offer(&memory);
        assert!(!word.withdraw(&memory));
    }

    #[test]
    fn an_offer_is_taken_or_withdrawn() {
        let (memory, mut word) = (memory(), EoiWord::default());
        word.set_msr(0x41, &memory).unwrap();
        word.offer(&memory);
        assert_eq!(memory.read_u32(PLACE), Ok(1));
        assert!(!word.withdraw(&memory), "nobody took it");
        assert_eq!(memory.read_u32(PLACE), Ok(0));
        assert!(!word.withdraw(&memory), "nothing was offered any more");

        word.offer(&memory);
        memory.write_u32(PLACE, 0).unwrap();
        assert!(word.withdraw(&memory));
        assert!(!word.withdraw(&memory), "once is enough");
    }

    #[test]
    fn a_new_place_has_no_offer() {
        let (memory, mut word) = (memory(), EoiWord::default());
        word.set_msr(0x41, &memory).unwrap();
        word.offer(&memory);
        word.set_msr(0x81, &memory).unwrap();
        assert!(!word.withdraw(&memory));
    }
}
