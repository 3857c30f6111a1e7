//! The watchdog timer that the WDAT describes (Microsoft's "Hardware Watchdog Timers Design Specification"): Linux
//! and Windows drive any such timer by the table alone, so its registers are our own.
//!
//! It stands still until the guest starts it, and then counts down. A guest that does not feed it in time has failed.

use super::layout::{WATCHDOG_CONTROL, WATCHDOG_COUNT, WATCHDOG_FEED, WATCHDOG_LONGEST, WATCHDOG_PERIOD};
use crate::cpu::Width;
use crate::time::Instant;

/// What it counts down from unless the guest says otherwise: half a minute.
const FIRST_COUNT: u32 = 300;
/// A period in nanoseconds.
const PERIOD: u64 = WATCHDOG_PERIOD as u64 * 1_000_000;
/// In the control register: it runs.
const RUNS: u32 = 1 << 0;

/// The watchdog timer.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// What it counts down from, in periods: 1 to [`WATCHDOG_LONGEST`].
    count: u32,
    /// When it was last fed; `None` while it stands still.
    fed: Option<Instant>,
    expired: bool,
}

impl Watchdog {
    pub(super) const fn new() -> Self {
        Self { count: FIRST_COUNT, fed: None, expired: false }
    }

    /// Reads at `offset` from [`super::layout::WATCHDOG_PORT`].
    pub(super) fn read(&self, offset: u16, width: Width, now: Instant) -> u32 {
        let value = match offset & !3 {
            WATCHDOG_COUNT => self.left(now),
            WATCHDOG_CONTROL if self.fed.is_some() => RUNS,
            _ => 0,
        };
        value >> (u32::from(offset & 3) << 3) & width.mask() as u32
    }

    /// Writes at `offset` from [`super::layout::WATCHDOG_PORT`]. Registers are dwords, and only whole ones are
    /// written.
    pub(super) fn write(&mut self, offset: u16, width: Width, value: u32, now: Instant) {
        // Too late is too late.
        self.advance(now);
        match (offset, width) {
            (WATCHDOG_COUNT, Width::Dword) => self.count = value.clamp(1, WATCHDOG_LONGEST),
            (WATCHDOG_CONTROL, Width::Dword) if value & RUNS == 0 => return self.fed = None,
            (WATCHDOG_CONTROL, Width::Dword) => return self.fed = Some(now),
            (WATCHDOG_FEED, Width::Dword) => {}
            _ => return,
        }
        self.fed = self.fed.map(|_| now);
    }

    /// When it expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        Some(self.fed?.plus_nanos(u64::from(self.count).saturating_mul(PERIOD)))
    }

    /// Expires, where that is due.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.fed = None;
            self.expired = true;
        }
    }

    /// Whether it expired, once.
    pub(super) const fn take_expired(&mut self) -> bool {
        core::mem::replace(&mut self.expired, false)
    }

    /// How many periods are left, the one that runs included.
    fn left(&self, now: Instant) -> u32 {
        let left = self.next_deadline().map(|deadline| deadline.nanos_since(now).div_ceil(PERIOD));
        left.map_or(self.count, |left| left as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(periods: u64) -> Instant {
        Instant::from_nanos(periods * PERIOD)
    }

    fn write(watchdog: &mut Watchdog, register: u16, value: u32, periods: u64) {
        watchdog.write(register, Width::Dword, value, at(periods));
    }

    fn count(watchdog: &Watchdog, periods: u64) -> u32 {
        watchdog.read(WATCHDOG_COUNT, Width::Dword, at(periods))
    }

    #[test]
    fn it_stands_still_until_it_is_started() {
        let mut watchdog = Watchdog::new();
        write(&mut watchdog, WATCHDOG_COUNT, 20, 0);
        write(&mut watchdog, WATCHDOG_FEED, 1, 1);
        assert_eq!((watchdog.next_deadline(), count(&watchdog, 50)), (None, 20));
        assert_eq!(watchdog.read(WATCHDOG_CONTROL, Width::Dword, at(50)), 0);
        watchdog.advance(at(1000));
        assert!(!watchdog.take_expired());
    }

    #[test]
    fn who_feeds_it_lives() {
        let mut watchdog = Watchdog::new();
        write(&mut watchdog, WATCHDOG_COUNT, 20, 0);
        write(&mut watchdog, WATCHDOG_CONTROL, 1, 10);
        assert_eq!(watchdog.read(WATCHDOG_CONTROL, Width::Byte, at(10)), 1);
        assert_eq!((watchdog.next_deadline(), count(&watchdog, 15)), (Some(at(30)), 15));
        write(&mut watchdog, WATCHDOG_FEED, 1, 29);
        assert_eq!((watchdog.next_deadline(), count(&watchdog, 29)), (Some(at(49)), 20));
        write(&mut watchdog, WATCHDOG_COUNT, 5, 40);
        assert_eq!(watchdog.next_deadline(), Some(at(45)), "a new count starts anew");
        write(&mut watchdog, WATCHDOG_CONTROL, 0, 44);
        watchdog.advance(at(100));
        assert!(!watchdog.take_expired(), "stopped in time");
    }

    #[test]
    fn who_does_not_is_told_of_once() {
        let mut watchdog = Watchdog::new();
        write(&mut watchdog, WATCHDOG_COUNT, 0, 0);
        write(&mut watchdog, WATCHDOG_CONTROL, 1, 0);
        assert_eq!(watchdog.next_deadline(), Some(at(1)), "no time at all is one period");
        watchdog.advance(Instant::from_nanos(PERIOD - 1));
        assert!(!watchdog.take_expired());
        write(&mut watchdog, WATCHDOG_FEED, 1, 1);
        assert!(watchdog.take_expired() && !watchdog.take_expired(), "too late");
        assert_eq!(watchdog.next_deadline(), None);
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            steps in prop::collection::vec((0u16..12, 0u32..3, any::<u32>(), any::<bool>()), 0..100),
        ) {
            let mut watchdog = Watchdog::new();
            let mut now = 0;
            for (offset, width, value, write) in steps {
                now += u64::from(value);
                let (width, time) = (Width::from_bytes(1 << width).unwrap(), Instant::from_nanos(now));
                if write {
                    watchdog.write(offset, width, value, time);
                } else {
                    prop_assert_eq!(u64::from(watchdog.read(offset, width, time)) & !width.mask(), 0);
                }
                watchdog.advance(time);
                prop_assert!(watchdog.next_deadline().is_none_or(|deadline| deadline > time));
                prop_assert!((1..=WATCHDOG_LONGEST).contains(&watchdog.left(time)));
            }
        }
    }
}
