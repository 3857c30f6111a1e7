//! Looks for anything that an earlier life of the same guest left: in memory, devices and CPU registers. Then leaves
//! its own mark everywhere, and resets. So it never passes: whoever runs it counts its lives, and stops it.
#![no_std]
#![no_main]

use core::ops::Range;
use runtime::cpu::{read_port_u8, read_port_u32, write_port_u8, write_port_u32};
use runtime::memory::{LARGE_PAGE, image, map, read, write};
use runtime::{MemoryKind, apic, cpu, io_apic, rtc};

runtime::guest!(main);

/// What memory is marked with, the other way round, so that no register or code holds it by chance.
const MARK_INVERTED: u64 = !0x6c6c_6977_2049_2121;
const FOUR_GIB: u64 = 1 << 32;

/// The UART's scratch register, PM1's enable register, PCI's address register, the POST code, CMOS.
const SCRATCH: u16 = 0x3ff;
const PM1_ENABLE: u16 = 0x602;
const PCI_ADDRESS: u16 = 0xcf8;
const POST: u16 = 0x80;
const CMOS_FREE: u8 = 0x60;
const EDGE_LEVEL: u16 = 0x4d0;
const SPEAKER: u16 = 0x61;
const RESET: u16 = 0xcf9;
const RESET_ALL: u8 = 0x06;
const LSTAR: u32 = 0xc000_0082;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// One thing that keeps what is written to it, until the guest's life ends.
struct Keeper {
    name: &'static str,
    read: fn() -> u64,
    write: fn(u64),
    /// How it begins a life, and something else that it can hold.
    first: u64,
    mark: u64,
}

const KEEPERS: [Keeper; 14] = [
    Keeper {
        name: "the UART's scratch register",
        read: || read_port_u8(SCRATCH).into(),
        write: |value| write_port_u8(SCRATCH, value as u8),
        first: 0,
        mark: 0xa5,
    },
    Keeper {
        name: "the power-management events",
        read: || u64::from(read_port_u32(PM1_ENABLE - 2) >> 16),
        write: |value| write_port_u32(PM1_ENABLE - 2, (value as u32) << 16),
        first: 0,
        mark: 0x100,
    },
    Keeper {
        name: "PCI's address register",
        read: || read_port_u32(PCI_ADDRESS).into(),
        write: |value| write_port_u32(PCI_ADDRESS, value as u32),
        first: 0,
        mark: 0x8000_f8a4,
    },
    Keeper {
        name: "the POST code",
        read: || read_port_u8(POST).into(),
        write: |value| write_port_u8(POST, value as u8),
        first: 0,
        mark: 0x5a,
    },
    Keeper {
        name: "a free byte of the CMOS memory",
        read: || rtc::read(CMOS_FREE).into(),
        write: |value| rtc::write(CMOS_FREE, value as u8),
        first: 0,
        mark: 0x77,
    },
    Keeper {
        name: "the 8259's edges and levels",
        read: || read_port_u8(EDGE_LEVEL).into(),
        write: |value| write_port_u8(EDGE_LEVEL, value as u8),
        first: 0,
        mark: 0x20,
    },
    Keeper {
        name: "the speaker",
        read: || u64::from(read_port_u8(SPEAKER) & 3),
        write: |value| write_port_u8(SPEAKER, value as u8),
        first: 0,
        mark: 3,
    },
    Keeper {
        name: "an IOAPIC pin",
        read: || u64::from(io_apic::redirection(20)),
        write: |value| io_apic::redirect(20, value as u32),
        first: 0x1_0000,
        mark: 0x1_00b0,
    },
    Keeper {
        name: "the local APIC's timer",
        read: || apic::read(apic::register::TIMER).into(),
        write: |value| apic::write(apic::register::TIMER, value as u32),
        first: 0x1_0000,
        mark: 0x1_0091,
    },
    Keeper {
        name: "the local APIC's divider",
        read: || apic::read(apic::register::DIVIDE).into(),
        write: |value| apic::write(apic::register::DIVIDE, value as u32),
        first: 0,
        mark: 0xb,
    },
    Keeper { name: "CR8", read: cpu::cr8, write: cpu::set_cr8, first: 0, mark: 7 },
    Keeper { name: "DR3", read: cpu::dr3, write: cpu::set_dr3, first: 0, mark: 0x1234 },
    Keeper {
        name: "LSTAR",
        read: || cpu::read_msr(LSTAR),
        write: |value| cpu::write_msr(LSTAR, value),
        first: 0,
        mark: 0x4321,
    },
    Keeper {
        name: "the kernel's GS base",
        read: || cpu::read_msr(KERNEL_GS_BASE),
        write: |value| cpu::write_msr(KERNEL_GS_BASE, value),
        first: 0,
        mark: 0x5678,
    },
];

fn main(machine: &runtime::Machine) {
    // Once: the map itself lies in memory that is to be overwritten.
    let mut usable =
        machine.memory().filter(|range| range.kind == MemoryKind::Memory && range.base < FOUR_GIB);
    let memory: [Range<u64>; 8] =
        core::array::from_fn(|_| usable.next().map_or(0..0, |range| range.base..range.end));
    for Keeper { name, read, first, .. } in &KEEPERS {
        assert_eq!(read(), *first, "what {name} begins with");
    }
    let mark = !core::hint::black_box(MARK_INVERTED);
    for at in words(&memory) {
        assert_ne!(read::<u64>(at), mark, "an earlier life's mark is at {at:#x}");
    }
    for Keeper { name, read, write, mark, .. } in &KEEPERS {
        write(*mark);
        assert_eq!(read(), *mark, "what {name} holds");
    }
    for at in words(&memory) {
        write(at, mark);
    }
    write_port_u8(RESET, RESET_ALL);
    panic!("a reset was asked for, and nothing happened");
}

/// All of memory but the first page and the guest itself.
fn words(memory: &[Range<u64>]) -> impl Iterator<Item = u64> {
    memory.iter().cloned().flat_map(|range| range.step_by(8)).filter(|at| {
        if at.is_multiple_of(LARGE_PAGE) {
            map(*at);
        }
        *at >= 0x1000 && !image().contains(at)
    })
}
