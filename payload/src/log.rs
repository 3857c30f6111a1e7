//! Log lines: to every attached sink, and into a history that a sink attached later is given first.
//!
//! Lines of several CPUs come one after another. But where the log's own lock is held by what an NMI interrupted,
//! or by a CPU that a failure stopped, the line goes out without it.

use crate::host::lock::Lock;
use core::fmt::{self, Write};
use core::time::Duration;
use spin::Once;

/// Logs what the user will want to know.
#[macro_export]
macro_rules! info {
    ($($argument:tt)*) => { $crate::log::line("", format_args!($($argument)*)) };
}

/// Logs what only an expert will want to know: into the history and coreboot's log, past the user's eyes.
#[macro_export]
macro_rules! debug {
    ($($argument:tt)*) => { $crate::log::detail(format_args!($($argument)*)) };
}

/// Logs what is wrong but can be lived with.
#[macro_export]
macro_rules! warn {
    ($($argument:tt)*) => { $crate::log::line("warning: ", format_args!($($argument)*)) };
}

/// Logs what failed.
#[macro_export]
macro_rules! error {
    ($($argument:tt)*) => { $crate::log::line("error: ", format_args!($($argument)*)) };
}

/// Somewhere that log lines go.
pub trait Sink: Sync {
    /// Writes `text`, which may be part of a line; lines end in `\n`.
    fn write(&self, text: &str);
    /// Whether details are wanted here too.
    fn wants_details(&self) -> bool {
        false
    }
    /// Waits until all that was written is out.
    fn flush(&self) {}
}

/// What the history holds, in bytes.
const HISTORY: usize = 0x4000;

static SINKS: [Once<&'static dyn Sink>; 4] = [const { Once::new() }; 4];
static CLOCK: Once<fn() -> Duration> = Once::new();
static LINE: Lock<()> = Lock::new(());
static PAST: Lock<History> = Lock::new(History { bytes: [0; HISTORY], written: 0 });

/// The latest bytes logged.
struct History {
    bytes: [u8; HISTORY],
    /// Bytes ever written.
    written: usize,
}

impl History {
    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            self.bytes[self.written % HISTORY] = byte;
            self.written += 1;
        }
    }

    /// The kept bytes, oldest first, in two pieces.
    fn pieces(&self) -> [&[u8]; 2] {
        let at = self.written % HISTORY;
        if self.written <= HISTORY {
            [&self.bytes[..self.written], &[]]
        } else {
            [&self.bytes[at..], &self.bytes[..at]]
        }
    }

    fn replay(&self, write: &mut dyn FnMut(&str)) {
        for piece in self.pieces() {
            // A character cut in two by the ring's end or start is left out.
            for text in piece.utf8_chunks() {
                write(text.valid());
            }
        }
    }
}

/// From now on every line also goes to `sink`, which first gets the history. Whether there was room for it.
pub fn attach(sink: &'static dyn Sink) -> bool {
    replay(&mut |text| sink.write(text));
    SINKS.iter().any(|slot| {
        let mut ours = false;
        slot.call_once(|| {
            ours = true;
            sink
        });
        ours
    })
}

/// Gives the history to `write`, piece by piece.
pub fn replay(write: &mut dyn FnMut(&str)) {
    if let Some(past) = PAST.lock() {
        past.replay(write);
    }
}

/// Waits until every line is out: before the machine stops.
pub fn flush() {
    SINKS.iter().filter_map(Once::get).for_each(|sink| sink.flush());
}

/// From now on lines begin with the time that `clock` tells.
pub fn set_clock(clock: fn() -> Duration) {
    CLOCK.call_once(|| clock);
}

/// Writes one line; the macros call it.
pub fn line(tag: &str, message: fmt::Arguments) {
    write_line(Everywhere { details: false }, tag, message);
}

/// Writes one line where details are wanted; the macro calls it.
pub fn detail(message: fmt::Arguments) {
    write_line(Everywhere { details: true }, "", message);
}

fn write_line(mut out: Everywhere, tag: &str, message: fmt::Arguments) {
    let guard = LINE.lock();
    // `Everywhere` never fails; a failing `Display` loses the rest of its line.
    let _ = match CLOCK.get() {
        Some(clock) => {
            let now = clock();
            write!(out, "[{:5}.{:06}] {tag}{message}", now.as_secs(), now.subsec_micros())
        }
        None => write!(out, "[     -      ] {tag}{message}"),
    };
    let _ = out.write_str("\n");
    drop(guard);
}

/// The history and all sinks, or all that want details.
struct Everywhere {
    details: bool,
}

impl fmt::Write for Everywhere {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(mut past) = PAST.lock() {
            past.push(text);
        }
        let sinks = SINKS.iter().filter_map(Once::get);
        sinks.filter(|sink| !self.details || sink.wants_details()).for_each(|sink| sink.write(text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spin::Mutex;

    struct Collect(Mutex<String>);

    impl Sink for Collect {
        fn write(&self, text: &str) {
            self.0.lock().push_str(text);
        }
    }

    #[test]
    fn a_full_history_keeps_the_latest_bytes_in_order() {
        let mut history = Box::new(History { bytes: [0; HISTORY], written: 0 });
        let mut all = String::new();
        for number in 0..4000 {
            let line = format!("line {number}\n");
            history.push(&line);
            all.push_str(&line);
        }
        let mut kept = String::new();
        history.replay(&mut |text| kept.push_str(text));
        assert_eq!(kept, all[all.len() - HISTORY..]);
    }

    #[test]
    fn a_late_sink_gets_the_history_then_the_lines() {
        static SINK: Collect = Collect(Mutex::new(String::new()));
        line("", format_args!("before"));
        assert!(attach(&SINK));
        line("warning: ", format_args!("after {}", 1));
        let seen = SINK.0.lock();
        let (before, after) = (seen.find("before").unwrap(), seen.find("warning: after 1\n").unwrap());
        assert!(before < after);
    }
}
