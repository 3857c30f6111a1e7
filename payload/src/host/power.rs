//! Resetting the machine, and switching it off.
// Unsafe because without any interrupt table left, the CPU resets by itself: the last way out.
#![allow(unsafe_code)]

use super::acpi::{Acpi, Register, Space};
use super::cpu;
use super::memory::Range;
use super::paging::{Cache, map_device};
use super::port::Ports;
use crate::warn;

/// The reset control register of Intel's chipsets and their followers: full reset.
const RESET_CONTROL: u16 = 0xcf9;
const HARD_RESET: u8 = 0x06;
/// The keyboard controller's command port, and its command that pulses the reset line.
const KEYBOARD: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
/// Fields of PM1_CNT (ACPI 6.5, 4.8.3.2.1).
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u16 = 1 << 13;

/// Resets the machine: as the FADT says, else as chipsets do, else by a triple fault.
pub fn reset(acpi: Option<&Acpi>) -> ! {
    if let Some((register, value)) = acpi.and_then(|acpi| acpi.fadt.as_ref()?.reset) {
        match register.space {
            Space::Port => write_port(register.address, value),
            Space::Memory => {
                if let Ok(device) = map_device(Range::with_len(register.address, 1), Cache::Uncached) {
                    device.write_u8(0, value);
                }
            }
            Space::PciConfiguration => {}
        }
        wait();
    }
    write_port(u64::from(RESET_CONTROL), HARD_RESET);
    wait();
    write_port(u64::from(KEYBOARD), PULSE_RESET);
    wait();
    let nothing = x86_64::structures::DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() };
    // SAFETY: nothing runs after this; the exception finds no table, and the CPU resets.
    unsafe {
        x86_64::instructions::tables::lidt(&nothing);
        core::arch::asm!("ud2", options(noreturn))
    }
}

/// Switches the machine off, where the ACPI tables say how. Returns where they do not, or it did not help.
pub fn off(acpi: &Acpi) {
    let Some((fadt, sleep)) = acpi.fadt.as_ref().zip(acpi.power_off) else {
        warn!("the ACPI tables do not say how to power off");
        return;
    };
    for (register, sleep_type) in [(fadt.pm1a_control, sleep.pm1a), (fadt.pm1b_control, sleep.pm1b)] {
        let Some(ports) = register.and_then(control_ports) else { continue };
        let kept = ports.read_u16(0) & !(SLEEP_TYPE_MASK | SLEEP_ENABLE);
        ports.write_u16(0, kept | u16::from(sleep_type & 7) << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);
    }
    wait();
    warn!("the machine did not power off");
}

fn control_ports(register: Register) -> Option<Ports> {
    let port = u16::try_from(register.address).ok().filter(|_| register.space == Space::Port)?;
    Ports::new(port, 2)
}

/// Writes one byte to a port that only resets or switches off.
fn write_port(port: u64, value: u8) {
    if let Some(ports) = u16::try_from(port).ok().and_then(Ports::reset_port) {
        ports.write_u8(0, value);
    }
}

/// Gives the chipset a moment: some 100 ms.
fn wait() {
    let start = cpu::tsc();
    while cpu::tsc() - start < 1 << 28 {
        core::hint::spin_loop();
    }
}
