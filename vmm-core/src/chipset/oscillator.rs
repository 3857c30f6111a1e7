//! A device's clock: how many ticks of a fixed frequency the host's time holds.

use crate::time::Instant;

const NANOS: u64 = 1_000_000_000;

/// Ticks `hz` times a second, in phase with the host's clock's origin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oscillator {
    hz: u64,
}

impl Oscillator {
    /// The PIT's 14.31818 MHz over 12.
    pub(super) const PIT: Self = Self { hz: 1_193_182 };
    /// The ACPI power-management timer (ACPI 4.8.3.3).
    pub(super) const PM_TIMER: Self = Self { hz: 3_579_545 };
    /// The real-time clock's quartz.
    pub(super) const RTC: Self = Self { hz: 32_768 };

    /// Ticks since the origin.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "2^64 ns hold 2^35 s; hz and a second's ns are below 2^30"
    )]
    pub(super) const fn ticks_at(self, now: Instant) -> u64 {
        let nanos = now.as_nanos();
        (nanos / NANOS) * self.hz + (nanos % NANOS) * self.hz / NANOS
    }

    /// The first moment at which [`Self::ticks_at`] reads at least `ticks`; saturates at the clock's end.
    #[expect(clippy::arithmetic_side_effects, reason = "hz is one of three constants, below 2^22")]
    pub(super) const fn instant_of(self, ticks: u64) -> Instant {
        let rest = ((ticks % self.hz) * NANOS).div_ceil(self.hz);
        Instant::from_nanos((ticks / self.hz).saturating_mul(NANOS)).plus_nanos(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn instants_and_ticks_agree(ticks in 1u64..1 << 40) {
            for clock in [Oscillator::PIT, Oscillator::PM_TIMER, Oscillator::RTC] {
                let at = clock.instant_of(ticks);
                prop_assert_eq!(clock.ticks_at(at), ticks);
                let before = Instant::from_nanos(at.as_nanos() - 1);
                prop_assert_eq!(clock.ticks_at(before), ticks - 1);
            }
        }
    }

    #[test]
    fn the_clocks_end_is_no_overflow() {
        let end = Instant::from_nanos(u64::MAX);
        for clock in [Oscillator::PIT, Oscillator::PM_TIMER, Oscillator::RTC] {
            assert!(clock.ticks_at(end) > 1 << 49);
            assert_eq!(clock.instant_of(u64::MAX), end);
        }
    }
}
