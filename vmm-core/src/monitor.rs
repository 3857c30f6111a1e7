//! All guests on all cores: who runs where, and what follows when one ends.
//!
//! Each core calls [`Monitor::run_core`] and stays there. A core takes a virtual CPU out of the common store,
//! runs it, and puts it back; so no virtual CPU is on two cores. What comes for one that waits or runs
//! elsewhere goes through [`Wake`].

use crate::cpu::Core;
use crate::guest::{Action, BuildError, End, ExitCounts, Guest, GuestConfig, Wake};
use crate::host::{Detail, Host, Terminal};
use crate::schedule::{Choice, Scheduler, TaskId};
use crate::time::Instant;
use crate::vcpu::{Left, Vcpu, earlier};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::{Mutex, MutexGuard};

/// A life shorter than this, in nanoseconds, counts as one of a series of crashes.
const SHORT_LIFE: u64 = 10_000_000_000;
/// The pause before a restart after the first crash of a series, in nanoseconds; it doubles with each.
const FIRST_PAUSE: u64 = 100_000_000;
/// How often it doubles at most: the longest pause is 25.6 s.
const PAUSE_DOUBLES: u32 = 8;

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

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// It lives.
    Running,
    /// It starts again at this moment.
    Restarting(Instant),
    /// It is off.
    Off,
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
    life: Option<Life>,
    since: Instant,
    lives: u32,
    /// Crashes in a row, each after a short life.
    crashes: u32,
    restart_at: Option<Instant>,
    last_end: Option<End>,
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
    requests: Vec<(usize, Request)>,
}

/// Runs guests on all cores.
pub struct Monitor {
    host: &'static dyn Host,
    shared: Mutex<Shared>,
}

impl Wake for Monitor {
    fn wake(&self, guest: usize, vcpu: u32) {
        let mut shared = self.shared.lock();
        let task =
            shared.places.get(guest).and_then(|place| place.life.as_ref()?.tasks.get(vcpu as usize).copied());
        let core = task.and_then(|task| shared.scheduler.wake(task, self.host.now()));
        drop(shared);
        if let Some(core) = core.filter(|core| *core != self.host.core()) {
            self.host.interrupt_core(core);
        }
    }
}

impl Monitor {
    /// A monitor for all cores of `host`, without guests.
    pub fn new(host: &'static dyn Host) -> Self {
        let scheduler = Scheduler::new(host.cores());
        let shared = Shared { scheduler, places: Vec::new(), store: Vec::new(), requests: Vec::new() };
        Self { host, shared: Mutex::new(shared) }
    }

    /// Builds a guest and has it run.
    pub fn add(
        &'static self,
        core: &Core,
        config: GuestConfig,
        terminal: Arc<dyn Terminal>,
    ) -> Result<(), BuildError> {
        let mut shared = self.shared.lock();
        let number = shared.places.len();
        shared.places.push(Place {
            config,
            terminal,
            life: None,
            since: self.host.now(),
            lives: 0,
            crashes: 0,
            restart_at: None,
            last_end: None,
        });
        drop(shared);
        self.start(number, core)
    }

    /// Every guest, in the manifest's order.
    pub fn guests(&self) -> Vec<GuestStatus> {
        let (shared, now) = (self.shared.lock(), self.host.now());
        let status = |place: &Place| GuestStatus {
            name: place.config.name.clone(),
            state: match (&place.life, place.restart_at) {
                (Some(_), _) => GuestState::Running,
                (None, Some(at)) => GuestState::Restarting(at),
                (None, None) => GuestState::Off,
            },
            vcpus: place.config.vcpus,
            memory: place.config.memory,
            cpu_nanos: place.life.as_ref().map_or(0, |life| life.ran(&shared.scheduler, now)),
            since: place.since,
            lives: place.lives,
            exits: place.life.as_ref().map_or_else(ExitCounts::default, Life::exits),
            last_end: place.last_end,
        };
        shared.places.iter().map(status).collect()
    }

    /// Asks something of the guest of this name; false when there is none. The boot core follows it soon.
    pub fn request(&self, name: &str, request: Request) -> bool {
        let mut shared = self.shared.lock();
        let Some(number) = shared.places.iter().position(|place| place.config.name == name) else {
            return false;
        };
        shared.requests.push((number, request));
        drop(shared);
        if self.host.core() != 0 {
            self.host.interrupt_core(0);
        }
        true
    }

    /// Whether no guest lives or is going to.
    pub fn is_idle(&self) -> bool {
        let shared = self.shared.lock();
        shared.requests.is_empty()
            && shared.places.iter().all(|place| place.life.is_none() && place.restart_at.is_none())
    }

    /// Runs guests on this core. `attend` is called between guests and after each interrupt; when it returns
    /// false, this core leaves.
    pub fn run_core(&'static self, core: &mut Core, mut attend: impl FnMut() -> bool) {
        let number = self.host.core();
        while attend() {
            self.keep_house(core, number);
            let now = self.host.now();
            let mut shared = self.shared.lock();
            match shared.scheduler.pick(number, now) {
                Some(Choice { task, waited }) => {
                    let vcpu = shared.store.get_mut(task).and_then(Option::take);
                    drop(shared);
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
                        self.keep_house(core, number);
                        if !stays || self.shared.lock().scheduler.gives_way(number, self.host.now()) {
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

    /// The last virtual CPU of a life is gone: says how it ended, gives everything back, and starts the next
    /// life where the manifest wants one.
    fn bury(&'static self, this: &Core, guest: Arc<Guest>) {
        let (number, end, now) = (guest.number(), guest.ended().unwrap_or(End::Stopped), self.host.now());
        let mut shared = self.shared.lock();
        let Some(place) = shared.places.get_mut(number) else { return };
        let exits = place.life.take().map_or_else(ExitCounts::default, |life| life.exits());
        let lived = now.nanos_since(place.since);
        (place.last_end, place.since) = (Some(end), now);
        let action = place.config.action_after(&end);
        let crashed = matches!(end, End::TripleFault | End::Failed(_));
        place.crashes = if crashed && lived < SHORT_LIFE { place.crashes.saturating_add(1) } else { 0 };
        if action == Action::Restart {
            let pause = match place.crashes {
                0 => 0,
                crashes => FIRST_PAUSE << crashes.saturating_sub(1).min(PAUSE_DOUBLES),
            };
            place.restart_at = Some(now.plus_nanos(pause));
        }
        let restarts_now = place.restart_at == Some(now);
        let name = place.config.name.clone();
        drop(shared);
        // The memory goes back before the next life asks for its own. Another core may be about to let go of
        // its last virtual CPU, or of the guest it handed a byte to.
        let mut guest = guest;
        while Arc::get_mut(&mut guest).is_none() {
            core::hint::spin_loop();
        }
        drop(guest);
        self.host.log(Detail::Everyone, &name, format_args!("{end}"));
        self.host.log(Detail::Everyone, &name, format_args!("exits: {exits}"));
        if restarts_now {
            self.restart(number, this);
        } else if self.host.core() != 0 {
            self.host.interrupt_core(0);
        }
    }

    fn restart(&'static self, number: usize, core: &Core) {
        let name = self.shared.lock().places.get_mut(number).map(|place| {
            place.restart_at = None;
            place.config.name.clone()
        });
        let Some(name) = name else { return };
        match self.start(number, core) {
            Ok(()) => self.host.log(Detail::Everyone, &name, format_args!("starts again")),
            Err(error) => self.host.log(Detail::Everyone, &name, format_args!("cannot start: {error}")),
        }
    }

    /// Gives a guest a life.
    fn start(&'static self, number: usize, core: &Core) -> Result<(), BuildError> {
        let shared = self.shared.lock();
        let Some(place) = shared.places.get(number).filter(|place| place.life.is_none()) else {
            return Ok(());
        };
        let (config, terminal) = (place.config.clone(), Arc::clone(&place.terminal));
        drop(shared);
        // Long work, for which nobody else has to wait.
        let (guest, vcpus) = Guest::build(&config, core, self.host, terminal, (number, self))?;
        let now = self.host.now();
        let mut shared = self.shared.lock();
        let exits = vcpus.iter().map(|_| ExitCounts::default()).collect();
        let tasks: Vec<TaskId> = vcpus
            .into_iter()
            .map(|vcpu| {
                let task = shared.scheduler.add(config.weight, config.affinity.clone(), now);
                shared.keep(task, Box::new(vcpu));
                task
            })
            .collect();
        let cores: Vec<usize> =
            tasks.iter().filter_map(|task| shared.scheduler.core_for(*task, now)).collect();
        if let Some(place) = shared.places.get_mut(number) {
            place.life = Some(Life { guest, tasks, cpu_nanos: 0, exits });
            place.since = now;
            place.lives = place.lives.saturating_add(1);
        }
        drop(shared);
        for core in cores.into_iter().filter(|core| *core != self.host.core()) {
            self.host.interrupt_core(core);
        }
        Ok(())
    }

    /// The boot core's duties: what was typed, what users asked for, restarts that are due.
    fn keep_house(&'static self, core: &Core, number: usize) {
        if number != 0 {
            return;
        }
        let now = self.host.now();
        let mut shared = self.shared.lock();
        let guests: Vec<Arc<Guest>> =
            shared.lives().filter(|guest| guest.has_terminal_news()).map(Arc::clone).collect();
        let requests = core::mem::take(&mut shared.requests);
        let due: Vec<usize> = shared.due_restarts(now).collect();
        drop(shared);
        guests.iter().for_each(|guest| guest.hear_terminal(now));
        requests.into_iter().for_each(|(guest, request)| self.follow(guest, request, core));
        due.into_iter().for_each(|guest| self.restart(guest, core));
    }

    fn follow(&'static self, number: usize, request: Request, core: &Core) {
        let living = {
            let shared: MutexGuard<'_, Shared> = self.shared.lock();
            shared.places.get(number).and_then(|place| Some(Arc::clone(&place.life.as_ref()?.guest)))
        };
        match (request, living) {
            (Request::Start | Request::Reset, None) => self.restart(number, core),
            (Request::PowerButton, Some(guest)) => guest.press_power_button(),
            (Request::Stop, Some(guest)) => guest.end(End::Stopped),
            (Request::Reset, Some(guest)) => guest.end(End::Restarted),
            (Request::Stop | Request::PowerButton, None) => {
                if let Some(place) = self.shared.lock().places.get_mut(number) {
                    place.restart_at = None;
                }
            }
            (Request::Start, Some(_)) => {}
        }
    }
}

/// In a life's list of tasks: that virtual CPU is gone.
const GONE: TaskId = TaskId::MAX;

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

    fn lives(&self) -> impl Iterator<Item = &Arc<Guest>> {
        self.places.iter().filter_map(|place| Some(&place.life.as_ref()?.guest))
    }

    fn due_restarts(&self, now: Instant) -> impl Iterator<Item = usize> {
        self.places
            .iter()
            .enumerate()
            .filter(move |(_, place)| place.restart_at.is_some_and(|at| at <= now))
            .map(|(number, _)| number)
    }

    /// When `core` must look up from what it does: a slice ends, a virtual CPU of its wakes by itself, or a
    /// restart is due, which is the boot core's to do.
    fn next_event(&self, core: usize) -> Option<Instant> {
        let restart = self.places.iter().filter_map(|place| place.restart_at).min().filter(|_| core == 0);
        let wake = self.scheduler.next_deadline(core);
        earlier(self.scheduler.slice_end(core), earlier(wake, restart))
    }
}
