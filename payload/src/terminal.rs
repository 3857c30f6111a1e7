//! A guest's terminal: this machine's serial console.

use crate::console::serial;
use crate::info;
use alloc::string::String;
use alloc::vec::Vec;
use spin::Mutex;
use vmm_core::host::Terminal;

/// A line without an end goes out when it has this many bytes.
const LONGEST_LINE: usize = 256;

/// How a guest's output reaches the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Byte by byte, and what is typed is this guest's.
    Raw,
    /// Line by line, each with the guest's name, so that guests can be told apart.
    Lines,
    /// Not at all.
    Silent,
}

/// One guest's terminal.
pub struct GuestTerminal {
    name: String,
    style: Style,
    line: Mutex<Vec<u8>>,
    debug_line: Mutex<Vec<u8>>,
}

impl GuestTerminal {
    /// The terminal of the guest of this name.
    pub fn new(name: &str, style: Style) -> Self {
        Self { name: name.into(), style, line: Mutex::default(), debug_line: Mutex::default() }
    }

    fn write(bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(left) = rest.get(serial::write(rest)..).filter(|left| !left.is_empty()) {
            // The queue is full: the line is slower than the guest.
            serial::poll();
            rest = left;
        }
    }
}

impl Terminal for GuestTerminal {
    fn transmit(&self, byte: u8) {
        match self.style {
            Style::Raw => Self::write(&[byte]),
            Style::Silent => {}
            Style::Lines => collect(&self.line, byte, |line| {
                Self::write(self.name.as_bytes());
                Self::write(b": ");
                Self::write(line);
                Self::write(b"\r\n");
            }),
        }
    }

    fn debug(&self, byte: u8) {
        collect(&self.debug_line, byte, |line| {
            info!("{}: {}", self.name, line.escape_ascii());
        });
    }

    fn has_input(&self) -> bool {
        self.style == Style::Raw && serial::has_input()
    }

    fn receive(&self) -> Option<u8> {
        let mut byte = [0];
        (self.style == Style::Raw && serial::read(&mut byte) == 1).then_some(byte[0])
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
