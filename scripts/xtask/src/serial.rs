//! A machine's serial console as this side sees it: bytes that come while nobody waits, and patterns waited for.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use regex::bytes::Regex;

use crate::error::{Error, Result};

/// How long an unfinished line must stay as it is before patterns are held against it: a prompt never ends.
const SETTLED: Duration = Duration::from_millis(150);

/// What ends a line that others take the place of, as the management prompt makes way for what guests say: back to the
/// line's beginning, and all of it erased (ECMA-48 EL).
const ERASE: &[u8] = b"\r\x1b[2K";

/// Everything received so far, and whether more can come.
#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
    closed: bool,
}

/// Collects a console's output in the background.
#[derive(Debug)]
pub struct Serial {
    shared: Arc<(Mutex<Received>, Condvar)>,
    /// Everything before this has been waited for already.
    seen: usize,
}

/// Which lines a pattern is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Those that have ended: of any other, the rest may be still to come.
    Whole,
    /// Unfinished ones too, once they stay as they are for a moment or have been erased.
    Unfinished,
}

/// What a wait for a pattern ended with.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    /// The pattern matched this line.
    Matched(String),
    /// Time ran out.
    TimedOut,
    /// The console closed: the machine is gone.
    Closed,
}

impl Serial {
    /// Starts to collect from `source`, copying each piece to `echo` as it comes.
    pub fn collect<R, W>(mut source: R, mut echo: W) -> Self
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let shared = Arc::new((Mutex::new(Received::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            let (received, news) = &*theirs;
            loop {
                let read = source.read(&mut piece).unwrap_or(0);
                let bytes = piece.get(..read).unwrap_or_default();
                // Nobody to show it to is no reason to stop reading.
                let _ = echo.write_all(bytes).and_then(|()| echo.flush());
                let mut received = lock(received);
                received.bytes.extend_from_slice(bytes);
                received.closed = read == 0;
                news.notify_all();
                if received.closed {
                    return;
                }
            }
        });
        Self { shared, seen: 0 }
    }

    /// Waits until a line that came since the last wait matches.
    ///
    /// Terminal control sequences and carriage returns are left out before the pattern is tried.
    pub fn wait(&mut self, pattern: &Regex, lines: Lines, timeout: Duration) -> Wait {
        let deadline = Instant::now() + timeout;
        let (received, news) = &*Arc::clone(&self.shared);
        let mut received = lock(received);
        loop {
            while let Some((bytes, end)) = first_line(received.bytes.get(self.seen..).unwrap_or_default()) {
                let line = plain(bytes);
                self.seen += bytes.len() + end.len();
                if (end != ERASE || lines == Lines::Unfinished) && pattern.is_match(&line) {
                    return Wait::Matched(String::from_utf8_lossy(&line).into_owned());
                }
            }
            let unfinished = received.bytes.len();
            if received.closed {
                // Nothing will finish the line now.
                let line = plain(received.bytes.get(self.seen..).unwrap_or_default());
                self.seen = unfinished;
                if !line.is_empty() && pattern.is_match(&line) {
                    return Wait::Matched(String::from_utf8_lossy(&line).into_owned());
                }
                return Wait::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = if unfinished > self.seen { SETTLED.min(left) } else { left };
            received = news.wait_timeout(received, pause).unwrap_or_else(PoisonError::into_inner).0;
            if received.bytes.len() == unfinished {
                let line = plain(received.bytes.get(self.seen..).unwrap_or_default());
                if lines == Lines::Unfinished && !line.is_empty() && pattern.is_match(&line) {
                    self.seen = unfinished;
                    return Wait::Matched(String::from_utf8_lossy(&line).into_owned());
                }
                if Instant::now() >= deadline {
                    return Wait::TimedOut;
                }
                if !received.closed && unfinished > self.seen {
                    // A settled line that does not match: wait for more of it.
                    let left = deadline.saturating_duration_since(Instant::now());
                    received = news
                        .wait_timeout_while(received, left, |r| r.bytes.len() == unfinished && !r.closed)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        }
    }

    /// Waits until anything comes; whether the console is still open.
    pub fn wait_news(&mut self, timeout: Duration) -> bool {
        let (received, news) = &*self.shared;
        let before = lock(received).bytes.len();
        let received = news
            .wait_timeout_while(lock(received), timeout, |r| r.bytes.len() == before && !r.closed)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        !received.closed
    }

    /// Everything received so far, without terminal control sequences and carriage returns.
    #[must_use]
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&plain(&lock(&self.shared.0).bytes)).into_owned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first line of `bytes` that has ended or was erased, and what ended it.
fn first_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let ended = |rest: &[u8]| rest.first() == Some(&b'\n') || rest.starts_with(ERASE);
    let at = (0..bytes.len()).find(|at| bytes.get(*at..).is_some_and(ended))?;
    let (line, rest) = bytes.split_at(at);
    Some((line, if rest.starts_with(ERASE) { ERASE } else { b"\n" }))
}

/// The bytes without ESC sequences (ECMA-48 CSI and two-byte ones) and carriage returns.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\r' => {}
            0x1B => {
                if rest.next() == Some(b'[') {
                    // Parameters and intermediates, then one final byte.
                    while rest.next_if(|b| (0x20..0x40).contains(b)).is_some() {}
                    rest.next();
                }
            }
            _ => out.push(byte),
        }
    }
    out
}

/// A pattern for console lines.
///
/// # Errors
/// It is not a regular expression.
pub fn pattern(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|e| Error::setup(format!("not a regular expression: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_secs(10);

    fn console() -> (UnixStream, Serial) {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        (near, Serial::collect(far, std::io::sink()))
    }

    fn wait(serial: &mut Serial, text: &str, timeout: Duration) -> Wait {
        serial.wait(&pattern(text).expect("a pattern"), Lines::Unfinished, timeout)
    }

    #[test]
    fn a_prompt_without_newline_matches() {
        let (mut guest, mut serial) = console();
        guest.write_all(b"booting\r\n\x1b[1m~ # \x1b[6n").expect("written");
        assert_eq!(wait(&mut serial, "^~ # $", SOON), Wait::Matched("~ # ".to_owned()));
    }

    #[test]
    fn a_prompt_that_never_stays_matches_and_what_took_its_place_is_a_line() {
        let (mut guest, mut serial) = console();
        let beat = |guest: &mut UnixStream| {
            guest.write_all(b"peerboot> \r\x1b[2K[1.5] one: beat\r\npeerboot> ").expect("written");
        };
        beat(&mut guest);
        beat(&mut guest);
        assert_eq!(wait(&mut serial, "peerboot> $", SOON), Wait::Matched("peerboot> ".to_owned()));
        let said = pattern("^.1.5. one|peerboot").expect("a pattern");
        assert_eq!(serial.wait(&said, Lines::Whole, SOON), Wait::Matched("[1.5] one: beat".to_owned()));
        assert_eq!(serial.wait(&said, Lines::Whole, SOON), Wait::Matched("[1.5] one: beat".to_owned()));
        assert_eq!(serial.wait(&said, Lines::Whole, 3 * SETTLED), Wait::TimedOut);
    }

    #[test]
    fn where_whole_lines_are_wanted_the_rest_of_one_is_waited_for() {
        let (mut guest, mut serial) = console();
        guest.write_all(b"guest off").expect("written");
        let off = pattern("off.*$").expect("a pattern");
        assert_eq!(serial.wait(&off, Lines::Whole, 3 * SETTLED), Wait::TimedOut);
        guest.write_all(b": stopped\r\n").expect("written");
        assert_eq!(serial.wait(&off, Lines::Whole, SOON), Wait::Matched("guest off: stopped".to_owned()));
    }

    #[test]
    fn lines_are_matched_once_and_in_order() {
        let (mut guest, mut serial) = console();
        guest.write_all(b"one\ntwo\none\n").expect("written");
        assert_eq!(wait(&mut serial, "two", SOON), Wait::Matched("two".to_owned()));
        assert_eq!(wait(&mut serial, "one", SOON), Wait::Matched("one".to_owned()));
        assert_eq!(wait(&mut serial, "one", Duration::from_millis(50)), Wait::TimedOut);
    }

    #[test]
    fn a_prompt_that_did_not_match_can_still_become_a_line_that_does() {
        let (mut guest, mut serial) = console();
        guest.write_all(b"half").expect("written");
        assert_eq!(wait(&mut serial, "half a line", Duration::from_millis(400)), Wait::TimedOut);
        guest.write_all(b" a line\n").expect("written");
        assert_eq!(wait(&mut serial, "half a line", SOON), Wait::Matched("half a line".to_owned()));
    }

    #[test]
    fn a_closed_console_ends_the_wait() {
        let (mut guest, mut serial) = console();
        guest.write_all(b"last words").expect("written");
        drop(guest);
        assert_eq!(wait(&mut serial, "never", SOON), Wait::Closed);
        assert_eq!(serial.transcript(), "last words");
    }
}
