//! In place of the line editor, for builds without the management prompt: nothing can be typed.

use crate::management::After;
use alloc::vec::Vec;
use core::fmt::Write;

/// An editor without lines.
pub struct Editor;

impl Editor {
    /// The only one.
    pub fn new() -> Self {
        Self
    }

    /// Says why nothing comes of what is typed, once a line.
    pub fn take(
        &mut self,
        byte: u8,
        _command: impl FnMut(&[&str], &mut dyn Write) -> After,
    ) -> (Vec<u8>, After) {
        let why = if byte == b'\r' { "the prompt was left out of this payload\n" } else { "" };
        (self.write(why), After::Stay)
    }

    /// What to show for `text`.
    pub fn write(&mut self, text: &str) -> Vec<u8> {
        text.replace('\n', "\r\n").into_bytes()
    }
}
