//! What tiny guests need: a way in, a way to print, exceptions, interrupts, timers, and a way out.
//!
//! A guest is a function that asserts. It prints `PASS name` when it returns, `FAIL name: why` when it panics,
//! and powers the machine off by ACPI either way. Output goes to the debug port.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! runtime::guest!(main);
//!
//! fn main(machine: &runtime::Machine) {
//!     assert!(machine.memory().count() > 0, "no memory");
//! }
//! ```
#![no_std]
// Unsafe because a guest is a kernel: privileged instructions, page tables and device registers are its work.
#![allow(unsafe_code)]

mod acpi;
pub mod apic;
pub mod cpu;
pub mod descriptors;
mod entry;
pub mod interrupts;
pub mod io_apic;
mod machine;
pub mod memory;
mod multiboot;
mod multiboot2;
pub mod pic;
pub mod pit;
pub mod pm_timer;
mod print;
pub mod rtc;
mod start_info;
pub mod uart;

pub use machine::{Loader, Machine, MemoryKind, MemoryRange, Module};
pub use print::{DEBUG_PORT, write};

use core::fmt::Arguments;

/// The guest that runs: set before its function is called.
static mut GUEST: &str = "runtime";

/// Names the function that is the guest; the binary's name is the guest's.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn run_guest(told: u64, loader: u32) -> ! {
            $crate::run(env!("CARGO_BIN_NAME"), told, loader, $main)
        }
    };
}

/// Prints a line to the debug port.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::write(format_args!("{}\n", format_args!($($arguments)*)))
    };
}

/// Runs the guest `main`, says how it went, and powers off.
pub fn run(name: &'static str, told: u64, loader: u32, main: fn(&Machine)) -> ! {
    // SAFETY: one CPU, and nobody else writes it.
    unsafe { GUEST = name };
    descriptors::install();
    interrupts::install();
    // SAFETY: the entry passes on what it got from the loader.
    let machine = unsafe { Machine::from_loader(told, loader) };
    acpi::find(&machine);
    main(&machine);
    println!("PASS {name}");
    acpi::power_off()
}

fn fail(why: Arguments) -> ! {
    // SAFETY: one CPU, which wrote it before.
    let name = unsafe { GUEST };
    println!("FAIL {name}: {why}");
    acpi::power_off()
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo) -> ! {
    match info.location() {
        Some(place) => fail(format_args!("{} ({}:{})", info.message(), place.file(), place.line())),
        None => fail(format_args!("{}", info.message())),
    }
}
