//! The management prompt, beside running guests: what was typed is taken when it comes, and nothing waits.

use crate::console::multiplexer::{Typed, View};
use crate::console::{self, serial};
use crate::editor::Editor;
use crate::host::{apic, interrupts};
use crate::machine::attend_at;
use crate::management::{After, Machine, Management};
use crate::warn;
use alloc::string::String;
use alloc::vec::Vec;
use vmm_core::time::Instant;

/// How often a UART without an interrupt is looked at, in nanoseconds.
const POLL: u64 = 10_000_000;
/// How often a UART with an interrupt is looked at all the same, in nanoseconds: some boards and emulators lose one.
const LOOK: u64 = 1_000_000_000;
/// How long a line of the log waits for the end of a guest's line, in nanoseconds.
const LOG_WAITS: u64 = 1_000_000_000;

/// The keys after Ctrl-].
const KEYS: &str = "\
Ctrl-] 1 to 9  show that guest, and type to it
Ctrl-] n, p    the next guest, the previous one
Ctrl-] a       all guests, line by line
Ctrl-] l       list the guests
Ctrl-] m       open the management prompt, or leave it
Ctrl-] Ctrl-]  type Ctrl-] to the guest
";

/// The prompt, and all else that the boot core does for the user.
pub struct Prompt<'a> {
    machine: Machine<'a>,
    management: Management<'a>,
    editor: Editor,
    /// When the UART was last looked at.
    looked: Instant,
    /// Since when log lines wait for the end of a guest's line.
    held_since: Option<Instant>,
    /// The user was at the prompt with no guest alive: the machine stays on.
    stays: bool,
}

impl<'a> Prompt<'a> {
    /// The prompt of `machine` and its guests; not yet to be seen.
    pub fn new(machine: Machine<'a>, management: Management<'a>) -> Self {
        let editor = Editor::new();
        Self { machine, management, editor, looked: Instant::ZERO, held_since: None, stays: false }
    }

    /// Does what there is to do for the user now. False when every guest has switched itself off, and so should
    /// the machine.
    pub fn attend(&mut self) -> bool {
        let now = self.machine.clock.now();
        self.management.enforce(now);
        self.look(now);
        let mut byte = [0];
        // What was said goes out before more is done: where the line has no room, it interrupts once it has.
        while Self::says_all() && serial::read(&mut byte) == 1 {
            match console::with(|multiplexer, _| multiplexer.typed(byte[0])) {
                Some(Typed::Byte(byte)) => self.hand_on(byte, now),
                Some(Typed::Prompt) => self.tell(""),
                Some(Typed::List) => {
                    let mut list = String::new();
                    // A string takes everything.
                    let _ = self.management.list(now, &mut list);
                    self.tell(&list);
                }
                Some(Typed::Help) => self.tell(KEYS),
                None => {}
            }
        }
        while let Some(answer) = self.management.answer() {
            self.tell(&answer);
        }
        let runs_on = self.settle_when_idle();
        self.show_log(now);
        Self::says_all();
        if console::with(|multiplexer, _| multiplexer.take_news()) {
            self.management.hear_terminals();
        }
        let log = self.held_since.map(|since| since.plus_nanos(LOG_WAITS));
        let deadlines = [self.management.deadline(), log, Some(self.looked.plus_nanos(LOOK))];
        attend_at(deadlines.into_iter().flatten().min());
        runs_on
    }

    /// Looks at the UART, if it is time to.
    fn look(&mut self, now: Instant) {
        if now.nanos_since(self.looked) >= LOOK {
            self.looked = now;
            if serial::look() {
                warn!("serial console: its interrupts do not come; it is polled");
            }
        }
    }

    /// Sends what there is to show; whether all that was said to the user is on the line.
    fn says_all() -> bool {
        console::with(|multiplexer, line| {
            multiplexer.pump(line);
            multiplexer.has_said_all()
        })
    }

    /// Opens the prompt.
    pub fn open(&mut self) {
        console::with(|multiplexer, _| multiplexer.show(View::Prompt));
        self.tell("");
    }

    /// Serves the user for ever, where there are no guests; the CPU halts while there is nothing to do.
    pub fn run(mut self) -> ! {
        loop {
            self.attend();
            let pause = if serial::needs_polling() { POLL } else { LOOK };
            let clock = self.machine.clock;
            apic::local::arm(clock, Some(clock.now().plus_nanos(pause)));
            interrupts::idle();
            if serial::needs_polling() {
                serial::poll();
            }
        }
    }

    /// What follows when no guest lives: false when the machine is to be switched off.
    fn settle_when_idle(&mut self) -> bool {
        if !self.management.is_idle() {
            self.stays = false;
        } else if console::with(|multiplexer, _| multiplexer.view()) == View::Prompt {
            self.stays = true;
        } else if !self.stays && self.management.all_are_off() {
            return false;
        } else {
            self.open();
        }
        true
    }

    /// Gives the line editor a byte, and shows what comes of it.
    fn hand_on(&mut self, byte: u8, now: Instant) {
        let (words, after) = self.edit(byte, now);
        console::with(|multiplexer, _| {
            multiplexer.say(&words);
            match after {
                After::Stay => {}
                After::Leave => multiplexer.leave_prompt(),
                After::Show(view) => multiplexer.show(view),
            }
        });
    }

    /// Gives the line editor a byte, which does the command that this completes; what it says, and what follows.
    fn edit(&mut self, byte: u8, now: Instant) -> (Vec<u8>, After) {
        let Self { machine, management, editor, .. } = self;
        editor.take(byte, |words, out| management.command(machine, words, now, out).unwrap_or(After::Stay))
    }

    /// Tells the user something in whole lines: above the prompt, where that is open.
    fn tell(&mut self, text: &str) {
        let words = if console::with(|multiplexer, _| multiplexer.view()) == View::Prompt {
            self.editor.write(text)
        } else {
            console::with(|multiplexer, _| multiplexer.end_line());
            text.replace('\n', "\r\n").into_bytes()
        };
        console::with(|multiplexer, _| multiplexer.say(&words));
    }

    /// Shows log lines that wait: above the prompt, or where a guest's line does not end in time.
    fn show_log(&mut self, now: Instant) {
        let (waits, view) = console::with(|multiplexer, _| (multiplexer.holds_lines(), multiplexer.view()));
        if !waits {
            self.held_since = None;
        } else if view == View::Prompt {
            let lines = console::with(|multiplexer, _| multiplexer.take_held());
            lines.utf8_chunks().for_each(|lines| self.tell(lines.valid()));
        } else if now.nanos_since(*self.held_since.get_or_insert(now)) >= LOG_WAITS {
            self.held_since = None;
            console::with(|multiplexer, line| multiplexer.release_held(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::management::tests::{Fake, machine};

    fn type_line(prompt: &mut Prompt<'_>, keys: &str) -> (String, After) {
        let mut said = Vec::new();
        for byte in keys.bytes() {
            let (words, after) = prompt.edit(byte, Instant::ZERO);
            said.extend(words);
            if after != After::Stay {
                return (String::from_utf8(said).unwrap(), after);
            }
        }
        (String::from_utf8(said).unwrap(), After::Stay)
    }

    #[test]
    fn lines_are_edited_and_remembered() {
        let guests = Fake::new(&["web"]);
        let mut prompt = Prompt::new(machine(), Management::new(&guests));
        let (said, _) = type_line(&mut prompt, "starx\x7ft wb\x1b[De\r");
        assert_eq!(guests.take_requests(), ["web Start"]);
        assert!(said.ends_with("\r\npeerboot> "), "{said:?}");
        type_line(&mut prompt, "reset web\r\x1b[A\x1b[A\r\x1b[A\x1b[B\r");
        assert_eq!(guests.take_requests(), ["web Reset", "web Start"], "the line before the last; none");
        let (said, _) = type_line(&mut prompt, "dance\r");
        assert!(said.contains("`dance` is no command"), "{said:?}");
    }

    #[test]
    fn no_prompt_is_left_where_it_is_left() {
        let guests = Fake::new(&[]);
        let mut prompt = Prompt::new(machine(), Management::new(&guests));
        assert_eq!(type_line(&mut prompt, "exit\r"), ("exit\r\n".into(), After::Leave));
        assert_eq!(type_line(&mut prompt, "console\r"), ("console\r\n".into(), After::Show(View::All)));
    }
}
