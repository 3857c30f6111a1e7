//! Page walks over arbitrary tables with arbitrary control registers.
#![no_main]

use vmm_core::memory::{
    Access, AccessKind, GuestMemory, GuestPhys, HeapBlock, Marking, Paging, Region, translate,
};

const SIZE: usize = 0x8000;
const ACCESSED_AND_DIRTY: u8 = 0x60;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((head, entries)) = data.split_first_chunk::<32>() else { return };
    let number =
        |at: usize| head[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let choice = head[31];
    let paging = Paging {
        cr0: number(0) & 0x1_0000 | u64::from(choice & 0xe0 != 0) << 31,
        // Mostly where the tables can be.
        cr3: if choice & 0x10 == 0 { number(0) & 0x7fff } else { number(0) },
        cr4: number(8),
        efer: number(8) >> 32,
        physical_bits: 32 + head[24] % 21,
    };
    let access = Access {
        kind: [AccessKind::Read, AccessKind::Write, AccessKind::Fetch][usize::from(choice & 3) % 3],
        user: choice & 4 != 0,
        alignment_check: choice & 8 != 0,
    };
    let linear = number(16);

    let Some(block) = HeapBlock::zeroed(SIZE, 4096) else { return };
    let region = Region::new(GuestPhys::new(0), Box::new(block));
    let Ok(memory) = GuestMemory::new(vec![region]) else { return };
    // Every page is a table whose entries lead to the next page, so that walks get far.
    for at in (0..SIZE as u64).step_by(8) {
        memory.write_u64(GuestPhys::new(at), (at & !0xfff) + 0x1007).expect("within memory");
    }
    // Ten bytes each: where, and an entry.
    for entry in entries.chunks_exact(10) {
        let at = u64::from(u16::from_le_bytes([entry[0], entry[1]])) & 0x7ff8;
        memory.write(GuestPhys::new(at), &entry[2..]).expect("within memory");
    }
    let content = |memory: &GuestMemory| {
        let mut bytes = vec![0; SIZE];
        memory.read(GuestPhys::new(0), &mut bytes).expect("all of it");
        bytes
    };

    let before = content(&memory);
    let looked = translate(&memory, &paging, linear, access, Marking::Leave);
    assert!(content(&memory) == before, "a look changes nothing");
    let marked = translate(&memory, &paging, linear, access, Marking::Mark);
    assert_eq!(looked, marked);
    let after = content(&memory);
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(before & !after == 0 && (before ^ after) & !ACCESSED_AND_DIRTY == 0, "{at:#x} was changed");
    }
    match marked {
        Ok(found) => {
            assert!(found.remaining >= 1 && found.remaining <= 1 << 32);
            let page_end = found.address.get().wrapping_add(found.remaining);
            assert_eq!(page_end & 0xfff, 0, "a page ends at a page boundary");
            assert_eq!(found.address.get() & 0xfff, linear & 0xfff);
        }
        Err(fault) => {
            let write = access.kind == AccessKind::Write;
            assert_eq!(fault.error_code & 2 != 0, write);
            assert_eq!(fault.error_code & 4 != 0, access.user);
            assert_eq!(fault.error_code & !0x1f, 0);
        }
    }
});
