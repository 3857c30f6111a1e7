//! Arbitrary code on an arbitrary CPU: nothing panics, and every call ends after a bounded amount of work.
#![no_main]

use vmm_core::cpu::{CpuState, Gpr, PortAccess, SegmentRegister, Width};
use vmm_core::emulate::{Bus, EmulateError, Kind, emulate, fetch, next_rip, port};
use vmm_core::memory::{GuestMemory, GuestPhys, HeapBlock, Region};

const SIZE: u64 = 0x1_0000;
const TABLES: u64 = 0x8000;
/// A portion of a string is 4096 bytes: two accesses for each, if all fall apart into bytes.
const MOST_ACCESSES: u32 = 2 * 4096 + 64;

#[derive(Default)]
struct Device {
    accesses: u32,
    value: u64,
}

impl Device {
    fn access(&mut self) {
        self.accesses += 1;
        assert!(self.accesses <= MOST_ACCESSES, "one call does a bounded amount of work");
    }
}

impl Bus for Device {
    fn mmio_read(&mut self, address: GuestPhys, width: Width) -> u64 {
        self.access();
        assert!(address.checked_add(width.bytes() - 1).is_some_and(|last| last.get() >= SIZE), "{address}");
        self.value
    }
    fn mmio_write(&mut self, address: GuestPhys, width: Width, value: u64) {
        self.access();
        assert!(address.get() >= SIZE - 8);
        assert_eq!(value & !width.mask(), 0);
        self.value = value;
    }
    fn port_read(&mut self, _: u16, width: Width) -> u32 {
        self.access();
        assert!(width <= Width::Dword);
        self.value as u32
    }
    fn port_write(&mut self, _: u16, width: Width, value: u32) {
        self.access();
        assert_eq!(u64::from(value) & !width.mask(), 0);
    }
}

/// Takes the fuzzer's bytes one after another; zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number that is small, near an interesting one, or anything.
    fn number(&mut self) -> u64 {
        let near = u64::from(self.byte()).wrapping_sub(128);
        match self.byte() % 8 {
            0 => near,
            1 => SIZE.wrapping_add(near),
            2 => 0x1000_u64.wrapping_add(near),
            3 => (1_u64 << 32).wrapping_add(near),
            4 => (1_u64 << 47).wrapping_add(near),
            5 => u64::from(self.byte()) << 8 | near & 0xff,
            _ => (0..8).fold(0, |value, _| value << 8 | u64::from(self.byte())),
        }
    }
}

fn cpu(input: &mut Input<'_>, memory: &GuestMemory) -> CpuState {
    let rip = 0x1000 + u64::from(input.byte()) * 16 + u64::from(input.byte() & 15);
    let mut state = match input.byte() % 4 {
        0 => CpuState::reset(),
        1 => CpuState::flat_protected_mode(0),
        _ => {
            // Two MiB of 4 KiB pages, identity-mapped; the input may change what it likes.
            let set =
                |at, entry| memory.write_u64(GuestPhys::new(at), entry).expect("tables are within memory");
            set(TABLES, (TABLES + 0x1000) | 7);
            set(TABLES + 0x1000, (TABLES + 0x2000) | 7);
            set(TABLES + 0x2000, (TABLES + 0x3000) | 7);
            (0..512).for_each(|page| set(TABLES + 0x3000 + page * 8, page << 12 | 7));
            CpuState::long_mode(0, TABLES, 8, 16)
        }
    };
    let changes = input.byte();
    if changes & 1 != 0 {
        state.control.cr0 = input.number();
    }
    if changes & 2 != 0 {
        state.control.cr4 = input.number();
    }
    if changes & 4 != 0 {
        state.control.efer = input.number();
    }
    if changes & 8 != 0 {
        state.control.cr3 = input.number();
    }
    for _ in 0..changes >> 4 & 3 {
        let segment = &mut state.segments[usize::from(input.byte() % 6)];
        segment.attributes = u16::from_le_bytes([input.byte(), input.byte()]);
        segment.limit = input.number() as u32;
        segment.base = input.number();
    }
    state.registers.gpr = std::array::from_fn(|_| input.number());
    state.registers.rflags = input.number() | 2;
    let code = &mut state.segments[SegmentRegister::Cs as usize];
    // Mostly where there is memory.
    state.registers.rip = if changes & 0xc0 == 0xc0 { input.number() } else { rip };
    if changes & 0x40 == 0 {
        code.base = 0;
    }
    state.set_privilege_level(input.byte() & 3);
    state
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(block) = HeapBlock::zeroed(SIZE as usize, 4096) else { return };
    let Ok(memory) = GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]) else { return };
    let mut input = Input(data);
    let mut cpu = cpu(&mut input, &memory);
    for _ in 0..input.byte() % 8 {
        let (at, entry) = (input.number() % (SIZE - 8), input.number());
        memory.write_u64(GuestPhys::new(at), entry).expect("within memory");
    }
    let choice = input.byte();
    let access = PortAccess {
        port: u16::from(choice),
        width: [Width::Byte, Width::Word, Width::Dword][usize::from(choice >> 2) % 3],
        write: choice & 1 != 0,
        string: choice & 2 != 0,
    };
    let rest = &input.0[..input.0.len().min(0x100)];
    let at = cpu.registers.rip.min(SIZE - 0x100);
    memory.write(GuestPhys::new(at), rest).expect("within memory");

    let rip = cpu.registers.rip;
    for kind in [Kind::Cpuid, Kind::Hlt, Kind::Vmmcall, Kind::MovToControl] {
        if let Ok(next) = next_rip(&cpu, &memory, kind) {
            let length = next.wrapping_sub(rip) & 0xffff_ffff;
            assert!((1..=15).contains(&length), "{length} bytes");
        }
    }
    for _ in 0..2 {
        match emulate(&mut cpu, &memory, &mut Device::default()) {
            Ok(_) => {}
            Err(EmulateError::Fault(fault)) => {
                fault.raise(&mut cpu);
            }
            Err(EmulateError::Unsupported(code)) => assert!(!code.bytes().is_empty()),
            Err(_) => {}
        }
        assert_eq!(cpu.registers.rip, rip, "going on is the caller's");
        let before = cpu.registers.get(Gpr::Rcx);
        let _ = port(&mut cpu, &memory, &mut Device::default(), &access);
        if !access.string {
            assert_eq!(cpu.registers.get(Gpr::Rcx), before);
        }
    }
    let _ = fetch(&cpu, &memory);
});
