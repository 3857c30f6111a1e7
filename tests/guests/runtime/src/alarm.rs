//! A timer to sleep by, which tells how late it wakes.

use crate::interrupts::count;
use crate::pm_timer::Stopwatch;
use crate::{apic, cpu};

/// CPUID 1 ECX: the timer can count to a moment of the time-stamp counter.
const TSC_DEADLINE: u32 = 1 << 24;

/// The local APIC's timer with its frequencies: in deadline mode where the CPU has that, else one-shot.
#[derive(Clone, Copy, Debug)]
pub struct Alarm {
    vector: u8,
    deadline_mode: bool,
    apic_khz: u64,
    tsc_khz: u64,
}

impl Alarm {
    /// Measures the frequencies, and has the timer raise `vector`.
    pub fn new(vector: u8) -> Self {
        let deadline_mode = cpu::cpuid(1, 0).ecx & TSC_DEADLINE != 0;
        let (apic_khz, tsc_khz) = frequencies(vector);
        apic::set_timer(vector, if deadline_mode { apic::TSC_DEADLINE } else { 0 });
        Self { vector, deadline_mode, apic_khz, tsc_khz }
    }

    /// Sleeps for so many microseconds, and gives by how many ticks of the time-stamp counter the instruction after
    /// HLT came too late, the handler included.
    pub fn sleep(self, micros: u64) -> u64 {
        let deadline = cpu::tsc() + self.tsc_khz * micros / 1000;
        let seen = count(self.vector);
        if self.deadline_mode {
            cpu::write_msr(apic::TSC_DEADLINE_MSR, deadline);
        } else {
            apic::start_timer((self.apic_khz * micros / 1000) as u32);
        }
        while count(self.vector) == seen {
            cpu::wait_for_interrupt();
        }
        cpu::tsc().saturating_sub(deadline)
    }

    /// Ticks of the time-stamp counter in so many microseconds.
    pub fn ticks(self, micros: u64) -> u64 {
        self.tsc_khz * micros / 1000
    }
}

/// Of the local APIC's timer and the time-stamp counter, in kHz.
fn frequencies(vector: u8) -> (u64, u64) {
    apic::set_timer(vector, apic::MASKED);
    apic::start_timer(u32::MAX);
    let (stopwatch, start) = (Stopwatch::start(), cpu::tsc());
    while stopwatch.micros() < 5_000 {}
    let counted = u64::from(u32::MAX - apic::read(apic::register::CURRENT_COUNT));
    let (ticks, micros) = (cpu::tsc() - start, stopwatch.micros());
    apic::start_timer(0);
    (counted * 1000 / micros, ticks * 1000 / micros)
}
