//! Several guests and Peerboot itself on one serial line.
//!
//! What a guest sends goes into its backlog, and from there to the line as far as the user looks at that guest
//! and the line takes it. So nobody waits for the line: a guest whose output is not shown runs on, and one in the
//! foreground that is faster than the line finds its transmitter busy once its backlog is full of what has not
//! been shown.

use super::backlog::{Backlog, CAPACITY};
use super::plain::plain;
use super::ring::Ring;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The key that is Peerboot's: Ctrl-].
pub const ESCAPE: u8 = 0x1d;
/// A line without an end is cut when it has this many bytes, where lines of several guests are shown.
const LONGEST_LINE: usize = 256;
/// How far back what was seen of a guest is shown again when it comes to the foreground, in bytes: about a screen.
const CONTEXT: usize = 2048;
/// How much input waits for a guest that does not take it, in bytes; what comes then is lost.
const INPUT: usize = 0x4000;
/// How much of the log waits for the end of a guest's line, in bytes.
const HELD: usize = 0x800;

/// What stands for the output of a guest that draws, where lines of several guests are shown.
const DRAWS: &str = "-- draws a whole screen, seen in the foreground only --";

/// The serial line, as far as the multiplexer needs it.
pub trait Line {
    /// Takes bytes as they are, without waiting; how many, from the first on.
    fn send(&mut self, bytes: &[u8]) -> usize;
    /// For how many bytes there is room.
    fn room(&self) -> usize;
    /// Takes all bytes, waiting where there is no room.
    fn send_all(&mut self, bytes: &[u8]);
}

/// What the user looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Peerboot's log alone.
    Log,
    /// Every guest, line by line, with its name.
    All,
    /// One guest, byte by byte; what is typed is this guest's.
    Guest(usize),
    /// The management prompt; what is typed is the prompt's.
    Prompt,
}

/// What the user typed that is not a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// A byte for the prompt.
    Byte(u8),
    /// The prompt was opened.
    Prompt,
    /// The list of guests is wanted.
    List,
    /// The keys are to be explained.
    Help,
}

/// One guest's end of the line.
struct Channel {
    name: String,
    /// Whether there is anything to look at.
    shown: bool,
    output: Backlog,
    /// The position in the output up to which the user has seen it.
    seen: usize,
    input: VecDeque<u8>,
    /// The guest was told that there is no room.
    starved: bool,
    /// It was said that the guest draws on a whole screen.
    draws: bool,
}

impl Channel {
    fn is_full(&self) -> bool {
        self.output.end() - self.seen >= CAPACITY
    }

    /// The end of what the user has seen, as text: shown again in the raw, a question to the terminal would be
    /// answered a second time.
    fn context(&self) -> Vec<u8> {
        let start = self.output.next_line(self.output.end().saturating_sub(CONTEXT));
        let seen = self.output.since(start).take(self.seen.saturating_sub(start));
        let mut text = Vec::new();
        for byte in plain(seen) {
            if byte == b'\n' {
                text.push(b'\r');
            }
            text.push(byte);
        }
        text
    }

    /// Takes note of output that was lost before it was seen; how many bytes.
    fn skip_lost(&mut self) -> usize {
        let lost = self.output.start().saturating_sub(self.seen);
        self.seen += lost;
        lost
    }

    /// The next whole line, or as much of one as is longest, made fit to stand among others'.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        let mut line: Vec<u8> = self.output.since(self.seen).take(LONGEST_LINE).collect();
        match line.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.seen += 1;
                line.truncate(end);
            }
            None if line.len() < LONGEST_LINE => return None,
            None if addresses_cursor(&line) => {
                self.seen = self.output.end();
                if core::mem::replace(&mut self.draws, true) {
                    return None;
                }
                return Some(self.named(DRAWS.as_bytes()));
            }
            // Not in the middle of a character.
            None => {
                let cut = line.utf8_chunks().last().map_or(0, |last| last.invalid().len());
                line.truncate(LONGEST_LINE - cut);
            }
        }
        self.seen += line.len();
        Some(self.named(&line))
    }

    /// A line with the guest's name before it, fit to stand among others'.
    fn named(&self, line: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.name.len() + line.len() + 4);
        text.extend_from_slice(self.name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend(plain(line.iter().copied()));
        text.extend_from_slice(b"\r\n");
        text
    }
}

/// Whether the cursor is put somewhere on the screen (ECMA-48's CUP, `ESC [ row ; column H`).
fn addresses_cursor(bytes: &[u8]) -> bool {
    let mut in_sequence = false;
    for byte in bytes {
        match byte {
            0x1b => in_sequence = true,
            b'H' if in_sequence => return true,
            b'A'..=b'Z' | b'a'..=b'z' => in_sequence = false,
            _ => {}
        }
    }
    false
}

/// Where on the screen's line the next byte comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    /// Behind part of a line of the log.
    Log,
    /// Behind part of any other line.
    Other,
}

impl At {
    /// Behind a line's part that ends in `last`.
    fn behind(last: u8) -> Self {
        if last == b'\n' { Self::Start } else { Self::Other }
    }
}

/// All guests' ends of the line, and what the user looks at.
pub struct Multiplexer {
    view: View,
    /// Where leaving the prompt leads.
    before_prompt: View,
    channels: Vec<Channel>,
    /// What Peerboot says to the user's face; it goes before anything of a guest.
    words: VecDeque<u8>,
    /// Log lines that wait for the end of a guest's line.
    held: Ring<HELD>,
    /// The last of them is not finished.
    log_open: bool,
    /// Where what is sent so far, `words` included, has left the line.
    at: At,
    /// The last byte typed was the escape key.
    escaped: bool,
    /// The guest whose line comes next, where all are shown.
    turn: usize,
    /// A guest may have news that it has not been told.
    news: bool,
}

impl Multiplexer {
    /// No guests yet; the log is shown.
    pub const fn new() -> Self {
        Self {
            view: View::Log,
            before_prompt: View::All,
            channels: Vec::new(),
            words: VecDeque::new(),
            held: Ring::new(),
            log_open: false,
            at: At::Start,
            escaped: false,
            turn: 0,
            news: false,
        }
    }

    /// A new guest of this name, and whether there is anything of it to look at; its number.
    pub fn add(&mut self, name: &str, shown: bool) -> usize {
        self.channels.push(Channel {
            name: name.into(),
            shown,
            output: Backlog::new(),
            seen: 0,
            input: VecDeque::new(),
            starved: false,
            draws: false,
        });
        self.channels.len() - 1
    }

    /// What the user looks at.
    pub fn view(&self) -> View {
        self.view
    }

    /// The number of the guest of this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.channels.iter().position(|channel| channel.name == name)
    }

    /// What is kept of a guest's output, as text.
    pub fn kept_text(&self, guest: usize) -> Option<Vec<u8>> {
        self.channels.get(guest).map(|channel| plain(channel.output.since(0)).collect())
    }

    /// The guest sent a byte; whether there is room for another.
    pub fn transmit(&mut self, guest: usize, byte: u8, line: &mut impl Line) -> bool {
        let Some(channel) = self.channels.get_mut(guest).filter(|channel| channel.shown) else { return true };
        channel.output.push(byte);
        match self.view {
            View::Guest(shown) if shown == guest => self.pump(line),
            View::All if byte == b'\n' || channel.output.end() - channel.seen >= LONGEST_LINE => {
                self.pump(line);
            }
            _ => {}
        }
        self.has_room(guest)
    }

    /// Whether the guest may send a byte. It may always, but in the foreground: there nothing is to be lost.
    pub fn has_room(&mut self, guest: usize) -> bool {
        let foreground = self.view == View::Guest(guest);
        let Some(channel) = self.channels.get_mut(guest) else { return true };
        channel.starved = foreground && channel.is_full();
        !channel.starved
    }

    /// Whether input waits for the guest, or there is room again after there was none.
    pub fn has_news(&self, guest: usize) -> bool {
        self.channels.get(guest).is_some_and(|channel| {
            let room = self.view != View::Guest(guest) || !channel.is_full();
            !channel.input.is_empty() || channel.starved && room
        })
    }

    /// Whether [`Self::has_news`] may have become true of a guest since this was last asked.
    pub fn take_news(&mut self) -> bool {
        core::mem::take(&mut self.news)
    }

    /// The next byte typed for the guest.
    pub fn receive(&mut self, guest: usize) -> Option<u8> {
        self.channels.get_mut(guest)?.input.pop_front()
    }

    /// The user typed a byte.
    pub fn typed(&mut self, byte: u8) -> Option<Typed> {
        if byte == ESCAPE && !self.escaped {
            self.escaped = true;
            return None;
        }
        if core::mem::take(&mut self.escaped) && byte != ESCAPE {
            return self.shortcut(byte);
        }
        match self.view {
            View::Guest(guest) => {
                let input = self.channels.get_mut(guest).map(|channel| &mut channel.input);
                if let Some(input) = input.filter(|input| input.len() < INPUT) {
                    input.push_back(byte);
                    self.news = true;
                }
                None
            }
            View::Prompt => Some(Typed::Byte(byte)),
            // Nobody listens: whoever ends a line ought to be told.
            View::All | View::Log => (byte == b'\r').then_some(Typed::Help),
        }
    }

    /// What a key after the escape key does.
    fn shortcut(&mut self, key: u8) -> Option<Typed> {
        match key {
            b'1'..=b'9' => self.show(View::Guest(usize::from(key - b'1'))),
            b'0' | b'a' => self.show(View::All),
            b'n' | b'p' => self.step(key == b'n'),
            b'l' => return Some(Typed::List),
            b'm' if self.view == View::Prompt => self.leave_prompt(),
            b'm' => {
                self.show(View::Prompt);
                return Some(Typed::Prompt);
            }
            _ => return Some(Typed::Help),
        }
        None
    }

    /// Shows the next guest, or the one before.
    fn step(&mut self, forward: bool) {
        let count = self.channels.len();
        let shown = |guest: &usize| self.channels.get(*guest).is_some_and(|channel| channel.shown);
        let next = match self.view {
            View::Guest(guest) if forward => (1..=count).map(|step| (guest + step) % count).find(shown),
            View::Guest(guest) => (1..=count).map(|step| (guest + count - step) % count).find(shown),
            _ if forward => (0..count).find(shown),
            _ => (0..count).rev().find(shown),
        };
        if let Some(guest) = next {
            self.show(View::Guest(guest));
        }
    }

    /// Has the user look at something else: first at what he has not seen of it.
    pub fn show(&mut self, view: View) {
        if view == View::Prompt && self.view != View::Prompt {
            self.before_prompt = self.view;
            self.end_line();
        }
        if let View::Guest(guest) = view {
            match self.channels.get_mut(guest) {
                Some(channel) if channel.shown => {
                    let title = format!("-- {} (Ctrl-] ? for help) --", channel.name);
                    let context = channel.context();
                    self.say_line(&title);
                    self.say(&context);
                }
                Some(channel) => {
                    let title = format!("{} has no console", channel.name);
                    return self.say_line(&title);
                }
                None => return self.say_line("there is no such guest"),
            }
        }
        if view == View::All {
            self.say_line("-- all guests (Ctrl-] ? for help) --");
        }
        self.view = view;
        // Whoever was held back in the foreground no longer is.
        self.news = true;
    }

    /// Shows what was shown before the prompt.
    pub fn leave_prompt(&mut self) {
        let before = if self.before_prompt == View::Log { View::All } else { self.before_prompt };
        self.show(before);
    }

    /// Begins with `view`, without a word.
    pub fn begin(&mut self, view: View) {
        self.view = view;
    }

    /// Says a line to the user's face.
    pub fn say_line(&mut self, text: &str) {
        self.end_line();
        self.words.extend(text.bytes());
        self.words.extend(b"\r\n");
    }

    /// Says something that has its own ends of lines.
    pub fn say(&mut self, bytes: &[u8]) {
        self.words.extend(bytes);
        if let Some(last) = bytes.last() {
            self.at = At::behind(*last);
        }
    }

    /// Goes to the start of a line, if that is not where we are.
    pub fn end_line(&mut self) {
        if core::mem::replace(&mut self.at, At::Start) != At::Start {
            self.words.extend(b"\r\n");
        }
    }

    /// Whether all that was said is on the line.
    pub fn has_said_all(&self) -> bool {
        self.words.is_empty()
    }

    /// Sends what there is to show, as far as the line takes it.
    pub fn pump(&mut self, line: &mut impl Line) {
        while !self.words.is_empty() {
            let taken = line.send(self.words.as_slices().0);
            if taken == 0 {
                return;
            }
            self.words.drain(..taken);
        }
        match self.view {
            View::Guest(guest) => self.pump_raw(guest, line),
            View::All => self.pump_lines(line),
            View::Log | View::Prompt => {}
        }
        self.release_lines(line);
    }

    fn pump_raw(&mut self, guest: usize, line: &mut impl Line) {
        let Some(channel) = self.channels.get_mut(guest) else { return };
        let lost = channel.skip_lost();
        if lost > 0 {
            self.say_line(&format!("-- {lost} bytes are lost --"));
            return self.pump(line);
        }
        loop {
            let piece = channel.output.piece(channel.seen);
            let taken = line.send(piece);
            let Some(last) = piece.get(..taken).and_then(<[u8]>::last) else { return };
            self.at = At::behind(*last);
            channel.seen += taken;
            self.news |= channel.starved;
        }
    }

    fn pump_lines(&mut self, line: &mut impl Line) {
        let mut idle = 0;
        while idle < self.channels.len() {
            self.turn = (self.turn + 1) % self.channels.len();
            let Some(channel) = self.channels.get_mut(self.turn) else { return };
            if line.room() < channel.name.len() + LONGEST_LINE + 4 {
                return;
            }
            let lost = channel.skip_lost();
            let text = if lost > 0 {
                Some(channel.named(format!("-- {lost} bytes are lost --").as_bytes()))
            } else {
                channel.next_line()
            };
            match text {
                Some(text) => {
                    line.send(&text);
                    idle = 0;
                }
                None => idle += 1,
            }
        }
    }

    /// A piece of the log, in which lines end in `\n`. A whole line goes out at once, but neither into a guest's
    /// unfinished line nor into the prompt's.
    pub fn log(&mut self, text: &str, line: &mut impl Line) {
        for byte in text.bytes() {
            if !self.held.push(byte) {
                self.release_held(line);
                self.held.push(byte);
            }
            self.log_open = byte != b'\n';
        }
        self.release_lines(line);
    }

    /// Sends the log lines that wait, if they are whole and nothing is in their way.
    fn release_lines(&mut self, line: &mut impl Line) {
        let in_the_way = match self.view {
            View::Guest(_) => self.at == At::Other,
            View::Prompt => true,
            View::All | View::Log => false,
        };
        if !in_the_way && !self.log_open && self.words.is_empty() {
            self.release_held(line);
        }
    }

    /// Whether log lines wait.
    pub fn holds_lines(&self) -> bool {
        !self.log_open && !self.held.is_empty()
    }

    /// Takes the log lines that wait, to be shown at the prompt; they end in `\n`.
    pub fn take_held(&mut self) -> Vec<u8> {
        core::iter::from_fn(|| self.held.pop()).collect()
    }

    /// Sends what waits of the log, wherever the line stands.
    pub fn release_held(&mut self, line: &mut impl Line) {
        if self.held.is_empty() {
            return;
        }
        if self.at == At::Other {
            line.send_all(b"\r\n");
        }
        // Without allocating: this may be an exception's report.
        let (mut piece, mut len) = ([0; 64], 0);
        while let Some(byte) = self.held.pop() {
            if byte == b'\n' {
                piece[len] = b'\r';
                len += 1;
            }
            piece[len] = byte;
            len += 1;
            if len + 1 >= piece.len() {
                line.send_all(&piece[..core::mem::take(&mut len)]);
            }
        }
        line.send_all(&piece[..len]);
        self.at = if self.log_open { At::Log } else { At::Start };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that remembers, and takes only so much.
    struct Tape {
        sent: Vec<u8>,
        room: usize,
    }

    impl Tape {
        fn new() -> Self {
            Self { sent: Vec::new(), room: usize::MAX }
        }

        fn take(&mut self) -> String {
            String::from_utf8(core::mem::take(&mut self.sent)).unwrap()
        }
    }

    impl Line for Tape {
        fn send(&mut self, bytes: &[u8]) -> usize {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.sent.extend_from_slice(&bytes[..taken]);
            taken
        }
        fn room(&self) -> usize {
            self.room
        }
        fn send_all(&mut self, bytes: &[u8]) {
            self.sent.extend_from_slice(bytes);
        }
    }

    fn two_guests(view: View) -> Multiplexer {
        let mut multiplexer = Multiplexer::new();
        assert_eq!((multiplexer.add("one", true), multiplexer.add("two", true)), (0, 1));
        multiplexer.begin(view);
        multiplexer
    }

    fn transmit(multiplexer: &mut Multiplexer, guest: usize, text: &str, tape: &mut Tape) {
        for byte in text.bytes() {
            multiplexer.transmit(guest, byte, tape);
        }
    }

    fn type_keys(multiplexer: &mut Multiplexer, keys: &str) -> Vec<Typed> {
        keys.bytes().filter_map(|byte| multiplexer.typed(byte)).collect()
    }

    fn received(multiplexer: &mut Multiplexer, guest: usize) -> Vec<u8> {
        core::iter::from_fn(|| multiplexer.receive(guest)).collect()
    }

    #[test]
    fn all_guests_come_line_by_line_with_their_names() {
        let (mut multiplexer, mut tape) = (two_guests(View::All), Tape::new());
        transmit(&mut multiplexer, 0, "Grü", &mut tape);
        transmit(&mut multiplexer, 1, "\x1b[1mbold\x1b[0m\r\nunfinished", &mut tape);
        transmit(&mut multiplexer, 0, "ße\r\n\r\n", &mut tape);
        assert_eq!(tape.take(), "two: bold\r\none: Grüße\r\none: \r\n");
        let long = format!("x{}", "中".repeat(100));
        transmit(&mut multiplexer, 0, &long, &mut tape);
        assert_eq!(tape.take(), format!("one: x{}\r\n", "中".repeat(85)), "cut between characters");
    }

    #[test]
    fn one_guest_in_the_foreground_is_raw() {
        let (mut multiplexer, mut tape) = (two_guests(View::Guest(0)), Tape::new());
        let drawn = "\x1b[2J\x1b[5;7H┌中┐\x07\r\x1b[6n";
        transmit(&mut multiplexer, 0, drawn, &mut tape);
        transmit(&mut multiplexer, 1, "not to be seen\n", &mut tape);
        assert_eq!(tape.take(), drawn);
        assert!(type_keys(&mut multiplexer, "Grüße\x03\x1b[A\x1d\x1d!").is_empty());
        assert_eq!(received(&mut multiplexer, 0), "Grüße\x03\x1b[A\x1d!".as_bytes());
        assert!(received(&mut multiplexer, 1).is_empty());
    }

    #[test]
    fn a_guest_that_draws_is_left_out_among_lines() {
        let (mut multiplexer, mut tape) = (two_guests(View::All), Tape::new());
        for _ in 0..4 {
            transmit(&mut multiplexer, 0, &"\x1b[12;34Hsome progress".repeat(12), &mut tape);
        }
        transmit(&mut multiplexer, 1, &"\x1b[1m".repeat(70), &mut tape);
        transmit(&mut multiplexer, 1, "a line\n", &mut tape);
        let text = tape.take();
        assert_eq!(text.matches(DRAWS).count(), 1, "{text}");
        assert!(!text.contains("progress") && text.ends_with("two: a line\r\n"), "{text}");
        multiplexer.show(View::Guest(0));
        multiplexer.pump(&mut tape);
        transmit(&mut multiplexer, 0, "\x1b[1;1Hagain", &mut tape);
        assert!(tape.take().ends_with("\x1b[1;1Hagain"), "raw in the foreground");
    }

    #[test]
    fn a_switch_shows_what_was_missed_and_the_unfinished_line() {
        let (mut multiplexer, mut tape) = (two_guests(View::Guest(0)), Tape::new());
        transmit(&mut multiplexer, 0, "\x1b[1mseen\x1b[m\r\n~ # \x1b[6n", &mut tape);
        transmit(&mut multiplexer, 1, "login: ", &mut tape);
        tape.take();
        assert!(type_keys(&mut multiplexer, "\x1d2").is_empty());
        multiplexer.pump(&mut tape);
        assert_eq!(tape.take(), "\r\n-- two (Ctrl-] ? for help) --\r\nlogin: ");
        transmit(&mut multiplexer, 0, "missed\r\n~ # \x1b[6n", &mut tape);
        type_keys(&mut multiplexer, "\x1dn");
        multiplexer.pump(&mut tape);
        assert_eq!(tape.take(), "\r\n-- one (Ctrl-] ? for help) --\r\nseen\r\n~ # missed\r\n~ # \x1b[6n");
        type_keys(&mut multiplexer, "\x1da");
        transmit(&mut multiplexer, 1, "root\r\n", &mut tape);
        assert_eq!(tape.take(), "\r\n-- all guests (Ctrl-] ? for help) --\r\ntwo: root\r\n");
        type_keys(&mut multiplexer, "\x1d7");
        multiplexer.pump(&mut tape);
        assert_eq!((tape.take().as_str(), multiplexer.view()), ("there is no such guest\r\n", View::All));
    }

    #[test]
    fn keys_that_are_nobodys_reach_nobody() {
        let (mut multiplexer, mut tape) = (two_guests(View::All), Tape::new());
        assert_eq!(type_keys(&mut multiplexer, "ls\r"), [Typed::Help]);
        assert_eq!(type_keys(&mut multiplexer, "\x1dl\x1d?\x1dm"), [Typed::List, Typed::Help, Typed::Prompt]);
        assert_eq!(type_keys(&mut multiplexer, "a\x1dm"), [Typed::Byte(b'a')]);
        multiplexer.pump(&mut tape);
        assert_eq!(multiplexer.view(), View::All);
        assert!(received(&mut multiplexer, 0).is_empty() && received(&mut multiplexer, 1).is_empty());
    }

    #[test]
    fn a_slow_line_holds_back_only_the_guest_in_the_foreground() {
        let (mut multiplexer, mut tape) = (two_guests(View::Guest(0)), Tape::new());
        tape.room = 0;
        for guest in [0, 1] {
            transmit(&mut multiplexer, guest, &"x".repeat(CAPACITY - 1), &mut tape);
            assert_eq!(multiplexer.transmit(guest, b'y', &mut tape), guest == 1);
        }
        assert!(!multiplexer.has_news(0) && !multiplexer.has_room(0));
        assert!(!multiplexer.take_news());
        tape.room = 10;
        multiplexer.pump(&mut tape);
        assert!(multiplexer.take_news() && !multiplexer.take_news());
        assert!(multiplexer.has_news(0) && multiplexer.has_room(0) && !multiplexer.has_news(0));
        transmit(&mut multiplexer, 0, &"z".repeat(10), &mut tape);
        tape.room = usize::MAX;
        multiplexer.pump(&mut tape);
        assert_eq!(
            tape.take(),
            format!("{}y{}", "x".repeat(CAPACITY - 1), "z".repeat(10)),
            "nothing is lost"
        );
        transmit(&mut multiplexer, 1, "z", &mut tape);
        type_keys(&mut multiplexer, "\x1d2");
        multiplexer.pump(&mut tape);
        assert!(tape.take().contains("--\r\n-- 1 bytes are lost --\r\nxxx"), "what is lost is said");
    }

    #[test]
    fn news_are_told_once_and_only_when_there_are_some() {
        let (mut multiplexer, mut tape) = (two_guests(View::Guest(0)), Tape::new());
        transmit(&mut multiplexer, 0, "output is none\n", &mut tape);
        assert!(!multiplexer.take_news());
        type_keys(&mut multiplexer, "ls");
        assert!(multiplexer.take_news() && !multiplexer.take_news());
        assert!(multiplexer.has_news(0), "though the guest may not have taken it yet");
        tape.room = 0;
        transmit(&mut multiplexer, 0, &"x".repeat(CAPACITY), &mut tape);
        assert!(!multiplexer.has_room(0) && !multiplexer.take_news());
        type_keys(&mut multiplexer, "\x1d2");
        assert!(multiplexer.take_news() && multiplexer.has_news(0), "nobody looks: it may go on");
    }

    #[test]
    fn a_flood_of_lines_leaves_others_their_turn() {
        let (mut multiplexer, mut tape) = (two_guests(View::All), Tape::new());
        tape.room = 0;
        transmit(&mut multiplexer, 0, &"flood\n".repeat(1000), &mut tape);
        transmit(&mut multiplexer, 1, "hello\n", &mut tape);
        tape.room = 300;
        multiplexer.pump(&mut tape);
        assert!(tape.take().contains("two: hello"));
    }

    #[test]
    fn log_lines_wait_for_the_end_of_a_guests_line() {
        let (mut multiplexer, mut tape) = (two_guests(View::Guest(0)), Tape::new());
        multiplexer.log("at ", &mut tape);
        assert!(!multiplexer.holds_lines() && tape.take().is_empty());
        multiplexer.log("once\n", &mut tape);
        assert_eq!(tape.take(), "at once\r\n");
        transmit(&mut multiplexer, 0, "half", &mut tape);
        multiplexer.log("later\n", &mut tape);
        assert!(multiplexer.holds_lines());
        transmit(&mut multiplexer, 0, " a line\r\n~ # ", &mut tape);
        assert_eq!(tape.take(), "half a line\r\nlater\r\n~ # ");
        multiplexer.log("now\n", &mut tape);
        multiplexer.release_held(&mut tape);
        assert_eq!(tape.take(), "\r\nnow\r\n");
        multiplexer.show(View::Prompt);
        multiplexer.log("above the prompt\n", &mut tape);
        assert!(tape.take().is_empty());
        assert_eq!(multiplexer.take_held(), b"above the prompt\n");
        multiplexer.log(&"x".repeat(3 * HELD), &mut tape);
        multiplexer.release_held(&mut tape);
        assert!(tape.take() == "x".repeat(3 * HELD), "nothing is lost");
    }

    #[test]
    fn a_guest_without_a_console_is_not_kept() {
        let (mut multiplexer, mut tape) = (two_guests(View::All), Tape::new());
        assert_eq!(multiplexer.add("mute", false), 2);
        transmit(&mut multiplexer, 2, "psst\n", &mut tape);
        assert_eq!((tape.take().as_str(), multiplexer.kept_text(2)), ("", Some(Vec::new())));
        multiplexer.show(View::Guest(2));
        multiplexer.pump(&mut tape);
        assert_eq!((tape.take().as_str(), multiplexer.view()), ("mute has no console\r\n", View::All));
    }
}
