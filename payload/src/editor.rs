//! The line editor of the management prompt: keys in, commands and what is to be shown out.

use crate::management::After;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::fmt::Write;
use embedded_cli::arguments::Arg;
use embedded_cli::cli::{Cli, CliBuilder, CliHandle};
use embedded_cli::command::RawCommand;

const PROMPT: &str = "peerboot> ";
/// The longest line taken, and what is remembered of lines, in bytes.
const LINE: usize = 80;
const HISTORY: usize = 512;
/// The delete key of most terminals, and the backspace that the editor knows.
const DELETE: u8 = 0x7f;
const BACKSPACE: u8 = 0x08;

/// What the line editor writes.
#[derive(Clone, Default)]
struct Words(Rc<RefCell<Vec<u8>>>);

impl embedded_io::ErrorType for Words {
    type Error = Infallible;
}

impl embedded_io::Write for Words {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The editor, with the line being typed and those typed before.
pub struct Editor {
    cli: Cli<Words, Infallible, [u8; LINE], [u8; HISTORY]>,
    words: Words,
}

impl Editor {
    /// With nothing typed yet.
    pub fn new() -> Self {
        let words = Words::default();
        let builder = CliBuilder::default().writer(words.clone()).prompt(PROMPT);
        let Ok(cli) = builder.command_buffer([0; LINE]).history_buffer([0; HISTORY]).build();
        words.0.take();
        Self { cli, words }
    }

    /// Takes a byte that was typed. Where it ends a line, `command` gets its words and writes the answer. What is
    /// to be shown, and what follows.
    pub fn take(
        &mut self,
        byte: u8,
        mut command: impl FnMut(&[&str], &mut dyn Write) -> After,
    ) -> (Vec<u8>, After) {
        let mut after = After::Stay;
        let byte = if byte == DELETE { BACKSPACE } else { byte };
        let process = |handle: &mut CliHandle<'_, Words, Infallible>, raw: RawCommand<'_>| {
            let arguments = raw.args();
            let values = arguments.args().filter_map(|argument| match argument {
                Ok(Arg::Value(value)) => Some(value),
                _ => None,
            });
            let words: Vec<&str> = core::iter::once(raw.name()).chain(values).collect();
            after = command(&words, handle.writer());
            Ok(())
        };
        let Ok(()) = self.cli.process_byte::<RawCommand<'_>, _>(byte, &mut RawCommand::processor(process));
        let mut words = self.words.0.take();
        if after != After::Stay {
            // No prompt where none is wanted any more.
            words.truncate(words.len().saturating_sub(PROMPT.len()));
        }
        (words, after)
    }

    /// What to show so that `text`, whole lines, stands above the prompt and what is typed there.
    pub fn write(&mut self, text: &str) -> Vec<u8> {
        let Ok(()) = self.cli.write(|writer| writer.write_str(text));
        self.words.0.take()
    }
}
