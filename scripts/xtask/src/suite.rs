//! Named checks, run one after another or two at a time, each reported in one line with its time.

use std::collections::VecDeque;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::fault;
use crate::progress::seconds;

/// How a check that found no fault ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything held.
    Passed,
    /// It could not run here, and this is why.
    Skipped(String),
}

/// How many checks ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Checks that held.
    pub passed: u32,
    /// Checks that did not.
    pub failed: u32,
    /// Checks that could not run here.
    pub skipped: u32,
}

impl Tally {
    /// Counts a check and prints its line; of one that failed, what it said too.
    pub fn record(&mut self, name: &str, time: Duration, result: &Result<Outcome>) {
        let time = seconds(time);
        match result {
            Ok(Outcome::Passed) => {
                self.passed += 1;
                print(&format!("passed   {name:<60} {time}"));
            }
            Ok(Outcome::Skipped(reason)) => {
                self.skipped += 1;
                print(&format!("skipped  {name}: {reason}"));
            }
            Err(error) => {
                self.failed += 1;
                print(&format!("FAILED   {name:<60} {time}\n{error}"));
            }
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// The counts in a line that [`Tally`]'s `Display` printed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split(", ");
        let mut count = |word: &str| parts.next()?.strip_suffix(word)?.trim_end().parse().ok();
        Some(Self { passed: count("passed")?, failed: count("failed")?, skipped: count("skipped")? })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Prints a line over a hint that stands there.
pub fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    let clear = if out.is_terminal() { "\r\x1b[K" } else { "" };
    let _ = writeln!(out, "{clear}{line}");
}

/// Shows at a terminal what runs now; the next line printed takes its place.
pub fn hint(name: &str) {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K...      {name}").and_then(|()| out.flush());
    }
}

/// A check, given what all checks of its kind share.
pub type Body<T> = Box<dyn Fn(&T) -> Result<Outcome> + Send + Sync>;

/// One check among many of its kind.
pub struct Case<T> {
    /// Its name, as filters see it.
    pub name: String,
    /// The check.
    pub body: Body<T>,
    /// Whether it measures time, and so must not share the machine's cores with another.
    pub alone: bool,
    /// Whether it runs only when asked for the long suite.
    pub long: bool,
}

impl<T> Case<T> {
    /// A check that may share the machine with another.
    pub fn new(
        name: impl Into<String>,
        body: impl Fn(&T) -> Result<Outcome> + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), body: Box::new(body), alone: false, long: false }
    }

    /// The same check, alone on the machine.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// The same check, in the long suite only.
    #[must_use]
    pub fn long(self) -> Self {
        Self { long: true, ..self }
    }
}

/// Which cases to run.
#[derive(Debug, Default)]
pub struct Selection {
    /// Parts of names; empty selects all.
    pub filters: Vec<String>,
    /// Whether long cases run too.
    pub long: bool,
}

impl Selection {
    /// Whether a name is selected.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Runs the selected cases, at most two at a time: one for each core of the smallest machine.
pub fn run_cases<T: Sync>(cases: &[Case<T>], selection: &Selection, lab: &T) -> Tally {
    let chosen =
        || cases.iter().filter(|case| selection.selects(&case.name) && (selection.long || !case.long));
    let tally = Mutex::new(Tally::default());
    let run = |case: &Case<T>| {
        hint(&case.name);
        let start = Instant::now();
        let result = attempt(case, lab);
        lock(&tally).record(&case.name, start.elapsed(), &result);
    };
    let queue = Mutex::new(chosen().filter(|case| !case.alone).collect::<VecDeque<_>>());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = lock(&queue).pop_front();
                    let Some(case) = next else { break };
                    run(case);
                }
            });
        }
    });
    chosen().filter(|case| case.alone).for_each(run);
    *lock(&tally)
}

/// Makes a check, and makes it again where the emulator's own fault was seen in one that failed.
fn attempt<T>(case: &Case<T>, lab: &T) -> Result<Outcome> {
    /// One such fault comes in hundreds of checks.
    const ATTEMPTS: u32 = 3;
    let make = || {
        fault::take();
        catch_unwind(AssertUnwindSafe(|| (case.body)(lab)))
            .unwrap_or_else(|_| Err(Error::failed("the test itself panicked")))
    };
    for _ in 1..ATTEMPTS {
        let result = make();
        if result.is_ok() || !fault::take() {
            return result;
        }
        print(&format!("again    {}: {}", case.name, fault::SENTENCE));
    }
    make()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_tally_survives_its_own_words() {
        let tally = Tally { passed: 12, failed: 3, skipped: 1 };
        assert_eq!(Tally::parse(&tally.to_string()), Some(tally));
        assert_eq!(Tally::parse("12 passed; 3 failed"), None);
    }

    #[test]
    fn a_check_is_made_again_only_where_the_emulator_was_at_fault() {
        let attempts = AtomicU32::new(0);
        let fails_first = |says: &'static str| {
            move |attempts: &AtomicU32| {
                fault::look(says);
                let first = attempts.fetch_add(1, Ordering::Relaxed) == 0;
                if first { Err(Error::failed("broken")) } else { Ok(Outcome::Passed) }
            }
        };
        let excused = format!("[1.5] web: crashed: {} (0x400)\n", fault::SENTENCE);
        let case = Case::new("excused", fails_first(Box::leak(excused.into_boxed_str())));
        assert_eq!(run_cases(&[case], &Selection::default(), &attempts).passed, 1);
        attempts.store(0, Ordering::Relaxed);
        let case = Case::new("fails", fails_first("[1.5] web: crashed: triple fault\n"));
        assert_eq!(run_cases(&[case], &Selection::default(), &attempts).failed, 1);
        assert_eq!(attempts.into_inner(), 1);
    }

    #[test]
    fn cases_are_counted_by_how_they_end() {
        let passes = |(): &()| Ok(Outcome::Passed);
        let cases = [
            Case::new("holds", passes),
            Case::new("cannot", |(): &()| Ok(Outcome::Skipped("no such machine".to_owned()))),
            Case::new("fails", |(): &()| Err(Error::failed("broken"))),
            Case::new("panics", |(): &()| panic!("on purpose")),
            Case::new("long", passes).long(),
            Case::new("alone", passes).alone(),
        ];
        let all = run_cases(&cases, &Selection::default(), &());
        assert_eq!(all, Tally { passed: 2, failed: 2, skipped: 1 });
        let some = Selection { filters: vec!["hold".to_owned(), "long".to_owned()], long: true };
        assert_eq!(run_cases(&cases, &some, &()), Tally { passed: 2, failed: 0, skipped: 0 });
    }
}
