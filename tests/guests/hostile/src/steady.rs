//! A guest that minds its own business, and notices when it cannot: again and again it sums up a buffer that
//! never changes, and compares its clocks. It prints a beat each time, and never ends.
#![no_std]
#![no_main]

use core::hint::black_box;
use runtime::{Machine, cpu, pm_timer, println, rtc};

runtime::guest!(main);

/// The buffer, in 64-bit words.
const WORDS: usize = 16 << 10;
static BUFFER: [u64; WORDS] = pattern();
/// The shortest time between two beats, in ticks of the power-management timer: 50 ms.
const BEAT: u64 = pm_timer::HERTZ / 20;
/// For how long the time-stamp counter's frequency is measured first, in the same ticks.
const CALIBRATION: u64 = pm_timer::HERTZ;
/// The power-management timer shows 24 bits of its count.
const PM_TIMER_MASK: u64 = 0xff_ffff;
/// How far two clocks may be apart: this many ticks, and one in so many of the time that passed.
const SLACK: (u64, u64) = (pm_timer::HERTZ / 100, 500);
const DAY: u64 = 24 * 60 * 60;

const fn pattern() -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let mut at = 0;
    while at < WORDS {
        words[at] = (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        at += 1;
    }
    words
}

fn main(_: &Machine) {
    // None is expected, but Bochs 2.7 keeps the host's interrupts from a core whose guest was entered without.
    cpu::enable_interrupts();
    let expected = sum();
    let mut clocks = Clocks::start();
    for beat in 1_u64.. {
        let due = clocks.ticks + BEAT;
        while clocks.ticks < due {
            assert_eq!(sum(), expected, "the buffer's sum");
            clocks.read();
        }
        clocks.check();
        println!("beat {beat} sum {expected:#x} after {} ms", clocks.ticks * 1000 / pm_timer::HERTZ);
    }
}

/// The buffer's words, added up in an order that matters.
fn sum() -> u64 {
    black_box(&BUFFER).iter().fold(0_u64, |sum, word| sum.rotate_left(7).wrapping_add(*word))
}

/// Three clocks that count the same time.
struct Clocks {
    /// What the power-management timer showed last, and how far it came in all.
    shown: u64,
    ticks: u64,
    /// The time-stamp counter at the start, now, and how much it counts in [`CALIBRATION`].
    tsc_start: u64,
    tsc: u64,
    tsc_rate: u64,
    /// The real-time clock at the start, in seconds of the day.
    rtc_start: u64,
}

impl Clocks {
    fn start() -> Self {
        let (shown, tsc) = pm_timer_and_tsc();
        let mut clocks = Self { shown, ticks: 0, tsc_start: tsc, tsc, tsc_rate: 0, rtc_start: rtc_seconds() };
        while clocks.ticks < CALIBRATION {
            clocks.read();
        }
        clocks.tsc_rate = (clocks.tsc - tsc) * CALIBRATION / clocks.ticks;
        clocks
    }

    /// Looks at the power-management timer, which must happen every four seconds, and at the counter.
    fn read(&mut self) {
        let (shown, tsc) = pm_timer_and_tsc();
        assert!(tsc > self.tsc, "the time-stamp counter went from {} to {tsc}", self.tsc);
        self.tsc = tsc;
        let mut ticks = self.ticks + (shown.wrapping_sub(self.shown) & PM_TIMER_MASK);
        if self.tsc_rate != 0 {
            // Whole rounds that it went while nobody looked.
            let missed = self.tsc_ticks().saturating_sub(ticks) + PM_TIMER_MASK / 2;
            ticks += missed & !PM_TIMER_MASK;
        }
        (self.shown, self.ticks) = (shown, ticks);
    }

    /// What the power-management timer should have counted by the time-stamp counter.
    fn tsc_ticks(&self) -> u64 {
        let wide = u128::from(self.tsc - self.tsc_start) * u128::from(CALIBRATION);
        (wide / u128::from(self.tsc_rate)) as u64
    }

    fn check(&self) {
        let slack = SLACK.0 + self.ticks / SLACK.1;
        let by_tsc = self.tsc_ticks();
        assert!(
            self.ticks.abs_diff(by_tsc) <= slack,
            "the power-management timer counted {}, the time-stamp counter {by_tsc} of its ticks",
            self.ticks
        );
        let passed = self.ticks / pm_timer::HERTZ;
        let by_rtc = (rtc_seconds() + DAY - self.rtc_start) % DAY;
        // Each is cut to a whole second, and one more may end between the two.
        assert!(
            by_rtc.abs_diff(passed % DAY) <= 2 + passed / SLACK.1,
            "{passed} s passed, and {by_rtc} s by the real-time clock"
        );
    }
}

/// Both at one moment: read again where something came between.
fn pm_timer_and_tsc() -> (u64, u64) {
    let read = || {
        let before = cpu::tsc();
        let timer = u64::from(pm_timer::read());
        let after = cpu::tsc();
        (after - before, timer, before + (after - before) / 2)
    };
    let (_, timer, tsc) = (0..8).map(|_| read()).min().expect("eight readings");
    (timer, tsc)
}

/// The real-time clock's second of the day.
fn rtc_seconds() -> u64 {
    let read = || [4, 2, 0].map(rtc::read).map(|bcd| u64::from(bcd >> 4) * 10 + u64::from(bcd & 15));
    loop {
        let ([hours, minutes, seconds], again) = (read(), read());
        if again == [hours, minutes, seconds] {
            return (hours * 60 + minutes) * 60 + seconds;
        }
    }
}
