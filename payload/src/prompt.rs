//! The payload's own prompt, where no guest has the console.

use crate::console::serial;
use crate::host::acpi::Acpi;
use crate::host::exceptions::Mistake;
use crate::host::memory::FrameAllocator;
use crate::host::time::Clock;
use crate::host::{apic, heap, interrupts, power};
use crate::log::{self, Sink};
use crate::timeline;
use alloc::string::String;
use core::fmt::Write;

/// The longest line taken, in bytes.
const LONGEST: usize = 80;
/// How often a UART without an interrupt is looked at, in nanoseconds.
const POLL: u64 = 10_000_000;

/// What the prompt's commands are about.
pub struct Machine<'a> {
    /// Memory.
    pub frames: &'static FrameAllocator,
    /// The clock, where the machine has a timer.
    pub clock: &'a Clock,
    /// Firmware's tables.
    pub acpi: Option<&'a Acpi>,
}

/// Writes to the user, waiting where the line is slow.
struct User;

impl Write for User {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

impl Sink for User {
    fn write(&self, text: &str) {
        let _ = User.write_str(text);
    }
}

fn put(byte: u8) {
    while serial::write(&[byte]) == 0 {
        serial::poll();
    }
}

/// Reads and does commands for ever; the CPU halts while there are none.
pub fn run(machine: &Machine) -> ! {
    let mut user = User;
    loop {
        let _ = write!(user, "peerboot> ");
        let line = read_line(machine);
        // `User` never fails.
        let _ = command(machine, line.trim(), &mut user);
    }
}

fn command(machine: &Machine, line: &str, user: &mut User) -> core::fmt::Result {
    match line {
        "" => Ok(()),
        "help" => writeln!(user, "help, log, memory, timeline, crash, reboot, poweroff"),
        "log" => {
            log::replay(user);
            Ok(())
        }
        "memory" => {
            let (used, size) = heap::usage();
            let mib = |bytes| bytes >> 20;
            let (free, longest) = (mib(machine.frames.free()), mib(machine.frames.longest()));
            writeln!(user, "{free} MiB free, {longest} MiB in one piece")?;
            writeln!(user, "heap: {} of {} KiB used", used >> 10, size >> 10)
        }
        "timeline" => {
            timeline::print(machine.clock);
            Ok(())
        }
        "reboot" => power::reset(machine.acpi),
        "poweroff" => {
            machine.acpi.map(power::off);
            writeln!(user, "this machine cannot be powered off from here")
        }
        _ if line.starts_with("crash") => crash(line, user),
        other => writeln!(user, "no command is called `{other}`; `help` lists them"),
    }
}

/// Has the machine fail, so that its report can be tried.
fn crash(line: &str, user: &mut User) -> core::fmt::Result {
    let name = line.strip_prefix("crash").unwrap_or_default().trim();
    match Mistake::ALL.iter().find(|(known, _)| *known == name) {
        Some((_, mistake)) => mistake.make(),
        None => {
            write!(user, "crash how?")?;
            Mistake::ALL.iter().try_for_each(|(known, _)| write!(user, " {known}"))?;
            writeln!(user)
        }
    }
}

/// A line as the user ends it, with what he takes back taken back.
fn read_line(machine: &Machine) -> String {
    let mut line = String::new();
    loop {
        let mut byte = [0];
        if serial::read(&mut byte) == 0 {
            wait(machine.clock);
            continue;
        }
        match byte[0] {
            b'\r' | b'\n' => {
                let _ = User.write_str("\n");
                return line;
            }
            0x08 | 0x7f if line.pop().is_some() => {
                let _ = User.write_str("\x08 \x08");
            }
            byte @ b' '..=b'~' if line.len() < LONGEST => {
                line.push(char::from(byte));
                put(byte);
            }
            _ => {}
        }
    }
}

/// Sleeps until something happened that may be input.
fn wait(clock: &Clock) {
    if serial::needs_polling() {
        serial::poll();
        apic::local::arm(clock, Some(clock.now().plus_nanos(POLL)));
    }
    interrupts::idle();
}
