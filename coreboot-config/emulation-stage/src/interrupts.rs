//! The interrupt controllers, as coreboot leaves them: PICs masked, IOAPIC masked, LAPIC in virtual wire mode.

use crate::{physical, port};

const PIC1: u16 = 0x20;
const PIC2: u16 = 0xA0;
/// Edge/level control: one bit a line, lines 0 to 7 and 8 to 15.
const ELCR1: u16 = 0x4D0;
const ELCR2: u16 = 0x4D1;
const PIC_CASCADE: u8 = 2;

const IOAPIC: u64 = 0xFEC0_0000;
const IOAPIC_ID: u32 = 0;
const IOAPIC_VERSION: u32 = 1;
const IOAPIC_REDIRECTION: u32 = 0x10;
const REDIRECTION_MASKED: u32 = 1 << 16;
const DELIVERY_EXTINT: u32 = 0b111 << 8;
const DELIVERY_NMI: u32 = 0b100 << 8;

const LAPIC: u64 = 0xFEE0_0000;
const LAPIC_ID: u64 = 0x20;
const LAPIC_TASK_PRIORITY: u64 = 0x80;
const LAPIC_SPURIOUS: u64 = 0xF0;
const LAPIC_ENABLE: u32 = 1 << 8;
const LAPIC_SPURIOUS_VECTOR: u32 = 0x0F;
const LAPIC_COMMAND: u64 = 0x300;
const LAPIC_LINT0: u64 = 0x350;
const LAPIC_LINT1: u64 = 0x360;
const COMMAND_PENDING: u32 = 1 << 12;
/// INIT, asserted, to all but the sender.
const COMMAND_INIT: u32 = 0x000C_4500;
/// Start-up, to all but the sender; bits 7:0 say which page.
const COMMAND_STARTUP: u32 = 0x000C_4600;

/// Brings all controllers into their state at payload entry; `level_lines` are the level-triggered lines.
pub fn start(level_lines: u16) {
    start_pics(level_lines);
    start_ioapic();
    start_lapic();
}

fn start_pics(level_lines: u16) {
    // ICW1: cascaded, ICW4 follows. ICW2: vectors 0x20 and 0x28. ICW3: the cascade. ICW4: 8086 mode.
    for (base, vectors, cascade) in [(PIC1, 0x20, 1 << PIC_CASCADE), (PIC2, 0x28, PIC_CASCADE)] {
        port::write_u8(base, 0x11);
        port::write_u8(base + 1, vectors);
        port::write_u8(base + 1, cascade);
        port::write_u8(base + 1, 0x01);
    }
    port::write_u8(PIC1 + 1, !(1 << PIC_CASCADE));
    port::write_u8(PIC2 + 1, 0xFF);
    let [low, high] = level_lines.to_le_bytes();
    port::write_u8(ELCR1, low);
    port::write_u8(ELCR2, high);
}

fn start_ioapic() {
    let last = ioapic_read(IOAPIC_VERSION) >> 16 & 0xFF;
    for pin in 0..=last {
        let register = IOAPIC_REDIRECTION + 2 * pin;
        ioapic_write(register + 1, 0);
        // Pin 0 carries the PICs' output.
        ioapic_write(register, if pin == 0 { DELIVERY_EXTINT } else { REDIRECTION_MASKED });
    }
}

fn start_lapic() {
    lapic_write(LAPIC_TASK_PRIORITY, 0);
    lapic_write(LAPIC_SPURIOUS, LAPIC_ENABLE | LAPIC_SPURIOUS_VECTOR);
    lapic_write(LAPIC_LINT0, DELIVERY_EXTINT);
    lapic_write(LAPIC_LINT1, DELIVERY_NMI);
}

/// This processor's local APIC's number.
pub fn local_apic_id() -> u8 {
    (lapic_read(LAPIC_ID) >> 24) as u8
}

/// The IOAPIC's number.
pub fn io_apic_id() -> u8 {
    (ioapic_read(IOAPIC_ID) >> 24) as u8 & 0xF
}

/// Resets all other processors; they then wait for [`start_others`].
pub fn reset_others() {
    command(COMMAND_INIT);
}

/// Lets all other processors that wait begin in real mode at page `page` (4 KiB each, below 1 MiB).
pub fn start_others(page: u8) {
    command(COMMAND_STARTUP | u32::from(page));
}

fn command(command: u32) {
    while lapic_read(LAPIC_COMMAND) & COMMAND_PENDING != 0 {
        core::hint::spin_loop();
    }
    lapic_write(LAPIC_COMMAND, command);
}

fn lapic_read(register: u64) -> u32 {
    physical::read_register(LAPIC + register)
}

fn lapic_write(register: u64, value: u32) {
    physical::write_register(LAPIC + register, value);
}

fn ioapic_read(register: u32) -> u32 {
    physical::write_register(IOAPIC, register);
    physical::read_register(IOAPIC + 0x10)
}

fn ioapic_write(register: u32, value: u32) {
    physical::write_register(IOAPIC, register);
    physical::write_register(IOAPIC + 0x10, value);
}
