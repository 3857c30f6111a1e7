//! The payload: what coreboot loads and jumps to, and what never gives the machine away again.
//!
//! [`boot`] is the story, from the first instruction on.
#![cfg_attr(target_os = "none", no_std, no_main)]
// Off the target only the pure parts are compiled into tests; nothing calls the rest.
#![cfg_attr(not(target_os = "none"), allow(dead_code))]

extern crate alloc;

mod console;
#[cfg_attr(not(feature = "pci"), path = "no_devices.rs")]
mod devices;
#[cfg_attr(not(feature = "disks"), path = "no_disks.rs")]
mod disks;
#[cfg_attr(not(feature = "prompt"), path = "no_editor.rs")]
mod editor;
#[cfg(target_os = "none")]
mod entry;
mod errands;
mod flash;
mod guests;
mod host;
mod log;
mod machine;
mod management;
mod prompt;
mod terminal;
mod timeline;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use console::multiplexer::View;
use console::{cbmem, framebuffer, serial};
use core::fmt::Display;
use coreboot_config::cbfs::Cbfs;
use coreboot_config::tables::{CorebootTable, MemoryKind, MemoryRange, Serial, SerialKind};
use guests::Wanted;
use host::acpi::Acpi;
use host::apic::io::{IoApics, Line};
use host::memory::{FrameAllocator, Range, Record, Use};
use host::physical::{EarlyMemory, FirmwareMemory};
use host::time::{Calibration, Clock};
use host::{acpi, apic, cpu, interrupts, paging, power, smp};
use machine::Machine;
use management::{Management, NoGuests};
use prompt::Prompt;
use terminal::GuestTerminal;
use timeline::Step;
use vmm_core::cpu::Core;
use vmm_core::monitor::Monitor;

/// The first serial port of a PC: only to say that there is no coreboot table.
const LAST_RESORT: Serial =
    Serial { kind: SerialKind::Port, base: 0x3f8, baud: 115_200, register_width: 1, input_hertz: 0 };

/// The boot: `table` is the address that coreboot passed, `entry_tsc` the TSC at the first instruction.
fn boot(table: u64, entry_tsc: u64) -> ! {
    timeline::mark_at(Step::PayloadEntry, entry_tsc);
    host::start_cpu();

    let table = CorebootTable::find(&EarlyMemory, Some(table)).unwrap_or_else(|error| {
        let _ = console::start_serial(&LAST_RESORT);
        error!("{error}: coreboot must start this payload");
        log::flush();
        cpu::halt()
    });
    start_serial(&table);
    greet(&table);

    let frames = start_memory(&table);
    start_other_consoles(&table);

    let acpi = read_acpi(&table);
    let (clock, io_apics) = start_interrupts_and_time(&table, acpi.as_ref(), entry_tsc);
    let core = start_virtualization();
    if core.is_some() {
        smp::start(acpi.as_ref(), frames, clock);
    }
    devices::start(acpi.as_ref(), frames, clock, io_apics, table.framebuffer().is_some());
    check_page_tables();
    timeline::mark(Step::Devices);

    let cbfs = flash::cbfs(&table);
    match &cbfs {
        Ok(cbfs) => {
            info!("flash: CBFS with {} files", cbfs.files().filter(Result::is_ok).count());
            cbfs.files().filter_map(Result::err).for_each(|error| warn!("flash: {error}"));
        }
        Err(error) => error!("flash: {error}"),
    }

    let map: Vec<MemoryRange> = table.memory_ranges().collect();
    let managed = management::Machine { frames, clock, acpi: acpi.as_ref(), map: &map };
    if let (Some(mut core), Ok(cbfs)) = (core, cbfs) {
        let machine: &'static Machine = Box::leak(Box::new(Machine::new(clock, frames)));
        let monitor: &'static Monitor = Box::leak(Box::new(Monitor::new(machine)));
        add_guests(monitor, &core, &cbfs, frames);
        timeline::mark(Step::ImagesLoaded);
        timeline::mark(Step::FirstGuestInstruction);
        publish_timeline(&table);
        run_guests(monitor, &mut core, managed)
    }
    Prompt::new(managed, Management::new(&NoGuests)).run()
}

/// Switches virtualization on; `None` where this CPU cannot run guests.
fn start_virtualization() -> Option<Core> {
    match host::enable_virtualization() {
        Ok(core) => {
            info!("virtualization: {core}");
            Some(core)
        }
        Err(unsupported) => {
            error!("virtualization: {unsupported}");
            None
        }
    }
}

/// Builds the manifest's guests; what is wrong with one costs only that one.
fn add_guests(monitor: &'static Monitor, core: &Core, cbfs: &Cbfs<'static>, frames: &'static FrameAllocator) {
    let wanted = match guests::wanted(cbfs, frames) {
        Ok(wanted) => wanted,
        Err(error) => return error!("{error}"),
    };
    let mut to_be_seen = Vec::new();
    for Wanted { config, shown, starts } in wanted {
        let name = config.name.clone();
        let (memory, cpus) = (config.memory >> 20, config.vcpus);
        let terminal = GuestTerminal::new(&name, shown);
        let number = terminal.number();
        let guest = monitor.add(config, Arc::new(terminal));
        if !starts {
            info!("{name}: {memory} MiB, {cpus} CPU(s), off until it is started");
            continue;
        }
        match devices::block_on(monitor.start(guest, core)) {
            Ok(()) => {
                info!("{name}: {memory} MiB, {cpus} CPU(s), ready");
                to_be_seen.extend(shown.then_some(number));
            }
            Err(error) => error!("{name}: {error}"),
        }
    }
    let view = match *to_be_seen {
        [] => View::Log,
        [only] => View::Guest(only),
        _ => View::All,
    };
    console::with(|multiplexer, _| multiplexer.begin(view));
}

/// Runs the guests, with the user's hand on them. When each of them switched itself off, so does the machine.
fn run_guests(monitor: &'static Monitor, core: &mut Core, machine: management::Machine<'_>) -> ! {
    timeline::lines(machine.clock).for_each(|line| info!("timeline: {line}"));
    smp::run(Box::leak(Box::new(|core: &mut Core| monitor.run_core(core, || true))));
    let mut prompt = Prompt::new(machine, Management::new(monitor));
    loop {
        monitor.run_core(core, || prompt.attend());
        info!("all guests are off: switching the machine off");
        log::flush();
        machine.acpi.map(power::off);
        prompt.open();
    }
}

/// Says who we are, where, and what was wrong with the table.
fn greet(table: &CorebootTable) {
    let (vendor, part) =
        table.mainboard().map_or(("unknown", "board"), |board| (&board.vendor, &board.part_number));
    info!("Peerboot {} on {vendor} {part}", env!("CARGO_PKG_VERSION"));
    info!("coreboot {}, table at {:#x}", table.version().unwrap_or("of unknown version"), table.address());
    table.problems().iter().for_each(|problem| warn!("coreboot table: {problem}"));
}

/// Opens the serial console where it can be reached already: at ports.
fn start_serial(table: &CorebootTable) {
    if let Some(record) = table.serial().filter(|record| record.kind == SerialKind::Port) {
        complain("serial console", console::start_serial(&record));
    }
}

/// Sorts out memory, and moves to page tables and a heap of our own.
fn start_memory(table: &CorebootTable) -> &'static FrameAllocator {
    let records: Vec<Record> = table
        .memory_ranges()
        .map(|range| {
            let usage = match range.kind {
                MemoryKind::Ram => Use::Ram,
                MemoryKind::Table | MemoryKind::Acpi | MemoryKind::Nvs => Use::Tables,
                _ => Use::Reserved,
            };
            (Range::with_len(range.start, range.size), usage)
        })
        .collect();
    let frames = host::start_memory(&records);
    info!("memory: {} MiB free", frames.free() >> 20);
    frames
}

/// Opens the consoles that are memory: the screen, coreboot's log, and serial ports other than at ports.
fn start_other_consoles(table: &CorebootTable) {
    if let Some(record) = table.serial().filter(|record| record.kind == SerialKind::Memory) {
        complain("serial console", console::start_serial(&record));
    }
    if let Some(record) = table.framebuffer() {
        complain("framebuffer", framebuffer::start(&record));
    }
    if let Some(address) = table.cbmem_console() {
        complain("CBMEM console", cbmem::start(address).map(drop));
    }
}

/// Reads the ACPI tables; the machine can do without.
fn read_acpi(table: &CorebootTable) -> Option<Acpi> {
    let rsdp = table.acpi_rsdp().or_else(|| acpi::find_rsdp(&FirmwareMemory));
    let Some(rsdp) = rsdp else {
        warn!("there are no ACPI tables");
        return None;
    };
    match Acpi::read(&FirmwareMemory, rsdp) {
        Ok(acpi) => {
            acpi.problems.iter().for_each(|problem| warn!("{problem}"));
            info!("ACPI: {} from {rsdp:#x}", acpi.tables);
            Some(acpi)
        }
        Err(problem) => {
            warn!("{problem}");
            None
        }
    }
}

/// Starts the local APIC, the clock and the serial console's interrupt.
fn start_interrupts_and_time(
    table: &CorebootTable,
    acpi: Option<&Acpi>,
    entry_tsc: u64,
) -> (&'static Clock, Option<&'static IoApics>) {
    apic::silence_pic();
    complain("local APIC", apic::local::start(acpi.is_some_and(smp::needs_x2apic)));
    let calibration = Calibration::start(acpi);
    let mut io_apics = None;
    if let Some(madt) = acpi.and_then(|acpi| acpi.madt.as_ref()) {
        info!(
            "interrupts: CPU {} of {} in {} mode",
            apic::local::id(),
            madt.cpus.iter().filter(|cpu| cpu.enabled).count(),
            apic::local::mode()
        );
        match IoApics::start(madt) {
            Ok(all) => {
                let all: &'static IoApics = Box::leak(Box::new(all));
                route_serial(table, all);
                io_apics = Some(all);
            }
            Err(error) => warn!("I/O APIC: {error}"),
        }
    }
    (calibration.finish(entry_tsc), io_apics)
}

/// Lets the serial port's interrupt through; without it the port is polled.
fn route_serial(table: &CorebootTable, io_apics: &IoApics) {
    let Some(irq) = table.serial().as_ref().and_then(serial::isa_interrupt) else { return };
    interrupts::on_serial(serial::interrupted);
    match io_apics.route(Line::Isa(irq), interrupts::vector::SERIAL, apic::local::id()) {
        Ok(()) => serial::use_interrupts(),
        Err(error) => warn!("serial console: {error}; it is polled"),
    }
}

/// Reads our page tables back: no page may be both writable and executable.
fn check_page_tables() {
    match paging::audit() {
        Ok(audit) => info!(
            "paging: {} KiB executable, {} KiB read-only, {} MiB writable; none both writable and executable",
            audit.executable >> 10,
            audit.readable >> 10,
            audit.writable >> 20
        ),
        Err(page) => error!("paging: {} is both writable and executable", page.range),
    }
}

/// Adds our steps to coreboot's timestamps.
fn publish_timeline(table: &CorebootTable) {
    if let Some(address) = table.timestamps() {
        complain("timestamps", timeline::publish(address));
    }
}

/// Warns where something that the machine can do without does not work.
fn complain<E: Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        warn!("{what}: {error}");
    }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    host::exceptions::panic(info)
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is firmware: build it for x86_64-unknown-none, or run its tests");
}
