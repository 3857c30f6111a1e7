//! ACPI power management as an ICH9 lays it out: PM1 events and control, the PM timer, GPE0.
//!
//! ACPI is always on: there is no SMI command port, and SCI_EN reads one.

use super::layout::{
    GPE0_BYTES, GPE0_PORT, PM_BASE, PM_TIMER_BITS, PM_TIMER_PORT, PM1_CONTROL_PORT, S5_SLEEP_TYPE,
};
use super::oscillator::Oscillator;
use crate::cpu::Width;
use crate::time::Instant;

/// PM1 status and enable bits (ACPI 4.8.3.1).
const TIMER: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const RTC: u16 = 1 << 10;
const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;

const CONTROL_SCI: u16 = 1 << 0;
/// BM_RLD and SLP_TYP stay as written; GBL_RLS and SLP_EN read zero.
const CONTROL_WRITABLE: u16 = 1 << 1 | 0x1c00;
const SLEEP_TYPE_SHIFT: u32 = 10;
const SLEEP_ENABLE: u16 = 1 << 13;

const GPE_HALF: usize = GPE0_BYTES as usize / 2;

const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = PM1_CONTROL_PORT - PM_BASE;
const COUNTER: u16 = PM_TIMER_PORT - PM_BASE;
const COUNTER_END: u16 = COUNTER + 4;
const GPE: u16 = GPE0_PORT - PM_BASE;
const GPE_END: u16 = GPE + GPE0_BYTES as u16;

/// The power-management block.
#[derive(Debug)]
pub(super) struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    /// Status bytes, then enable bytes.
    gpe: [u8; GPE0_BYTES as usize],
    /// Up to when TMR_STS tells whether the timer's top bit changed, in ticks.
    seen: u64,
    power_off: bool,
}

impl PowerManagement {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            status: 0,
            enable: 0,
            control: CONTROL_SCI,
            gpe: [0; GPE0_BYTES as usize],
            seen: Oscillator::PM_TIMER.ticks_at(now),
            power_off: false,
        }
    }

    /// Reads at `offset` from [`PM_BASE`]. What no register covers reads zero.
    pub(super) fn read(&mut self, offset: u16, width: Width, now: Instant) -> u32 {
        let ticks = self.advance_to(now);
        if offset == COUNTER && width == Width::Dword {
            return counter(ticks);
        }
        (0..width.bytes() as u16)
            .rev()
            .fold(0, |value, n| value << 8 | u32::from(self.read_byte(offset.wrapping_add(n), ticks)))
    }

    /// Writes at `offset` from [`PM_BASE`].
    pub(super) fn write(&mut self, offset: u16, width: Width, value: u32, now: Instant) {
        self.advance_to(now);
        let bytes = value.to_le_bytes();
        for (byte, n) in bytes.into_iter().zip(0..width.bytes() as u16) {
            self.write_byte(offset.wrapping_add(n), byte);
        }
    }

    /// The system control interrupt.
    pub(super) fn sci(&self) -> bool {
        let (status, enable) = self.gpe.split_at(GPE_HALF);
        self.status & self.enable != 0
            || status.iter().zip(enable).any(|(status, enable)| status & enable != 0)
    }

    /// When the timer's top bit next changes, if that interrupts.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if self.enable & TIMER == 0 || self.status & TIMER != 0 {
            return None;
        }
        let next = half_periods(self.seen).saturating_add(1);
        Some(Oscillator::PM_TIMER.instant_of(next.saturating_mul(HALF_PERIOD)))
    }

    /// Notes in PM1 status what happened up to `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        self.advance_to(now);
    }

    /// The power button was pressed.
    pub(super) fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
    }

    /// Whether the guest asked for soft off, once.
    pub(super) fn take_power_off(&mut self) -> bool {
        core::mem::take(&mut self.power_off)
    }

    fn advance_to(&mut self, now: Instant) -> u64 {
        let ticks = Oscillator::PM_TIMER.ticks_at(now);
        if half_periods(ticks) != half_periods(self.seen) {
            self.status |= TIMER;
        }
        self.seen = ticks;
        ticks
    }

    fn read_byte(&self, offset: u16, ticks: u64) -> u8 {
        let half = |value: u16, at: u16| {
            let [low, high] = value.to_le_bytes();
            if offset == at { low } else { high }
        };
        match offset {
            0 | 1 => half(self.status, STATUS),
            2 | 3 => half(self.enable, ENABLE),
            4 | 5 => half(self.control, CONTROL),
            COUNTER..COUNTER_END => (counter(ticks) >> (u32::from(offset.wrapping_sub(COUNTER)) << 3)) as u8,
            GPE..GPE_END => self.gpe.get(usize::from(offset.wrapping_sub(GPE))).copied().unwrap_or(0),
            _ => 0,
        }
    }

    fn write_byte(&mut self, offset: u16, byte: u8) {
        // A byte of a 16-bit register, in its place, and which bits that covers.
        let shift = u32::from(offset & 1) << 3;
        let (value, covered) = (u16::from(byte) << shift, 0xff << shift);
        match offset {
            0 | 1 => self.status &= !value,
            2 | 3 => self.enable = self.enable & !covered | value & ENABLES,
            4 | 5 => {
                let writable = CONTROL_WRITABLE & covered;
                self.control = self.control & !writable | value & writable;
                let sleep_type = self.control >> SLEEP_TYPE_SHIFT & 7;
                self.power_off |= value & SLEEP_ENABLE != 0 && sleep_type == u16::from(S5_SLEEP_TYPE);
            }
            GPE..GPE_END => {
                let at = usize::from(offset.wrapping_sub(GPE));
                if let Some(register) = self.gpe.get_mut(at) {
                    *register = if at < GPE_HALF { *register & !byte } else { byte };
                }
            }
            _ => {}
        }
    }
}

/// How long the timer's top bit stays the same.
const HALF_PERIOD: u64 = 1 << (PM_TIMER_BITS - 1);

const fn half_periods(ticks: u64) -> u64 {
    ticks.wrapping_div(HALF_PERIOD)
}

const fn counter(ticks: u64) -> u32 {
    (ticks & HALF_PERIOD.wrapping_mul(2).wrapping_sub(1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Instant = Instant::ZERO;

    fn at(ticks: u64) -> Instant {
        Oscillator::PM_TIMER.instant_of(ticks)
    }

    #[test]
    fn the_timer_counts_24_bits() {
        let mut pm = PowerManagement::new(NOW);
        assert_eq!(pm.read(8, Width::Dword, Instant::from_nanos(1_000_000_000)), 3_579_545);
        assert_eq!(pm.read(8, Width::Dword, at(0x100_0005)), 5);
        assert_eq!(pm.read(9, Width::Byte, at(0x12_3456)), 0x34);
    }

    #[test]
    fn the_timers_top_bit_interrupts() {
        let mut pm = PowerManagement::new(NOW);
        assert_eq!(pm.next_deadline(), None);
        pm.write(2, Width::Word, 1, NOW);
        assert_eq!(pm.next_deadline(), Some(at(0x80_0000)));
        pm.advance(at(0x80_0000));
        assert!(pm.sci());
        assert_eq!(pm.read(0, Width::Word, at(0x80_0000)), 1);
        pm.write(0, Width::Word, 1, at(0x80_0000));
        assert!(!pm.sci());
        assert_eq!(pm.next_deadline(), Some(at(0x100_0000)));
    }

    #[test]
    fn only_soft_off_powers_off() {
        let mut pm = PowerManagement::new(NOW);
        assert_eq!(pm.read(4, Width::Word, NOW), 1, "ACPI is on");
        pm.write(4, Width::Word, 0x2000 | 5 << 10, NOW);
        assert!(!pm.take_power_off(), "no such sleep state");
        assert_eq!(pm.read(4, Width::Word, NOW), 0x1401);
        pm.write(4, Width::Word, 0, NOW);
        assert!(!pm.take_power_off());
        pm.write(4, Width::Word, 0x2000 | u32::from(S5_SLEEP_TYPE) << 10, NOW);
        assert!(pm.take_power_off() && !pm.take_power_off());
    }

    #[test]
    fn the_power_button_and_general_events_interrupt() {
        let mut pm = PowerManagement::new(NOW);
        pm.press_power_button();
        assert!(!pm.sci());
        pm.write(2, Width::Word, 0x100, NOW);
        assert!(pm.sci());
        assert_eq!(pm.read(0, Width::Dword, NOW), 0x0100_0100);
        pm.write(1, Width::Byte, 1, NOW);
        assert!(!pm.sci());
        pm.write(0x28, Width::Dword, 0xffff_ffff, NOW);
        assert_eq!(pm.read(0x28, Width::Dword, NOW), 0xffff_ffff);
        assert!(!pm.sci(), "nothing raises a general event yet");
        assert_eq!(pm.read(0x30, Width::Dword, NOW), 0);
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            steps in prop::collection::vec((0u16..0x80, 0u32..3, any::<u32>(), any::<bool>()), 0..200),
        ) {
            let mut pm = PowerManagement::new(NOW);
            let mut now = 0;
            for (offset, width, value, write) in steps {
                now += u64::from(value);
                let (width, time) = (Width::from_bytes(1 << width).unwrap(), Instant::from_nanos(now));
                if write {
                    pm.write(offset, width, value, time);
                } else {
                    let value = pm.read(offset, width, time);
                    prop_assert_eq!(u64::from(value) & !width.mask(), 0);
                }
                pm.advance(time);
                prop_assert!(pm.next_deadline().is_none_or(|deadline| deadline > time));
                prop_assert_eq!(pm.read(4, Width::Byte, time) & 1, 1);
            }
        }
    }
}
