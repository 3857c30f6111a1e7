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

/// IA32_APIC_BASE and its bits: the boot CPU's, x2APIC mode, enabled; the address above bit 12.
const APIC_BASE: u32 = 0x1b;
const BOOT_CPU: u64 = 1 << 8;
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
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_START_UP: u32 = 6 << 8;
const TO_OTHERS: u32 = 3 << 18;
/// In a local vector table entry.
const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 4 << 8;
const MODE_TSC_DEADLINE: u32 = 2 << 17;
const MODE_PERIODIC: u32 = 1 << 17;
/// Nanoseconds: the timer does not repeat faster than this.
const LEAST_PERIOD: u64 = 20_000;
/// The timer counts every tick of its clock.
const DIVIDE_BY_1: u32 = 0b1011;

static ACCESS: Once<Access> = Once::new();
/// IA32_APIC_BASE as all CPUs have it.
static BASE: AtomicU64 = AtomicU64::new(0);
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

impl Access {
    /// Brings the APIC into the state that [`start`] promises; `lint1` is the entry of the pin that boards use
    /// for non-maskable interrupts.
    fn set_up(&self, lint1: u32) {
        self.write(register::SPURIOUS, SOFTWARE_ENABLED | u32::from(vector::SPURIOUS));
        self.write(register::TASK_PRIORITY, 0);
        self.write(register::LVT_LINT0, MASKED);
        self.write(register::LVT_LINT1, lint1);
        self.write(register::LVT_ERROR, MASKED);
        self.write(register::LVT_TIMER, MASKED | u32::from(vector::TIMER));
        self.write(register::DIVIDE, DIVIDE_BY_1);
        self.write(register::INITIAL_COUNT, u32::MAX);
    }
}

/// Takes over the boot CPU's APIC: on, nothing masked by priority, old-style interrupts off, the timer still. It
/// stays in the mode firmware left it in, unless `x2apic` asks for the one that knows numbers above 254.
pub fn start(x2apic: bool) -> Result<(), DeviceError> {
    let mut base = cpu::read_msr(APIC_BASE) | ENABLED;
    // SAFETY: only sets the bit that switches the APIC on, which every CPU with long mode has.
    unsafe { cpu::write_msr(APIC_BASE, base) };
    if x2apic && Features::read().x2apic {
        base |= X2APIC;
        // SAFETY: the APIC is on, and can do that; none of its registers is in use yet.
        unsafe { cpu::write_msr(APIC_BASE, base) };
    }
    let access = if base & X2APIC != 0 {
        Access::Msrs
    } else {
        Access::Memory(map_device(Range::with_len(base & ADDRESS, 0x1000), Cache::Uncached)?)
    };
    access.set_up(DELIVER_NMI);
    BASE.store(base & !BOOT_CPU, Ordering::Relaxed);
    ACCESS.call_once(|| access);
    Ok(())
}

/// Brings the APIC of another CPU, the one this runs on, into the mode and place of the boot CPU's. Non-maskable
/// interrupts of the board remain the boot CPU's.
pub fn join() {
    let Some(access) = ACCESS.get() else { return };
    let (wanted, found) = (BASE.load(Ordering::Relaxed), cpu::read_msr(APIC_BASE));
    // SAFETY: the boot CPU's APIC is in that mode, and CPUs are alike. From x2APIC mode the way back leads
    // through off, and into it through on (SDM 3, figure 11-27).
    unsafe {
        if found & X2APIC != 0 && wanted & X2APIC == 0 {
            cpu::write_msr(APIC_BASE, found & !(X2APIC | ENABLED));
        }
        cpu::write_msr(APIC_BASE, wanted & !X2APIC | found & X2APIC & wanted);
        cpu::write_msr(APIC_BASE, wanted);
    }
    access.set_up(MASKED);
    start_timer_here(access);
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

/// Whether it can interrupt CPUs whose APICs have numbers above 254.
pub fn knows_large_numbers() -> bool {
    matches!(ACCESS.get(), Some(Access::Msrs))
}

/// What is left of the free-running count that [`start`] began: for calibration.
pub fn remaining_count() -> u32 {
    ACCESS.get().map_or(0, |access| access.read(register::CURRENT_COUNT))
}

/// Makes the timer ready for [`arm`]: it runs at `khz`, or by the TSC where the CPU can do that.
pub fn start_timer(khz: u64) {
    if !Features::read().tsc_deadline {
        TICKS_A_NANO.store(per_nano(khz).max(1), Ordering::Relaxed);
    }
    ACCESS.get().map(start_timer_here);
}

/// The same on the CPU this runs on, whose timer runs like the boot CPU's.
fn start_timer_here(access: &Access) {
    access.write(register::INITIAL_COUNT, 0);
    if TICKS_A_NANO.load(Ordering::Relaxed) == 0 {
        access.write(register::LVT_TIMER, MODE_TSC_DEADLINE | u32::from(vector::TIMER));
        // SAFETY: orders the write to the APIC's page before later ones to IA32_TSC_DEADLINE (SDM 11.5.4.1).
        unsafe { core::arch::x86_64::_mm_mfence() };
    } else {
        // It repeats until it is armed anew: QEMU 7.2 can lose an interrupt that comes while a guest is entered.
        access.write(register::LVT_TIMER, MODE_PERIODIC | u32::from(vector::TIMER));
    }
}

/// Has [`vector::TIMER`] come at `deadline`, or sooner where that is farther off than the timer can count;
/// `None` stops the timer. Nothing is written when the deadline is the one already armed and still to come; one gone
/// by whose interrupt was lost would never come.
pub fn arm(clock: &Clock, deadline: Option<Instant>) {
    let Some(access) = ACCESS.get() else { return };
    let armed = &cpu::this().timer_deadline;
    let wanted = deadline.map_or(NOT_ARMED, Instant::as_nanos);
    if armed.load(Ordering::Relaxed) == wanted && deadline.is_none_or(|at| at > clock.now()) {
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
        let nanos = at.nanos_since(clock.now()).max(LEAST_PERIOD);
        let ticks = (u128::from(nanos) * u128::from(scale)) >> 32;
        (ticks.min(u128::from(u32::MAX - 1)) as u32) + 1
    });
    access.write(register::INITIAL_COUNT, count);
}

/// Whom to send an interrupt to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The CPU whose APIC has this number.
    Cpu(u32),
    /// All CPUs but this one, whether they are known or not.
    Others,
}

/// Has `vector` come on the CPU whose APIC is `apic_id`.
pub fn interrupt(apic_id: u32, vector: u8) {
    send(Target::Cpu(apic_id), u32::from(vector));
}

/// Sends a non-maskable interrupt to the CPU whose APIC is `apic_id`.
pub fn interrupt_unmaskably(apic_id: u32) {
    send(Target::Cpu(apic_id), DELIVER_NMI);
}

/// Has CPUs wait for [`start_up`], whatever they were at (SDM 3, 9.4.4).
///
/// # Safety
///
/// Nothing that they were at is needed any more.
pub unsafe fn init(target: Target) {
    send(target, DELIVER_INIT);
}

/// Has waiting CPUs run the code at `page`, an address below 1 MiB, in real mode; leaves the others alone.
///
/// # Safety
///
/// Code that is made for this lies there.
pub unsafe fn start_up(target: Target, page: u64) {
    send(target, DELIVER_START_UP | (page >> 12) as u32 & 0xff);
}

/// Writes the interrupt command register (SDM 3, 11.6.1 and 11.12.9).
fn send(target: Target, command: u32) {
    let (apic_id, command) = match target {
        Target::Cpu(apic_id) => (apic_id, command | ASSERT),
        Target::Others => (0, command | ASSERT | TO_OTHERS),
    };
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
