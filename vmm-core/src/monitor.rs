//! All guests on all cores: who runs where, and what follows when one ends.
//!
//! Each core calls [`Monitor::run_core`] and stays there. A core takes a virtual CPU out of the common store,
//! runs it, and puts it back; so no virtual CPU is on two cores. What comes for one that waits or runs
//! elsewhere goes through [`Wake`].

use crate::cpu::Core;
use crate::guest::{
    Action, Blank, BuildError, End, ExitCounter, ExitCounts, Guest, GuestConfig, Refusal, Wake,
};
use crate::host::{Detail, Host, Terminal};
use crate::lifecycle::Lifecycle;
use crate::news::News;
use crate::own_memory::Claim;
use crate::provision::{Providing, Provisions};
use crate::schedule::{Choice, NoCores, Scheduler, TaskId};
use crate::time::{Instant, earlier};
use crate::vcpu::{Left, Vcpu};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::task;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use spin::Mutex;

pub use crate::lifecycle::GuestState;

/// What a user may ask of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start it, if it is off.
    Start,
    /// Press its power button.
    PowerButton,
    /// Take its power away.
    Stop,
    /// Press its reset button.
    Reset,
}

/// A guest as its owner sees it.
#[derive(Clone, Debug)]
pub struct GuestStatus {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: GuestState,
    /// How many virtual CPUs it has.
    pub vcpus: u32,
    /// Its memory in bytes.
    pub memory: u64,
    /// For how long its virtual CPUs have run in this life, together, in nanoseconds.
    pub cpu_nanos: u64,
    /// When this life, or being off, began.
    pub since: Instant,
    /// How many lives it has had.
    pub lives: u32,
    /// The exits of this life so far.
    pub exits: ExitCounts,
    /// How the last life ended.
    pub last_end: Option<End>,
}

/// One guest of the manifest, living or not.
struct Place {
    config: GuestConfig,
    terminal: Arc<dyn Terminal>,
    /// Why it cannot live on this machine, if it cannot.
    refused: Option<NoCores>,
    /// What its lives may take of the monitor's own memory, where that could be had.
    own_memory: Option<Claim>,
    cycle: Lifecycle,
    /// There while the cycle says that it runs.
    life: Option<Life>,
    /// There while the cycle says that it ends, but for the moments when somebody tries to finish it.
    ending: Option<Ending>,
    /// There while what its next life starts from is read, but for the moments when the boot core looks at that.
    birth: Option<Birth>,
}

/// A life to be.
struct Birth {
    blank: Blank,
    files: Files,
}

/// What a life starts from.
enum Files {
    /// It is being read.
    Awaited(Providing),
    /// It is there, or will not be.
    Read(Result<Provisions, String>),
}

/// A life that is over, while something still refers to it: requests to devices that are under way.
struct Ending {
    guest: Arc<Guest>,
    end: End,
    action: Action,
    exits: ExitCounts,
    /// When to look again, if nothing has one look before.
    look_at: Instant,
}

/// A life of a guest, as the monitor keeps it.
struct Life {
    guest: Arc<Guest>,
    /// By the virtual CPU's number.
    tasks: Vec<TaskId>,
    cpu_nanos: u64,
    exits: Vec<Arc<ExitCounter>>,
}

/// What all cores share.
struct Shared {
    scheduler: Scheduler,
    places: Vec<Place>,
    /// Virtual CPUs that are on no core, by task.
    store: Vec<Option<Box<Vcpu>>>,
    requests: VecDeque<(usize, Request)>,
}

/// The boot core's duties beside guests. It looks here after each interrupt, so that looking takes no lock.
struct Housework {
    host: &'static dyn Host,
    /// A terminal has news, a user asked for something, or more of what a life starts from was read.
    waits: AtomicBool,
    /// When the first of the restarts is due, or of the looks at lives that end, in nanoseconds; `u64::MAX` where
    /// none is.
    due: AtomicU64,
}

impl Housework {
    fn new(host: &'static dyn Host) -> Self {
        Self { host, waits: AtomicBool::new(false), due: AtomicU64::new(u64::MAX) }
    }

    /// There is something to do.
    fn add(&self) {
        self.waits.store(true, Ordering::Release);
    }

    /// Restarts and looks are due at these moments, and no others.
    fn set_due(&self, moments: impl Iterator<Item = Instant>) {
        self.due.store(moments.min().map_or(u64::MAX, Instant::as_nanos), Ordering::Relaxed);
    }

    /// Whether there is something to do now; whoever asks does it.
    fn take(&self, now: Instant) -> bool {
        // A plain load first: nearly always there is nothing, and a swap would cost the cache line.
        let waits = self.waits() && self.waits.swap(false, Ordering::Acquire);
        waits || self.is_due_by(now)
    }

    /// Whether anything waits that is not due at some moment.
    fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Whether a restart or a look is due at `now`.
    fn is_due_by(&self, now: Instant) -> bool {
        self.due.load(Ordering::Relaxed) <= now.as_nanos()
    }
}

/// What a life starts from waits for a disk, of which this tells the boot core.
impl task::Wake for Housework {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.add();
        // The boot core as well: it may be past its look, and about to sleep.
        self.host.interrupt_core(0);
    }
}

/// Runs guests on all cores.
pub struct Monitor {
    host: &'static dyn Host,
    shared: Mutex<Shared>,
    housework: Arc<Housework>,
    news: Arc<News>,
}

impl Wake for Monitor {
    fn wake(&self, guest: usize, vcpu: u32) {
        let mut shared = self.shared.lock();
        let task =
            shared.places.get(guest).and_then(|place| place.life.as_ref()?.tasks.get(vcpu as usize).copied());
        let core = task.and_then(|task| shared.scheduler.wake(task, self.host.core(), self.host.now()));
        drop(shared);
        self.call(core);
    }

    fn news(&self) -> &Arc<News> {
        &self.news
    }
}

impl Monitor {
    /// A monitor for all cores of `host`, without guests.
    pub fn new(host: &'static dyn Host) -> Self {
        let scheduler = Scheduler::new(host.cores());
        let shared = Shared { scheduler, places: Vec::new(), store: Vec::new(), requests: VecDeque::new() };
        let housework = Arc::new(Housework::new(host));
        Self { host, shared: Mutex::new(shared), housework, news: Arc::default() }
    }

    /// Takes a guest in, which is off until [`Self::start`] or its user starts it. Gives its number.
    pub fn add(&self, config: GuestConfig, terminal: Arc<dyn Terminal>) -> usize {
        let (mut shared, now) = (self.shared.lock(), self.host.now());
        // Guests and owners are admitted together, and so have the same numbers.
        let cores = shared.scheduler.admit(config.share, config.vcpus as usize, now);
        let refused = cores.err();
        // Where there is too little now, what others give back may suffice when it starts.
        let own_memory = match refused {
            Some(_) => None,
            None => self.host.own_memory().claim(config.own_memory()).ok(),
        };
        let number = shared.places.len();
        shared.places.push(Place {
            config,
            terminal,
            refused,
            own_memory,
            cycle: Lifecycle::new(now),
            life: None,
            ending: None,
            birth: None,
        });
        number
    }

    /// Every guest, in the manifest's order.
    pub fn guests(&self) -> Vec<GuestStatus> {
        let (shared, now) = (self.shared.lock(), self.host.now());
        let status = |place: &Place| GuestStatus {
            name: place.config.name.clone(),
            state: place.cycle.state(),
            vcpus: place.config.vcpus,
            memory: place.config.memory,
            cpu_nanos: place.life.as_ref().map_or(0, |life| life.ran(&shared.scheduler, now)),
            since: place.cycle.since(),
            lives: place.cycle.lives(),
            exits: place.life.as_ref().map_or_else(ExitCounts::default, Life::exits),
            last_end: place.cycle.last_end(),
        };
        shared.places.iter().map(status).collect()
    }

    /// Asks something of the guest of this name; false when there is none. The boot core follows it soon.
    pub fn request(&self, name: &str, request: Request) -> bool {
        let mut shared = self.shared.lock();
        let Some(number) = shared.places.iter().position(|place| place.config.name == name) else {
            return false;
        };
        shared.requests.push_back((number, request));
        drop(shared);
        self.call_boot_core();
        true
    }

    /// A terminal has a byte for its guest, or room again: the boot core tells the guest soon.
    pub fn hear_terminals(&self) {
        self.call_boot_core();
    }

    fn call_boot_core(&self) {
        self.housework.add();
        if self.host.core() != 0 {
            self.host.interrupt_core(0);
        }
    }

    /// Whether no guest lives or is going to.
    pub fn is_idle(&self) -> bool {
        let shared = self.shared.lock();
        shared.requests.is_empty() && shared.places.iter().all(|place| place.cycle.state() == GuestState::Off)
    }

    /// Runs guests on this core. `attend` is called between guests and after each interrupt; when it returns
    /// false, this core leaves.
    pub fn run_core(&'static self, core: &mut Core, mut attend: impl FnMut() -> bool) {
        let number = self.host.core();
        while attend() {
            self.keep_house(core, number);
            self.bring_news(core);
            let now = self.host.now();
            let mut shared = self.shared.lock();
            match shared.scheduler.pick(number, now) {
                Some(Choice { task, waited }) => {
                    let vcpu = shared.store.get_mut(task).and_then(Option::take);
                    let helper = shared.scheduler.helper(number);
                    drop(shared);
                    self.call(helper);
                    match vcpu {
                        Some(vcpu) => self.run_vcpu(core, task, vcpu, waited, &mut attend),
                        // A task without its virtual CPU is none.
                        None => self.shared.lock().scheduler.remove(task),
                    }
                }
                None => {
                    let deadline = shared.next_event(number);
                    // What this core has woken may be for others alone.
                    let helper = shared.scheduler.helper(number);
                    drop(shared);
                    self.call(helper);
                    self.host.arm_timer(deadline);
                    self.host.wait_for_interrupt();
                }
            }
        }
    }

    /// Has a core look for work.
    fn call(&self, core: Option<usize>) {
        core.into_iter().for_each(|core| self.host.interrupt_core(core));
    }

    /// Runs a virtual CPU until it has nothing to do or must give way.
    fn run_vcpu(
        &'static self,
        core: &mut Core,
        task: TaskId,
        mut vcpu: Box<Vcpu>,
        waited: u64,
        attend: &mut impl FnMut() -> bool,
    ) {
        let number = self.host.core();
        let left = if vcpu.guest().has_ended() {
            Left::Ended
        } else if vcpu.prepare(self.host.now(), waited) {
            vcpu.attach(core);
            let left = loop {
                let until = self.shared.lock().next_event(number);
                match vcpu.run(until) {
                    Left::Interrupted => {
                        // What was typed reaches its guest at once.
                        let stays = attend();
                        if !stays || self.is_to_build(number) {
                            break Left::Interrupted;
                        }
                        self.keep_house(core, number);
                        self.bring_news(core);
                        let mut shared = self.shared.lock();
                        let gives_way = shared.scheduler.gives_way(number, self.host.now());
                        let helper = shared.scheduler.helper(number);
                        drop(shared);
                        self.call(helper);
                        if gives_way {
                            break Left::Interrupted;
                        }
                    }
                    left => break left,
                }
            };
            vcpu.detach();
            left
        } else {
            Left::Halted
        };
        self.put_back(core, task, vcpu, left);
    }

    /// Takes a virtual CPU off this core.
    fn put_back(&'static self, core: &Core, task: TaskId, vcpu: Box<Vcpu>, left: Left) {
        let now = self.host.now();
        let (guest, index) = (Arc::clone(vcpu.guest()), vcpu.index() as usize);
        let ended = left == Left::Ended || guest.has_ended();
        let busy = self.is_to_build(self.host.core());
        let mut shared = self.shared.lock();
        // What came while the virtual CPU was on its way out has no one to wake but this.
        let halted = left == Left::Halted && !guest.apics.is_kicked(index);
        let ran = if ended || halted {
            shared.scheduler.block(task, now, vcpu.deadline().filter(|_| !ended))
        } else {
            shared.scheduler.put_back(task, now, left == Left::Yielded)
        };
        if let Some(life) = shared.places.get_mut(guest.number()).and_then(|place| place.life.as_mut()) {
            life.cpu_nanos = life.cpu_nanos.saturating_add(ran);
        }
        if !ended {
            shared.keep(task, vcpu);
            // Another core may go on with it meanwhile.
            let other = if busy && !halted { shared.scheduler.helper(self.host.core()) } else { None };
            drop(shared);
            return self.call(other);
        }
        shared.scheduler.remove(task);
        let last = shared.places.get_mut(guest.number()).and_then(|place| {
            let life = place.life.as_mut()?;
            life.tasks.iter_mut().filter(|one| **one == task).for_each(|one| *one = GONE);
            life.tasks.iter().all(|one| *one == GONE).then_some(())
        });
        drop(shared);
        drop(vcpu);
        if last.is_some() {
            self.bury(core, guest);
        }
    }

    /// Brings guests' devices the news that there are, before this core enters a guest or sleeps.
    fn bring_news(&'static self, core: &Core) {
        // Those that come meanwhile, and may come without end, wait for an interrupt.
        for _ in 0..self.news.count() {
            let Some(number) = self.news.take() else { return };
            match self.living(number) {
                Some(guest) => guest.poll_devices(self.host.now()),
                None => self.finish(number, core),
            }
        }
        if self.news.waits() {
            self.host.interrupt_core(self.host.core());
        }
    }

    /// The last virtual CPU of a life is gone: what remains is to wait for its devices.
    fn bury(&'static self, this: &Core, guest: Arc<Guest>) {
        let (number, end, now) = (guest.number(), guest.ended().unwrap_or(End::Stopped), self.host.now());
        let mut shared = self.shared.lock();
        let Some(place) = shared.places.get_mut(number) else { return };
        let exits = place.life.take().map_or_else(ExitCounts::default, |life| life.exits());
        let action = place.config.action_after(&end);
        place.cycle.ends();
        place.ending = Some(Ending { guest, end, action, exits, look_at: now });
        drop(shared);
        self.finish(number, this);
    }

    /// Where nothing refers to an ended life any more: gives everything back, says how it ended, and starts the next
    /// life where the manifest wants one. Else it is looked at again.
    fn finish(&'static self, number: usize, this: &Core) {
        let mut shared = self.shared.lock();
        let Some(place) = shared.places.get_mut(number) else { return };
        // Where another core is at it, it will see what this one has come for, or look again soon.
        let Some(mut ending) = place.ending.take() else { return };
        let name = place.config.name.clone();
        drop(shared);
        // Another core may be about to let go of its last virtual CPU, or of the guest it handed a byte to: that is
        // done in no time.
        let nothing_is_left = ending.guest.wind_down(self.host.now())
            && (0..BRIEF_WAIT).any(|_| {
                core::hint::spin_loop();
                Arc::get_mut(&mut ending.guest).is_some_and(Guest::owns_memory)
            });
        if !nothing_is_left {
            ending.look_at = self.host.now().plus_nanos(LOOK_AGAIN);
            let mut shared = self.shared.lock();
            if let Some(place) = shared.places.get_mut(number) {
                place.ending = Some(ending);
            }
            self.housework.set_due(shared.moments());
            drop(shared);
            // It may sleep without a thought of that moment.
            return self.call_boot_core();
        }
        // The memory goes back before anybody may start the next life.
        let Ending { guest, end, action, exits, .. } = ending;
        let left_out = guest.reports_left_out();
        drop(guest);
        if left_out > 0 {
            let message = format_args!("{left_out} accesses to what is not there were not logged");
            self.host.log(Detail::Expert, &name, message);
        }
        self.host.log(Detail::Everyone, &name, format_args!("{end}"));
        self.host.log(Detail::Everyone, &name, format_args!("exits: {exits}"));
        let (mut shared, now) = (self.shared.lock(), self.host.now());
        let Some(place) = shared.places.get_mut(number) else { return };
        place.cycle.died(end, action, now);
        // Building takes long: the boot core does it where this one has a virtual CPU at hand.
        let restarts_now =
            place.cycle.restart_at() == Some(now) && !shared.scheduler.is_running(self.host.core());
        self.housework.set_due(shared.moments());
        drop(shared);
        if restarts_now {
            self.restart(number, this);
        } else {
            self.call_boot_core();
        }
    }

    /// Has a guest start that is off; says so in the log once it has, or why it cannot. Nobody waits while what it starts
    /// from is read: the boot core goes on with that when more is there.
    fn restart(&'static self, number: usize, core: &Core) {
        let blank = match self.begin(number, core) {
            Ok(Some(blank)) => blank,
            Ok(None) => return,
            Err(error) => return self.report_start(number, Err(error)),
        };
        match self.look_into(blank.provide()) {
            Files::Read(provisions) => {
                self.report_start(number, self.bear(number, blank, provisions, core));
            }
            files @ Files::Awaited(_) => {
                let mut shared = self.shared.lock();
                if let Some(place) = shared.places.get_mut(number) {
                    place.birth = Some(Birth { blank, files });
                }
                drop(shared);
                // It may have looked for this birth in vain.
                self.call_boot_core();
            }
        }
    }

    /// Gives a guest a life, where it has none. For the boot, when nobody runs yet.
    ///
    /// # Errors
    /// It cannot have one on this machine, or not now.
    pub async fn start(&'static self, number: usize, core: &Core) -> Result<(), BuildError> {
        match self.begin(number, core)? {
            Some(blank) => {
                let provisions = blank.provide().await;
                self.bear(number, blank, provisions, core).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Takes memory for a guest's next life; `None` where it has one, or another core is at that.
    fn begin(&self, number: usize, core: &Core) -> Result<Option<Blank>, BuildError> {
        let mut shared = self.shared.lock();
        let Some(place) = shared.places.get_mut(number) else { return Ok(None) };
        if let Some(refusal) = place.refused {
            return Err(BuildError::Refused(Refusal::Cores(refusal)));
        }
        if place.own_memory.is_none() {
            let claim = self.host.own_memory().claim(place.config.own_memory());
            place.own_memory = Some(claim.map_err(|e| BuildError::Refused(Refusal::OwnMemory(e)))?);
        }
        if !place.cycle.begin() {
            return Ok(None);
        }
        let config = place.config.clone();
        self.housework.set_due(shared.moments());
        drop(shared);
        // Long work, as memory is zeroed. What is asked of the guest meanwhile waits for it.
        self.hand_over();
        Blank::new(config, core, self.host).inspect_err(|_| self.give_up(number)).map(Some)
    }

    /// Puts what it starts from into a life's memory, and gives the life to the scheduler. Whether it is the first one.
    fn bear(
        &'static self,
        number: usize,
        blank: Blank,
        provisions: Result<Provisions, String>,
        core: &Core,
    ) -> Result<bool, BuildError> {
        let shared = self.shared.lock();
        let Some(place) = shared.places.get(number) else { return Ok(false) };
        let (terminal, first) = (Arc::clone(&place.terminal), place.cycle.lives() == 0);
        drop(shared);
        self.hand_over();
        let (guest, vcpus) = provisions
            .map_err(BuildError::Provisions)
            .and_then(|provisions| Guest::build(blank, provisions, core, self.host, terminal, (number, self)))
            .inspect_err(|_| self.give_up(number))?;
        let now = self.host.now();
        let mut shared = self.shared.lock();
        let exits = vcpus.iter().map(|vcpu| Arc::clone(vcpu.exits())).collect();
        let tasks: Vec<TaskId> = vcpus
            .into_iter()
            .map(|vcpu| {
                let task = shared.scheduler.add(number, now);
                shared.keep(task, Box::new(vcpu));
                task
            })
            .collect();
        let cores: Vec<usize> =
            tasks.iter().filter_map(|task| shared.scheduler.core_for(*task, now)).collect();
        if let Some(place) = shared.places.get_mut(number) {
            place.life = Some(Life { guest, tasks, cpu_nanos: 0, exits });
            place.cycle.born(now);
        }
        drop(shared);
        for core in cores.into_iter().filter(|core| *core != self.host.core()) {
            self.host.interrupt_core(core);
        }
        // What was typed before, and asked meanwhile, waits for it.
        self.call_boot_core();
        Ok(first)
    }

    /// Has other cores go on with what waits for this one, which has long work before it.
    fn hand_over(&self) {
        let heirs = self.shared.lock().scheduler.hand_over(self.host.core());
        heirs.into_iter().for_each(|heir| self.host.interrupt_core(heir));
    }

    /// A life cannot be after all.
    fn give_up(&self, number: usize) {
        self.shared.lock().places.get_mut(number).into_iter().for_each(|place| place.cycle.stillborn());
        self.call_boot_core();
    }

    /// Says what came of a start: whether it was the guest's first.
    fn report_start(&self, number: usize, outcome: Result<bool, BuildError>) {
        let name = self.shared.lock().places.get(number).map(|place| place.config.name.clone());
        let name = name.unwrap_or_default();
        let log = |message: fmt::Arguments<'_>| self.host.log(Detail::Everyone, &name, message);
        match outcome {
            Ok(true) => log(format_args!("starts")),
            Ok(false) => log(format_args!("starts again")),
            Err(error) => log(format_args!("cannot start: {error}")),
        }
    }

    /// Goes on with the reading of what lives start from, as far as it does without waiting.
    fn read_on(&self) {
        let guests = self.shared.lock().places.len();
        for number in 0..guests {
            let birth = self.shared.lock().places.get_mut(number).and_then(|place| place.birth.take());
            let Some(Birth { blank, mut files }) = birth else { continue };
            if let Files::Awaited(work) = files {
                files = self.look_into(work);
            }
            let mut shared = self.shared.lock();
            if let Some(place) = shared.places.get_mut(number) {
                place.birth = Some(Birth { blank, files });
            }
            self.housework.set_due(shared.moments());
        }
    }

    fn look_into(&self, mut work: Providing) -> Files {
        let waker = Waker::from(Arc::clone(&self.housework));
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(provisions) => Files::Read(provisions),
            Poll::Pending => Files::Awaited(work),
        }
    }

    /// A life for which all has been read.
    fn next_birth(&self) -> Option<(usize, Blank, Result<Provisions, String>)> {
        let mut shared = self.shared.lock();
        let number = shared.places.iter().position(Place::is_to_be_born)?;
        let birth = shared.places.get_mut(number)?.birth.take();
        self.housework.set_due(shared.moments());
        match birth? {
            Birth { blank, files: Files::Read(provisions) } => Some((number, blank, provisions)),
            Birth { files: Files::Awaited(_), .. } => None,
        }
    }

    /// Whether the boot core is about to build or end guests: long work, for which no virtual CPU should wait.
    fn is_to_build(&self, number: usize) -> bool {
        number == 0
            && (self.housework.is_due_by(self.host.now())
                || self.housework.waits() && !self.shared.lock().requests.is_empty())
    }

    /// The boot core's duties: what was typed, what users asked for, restarts that are due, and what is read for them. No reference to a
    /// guest outlives its step, since whoever buries it waits for the last.
    fn keep_house(&'static self, core: &Core, number: usize) {
        if number != 0 || !self.housework.take(self.host.now()) {
            return;
        }
        let guests = self.shared.lock().places.len();
        (0..guests).filter_map(|guest| self.living(guest)).for_each(|guest| {
            if guest.has_terminal_news() {
                guest.hear_terminal(self.host.now());
            }
        });
        while let Some((guest, request)) = self.next_request() {
            self.follow(guest, request, core);
        }
        while let Some(guest) = self.next_look() {
            self.finish(guest, core);
        }
        while let Some((guest, blank, provisions)) = self.next_birth() {
            self.report_start(guest, self.bear(guest, blank, provisions, core));
        }
        while let Some(guest) = self.next_restart() {
            self.restart(guest, core);
        }
        self.read_on();
    }

    fn living(&self, number: usize) -> Option<Arc<Guest>> {
        let shared = self.shared.lock();
        Some(Arc::clone(&shared.places.get(number)?.life.as_ref()?.guest))
    }

    /// The next request; what is asked of a guest that is being built or buried comes later.
    fn next_request(&self) -> Option<(usize, Request)> {
        let mut shared = self.shared.lock();
        let Shared { places, requests, .. } = &mut *shared;
        let next = requests.iter().position(|(guest, _)| {
            places.get(*guest).is_none_or(|place| place.life.is_some() || place.cycle.may_begin())
        })?;
        requests.remove(next)
    }

    /// A guest whose ending life is to be looked at again.
    fn next_look(&self) -> Option<usize> {
        let (shared, now) = (self.shared.lock(), self.host.now());
        shared
            .places
            .iter()
            .position(|place| place.ending.as_ref().is_some_and(|ending| ending.look_at <= now))
    }

    /// A guest whose restart is due.
    fn next_restart(&self) -> Option<usize> {
        let (shared, now) = (self.shared.lock(), self.host.now());
        shared.places.iter().position(|place| place.cycle.restart_at().is_some_and(|at| at <= now))
    }

    /// Has a guest stay off that was to start again.
    fn forget_restart(&self, number: usize) {
        let mut shared = self.shared.lock();
        let Some(place) = shared.places.get_mut(number) else { return };
        let name = place.cycle.restart_at().map(|_| place.config.name.clone());
        place.cycle.forget_restart();
        self.housework.set_due(shared.moments());
        drop(shared);
        if let Some(name) = name {
            self.host.log(Detail::Everyone, &name, format_args!("{}", End::Stopped));
        }
    }

    fn follow(&'static self, number: usize, request: Request, core: &Core) {
        match (request, self.living(number)) {
            (Request::Start | Request::Reset, None) => {
                let mut shared = self.shared.lock();
                shared.places.get_mut(number).into_iter().for_each(|place| place.cycle.forget_series());
                drop(shared);
                self.restart(number, core);
            }
            (Request::PowerButton, Some(guest)) => guest.press_power_button(),
            (Request::Stop, Some(guest)) => guest.end(End::Stopped),
            (Request::Reset, Some(guest)) => guest.end(End::Restarted),
            (Request::Stop | Request::PowerButton, None) => self.forget_restart(number),
            (Request::Start, Some(_)) => {}
        }
    }
}

/// In a life's list of tasks: that virtual CPU is gone.
const GONE: TaskId = TaskId::MAX;
/// How often to ask whether another core has let go of a life, before doing something else meanwhile.
const BRIEF_WAIT: u32 = 10_000;
/// After how long, in nanoseconds, to look again at a life that is over.
const LOOK_AGAIN: u64 = 1_000_000;

impl Life {
    /// For how long its virtual CPUs have run, in nanoseconds, those that run now included.
    fn ran(&self, scheduler: &Scheduler, now: Instant) -> u64 {
        let running = self.tasks.iter().filter_map(|task| scheduler.running_since(*task));
        running.fold(self.cpu_nanos, |sum, since| sum.saturating_add(now.nanos_since(since)))
    }

    fn exits(&self) -> ExitCounts {
        self.exits.iter().fold(ExitCounts::default(), |mut sum, exits| {
            sum.add(&exits.counts());
            sum
        })
    }
}

impl Place {
    /// Whether all was read for its next life.
    fn is_to_be_born(&self) -> bool {
        matches!(self.birth, Some(Birth { files: Files::Read(_), .. }))
    }
}

impl Shared {
    /// Keeps a virtual CPU that is on no core.
    fn keep(&mut self, task: TaskId, vcpu: Box<Vcpu>) {
        if self.store.len() <= task {
            self.store.resize_with(task.saturating_add(1), || None);
        }
        if let Some(slot) = self.store.get_mut(task) {
            *slot = Some(vcpu);
        }
    }

    /// When guests are to start again, and lives that end to be looked at again. A life for which all was read has no
    /// time to lose.
    fn moments(&self) -> impl Iterator<Item = Instant> {
        let of = |place: &Place| {
            let birth = place.is_to_be_born().then_some(Instant::ZERO);
            let look = place.ending.as_ref().map(|ending| ending.look_at);
            earlier(birth, earlier(place.cycle.restart_at(), look))
        };
        self.places.iter().filter_map(of)
    }

    /// When `core` must look up from what it does: a slice ends, a virtual CPU of its wakes by itself, or a
    /// restart or a look is due, which is the boot core's to do.
    fn next_event(&mut self, core: usize) -> Option<Instant> {
        let due = self.moments().min().filter(|_| core == 0);
        let wake = self.scheduler.next_deadline(core);
        earlier(self.scheduler.slice_end(core), earlier(wake, due))
    }
}
