//! All guests on all cores: who runs where, and what follows when one ends.
//!
//! Each core calls [`Monitor::run_core`] and stays there. A core takes a virtual CPU out of the common store,
//! runs it, and puts it back; so no virtual CPU is on two cores. What comes for one that waits or runs
//! elsewhere goes through [`Wake`].

use crate::cpu::Core;
use crate::guest::{Action, BuildError, End, ExitCounts, Guest, GuestConfig, Refusal, Wake};
use crate::host::{Detail, Host, Terminal};
use crate::lifecycle::Lifecycle;
use crate::news::News;
use crate::schedule::{Choice, Scheduler, TaskId};
use crate::time::{Instant, earlier};
use crate::vcpu::{Left, Vcpu};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// The exits of this life so far, as of each virtual CPU's last return from a core.
    pub exits: ExitCounts,
    /// How the last life ended.
    pub last_end: Option<End>,
}

/// One guest of the manifest, living or not.
struct Place {
    config: GuestConfig,
    terminal: Arc<dyn Terminal>,
    /// Why it cannot live on this machine, if it cannot.
    refused: Option<Refusal>,
    cycle: Lifecycle,
    /// There while the cycle says that it runs.
    life: Option<Life>,
    /// There while the cycle says that it ends, but for the moments when somebody tries to finish it.
    ending: Option<Ending>,
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
    exits: Vec<ExitCounts>,
}

/// What all cores share.
struct Shared {
    scheduler: Scheduler,
    places: Vec<Place>,
    /// Virtual CPUs that are on no core, by task.
    store: Vec<Option<Box<Vcpu>>>,
    requests: VecDeque<(usize, Request)>,
    /// The monitor's own memory that no guest may claim yet, in bytes.
    own_memory: u64,
}

/// The boot core's duties beside guests. It looks here after each interrupt, so that looking takes no lock.
struct Housework {
    /// A terminal has news, or a user asked for something.
    waits: AtomicBool,
    /// When the first of the restarts is due, or of the looks at lives that end, in nanoseconds; `u64::MAX` where
    /// none is.
    due: AtomicU64,
}

impl Housework {
    const fn new() -> Self {
        Self { waits: AtomicBool::new(false), due: AtomicU64::new(u64::MAX) }
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

/// Runs guests on all cores.
pub struct Monitor {
    host: &'static dyn Host,
    shared: Mutex<Shared>,
    housework: Housework,
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
        let shared = Shared {
            scheduler,
            places: Vec::new(),
            store: Vec::new(),
            requests: VecDeque::new(),
            own_memory: host.own_memory(),
        };
        Self { host, shared: Mutex::new(shared), housework: Housework::new(), news: Arc::default() }
    }

    /// Takes a guest in, which is off until [`Self::start`] or its user starts it. Gives its number.
    pub fn add(&self, config: GuestConfig, terminal: Arc<dyn Terminal>) -> usize {
        let (mut shared, now) = (self.shared.lock(), self.host.now());
        // Guests and owners are admitted together, and so have the same numbers.
        let cores = shared.scheduler.admit(config.share, config.vcpus as usize, now);
        let (wanted, left) = (config.own_memory(), shared.own_memory);
        let refused = match (cores, left.checked_sub(wanted)) {
            (Err(error), _) => Some(Refusal::Cores(error)),
            (Ok(_), None) => Some(Refusal::OwnMemory { wanted, left }),
            (Ok(_), Some(left)) => {
                shared.own_memory = left;
                None
            }
        };
        let number = shared.places.len();
        shared.places.push(Place {
            config,
            terminal,
            refused,
            cycle: Lifecycle::new(now),
            life: None,
            ending: None,
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
                    drop(shared);
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
            if let Some(exits) = life.exits.get_mut(index) {
                exits.clone_from(vcpu.exits());
            }
        }
        if !ended {
            shared.keep(task, vcpu);
            // Another core may go on with it meanwhile.
            let other = if busy && !halted { shared.scheduler.core_for(task, now) } else { None };
            drop(shared);
            if let Some(other) = other.filter(|other| *other != self.host.core()) {
                self.host.interrupt_core(other);
            }
            return;
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
        let restarts_now = place.cycle.restart_at() == Some(now);
        self.housework.set_due(shared.moments());
        drop(shared);
        if restarts_now {
            self.restart(number, this);
        } else {
            self.call_boot_core();
        }
    }

    fn restart(&'static self, number: usize, core: &Core) {
        let place = self.shared.lock().places.get(number).map(|place| {
            (place.config.name.clone(), if place.cycle.lives() == 0 { "starts" } else { "starts again" })
        });
        let Some((name, starts)) = place else { return };
        match self.start(number, core) {
            Ok(true) => self.host.log(Detail::Everyone, &name, format_args!("{starts}")),
            Ok(false) => {}
            Err(error) => self.host.log(Detail::Everyone, &name, format_args!("cannot start: {error}")),
        }
    }

    /// Gives a guest a life; false where it has one, or another core is at that.
    pub fn start(&'static self, number: usize, core: &Core) -> Result<bool, BuildError> {
        let mut shared = self.shared.lock();
        let Some(place) = shared.places.get_mut(number) else { return Ok(false) };
        if let Some(refusal) = place.refused {
            return Err(BuildError::Refused(refusal));
        }
        if !place.cycle.begin() {
            return Ok(false);
        }
        let (config, terminal) = (place.config.clone(), Arc::clone(&place.terminal));
        self.housework.set_due(shared.moments());
        let heirs = shared.scheduler.hand_over(self.host.core());
        drop(shared);
        heirs.into_iter().for_each(|heir| self.host.interrupt_core(heir));
        // Long work, for which nobody else has to wait. What is asked of the guest meanwhile waits for it.
        let built = Guest::build(&config, core, self.host, terminal, (number, self));
        let now = self.host.now();
        let mut shared = self.shared.lock();
        let (guest, vcpus) = match built {
            Ok(built) => built,
            Err(error) => {
                shared.places.get_mut(number).into_iter().for_each(|place| place.cycle.stillborn());
                drop(shared);
                self.call_boot_core();
                return Err(error);
            }
        };
        let exits = vcpus.iter().map(|_| ExitCounts::default()).collect();
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
        Ok(true)
    }

    /// Whether the boot core is about to build or end guests: long work, for which no virtual CPU should wait.
    fn is_to_build(&self, number: usize) -> bool {
        number == 0
            && (self.housework.is_due_by(self.host.now())
                || self.housework.waits() && !self.shared.lock().requests.is_empty())
    }

    /// The boot core's duties: what was typed, what users asked for, restarts that are due. No reference to a
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
        while let Some(guest) = self.next_restart() {
            self.restart(guest, core);
        }
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
            (Request::Start | Request::Reset, None) => self.restart(number, core),
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
            sum.add(exits);
            sum
        })
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

    /// When guests are to start again, and lives that end to be looked at again.
    fn moments(&self) -> impl Iterator<Item = Instant> {
        let of = |place: &Place| {
            earlier(place.cycle.restart_at(), place.ending.as_ref().map(|ending| ending.look_at))
        };
        self.places.iter().filter_map(of)
    }

    /// When `core` must look up from what it does: a slice ends, a virtual CPU of its wakes by itself, or a
    /// restart or a look is due, which is the boot core's to do.
    fn next_event(&self, core: usize) -> Option<Instant> {
        let due = self.moments().min().filter(|_| core == 0);
        let wake = self.scheduler.next_deadline(core);
        earlier(self.scheduler.slice_end(core), earlier(wake, due))
    }
}
