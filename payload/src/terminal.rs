//! A guest's terminal: its share of this machine's serial console.

use crate::{console, info};
use alloc::string::String;
use alloc::vec::Vec;
use spin::Mutex;
use vmm_core::host::Terminal;

/// A line for the log without an end is logged when it has this many bytes.
const LONGEST_LINE: usize = 256;

/// One guest's terminal.
pub struct GuestTerminal {
    name: String,
    /// The guest's number with the console.
    number: usize,
    debug_line: Mutex<Vec<u8>>,
}

impl GuestTerminal {
    /// The terminal of the guest of this name, and whether its output is to be seen.
    pub fn new(name: &str, shown: bool) -> Self {
        let number = console::with(|multiplexer, _| multiplexer.add(name, shown));
        Self { name: name.into(), number, debug_line: Mutex::default() }
    }

    /// The guest's number with the console.
    pub fn number(&self) -> usize {
        self.number
    }
}

impl Terminal for GuestTerminal {
    fn transmit(&self, byte: u8) -> bool {
        console::with(|multiplexer, line| multiplexer.transmit(self.number, byte, line))
    }

    fn has_room(&self) -> bool {
        console::with(|multiplexer, _| multiplexer.has_room(self.number))
    }

    fn debug(&self, byte: u8) {
        collect(&self.debug_line, byte, |line| {
            info!("{}: {}", self.name, line.escape_ascii());
        });
    }

    fn has_news(&self) -> bool {
        console::with(|multiplexer, _| multiplexer.has_news(self.number))
    }

    fn receive(&self) -> Option<u8> {
        console::with(|multiplexer, _| multiplexer.receive(self.number))
    }
}

/// Adds `byte` to `line`, and hands the line to `end` once it is complete, without its line end.
fn collect(line: &Mutex<Vec<u8>>, byte: u8, end: impl FnOnce(&[u8])) {
    let mut line = line.lock();
    match byte {
        b'\r' => {}
        b'\n' => {
            end(&line);
            line.clear();
        }
        byte => {
            line.push(byte);
            if line.len() >= LONGEST_LINE {
                end(&line);
                line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole() {
        let line = Mutex::default();
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for byte in b"one\r\n\ntwo" {
            collect(&line, *byte, |line| seen.push(line.to_vec()));
        }
        assert_eq!(seen, [b"one".to_vec(), b"".to_vec()]);
        for _ in 0..LONGEST_LINE {
            collect(&line, b'x', |line| seen.push(line.to_vec()));
        }
        assert_eq!(seen.last().map(Vec::len), Some(LONGEST_LINE));
    }
}
