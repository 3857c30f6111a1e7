//! Time as guests and their devices see it.

use core::time::Duration;

/// A moment on the host's monotonic clock, in nanoseconds since the payload calibrated it.
///
/// It wraps after 584 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// The moment `nanoseconds` after the clock's origin.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `nanoseconds` later; saturates at the clock's end.
    #[must_use]
    pub const fn plus_nanos(self, nanoseconds: u64) -> Self {
        Self(self.0.saturating_add(nanoseconds))
    }

    /// Nanoseconds from `earlier` to this moment, zero when `earlier` is later.
    pub const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from `earlier` to this moment, zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }
}

/// The earlier of two moments that may never come.
pub fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// How a guest's time-stamp counter runs: its frequency, and what it read at one moment.
#[derive(Clone, Copy, Debug)]
pub struct TscClock {
    khz: u64,
    base: Instant,
    ticks_at_base: u64,
}

impl TscClock {
    /// A counter of `khz` kilohertz that stands at zero at `zero`. A frequency of zero is taken as 1 kHz.
    pub const fn new(khz: u64, zero: Instant) -> Self {
        Self::reading(khz, 0, zero)
    }

    /// A counter of `khz` kilohertz that reads `ticks` at `now`.
    pub const fn reading(khz: u64, ticks: u64, now: Instant) -> Self {
        Self { khz: if khz == 0 { 1 } else { khz }, base: now, ticks_at_base: ticks }
    }

    /// The counter's frequency in kHz; never zero.
    pub const fn khz(&self) -> u64 {
        self.khz
    }

    /// What the counter reads at `now`, which is not before the moment it was made for.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "a product of two u64 fits u128; the divisor is a constant"
    )]
    pub const fn ticks_at(&self, now: Instant) -> u64 {
        let ticks = now.nanos_since(self.base) as u128 * self.khz as u128 / 1_000_000;
        // It wraps as the 64-bit counter does.
        self.ticks_at_base.wrapping_add(ticks as u64)
    }

    /// The first moment at which the counter reads at least `ticks`, or the moment it was made for where that
    /// has passed; saturates at the clock's end.
    #[expect(clippy::arithmetic_side_effects, reason = "u64 products fit u128, and `khz` is not zero")]
    pub const fn instant_of(&self, ticks: u64) -> Instant {
        let ticks = ticks.saturating_sub(self.ticks_at_base);
        let nanos = (ticks as u128 * 1_000_000).div_ceil(self.khz as u128);
        self.base.plus_nanos(if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_instants_agree() {
        let clock = TscClock::new(2_400_000, Instant::from_nanos(1_000));
        assert_eq!(clock.ticks_at(Instant::from_nanos(500)), 0);
        assert_eq!(clock.ticks_at(Instant::from_nanos(2_000)), 2_400);
        for ticks in [1, 7, 2_400, 123_456_789_012] {
            assert!(clock.ticks_at(clock.instant_of(ticks)) >= ticks);
            let before = Instant::from_nanos(clock.instant_of(ticks).as_nanos() - 1);
            assert!(clock.ticks_at(before) < ticks);
        }
    }

    #[test]
    fn a_counter_can_be_set() {
        let clock = TscClock::reading(1_000_000, 5_000, Instant::from_nanos(100));
        assert_eq!(clock.ticks_at(Instant::from_nanos(150)), 5_050);
        assert_eq!(clock.instant_of(6_000), Instant::from_nanos(1_100));
        assert_eq!(clock.instant_of(10), Instant::from_nanos(100), "already passed");
    }

    #[test]
    fn the_far_future_saturates() {
        let clock = TscClock::new(1, Instant::ZERO);
        assert_eq!(clock.instant_of(u64::MAX), Instant::from_nanos(u64::MAX));
    }
}
