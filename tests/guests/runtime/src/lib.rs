//! What a guest without an operating system needs: a way in, memory, a console, a clock, interrupts, and a way out.
//!
//! There are two kinds. An **app** has one purpose and a user: it prints on its console and reads what is typed
//! there, has a heap, a clock and interrupts, and powers off when its function returns.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! runtime::app!(main);
//!
//! fn main(_: &runtime::Machine) {
//!     runtime::print!("Who is there? ");
//!     let name = runtime::console::read_line();
//!     runtime::println!("Good day, {name}. It is {}.", runtime::clock::now());
//! }
//! ```
//!
//! A **test** asserts. It prints to the debug port: `PASS name` when its function returns, `FAIL name: why` when it
//! panics. It finds the machine as the loader left it, all devices asleep.
//!
//! ```ignore
//! runtime::guest!(main);
//!
//! fn main(machine: &runtime::Machine) {
//!     assert!(machine.memory().count() > 0, "no memory");
//! }
//! ```
//!
//! A package with a guest has the build script that the runtime's own guests have: it names the linker script.
#![no_std]
// Unsafe because a guest is a kernel: privileged instructions, page tables and device registers are its work.
#![allow(unsafe_code)]

extern crate alloc;

mod acpi;
pub mod alarm;
pub mod apic;
pub mod calendar;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod descriptors;
mod entry;
pub mod heap;
pub mod interrupts;
pub mod io_apic;
pub mod irq;
mod machine;
pub mod memory;
mod multiboot;
mod multiboot2;
pub mod pic;
pub mod pit;
pub mod pm_timer;
mod print;
pub mod rtc;
pub mod smp;
mod start_info;
pub mod uart;
#[cfg(feature = "virtio")]
pub mod virtio;

pub use acpi::power_off;
pub use machine::{Loader, Machine, MemoryKind, MemoryRange, Module};
pub use print::{DEBUG_PORT, write};

use core::fmt::Arguments;

/// The guest that runs: set before its function is called.
static mut GUEST: &str = "runtime";

/// Names the function that is the app; the binary's name is the app's.
#[macro_export]
macro_rules! app {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn run_guest(told: u64, loader: u32) -> ! {
            $crate::run_app(env!("CARGO_BIN_NAME"), told, loader, $main)
        }
    };
}

/// Names the function that is the test; the binary's name is the test's.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn run_guest(told: u64, loader: u32) -> ! {
            $crate::run(env!("CARGO_BIN_NAME"), told, loader, $main)
        }
    };
}

/// Prints: an app on its console, a test to the debug port.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => {
        $crate::write(format_args!($($arguments)*))
    };
}

/// Prints a line: an app on its console, a test to the debug port.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::write(format_args!("{}\n", format_args!($($arguments)*)))
    };
}

/// Runs the app `main`, and powers off.
pub fn run_app(name: &'static str, told: u64, loader: u32, main: fn(&Machine)) -> ! {
    print::use_console();
    let machine = start(name, told, loader);
    heap::install(&machine);
    apic::enable();
    clock::install();
    console::install();
    cpu::enable_interrupts();
    main(&machine);
    power_off()
}

/// Runs the test `main`, says how it went, and powers off.
pub fn run(name: &'static str, told: u64, loader: u32, main: fn(&Machine)) -> ! {
    main(&start(name, told, loader));
    println!("PASS {name}");
    power_off()
}

/// Tables and exceptions, and the machine as the loader describes it.
fn start(name: &'static str, told: u64, loader: u32) -> Machine {
    // SAFETY: one CPU, and nobody else writes it.
    unsafe { GUEST = name };
    descriptors::install();
    interrupts::install();
    // SAFETY: the entry passes on what it got from the loader.
    let machine = unsafe { Machine::from_loader(told, loader) };
    acpi::find(&machine);
    machine
}

fn fail(why: Arguments) -> ! {
    // SAFETY: one CPU, which wrote it before.
    let name = unsafe { GUEST };
    println!("FAIL {name}: {why}");
    power_off()
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo) -> ! {
    match info.location() {
        Some(place) => fail(format_args!("{} ({}:{})", info.message(), place.file(), place.line())),
        None => fail(format_args!("{}", info.message())),
    }
}
