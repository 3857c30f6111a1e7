//! Whether the CPUs' time-stamp counters agree: each in turn compares its own with the boot CPU's.

use crate::host::cpu;
use core::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

/// How often two counters are compared; the quickest exchange is believed.
const ROUNDS: usize = 8;
/// How long that may take, in ticks. Where CPUs take turns on fewer real ones a single exchange takes longer.
const LONGEST: u64 = 1 << 20;

/// The number of the CPU whose turn it is; zero for none.
static TURN: AtomicUsize = AtomicUsize::new(0);
/// The conversation: one of the words below, or the boot CPU's counter.
static SAID: AtomicU64 = AtomicU64::new(SILENCE);
const SILENCE: u64 = 0;
const QUESTION: u64 = 1;
const END: u64 = 2;
/// What the CPU whose turn it was found.
static AHEAD: AtomicI64 = AtomicI64::new(0);
static WIDTH: AtomicU64 = AtomicU64::new(0);

/// How two counters stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// By how many ticks the other CPU's is ahead of the boot CPU's, as near as could be seen.
    pub ahead: i64,
    /// How long the exchange took, in ticks of the other CPU.
    pub width: u64,
}

impl Comparison {
    /// The counter at `boot` was read between `before` and `after` by the other one.
    const fn new(before: u64, boot: u64, after: u64) -> Self {
        let width = after.wrapping_sub(before);
        Self { ahead: before.wrapping_add(width / 2).wrapping_sub(boot) as i64, width }
    }

    /// Whether one counter could stand for the other: the boot CPU's value lay between the other's.
    pub const fn agrees(self) -> bool {
        self.ahead.unsigned_abs() <= self.width.div_ceil(2)
    }

    /// The ticks that the counters are apart at most.
    pub const fn at_most(self) -> u64 {
        self.ahead.unsigned_abs().saturating_add(self.width.div_ceil(2))
    }
}

/// Compares with the CPU of this number, which is woken by `wake` and calls [`answer`]; `None` where it does not
/// before `expired`. Called by the boot CPU.
pub fn compare(number: usize, wake: impl Fn(), expired: impl Fn() -> bool) -> Option<Comparison> {
    SAID.store(SILENCE, Ordering::Relaxed);
    TURN.store(number, Ordering::Release);
    wake();
    let done = loop {
        match SAID.load(Ordering::Acquire) {
            QUESTION => SAID.store(cpu::tsc_in_order().max(END + 1), Ordering::Release),
            END => break true,
            _ if expired() => break false,
            _ => core::hint::spin_loop(),
        }
    };
    TURN.store(0, Ordering::Release);
    let (ahead, width) = (AHEAD.load(Ordering::Relaxed), WIDTH.load(Ordering::Relaxed));
    done.then_some(Comparison { ahead, width })
}

/// Takes part in the comparison if it is this CPU's turn.
pub fn answer(number: usize) {
    let start = cpu::tsc();
    let mut best: Option<Comparison> = None;
    for _ in 0..ROUNDS {
        let before = cpu::tsc_in_order();
        if TURN.load(Ordering::Acquire) != number {
            return;
        }
        SAID.store(QUESTION, Ordering::Release);
        let boot = loop {
            match SAID.load(Ordering::Acquire) {
                QUESTION if TURN.load(Ordering::Relaxed) != number => return,
                QUESTION => core::hint::spin_loop(),
                boot => break boot,
            }
        };
        let this = Comparison::new(before, boot, cpu::tsc_in_order());
        if best.is_none_or(|best| this.width < best.width) {
            best = Some(this);
        }
        if cpu::tsc().wrapping_sub(start) > LONGEST {
            break;
        }
    }
    if let Some(best) = best {
        AHEAD.store(best.ahead, Ordering::Relaxed);
        WIDTH.store(best.width, Ordering::Relaxed);
        SAID.store(END, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_agree_when_one_value_lies_between_the_others() {
        assert_eq!(Comparison::new(100, 150, 200), Comparison { ahead: 0, width: 100 });
        assert!(Comparison::new(100, 101, 200).agrees());
        assert!(Comparison::new(100, 200, 200).agrees());
        assert!(!Comparison::new(100, 99, 200).agrees());
        assert!(!Comparison::new(100, 202, 200).agrees());
        assert_eq!(Comparison::new(1000, 100, 1010), Comparison { ahead: 905, width: 10 });
        assert_eq!(Comparison::new(100, 1000, 110).ahead, -895);
        assert_eq!(Comparison::new(100, 101, 200).at_most(), 99);
    }
}
