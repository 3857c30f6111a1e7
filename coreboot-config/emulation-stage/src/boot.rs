//! The boot, top to bottom.
#![allow(unsafe_code)] // Firmware divides memory among its parts.

use alloc::borrow::Cow;
use core::ops::Range;
use core::panic::PanicInfo;

use coreboot_config::cbfs::Cbfs;
use coreboot_config::tables::CbmemEntry;
use coreboot_config::timestamps::id;
use emulation_stage::cbmem::Cbmem;
use emulation_stage::{memory_map, pci};

use crate::chipset::Chipset;
use crate::coreboot_table::{self, Machine};
use crate::error::StageError;
use crate::timestamps::{self, Timestamps};
use crate::{
    acpi_tables, display, emergency, flash, handoff, heap, info, interrupts, load, log, physical, pm,
    processors, reset, serial,
};

/// How far CBMEM may grow down from the top of low memory, in bytes.
const CBMEM_ROOM: u64 = 4 << 20;
/// The heap is below that; it has to hold what the payload's decompression needs.
const HEAP_BYTES: u64 = 64 << 20;
/// As large as coreboot's.
const CONSOLE_BYTES: u32 = 0x2_0000;
/// The file in CBFS with what else processors are to write into model-specific registers: what a firmware's build or
/// its menu decides, such as to lock VT-x off.
const REGISTERS: &str = "stage/registers";
const REGISTERS_BYTES: usize = 4096;
/// The area that coreboot keeps its ramstage in. Here it is the stage: GDT, stack, halted processors.
const CBMEM_STAGE: u32 = 0x9A35_7A9E;

/// Boots, or says in one line why not, and halts.
pub fn start(reset_time: u64) -> ! {
    serial::start();
    match boot(reset_time) {
        Ok((entry, table)) => handoff::enter(entry, table),
        Err(error) => emergency!("{error}"),
    }
    halt()
}

/// Prepares everything and returns the payload's entry point and the address of the coreboot table.
fn boot(reset_time: u64) -> Result<(u32, u64), StageError> {
    let low_end = reset::physical_base() + reset::reserved_bytes();
    let cbmem_room = low_end - CBMEM_ROOM..low_end;
    let heap = cbmem_room.start - HEAP_BYTES.min(low_end / 4)..cbmem_room.start;
    // SAFETY: called once; the payload is kept out of this range.
    unsafe { heap::start(heap.clone()) };

    let mut cbmem = Cbmem::new(cbmem_room);
    cbmem.allocate(CBMEM_STAGE, reset::reserved_bytes() as u32)?;
    log::open(area(&mut cbmem, CbmemEntry::CONSOLE, CONSOLE_BYTES)?);
    info!("Peerboot emulation stage {} starting, in place of coreboot", env!("CARGO_PKG_VERSION"));
    let mut timestamps =
        Timestamps::new(area(&mut cbmem, CbmemEntry::TIMESTAMP, Timestamps::BYTES)?, reset_time);
    timestamps.stamp_at(id::BOOTBLOCK_START, reset_time);

    let mut chipset = Chipset::start().ok_or(StageError::Machine)?;
    let clock = Clock::start();
    let map_end = memory_map::low_memory_end(&chipset.ram);
    if map_end != low_end {
        return Err(StageError::Memory { map: map_end, cmos: low_end });
    }
    let bytes: u64 = chipset.ram.iter().map(|range| range.end - range.start).sum();
    info!("{}, {} MiB of RAM, low memory ends at {low_end:#x}", chipset.board, bytes >> 20);

    timestamps.stamp(id::DEVICE_ENUMERATE);
    let windows = chipset.windows();
    let config = &mut chipset.config;
    let mut devices = pci::enumerate(config);
    pci::assign(config, &mut devices, &windows)?;
    pci::assign_interrupt_lines(config, &devices, &chipset.interrupt_line);
    let framebuffer = display::start(&devices);
    info!("{} PCI functions on bus 0", devices.len());

    interrupts::start(chipset.level_lines);
    let (image, flash_map) = flash::find().ok_or(StageError::Flash)?;
    let cbfs = Cbfs::in_image(image)?;
    let registers = match cbfs.find(REGISTERS) {
        Ok(file) => file.contents(REGISTERS_BYTES)?,
        Err(_) => Cow::default(),
    };
    let running = processors::start(chipset.processors, low_end, &registers);
    let expected = chipset.processors.unwrap_or(running.len() as u32);
    info!("{} of {expected} processors, all but this one halted", running.len());

    timestamps.stamp(id::WRITE_TABLES);
    let rsdp = match &chipset.fw_cfg {
        Some(fw_cfg) => acpi_tables::place(fw_cfg, &mut cbmem),
        None => acpi_tables::place_our_own(&running, &mut cbmem)?,
    };
    match rsdp {
        Some(address) => info!("ACPI RSDP at {address:#x}"),
        None => info!("No ACPI tables"),
    }
    let machine = Machine { image, flash_map, chipset: &chipset, framebuffer, rsdp };
    let table = coreboot_table::place(&machine, &mut cbmem)?;
    info!("Coreboot table at {table:#x}");

    timestamps.stamp(id::LOAD_PAYLOAD);
    let entry = load::payload(&cbfs, &free_memory(heap.start), &mut timestamps)?;
    timestamps.set_frequency(clock.megahertz());
    info!("Jumping to the payload at {entry:#x}");
    timestamps.stamp(id::SELFBOOT_JUMP);
    Ok((entry, table))
}

/// RAM that a payload may be loaded to.
fn free_memory(end: u64) -> [Range<u64>; 2] {
    [0x1000..0xA_0000, 0x10_0000..end]
}

/// A zeroed CBMEM area of its own.
fn area(cbmem: &mut Cbmem, id: u32, size: u32) -> Result<&'static mut [u8], StageError> {
    let address = cbmem.allocate(id, size)?;
    // SAFETY: CBMEM gives out every range once.
    let bytes = unsafe { physical::bytes(address, size as usize) };
    bytes.fill(0);
    Ok(bytes)
}

/// The rate of the TSC, measured against ACPI's PM timer over what the stage does anyway.
struct Clock {
    tsc: u64,
    timer: u32,
}

impl Clock {
    fn start() -> Self {
        Self { tsc: timestamps::now(), timer: pm::timer() }
    }

    fn megahertz(&self) -> u16 {
        let ticks = u64::from(pm::timer().wrapping_sub(self.timer) & 0x00FF_FFFF);
        let cycles = timestamps::now() - self.tsc;
        // The PM timer counts at 3.579545 MHz.
        let megahertz = cycles.saturating_mul(3_579_545).checked_div(ticks.saturating_mul(1_000_000));
        megahertz.and_then(|mhz| u16::try_from(mhz).ok()).unwrap_or(0)
    }
}

fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    emergency!("{info}");
    halt()
}
