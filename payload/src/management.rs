//! What the management prompt's commands do.
#![cfg_attr(not(feature = "prompt"), allow(dead_code, reason = "nobody gives commands"))]

use crate::console::multiplexer::View;
use crate::errands::{Answer, Errands};
use crate::host::acpi::Acpi;
use crate::host::exceptions::Mistake;
use crate::host::memory::{FrameAllocator, Range};
use crate::host::time::Clock;
use crate::host::{heap, power};
use crate::{console, devices, disks, log, timeline, warn};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use coreboot_config::tables::MemoryRange;
use vmm_core::guest::End;
use vmm_core::monitor::{GuestState, GuestStatus, Monitor, Request};
use vmm_core::time::Instant;

/// How long a guest has to switch itself off before its power is cut, unless the user says otherwise, in seconds.
const PATIENCE: u64 = 60;
const SECOND: u64 = 1_000_000_000;

const HELP: &str = "\
list               guests, what they do, their share of a CPU since the last list, and uptime
start GUEST [ENTRY] start it, from this of its boot entries
stop GUEST [SECS]  press the power button, cut the power after SECS (60)
reset GUEST
console [GUEST]    show this guest, or all; Ctrl-] m leads back here
log [GUEST]        Peerboot's log, or what is kept of a guest's output
exits [GUEST]      why guests came back to Peerboot, and how often
devices            devices on PCI, what drives them, and disks
disks              the machine's disks, and which guests have them
entries GUEST      what there is to boot on a guest's disks
rollback GUEST     take a guest's images back to their bases
memory             who has which memory
timeline           when the boot reached which step
crash HOW          have Peerboot fail, to see its report
reboot             reset the machine
poweroff           switch the machine off
exit               leave this prompt
";

/// The guests, as far as they are managed here.
pub trait Guests {
    /// All of them, by number.
    fn list(&self) -> Vec<GuestStatus>;
    /// Asks something of the guest of this name; false where there is none.
    fn request(&self, name: &str, request: Request) -> bool;
    /// Whether none lives or is going to.
    fn is_idle(&self) -> bool;
    /// A terminal may have news for its guest.
    fn hear_terminals(&self);
}

impl Guests for Monitor {
    fn list(&self) -> Vec<GuestStatus> {
        self.guests()
    }
    fn request(&self, name: &str, request: Request) -> bool {
        self.request(name, request)
    }
    fn is_idle(&self) -> bool {
        self.is_idle()
    }
    fn hear_terminals(&self) {
        self.hear_terminals();
    }
}

/// Where there is nothing that could run a guest.
pub struct NoGuests;

impl Guests for NoGuests {
    fn list(&self) -> Vec<GuestStatus> {
        Vec::new()
    }
    fn request(&self, _name: &str, _request: Request) -> bool {
        false
    }
    fn is_idle(&self) -> bool {
        true
    }
    fn hear_terminals(&self) {}
}

/// What the commands are about.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Memory.
    pub frames: &'static FrameAllocator,
    /// The clock.
    pub clock: &'a Clock,
    /// Firmware's tables.
    pub acpi: Option<&'a Acpi>,
    /// Firmware's memory map.
    pub map: &'a [MemoryRange],
}

/// A guest that is to switch itself off.
struct Stop {
    name: String,
    life: u32,
    deadline: Instant,
}

/// What a guest had used of the CPUs at one moment.
#[derive(Clone, Copy)]
struct Sample {
    life: u32,
    at: Instant,
    cpu_nanos: u64,
}

/// What a command asks of who called it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Stay,
    /// Leave the prompt for what was shown before.
    Leave,
    /// Leave the prompt for this.
    Show(View),
}

/// The user's hand on guests and machine.
pub struct Management<'a> {
    guests: &'a dyn Guests,
    stops: Vec<Stop>,
    /// By the guest's number: as of the last list.
    samples: Vec<Sample>,
    /// What the user waits for.
    errands: Errands,
}

impl<'a> Management<'a> {
    /// For these guests.
    pub fn new(guests: &'a dyn Guests) -> Self {
        Self { guests, stops: Vec::new(), samples: Vec::new(), errands: Errands::default() }
    }

    /// Whether no guest lives or is going to, and the user waits for nothing.
    pub fn is_idle(&self) -> bool {
        self.guests.is_idle() && self.errands.is_empty()
    }

    /// A terminal may have news for its guest.
    pub fn hear_terminals(&self) {
        self.guests.hear_terminals();
    }

    /// Whether there were guests, and each switched itself off. One that was never started counts for nothing.
    pub fn all_are_off(&self) -> bool {
        let guests = self.guests.list();
        let mut lived = guests.iter().filter(|guest| guest.lives > 0).peekable();
        lived.peek().is_some() && lived.all(|guest| guest.last_end == Some(End::PowerOff))
    }

    /// When [`Self::enforce`] next has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.stops.iter().map(|stop| stop.deadline).min()
    }

    /// Cuts the power of guests that did not switch themselves off in time, or that start again instead.
    pub fn enforce(&mut self, now: Instant) {
        if self.stops.is_empty() {
            return;
        }
        let (list, guests) = (self.guests.list(), self.guests);
        self.stops.retain(|stop| {
            let Some(guest) = list.iter().find(|guest| guest.name == stop.name) else { return false };
            let (off, started_again) = (guest.state == GuestState::Off, guest.lives != stop.life);
            let ending = guest.state == GuestState::Ending;
            if off || ending || (now < stop.deadline && !started_again && guest.state == GuestState::Running)
            {
                return !off;
            }
            if !started_again && guest.state == GuestState::Running {
                warn!("{}: has not switched off in time; its power is cut", stop.name);
            }
            guests.request(&stop.name, Request::Stop);
            false
        });
    }

    /// Does a command of these words, and writes the answer.
    pub fn command(
        &mut self,
        machine: &Machine,
        words: &[&str],
        now: Instant,
        out: &mut dyn Write,
    ) -> Result<After, fmt::Error> {
        match *words {
            [] => {}
            ["help"] => out.write_str(HELP)?,
            ["list"] => self.list(now, out)?,
            ["start", guest] => self.request(guest, Request::Start, out)?,
            ["start", guest, entry] => self.start_from(guest, entry, out)?,
            ["reset", guest] => self.request(guest, Request::Reset, out)?,
            ["stop", guest] => self.stop(guest, PATIENCE, now, out)?,
            ["stop", guest, seconds] => match seconds.parse() {
                Ok(seconds) => self.stop(guest, seconds, now, out)?,
                Err(_) => writeln!(out, "`{seconds}` is no number of seconds")?,
            },
            ["exit"] => return Ok(After::Leave),
            ["console"] => return Ok(After::Show(View::All)),
            ["console", guest] => match console::with(|multiplexer, _| multiplexer.find(guest)) {
                Some(number) => return Ok(After::Show(View::Guest(number))),
                None => no_guest(guest, out)?,
            },
            ["log"] => log::replay(&mut |text| {
                // The words never fail.
                let _ = out.write_str(text);
            }),
            ["log", guest] => show_output(guest, out)?,
            ["exits"] => self.exits(None, out)?,
            ["exits", guest] => self.exits(Some(guest), out)?,
            ["devices"] => devices::list(out)?,
            ["disks"] => disks::list(out)?,
            ["entries", guest] => self.begin(disks::entries(guest), out)?,
            ["rollback", guest] => self.begin(disks::roll_back(guest), out)?,
            ["memory"] => self.memory(machine, out)?,
            ["timeline"] => timeline::lines(machine.clock).try_for_each(|line| writeln!(out, "{line}"))?,
            ["reboot"] => {
                log::flush();
                power::reset(machine.acpi)
            }
            ["poweroff"] => {
                log::flush();
                machine.acpi.map(power::off);
                writeln!(out, "this machine cannot be powered off from here")?;
            }
            ["crash", how] if let Some((_, mistake)) = Mistake::ALL.iter().find(|(name, _)| *name == how) => {
                mistake.make()
            }
            ["crash", ..] => {
                write!(out, "crash how?")?;
                Mistake::ALL.iter().try_for_each(|(known, _)| write!(out, " {known}"))?;
                writeln!(out)?;
            }
            [name, ..] => writeln!(out, "`{name}` is no command, or lacks a word; `help` lists them")?,
        }
        Ok(After::Stay)
    }

    /// Has an answer follow when it is known, which may be now.
    fn begin(&mut self, answer: Answer, out: &mut dyn Write) -> fmt::Result {
        self.errands.begin(answer).map_or(Ok(()), |text| out.write_str(&text))
    }

    /// An answer that has come since; ask until there is none.
    pub fn answer(&mut self) -> Option<String> {
        self.errands.go_on()
    }

    fn request(&self, name: &str, request: Request, out: &mut dyn Write) -> fmt::Result {
        if self.guests.request(name, request) { Ok(()) } else { no_guest(name, out) }
    }

    /// Starts a guest that is off from one of its boot entries.
    fn start_from(&self, name: &str, entry: &str, out: &mut dyn Write) -> fmt::Result {
        match self.guests.list().into_iter().find(|guest| guest.name == name) {
            None => no_guest(name, out),
            Some(guest) if guest.state != GuestState::Off => {
                writeln!(out, "`{name}` is not off; `stop {name}` first")
            }
            Some(_) => match disks::choose(name, entry) {
                Ok(()) => self.request(name, Request::Start, out),
                Err(reason) => writeln!(out, "`{name}` has no boot entries: {reason}"),
            },
        }
    }

    fn stop(&mut self, name: &str, seconds: u64, now: Instant, out: &mut dyn Write) -> fmt::Result {
        let Some(guest) = self.guests.list().into_iter().find(|guest| guest.name == name) else {
            return no_guest(name, out);
        };
        if seconds == 0 {
            return self.request(name, Request::Stop, out);
        }
        self.stops.retain(|stop| stop.name != name);
        let deadline = now.plus_nanos(seconds.saturating_mul(SECOND));
        self.stops.push(Stop { name: guest.name, life: guest.lives, deadline });
        self.request(name, Request::PowerButton, out)
    }

    /// Writes what each guest does.
    pub fn list(&mut self, now: Instant, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "   guest            CPUs    memory   CPU %       uptime  lives  state")?;
        for (number, guest) in self.guests.list().into_iter().enumerate() {
            write!(
                out,
                "{:2} {:<16} {:4} {:5} MiB",
                number + 1,
                guest.name,
                guest.vcpus,
                guest.memory >> 20
            )?;
            let (share, uptime) = match guest.state {
                GuestState::Running => (self.share(number, &guest, now), now.nanos_since(guest.since)),
                _ => (0, 0),
            };
            let uptime = uptime / SECOND;
            let (hours, minutes, seconds) = (uptime / 3600, uptime / 60 % 60, uptime % 60);
            write!(
                out,
                "{:6}.{} {hours:6}:{minutes:02}:{seconds:02} {:6}  ",
                share / 10,
                share % 10,
                guest.lives
            )?;
            match (guest.state, guest.last_end) {
                (GuestState::Running, _) => writeln!(out, "running")?,
                (GuestState::Ending, _) => writeln!(out, "ending")?,
                (GuestState::Starting, _) => writeln!(out, "starting")?,
                (GuestState::Restarting(_), _) => writeln!(out, "restarting")?,
                (GuestState::Off, None) => writeln!(out, "off")?,
                (GuestState::Off, Some(end)) => writeln!(out, "off: {end}")?,
            }
        }
        Ok(())
    }

    /// A guest's share of one CPU since the last time that this was asked, or since it lives, in thousandths.
    fn share(&mut self, number: usize, guest: &GuestStatus, now: Instant) -> u64 {
        let sample = Sample { life: guest.lives, at: now, cpu_nanos: guest.cpu_nanos };
        if self.samples.len() <= number {
            self.samples.resize(number + 1, Sample { life: 0, ..sample });
        }
        let last = core::mem::replace(&mut self.samples[number], sample);
        let (at, cpu_nanos) = if last.life == guest.lives && last.at < now {
            (last.at, last.cpu_nanos)
        } else {
            (guest.since, 0)
        };
        let used = guest.cpu_nanos.saturating_sub(cpu_nanos);
        used.saturating_mul(1000).checked_div(now.nanos_since(at)).unwrap_or(0)
    }

    fn exits(&self, name: Option<&str>, out: &mut dyn Write) -> fmt::Result {
        for guest in self.guests.list().iter().filter(|guest| name.is_none_or(|name| name == guest.name)) {
            writeln!(out, "{}: {}", guest.name, guest.exits)?;
        }
        Ok(())
    }

    fn memory(&self, machine: &Machine, out: &mut dyn Write) -> fmt::Result {
        for range in machine.map {
            writeln!(out, "{}: {}", Range::with_len(range.start, range.size), range.kind)?;
        }
        for piece in machine.frames.pieces().iter() {
            writeln!(out, "{piece}: free")?;
        }
        for guest in self.guests.list().iter().filter(|guest| guest.state == GuestState::Running) {
            writeln!(out, "{}: {} MiB", guest.name, guest.memory >> 20)?;
        }
        let (used, size) = heap::usage();
        writeln!(out, "heap: {} of {} KiB used", used >> 10, size >> 10)?;
        let (free, longest) = (machine.frames.free() >> 20, machine.frames.longest() >> 20);
        writeln!(out, "{free} MiB free, {longest} MiB in one piece")
    }
}

fn no_guest(name: &str, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "there is no guest `{name}`")
}

/// Writes what is kept of a guest's output, made fit for the prompt's terminal.
fn show_output(name: &str, out: &mut dyn Write) -> fmt::Result {
    let text = console::with(|multiplexer, _| multiplexer.find(name).and_then(|n| multiplexer.kept_text(n)));
    match text {
        Some(text) => text.utf8_chunks().try_for_each(|text| out.write_str(text.valid())),
        None => no_guest(name, out),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::host::memory::RangeSet;
    use spin::Mutex;
    use vmm_core::guest::ExitCounts;

    /// Guests that are as a test says, and remember what was asked of them.
    pub struct Fake(Mutex<(Vec<GuestStatus>, Vec<String>)>);

    impl Fake {
        pub fn new(names: &[&str]) -> Self {
            let status = |name: &&str| GuestStatus {
                name: (*name).into(),
                state: GuestState::Running,
                vcpus: 2,
                memory: 256 << 20,
                cpu_nanos: 0,
                since: Instant::ZERO,
                lives: 1,
                exits: ExitCounts::default(),
                last_end: None,
            };
            Self(Mutex::new((names.iter().map(status).collect(), Vec::new())))
        }

        pub fn take_requests(&self) -> Vec<String> {
            core::mem::take(&mut self.0.lock().1)
        }

        fn change(&self, change: impl FnOnce(&mut GuestStatus)) {
            change(&mut self.0.lock().0[0]);
        }
    }

    impl Guests for Fake {
        fn list(&self) -> Vec<GuestStatus> {
            self.0.lock().0.clone()
        }
        fn request(&self, name: &str, request: Request) -> bool {
            let mut fake = self.0.lock();
            fake.1.push(format!("{name} {request:?}"));
            fake.0.iter().any(|guest| guest.name == name)
        }
        fn is_idle(&self) -> bool {
            self.0.lock().0.iter().all(|guest| guest.state == GuestState::Off)
        }
        fn hear_terminals(&self) {}
    }

    /// A machine without memory.
    pub fn machine() -> Machine<'static> {
        // SAFETY: there is nothing that could be handed out.
        #[allow(unsafe_code)]
        let frames = unsafe { FrameAllocator::new(RangeSet::new()) };
        Machine {
            frames: Box::leak(Box::new(frames)),
            clock: Box::leak(Box::new(Clock::new(0, 1_000_000))),
            acpi: None,
            map: &[],
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * SECOND)
    }

    fn said(management: &mut Management<'_>, words: &[&str], now: Instant) -> String {
        let mut out = String::new();
        management.command(&machine(), words, now, &mut out).unwrap();
        out
    }

    #[test]
    fn a_guest_that_ignores_its_button_loses_its_power() {
        let guests = Fake::new(&["web"]);
        let mut management = Management::new(&guests);
        said(&mut management, &["stop", "web", "5"], at(10));
        assert_eq!(
            (guests.take_requests(), management.deadline()),
            (vec!["web PowerButton".into()], Some(at(15)))
        );
        management.enforce(at(14));
        assert!(guests.take_requests().is_empty());
        management.enforce(at(15));
        assert_eq!((guests.take_requests(), management.deadline()), (vec!["web Stop".into()], None));
    }

    #[test]
    fn a_guest_that_starts_again_instead_of_stopping_is_stopped() {
        let guests = Fake::new(&["web"]);
        let mut management = Management::new(&guests);
        said(&mut management, &["stop", "web"], at(0));
        guests.take_requests();
        guests.change(|guest| guest.lives = 2);
        management.enforce(at(1));
        assert_eq!(guests.take_requests(), ["web Stop"]);
    }

    #[test]
    fn a_guest_that_switches_itself_off_is_let_be() {
        let guests = Fake::new(&["web"]);
        let mut management = Management::new(&guests);
        said(&mut management, &["stop", "web"], at(0));
        guests.take_requests();
        guests.change(|guest| (guest.state, guest.last_end) = (GuestState::Off, Some(End::PowerOff)));
        management.enforce(at(1));
        assert_eq!((guests.take_requests(), management.deadline()), (vec![], None));
        assert!(management.is_idle() && management.all_are_off());
        guests.change(|guest| (guest.lives, guest.last_end) = (0, None));
        assert!(!management.all_are_off(), "no guest was ever on");
    }

    #[test]
    fn the_share_is_that_since_the_last_list() {
        let guests = Fake::new(&["web"]);
        let mut management = Management::new(&guests);
        guests.change(|guest| guest.cpu_nanos = SECOND);
        let list = said(&mut management, &["list"], at(4));
        assert!(
            list.contains(" 1 web                 2   256 MiB    25.0      0:00:04      1  running"),
            "{list}"
        );
        guests.change(|guest| guest.cpu_nanos = 4 * SECOND);
        assert!(said(&mut management, &["list"], at(6)).contains(" 150.0 "));
        guests.change(|guest| (guest.lives, guest.since, guest.cpu_nanos) = (2, at(3599), 10 * SECOND));
        assert!(
            said(&mut management, &["list"], at(3699)).contains(" 10.0      0:01:40      2"),
            "a new life"
        );
    }

    #[test]
    fn what_is_not_there_is_said_not_to_be() {
        let mut management = Management::new(&NoGuests);
        for words in [["start", "web"], ["stop", "web"], ["reset", "web"], ["console", "web"], ["log", "web"]]
        {
            assert_eq!(said(&mut management, &words, at(0)), "there is no guest `web`\n");
        }
        assert!(management.is_idle() && !management.all_are_off());
    }
}
