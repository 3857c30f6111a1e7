//! The local APIC, through its page (xAPIC mode).

use crate::cpu::{read_msr, write_msr, write_port_u8};
use crate::memory;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Where its registers lie.
pub const BASE: u64 = 0xfee0_0000;
/// The vector of interrupts that went away.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Register offsets (SDM table 11-1).
#[expect(missing_docs, reason = "the names are the registers'")]
pub mod register {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TASK_PRIORITY: u32 = 0x80;
    pub const PROCESSOR_PRIORITY: u32 = 0xa0;
    pub const END_OF_INTERRUPT: u32 = 0xb0;
    pub const LOGICAL_DESTINATION: u32 = 0xd0;
    pub const DESTINATION_FORMAT: u32 = 0xe0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const IN_SERVICE: u32 = 0x100;
    pub const TRIGGER_MODE: u32 = 0x180;
    pub const REQUESTED: u32 = 0x200;
    pub const ERROR_STATUS: u32 = 0x280;
    pub const COMMAND_LOW: u32 = 0x300;
    pub const COMMAND_HIGH: u32 = 0x310;
    pub const TIMER: u32 = 0x320;
    pub const LINT0: u32 = 0x350;
    pub const LINT1: u32 = 0x360;
    pub const ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}

/// IA32_APIC_BASE: on.
pub const ENABLED: u64 = 1 << 11;
/// IA32_APIC_BASE.
pub const APIC_BASE_MSR: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const TSC_DEADLINE_MSR: u32 = 0x6e0;
const X2APIC_ENABLED: u64 = 1 << 10;
const X2APIC_FIRST_MSR: u32 = 0x800;
/// Timer register: an interrupt for each period.
pub const PERIODIC: u32 = 1 << 17;
/// Timer register: an interrupt when the time-stamp counter reaches IA32_TSC_DEADLINE.
pub const TSC_DEADLINE: u32 = 2 << 17;
/// Timer register: no interrupt.
pub const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// Reads a register by its offset, in either mode.
pub fn read(register: u32) -> u32 {
    if X2APIC.load(Relaxed) {
        read_msr(X2APIC_FIRST_MSR + register / 16) as u32
    } else {
        memory::read(BASE + u64::from(register))
    }
}

/// Writes a register by its offset, in either mode.
pub fn write(register: u32, value: u32) {
    if X2APIC.load(Relaxed) {
        write_msr(X2APIC_FIRST_MSR + register / 16, value.into());
    } else {
        memory::write(BASE + u64::from(register), value);
    }
}

/// Turns it on, and keeps both 8259s quiet.
pub fn enable() {
    for port in [0x21, 0xa1] {
        write_port_u8(port, 0xff);
    }
    write(register::SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
    write(register::TASK_PRIORITY, 0);
    // Firmware may have left the 8259 pair's wire open.
    write(register::LINT0, MASKED | EXTERNAL);
}

/// Switches to x2APIC mode.
pub fn enable_x2apic() {
    write_msr(APIC_BASE_MSR, read_msr(APIC_BASE_MSR) | X2APIC_ENABLED);
    X2APIC.store(true, Relaxed);
}

/// Reaches it through its page again: IA32_APIC_BASE says so already.
pub fn leave_x2apic() {
    X2APIC.store(false, Relaxed);
}

/// Interrupt command: to this CPU alone.
const TO_SELF: u32 = 1 << 18;
/// Interrupt command, local vector table: a non-maskable interrupt.
pub const NMI: u32 = 4 << 8;
/// Local vector table: the 8259 pair names the vector.
pub const EXTERNAL: u32 = 7 << 8;

/// Interrupt command: the CPU waits in its reset state.
pub const INIT: u32 = 5 << 8 | ASSERT;
/// Interrupt command: a CPU in its reset state begins in real mode, at the page that the vector names.
pub const START_UP: u32 = 6 << 8 | ASSERT;
const ASSERT: u32 = 1 << 14;

/// Sends the CPU with this APIC number an interrupt command, in xAPIC mode.
#[inline(always)]
pub fn send(apic_id: u8, command: u32) {
    write(register::COMMAND_HIGH, u32::from(apic_id) << 24);
    write(register::COMMAND_LOW, command);
}

/// Sends this CPU an interrupt.
#[inline(always)]
pub fn send_self(vector: u8) {
    write(register::COMMAND_LOW, TO_SELF | u32::from(vector));
}

/// Sends the CPU with APIC ID 0 a non-maskable interrupt: the short way to oneself is for interrupts with a
/// vector only (SDM table 11-3).
#[inline(always)]
pub fn send_self_nmi() {
    write(register::COMMAND_HIGH, 0);
    write(register::COMMAND_LOW, NMI);
}

/// Whether the 256-bit register that begins at `register` holds `vector`.
pub fn holds(register: u32, vector: u8) -> bool {
    read(register + u32::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(register::END_OF_INTERRUPT, 0);
}

/// Sets the timer's vector with mode bits, counting at full speed.
pub fn set_timer(vector: u8, mode: u32) {
    write(register::DIVIDE, DIVIDE_BY_1);
    write(register::TIMER, u32::from(vector) | mode);
}

/// Starts the timer; zero stops it.
pub fn start_timer(count: u32) {
    write(register::INITIAL_COUNT, count);
}
