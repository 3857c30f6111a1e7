//! The local APIC: end of interrupt, and the timer that wakes us (SDM 3, chapter 11).
// Unsafe because of the model-specific registers that x2APIC mode and the TSC deadline are written by.
#![allow(unsafe_code)]

use crate::host::cpu::{self, Features, NOT_ARMED};
use crate::host::interrupts::vector;
use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, DeviceError, map_device};
use crate::host::time::{Clock, per_nano};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Once;
use vmm_core::time::Instant;

/// IA32_APIC_BASE and its bits: x2APIC mode, enabled; the address above bit 12.
const APIC_BASE: u32 = 0x1b;
const X2APIC: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The first x2APIC register; each stands for 16 bytes of the memory-mapped page.
const X2APIC_FIRST: u32 = 0x800;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers by their offset in the page (SDM 3, table 11-1).
mod register {
    pub const ID: u32 = 0x20;
    pub const TASK_PRIORITY: u32 = 0x80;
    pub const END_OF_INTERRUPT: u32 = 0xb0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const COMMAND: u32 = 0x300;
    pub const COMMAND_DESTINATION: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}

/// In the spurious-interrupt register: the APIC is on.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// In the interrupt command register: the last one is not out yet (never so in x2APIC mode); and what INIT and
/// fixed interrupts alike want set.
const SEND_PENDING: u32 = 1 << 12;
const ASSERT: u32 = 1 << 14;
/// In a local vector table entry.
const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 4 << 8;
const MODE_TSC_DEADLINE: u32 = 2 << 17;
/// The timer counts every tick of its clock.
const DIVIDE_BY_1: u32 = 0b1011;

static ACCESS: Once<Access> = Once::new();
/// How often the timer ticks in a nanosecond, times 2³²; zero while that is not known, or where deadlines are in
/// ticks of the TSC.
static TICKS_A_NANO: AtomicU64 = AtomicU64::new(0);

/// How registers are reached.
enum Access {
    Memory(Mmio),
    Msrs,
}

impl Access {
    fn read(&self, register: u32) -> u32 {
        match self {
            Self::Memory(page) => page.read_u32(u64::from(register)),
            Self::Msrs => cpu::read_msr(X2APIC_FIRST + (register >> 4)) as u32,
        }
    }

    fn write(&self, register: u32, value: u32) {
        match self {
            Self::Memory(page) => page.write_u32(u64::from(register), value),
            // SAFETY: in x2APIC mode each register above is there; none touches memory.
            Self::Msrs => unsafe { cpu::write_msr(X2APIC_FIRST + (register >> 4), u64::from(value)) },
        }
    }
}

/// Takes over this CPU's APIC in the mode firmware left it in: on, nothing masked by priority, old-style
/// interrupts off, the timer still.
pub fn start() -> Result<(), DeviceError> {
    let base = cpu::read_msr(APIC_BASE);
    // SAFETY: only sets the bit that switches the APIC on, which every CPU with long mode has.
    unsafe { cpu::write_msr(APIC_BASE, base | ENABLED) };
    let access = if base & X2APIC != 0 {
        Access::Msrs
    } else {
        Access::Memory(map_device(Range::with_len(base & ADDRESS, 0x1000), Cache::Uncached)?)
    };
    access.write(register::SPURIOUS, SOFTWARE_ENABLED | u32::from(vector::SPURIOUS));
    access.write(register::TASK_PRIORITY, 0);
    access.write(register::LVT_LINT0, MASKED);
    access.write(register::LVT_LINT1, DELIVER_NMI);
    access.write(register::LVT_ERROR, MASKED);
    access.write(register::LVT_TIMER, MASKED | u32::from(vector::TIMER));
    access.write(register::DIVIDE, DIVIDE_BY_1);
    access.write(register::INITIAL_COUNT, u32::MAX);
    ACCESS.call_once(|| access);
    Ok(())
}

/// This CPU's APIC number, 0 where there is no APIC.
pub fn id() -> u32 {
    match ACCESS.get() {
        Some(Access::Msrs) => cpu::read_msr(X2APIC_FIRST + (register::ID >> 4)) as u32,
        Some(memory) => memory.read(register::ID) >> 24,
        None => 0,
    }
}

/// The mode it runs in, in words.
pub fn mode() -> &'static str {
    match ACCESS.get() {
        Some(Access::Msrs) => "x2APIC",
        Some(Access::Memory(_)) => "xAPIC",
        None => "no APIC",
    }
}

/// What is left of the free-running count that [`start`] began: for calibration.
pub fn remaining_count() -> u32 {
    ACCESS.get().map_or(0, |access| access.read(register::CURRENT_COUNT))
}

/// Makes the timer ready for [`arm`]: it runs at `khz`, or by the TSC where the CPU can do that.
pub fn start_timer(khz: u64) {
    let Some(access) = ACCESS.get() else { return };
    access.write(register::INITIAL_COUNT, 0);
    if Features::read().tsc_deadline {
        access.write(register::LVT_TIMER, MODE_TSC_DEADLINE | u32::from(vector::TIMER));
        // SAFETY: orders the write to the APIC's page before later ones to IA32_TSC_DEADLINE (SDM 11.5.4.1).
        unsafe { core::arch::x86_64::_mm_mfence() };
    } else {
        access.write(register::LVT_TIMER, u32::from(vector::TIMER));
        TICKS_A_NANO.store(per_nano(khz).max(1), Ordering::Relaxed);
    }
}

/// Has [`vector::TIMER`] come at `deadline`, or sooner where that is farther off than the timer can count;
/// `None` stops the timer. Nothing is written when the deadline is the one already armed.
pub fn arm(clock: &Clock, deadline: Option<Instant>) {
    let Some(access) = ACCESS.get() else { return };
    let armed = &cpu::this().timer_deadline;
    let wanted = deadline.map_or(NOT_ARMED, Instant::as_nanos);
    if armed.load(Ordering::Relaxed) == wanted {
        return;
    }
    armed.store(wanted, Ordering::Relaxed);
    let scale = TICKS_A_NANO.load(Ordering::Relaxed);
    if scale == 0 {
        // Zero disarms; a deadline gone by fires at once.
        let ticks = deadline.map_or(0, |at| clock.tsc_at(at).max(1));
        // SAFETY: the timer is in TSC-deadline mode, so the CPU has the register.
        unsafe { cpu::write_msr(TSC_DEADLINE, ticks) };
        return;
    }
    let count = deadline.map_or(0, |at| {
        let ticks = (u128::from(at.nanos_since(clock.now())) * u128::from(scale)) >> 32;
        (ticks.min(u128::from(u32::MAX - 1)) as u32) + 1
    });
    access.write(register::INITIAL_COUNT, count);
}

/// Has `vector` come on the CPU whose APIC is `apic_id`.
pub fn interrupt(apic_id: u32, vector: u8) {
    send(apic_id, ASSERT | u32::from(vector));
}

/// Writes the interrupt command register (SDM 3, 11.6.1 and 11.12.9).
fn send(apic_id: u32, command: u32) {
    match ACCESS.get() {
        Some(Access::Msrs) => {
            let both = u64::from(apic_id) << 32 | u64::from(command);
            // The write does not wait for earlier stores, which the other CPU is to see.
            // SAFETY: in x2APIC mode the register is there; what an interrupt does is its handler's matter.
            unsafe {
                core::arch::x86_64::_mm_mfence();
                cpu::write_msr(X2APIC_FIRST + (register::COMMAND >> 4), both);
            }
        }
        Some(memory) => {
            while memory.read(register::COMMAND) & SEND_PENDING != 0 {
                core::hint::spin_loop();
            }
            memory.write(register::COMMAND_DESTINATION, apic_id << 24);
            memory.write(register::COMMAND, command);
        }
        None => {}
    }
}

/// Notes that the timer's interrupt came.
pub fn timer_fired() {
    cpu::this().timer_deadline.store(NOT_ARMED, Ordering::Relaxed);
}

/// Lets the next interrupt in.
pub fn end_of_interrupt() {
    if let Some(access) = ACCESS.get() {
        access.write(register::END_OF_INTERRUPT, 0);
    }
}
