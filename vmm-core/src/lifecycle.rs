//! What a guest is doing from one life to the next: off, being built, alive, or in the pause before it starts again.
//!
//! A guest that crashes again and again waits longer each time, and so does one that resets again and again, after some
//! that an installer or a boot loader may need. What the user asks for is done at once.

use crate::guest::{Action, End};
use crate::time::Instant;

/// A life shorter than this, in nanoseconds, counts as one of a series.
const SHORT_LIFE: u64 = 10_000_000_000;
/// The pause before the first restart of a series that has one, in nanoseconds; it doubles with each.
const FIRST_PAUSE: u64 = 100_000_000;
/// How often it doubles at most: the longest pause is 25.6 s.
const PAUSE_DOUBLES: u32 = 8;
/// So many short lives in a row may end in resets of the guest's own before there is a pause: an installer's, a boot
/// loader's.
const FREE_RESETS: u32 = 4;

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// It lives.
    Running,
    /// Its life is over, and requests of its to devices are still under way.
    Ending,
    /// What it starts from is read, or it is being built.
    Starting,
    /// It starts again at this moment.
    Restarting(Instant),
    /// It is off.
    Off,
}

/// A guest's lives, as far as they are counted.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    state: GuestState,
    since: Instant,
    lives: u32,
    /// Short lives in a row, each ended by the guest itself.
    series: u32,
    last_end: Option<End>,
}

impl Lifecycle {
    /// A guest that has not lived yet.
    pub const fn new(now: Instant) -> Self {
        Self { state: GuestState::Off, since: now, lives: 0, series: 0, last_end: None }
    }

    /// What it is doing.
    pub const fn state(&self) -> GuestState {
        self.state
    }

    /// When its life, or being off, began.
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// How many lives it has had, with the one that runs.
    pub const fn lives(&self) -> u32 {
        self.lives
    }

    /// How its last life ended.
    pub const fn last_end(&self) -> Option<End> {
        self.last_end
    }

    /// When it starts again, where it is in the pause before that.
    pub const fn restart_at(&self) -> Option<Instant> {
        match self.state {
            GuestState::Restarting(at) => Some(at),
            _ => None,
        }
    }

    /// Whether it neither lives nor is being built.
    pub const fn may_begin(&self) -> bool {
        matches!(self.state, GuestState::Off | GuestState::Restarting(_))
    }

    /// Whoever is told true builds it and reports [`Self::born`] or [`Self::stillborn`]. False where it lives, or
    /// where another is at that.
    pub const fn begin(&mut self) -> bool {
        let may = self.may_begin();
        if may {
            self.state = GuestState::Starting;
        }
        may
    }

    /// It was built, and lives from now on.
    pub const fn born(&mut self, now: Instant) {
        self.state = GuestState::Running;
        self.since = now;
        self.lives = self.lives.saturating_add(1);
    }

    /// It could not be built.
    pub const fn stillborn(&mut self) {
        self.state = GuestState::Off;
    }

    /// Its life is over; [`Self::died`] follows when nothing of it is left.
    pub const fn ends(&mut self) {
        self.state = GuestState::Ending;
    }

    /// Its life ended, and `action` is what its owner wants to follow. It starts again when
    /// [`Self::restart_at`] says.
    pub fn died(&mut self, end: End, action: Action, now: Instant) {
        let short = now.nanos_since(self.since) < SHORT_LIFE;
        self.series = if short && !end.is_users() { self.series.saturating_add(1) } else { 0 };
        (self.last_end, self.since) = (Some(end), now);
        self.state = match action {
            Action::Stop => GuestState::Off,
            Action::Restart => GuestState::Restarting(now.plus_nanos(self.pause(end))),
        };
    }

    /// The user wants it to live: what comes is no more of the same.
    pub const fn forget_series(&mut self) {
        self.series = 0;
    }

    /// Stays off after all.
    pub const fn forget_restart(&mut self) {
        if let GuestState::Restarting(_) = self.state {
            self.state = GuestState::Off;
        }
    }

    fn pause(&self, end: End) -> u64 {
        let free = if end.is_crash() { 0 } else { FREE_RESETS };
        match self.series.saturating_sub(free) {
            0 => 0,
            paused => FIRST_PAUSE << paused.saturating_sub(1).min(PAUSE_DOUBLES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * MS)
    }

    /// The pauses, in milliseconds, between lives of `life` milliseconds that end like this.
    fn pauses(end: End, life: u64, count: usize) -> Vec<u64> {
        let (mut guest, mut now) = (Lifecycle::new(at(0)), 0);
        let lives = core::iter::repeat_with(|| {
            assert!(guest.begin());
            guest.born(at(now));
            now += life;
            guest.died(end, Action::Restart, at(now));
            let restart = guest.restart_at().unwrap().nanos_since(at(now)) / MS;
            now += restart;
            restart
        });
        lives.take(count).collect()
    }

    const DOUBLED: [u64; 11] = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 25_600, 25_600];

    #[test]
    fn crashes_in_a_row_pause_longer_and_longer() {
        for end in [End::TripleFault, End::Watchdog] {
            assert_eq!(pauses(end, 1, 11), DOUBLED);
            assert_eq!(pauses(end, 10_000, 3), [0, 0, 0], "not after a long life");
        }
    }

    #[test]
    fn resets_in_a_row_do_so_after_some() {
        for end in [End::Reset, End::PowerOff] {
            assert_eq!(pauses(end, 1, 15), [&[0; 4][..], &DOUBLED].concat());
            assert_eq!(pauses(end, 10_000, 7), [0; 7], "not after a long life");
        }
        assert_eq!(pauses(End::Restarted, 1, 50), [0; 50], "the user's do not");
    }

    #[test]
    fn a_long_life_or_the_user_ends_a_series() {
        let (mut guest, mut now) = (Lifecycle::new(at(0)), 0);
        let mut live = |guest: &mut Lifecycle, life| {
            guest.begin();
            guest.born(at(now));
            now += life;
            guest.died(End::Reset, Action::Restart, at(now));
            guest.restart_at().unwrap().nanos_since(at(now)) / MS
        };
        assert_eq!([1; 6].map(|life| live(&mut guest, life)), [0, 0, 0, 0, 100, 200]);
        assert_eq!([10_000, 1, 1, 1, 1, 1].map(|life| live(&mut guest, life)), [0, 0, 0, 0, 0, 100]);
        guest.forget_series();
        assert_eq!([1; 5].map(|life| live(&mut guest, life)), [0, 0, 0, 0, 100]);
    }

    #[test]
    fn a_guest_is_built_once_at_a_time() {
        let mut guest = Lifecycle::new(at(0));
        assert!(guest.begin() && !guest.begin());
        assert_eq!(guest.state(), GuestState::Starting, "nobody takes it for off meanwhile");
        guest.forget_restart();
        assert_eq!(guest.state(), GuestState::Starting);
        guest.born(at(5));
        assert!(!guest.begin());
        assert_eq!((guest.state(), guest.lives(), guest.since()), (GuestState::Running, 1, at(5)));
        guest.died(End::TripleFault, Action::Restart, at(6));
        assert_eq!(guest.state(), GuestState::Restarting(at(106)));
        assert!(guest.begin(), "the user need not wait");
        guest.stillborn();
        assert_eq!((guest.state(), guest.lives()), (GuestState::Off, 1));
        assert_eq!(guest.last_end(), Some(End::TripleFault));
    }

    #[test]
    fn who_is_stopped_in_a_pause_stays_off() {
        let mut guest = Lifecycle::new(at(0));
        guest.begin();
        guest.born(at(0));
        guest.died(End::TripleFault, Action::Restart, at(1));
        guest.forget_restart();
        assert_eq!((guest.state(), guest.restart_at()), (GuestState::Off, None));
        guest.begin();
        guest.born(at(2));
        guest.died(End::PowerOff, Action::Stop, at(3));
        assert_eq!((guest.state(), guest.restart_at()), (GuestState::Off, None));
    }
}
