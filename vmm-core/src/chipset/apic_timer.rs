//! The timer in a local APIC (SDM 11.5.4).

use crate::time::{Instant, TscClock};

/// How the timer counts: bits 17 and 18 of its LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved encoding: counts nothing.
    Reserved,
}

impl TimerMode {
    pub(super) const fn from_lvt(entry: u32) -> Self {
        match (entry >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// Counts down a bus clock of 1 GHz, divided as the guest configures, or waits for a TSC value.
#[derive(Debug)]
pub(super) struct ApicTimer {
    clock: TscClock,
    mode: TimerMode,
    /// The initial-count register; zero stops the timer.
    initial: u32,
    /// The divide-configuration register.
    divide: u32,
    /// IA32_TSC_DEADLINE; zero when disarmed.
    tsc_deadline: u64,
    /// When it next reaches zero.
    deadline: Option<Instant>,
}

impl ApicTimer {
    pub(super) const fn new(clock: TscClock) -> Self {
        Self { clock, mode: TimerMode::OneShot, initial: 0, divide: 0, tsc_deadline: 0, deadline: None }
    }

    /// The guest's TSC.
    pub(super) const fn clock(&self) -> TscClock {
        self.clock
    }

    /// Takes another guest TSC: the guest wrote its counter.
    pub(super) fn set_clock(&mut self, clock: TscClock) {
        self.clock = clock;
        if self.tsc_deadline != 0 {
            self.deadline = Some(clock.instant_of(self.tsc_deadline));
        }
    }

    /// When it next expires.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether it reached zero by `now`; a periodic timer starts its next round, in step with the last.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let Some(deadline) = self.deadline.filter(|&deadline| deadline <= now) else { return false };
        self.tsc_deadline = 0;
        self.deadline = None;
        if self.mode == TimerMode::Periodic {
            let late = now.nanos_since(deadline).checked_rem(self.period()).unwrap_or(0);
            self.deadline = Some(now.plus_nanos(self.period().saturating_sub(late)));
        }
        true
    }

    /// Sets the mode; changing to or from the TSC deadline disarms the timer (SDM 11.5.4.1).
    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        if mode.counts() != self.mode.counts() || !mode.counts() && mode != self.mode {
            self.deadline = None;
            self.tsc_deadline = 0;
            self.initial = 0;
        }
        self.mode = mode;
    }

    /// The initial-count register.
    pub(super) const fn initial(&self) -> u32 {
        self.initial
    }

    /// Starts counting down from `count`; zero stops. Ignored while the timer waits for a TSC value.
    pub(super) fn start(&mut self, count: u32, now: Instant) {
        if self.mode.counts() {
            self.initial = count;
            self.deadline = (count != 0).then(|| now.plus_nanos(self.period()));
        }
    }

    /// The current-count register.
    pub(super) fn current(&self, now: Instant) -> u32 {
        if !self.mode.counts() {
            return 0;
        }
        let left = self.deadline.map_or(0, |deadline| deadline.nanos_since(now));
        // A tick counts until it has wholly passed, so round up.
        u32::try_from(left.saturating_add(self.tick_nanos().wrapping_sub(1)) >> self.shift())
            .unwrap_or(u32::MAX)
    }

    /// The divide-configuration register.
    pub(super) const fn divide(&self) -> u32 {
        self.divide
    }

    /// Changes the divider; a running count goes on at the new speed.
    pub(super) fn set_divide(&mut self, value: u32, now: Instant) {
        let current = self.current(now);
        self.divide = value & 0b1011;
        if self.mode.counts() && self.deadline.is_some() {
            self.deadline = Some(now.plus_nanos(u64::from(current) << self.shift()));
        }
    }

    /// IA32_TSC_DEADLINE: zero when disarmed or in another mode.
    pub(super) const fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Arms the timer for a TSC value, or disarms it with zero. Ignored in the other modes.
    pub(super) fn set_tsc_deadline(&mut self, ticks: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = ticks;
            self.deadline = (ticks != 0).then(|| self.clock.instant_of(ticks));
        }
    }

    /// The divider as a power of two: 0 to 7.
    const fn shift(&self) -> u32 {
        let encoded = self.divide & 3 | (self.divide >> 1) & 4;
        encoded.wrapping_add(1) & 7
    }

    const fn tick_nanos(&self) -> u64 {
        1 << self.shift()
    }

    const fn period(&self) -> u64 {
        (self.initial as u64) << self.shift()
    }
}
