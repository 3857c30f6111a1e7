//! Which virtual CPU runs on which core: fair by weight.
//!
//! Each task (a virtual CPU) has a virtual time that runs the slower the more weight it has; of those ready, the
//! one that is furthest behind runs next, for one slice. A task that slept is put at most one slice behind the
//! others, so that it runs soon after it wakes, but cannot claim the time that it slept. There is one queue for
//! all cores: a core without work takes whatever may run on it. Where nobody else wants a core there is no
//! slice, and so no timer interrupt for scheduling.
//!
//! A task that had a core to itself may be far ahead of others, who were fewer to a core or have more weight. It does
//! not wait for them to come up: who has waited for longer than its share ever makes it wait is next, level with the
//! one whose turn it would be.
//!
//! Tasks belong to an owner (a guest), whose [`Share`] says what its tasks together may have: cores of its own, or
//! at most so much time of all cores.
//!
//! This is arithmetic only; the [`crate::monitor`] owns the tasks and the cores.

use crate::time::{Instant, earlier};
use alloc::vec::Vec;
use core::fmt;

/// How long a task runs while others wait for its core, in nanoseconds.
pub const SLICE: u64 = 4_000_000;
/// How far a woken task must be behind a running one to take its core at once, in nanoseconds of virtual time.
const WAKE_ADVANTAGE: u64 = 500_000;
/// The weight at which virtual time runs like real time.
pub const WEIGHT_UNIT: u32 = 256;

/// How much a capped owner may run ahead of its cap before it rests, in nanoseconds of the rest that follows.
const CAP_BURST: u64 = 10_000_000;

/// A task by its number.
pub type TaskId = usize;

/// An owner of tasks by its number: the first admitted is 0.
pub type OwnerId = usize;

/// The cores that a task may run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Any.
    Any,
    /// One of these: a bit for each core, by its number.
    Cores([u64; 4]),
}

impl Affinity {
    /// Only the cores of these numbers. Those from 256 on are none that it can name.
    pub fn only(numbers: impl Iterator<Item = usize>) -> Self {
        let mut cores = [0; 4];
        for number in numbers {
            if let Some(word) = cores.get_mut(number >> 6) {
                *word |= 1 << (number & 63);
            }
        }
        Self::Cores(cores)
    }

    fn allows(self, core: usize) -> bool {
        match self {
            Self::Any => true,
            Self::Cores(cores) => cores.get(core >> 6).is_some_and(|word| word >> (core & 63) & 1 != 0),
        }
    }
}

/// What an owner may have of the machine's cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// How much of a core its tasks get each that others want too; [`WEIGHT_UNIT`] is usual. Zero counts as one.
    pub weight: u32,
    /// The cores that its tasks may run on.
    pub affinity: Affinity,
    /// Whether these cores run nobody else.
    pub dedicated: bool,
    /// How much all its tasks together may run at most, in hundredths of one core.
    pub cap: Option<u32>,
}

/// The cores that an owner may run on do not suffice for its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCores {
    /// How many it asks for: one for each task where they are to be its own, else any one.
    pub wanted: usize,
    /// How many of those that it may run on are there.
    pub there: usize,
    /// How many of these can be had: they are no other's own, and none that another cannot do without.
    pub free: usize,
}

impl fmt::Display for NoCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, there, free } = self;
        write!(f, "asks for {wanted} of the CPUs that it may run on; {there} are there, {free} of them free")
    }
}

impl core::error::Error for NoCores {}

/// An owner, as admitted.
struct Owner {
    share: Share,
    allowance: Option<Allowance>,
}

impl Owner {
    fn weight(&self) -> u32 {
        self.share.weight.max(1)
    }
}

/// How far a capped owner is from its cap. What its tasks run makes a debt, which resting pays off; it rests when the
/// debt is a burst's, until all is paid.
struct Allowance {
    /// Of one core, in hundredths; not zero.
    percent: u32,
    /// How many of its tasks run.
    running: u32,
    /// Nanoseconds that it would have to rest to be within its cap.
    debt: u64,
    /// The moment of that debt.
    as_of: Instant,
    resting: bool,
}

impl Allowance {
    /// Brings the debt up to date.
    fn settle(&mut self, now: Instant) {
        let passed = now.nanos_since(self.as_of);
        let ran = passed.saturating_mul(u64::from(self.running)).saturating_mul(100);
        let due = ran.checked_div(u64::from(self.percent)).unwrap_or(0);
        self.debt = self.debt.saturating_add(due).saturating_sub(passed);
        self.as_of = self.as_of.max(now);
        self.resting = if self.resting { self.debt > 0 } else { self.debt >= CAP_BURST };
    }

    /// For how long it may go on as it does, in nanoseconds; for ever where that stays within its cap.
    fn lasts(&self) -> Option<u64> {
        let (running, percent) = (u64::from(self.running).saturating_mul(100), u64::from(self.percent));
        let faster = running.checked_sub(percent).filter(|faster| *faster > 0)?;
        let left = CAP_BURST.saturating_sub(self.debt).saturating_mul(percent);
        // Rounded up, so that nothing is left when that time is over.
        left.checked_div(faster).map(|nanos| nanos.saturating_add(1))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for an interrupt; at `deadline` it wakes by itself.
    Blocked {
        deadline: Option<Instant>,
    },
    Ready {
        since: Instant,
    },
    Running {
        core: usize,
        since: Instant,
        /// Whether its core looks up when its slice is over.
        sliced: bool,
    },
}

struct Task {
    owner: OwnerId,
    weight: u32,
    /// Nanoseconds of weighted running time.
    virtual_time: u64,
    /// The core it ran on last: the one that wakes it at its deadline.
    home: usize,
    state: State,
}

/// What a core is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The task to run.
    pub task: TaskId,
    /// How long it had been ready, in nanoseconds: time stolen from it.
    pub waited: u64,
}

/// All tasks of all guests.
pub struct Scheduler {
    tasks: Vec<Option<Task>>,
    owners: Vec<Owner>,
    cores: usize,
    /// The cores that have long work to do before they look for a task again: a bit for each.
    away: [u64; 4],
    /// The least virtual time of those that run or are ready; never goes back.
    floor: u64,
}

impl Scheduler {
    /// A scheduler for `cores` cores without tasks.
    pub const fn new(cores: usize) -> Self {
        Self { tasks: Vec::new(), owners: Vec::new(), cores, away: [0; 4], floor: 0 }
    }

    /// A new owner. Whether or not it can have its share, it has a number; without its share, its tasks never run.
    pub fn admit(&mut self, mut share: Share, tasks: usize, now: Instant) -> Result<OwnerId, NoCores> {
        let id = self.owners.len();
        let allowance = share.cap.filter(|percent| *percent > 0).map(|percent| Allowance {
            percent,
            running: 0,
            debt: 0,
            as_of: now,
            resting: false,
        });
        let refusal = self.refusal(share, tasks);
        if refusal.is_some() {
            share.affinity = Affinity::Cores([0; 4]);
        }
        self.owners.push(Owner { share, allowance });
        refusal.map_or(Ok(id), Err)
    }

    /// Why a new owner of so many tasks cannot have `share`, if it cannot.
    fn refusal(&self, share: Share, tasks: usize) -> Option<NoCores> {
        let mut no = NoCores { wanted: if share.dedicated { tasks } else { 1 }, there: 0, free: 0 };
        for core in (0..self.cores).filter(|core| share.affinity.allows(*core)) {
            no.there = no.there.saturating_add(1);
            let free = self.dedicated_to(core).is_none() && !(share.dedicated && self.is_needed(core, share));
            no.free = no.free.saturating_add(usize::from(free));
        }
        (no.free < no.wanted).then_some(no)
    }

    /// Whether an owner that uses `core` has no other than those of `share`.
    fn is_needed(&self, core: usize, share: Share) -> bool {
        self.owners.iter().any(|owner| {
            let theirs = owner.share.affinity;
            let other = |core| {
                theirs.allows(core) && !share.affinity.allows(core) && self.dedicated_to(core).is_none()
            };
            theirs.allows(core) && !(0..self.cores).any(other)
        })
    }

    /// The owner whose tasks alone run on `core`.
    fn dedicated_to(&self, core: usize) -> Option<OwnerId> {
        self.owners.iter().position(|owner| owner.share.dedicated && owner.share.affinity.allows(core))
    }

    /// A new task of an owner, ready at `now`.
    pub fn add(&mut self, owner: OwnerId, now: Instant) -> TaskId {
        let task = Task {
            owner,
            weight: self.owners.get(owner).map_or(1, Owner::weight),
            virtual_time: self.floor,
            home: (0..self.cores).find(|core| self.owner_allows(owner, *core)).unwrap_or(0),
            state: State::Ready { since: now },
        };
        match self.tasks.iter().position(Option::is_none) {
            Some(free) => {
                if let Some(slot) = self.tasks.get_mut(free) {
                    *slot = Some(task);
                }
                free
            }
            None => {
                self.tasks.push(Some(task));
                self.tasks.len().saturating_sub(1)
            }
        }
    }

    /// Forgets a task, which does not run.
    pub fn remove(&mut self, id: TaskId) {
        if let Some(slot) = self.tasks.get_mut(id) {
            *slot = None;
        }
    }

    /// Picks what `core` runs next: the ready task allowed there that is furthest behind, or has waited too long.
    pub fn pick(&mut self, core: usize, now: Instant) -> Option<Choice> {
        self.set_away(core, false);
        self.wake_due(core, now);
        let best = self.best_ready(core)?;
        let id = self.overdue(core, now).unwrap_or(best);
        let level = self.tasks.get(best)?.as_ref()?.virtual_time;
        let task = self.task(id)?;
        let State::Ready { since } = task.state else { return None };
        task.virtual_time = task.virtual_time.min(level);
        task.state = State::Running { core, since: now, sliced: false };
        task.home = core;
        let owner = task.owner;
        if let Some(allowance) = self.allowance(owner) {
            allowance.running = allowance.running.saturating_add(1);
        }
        Some(Choice { task: id, waited: now.nanos_since(since) })
    }

    /// A core other than `this` that may run a task which waits, and does not know yet: it has nothing to do, or runs
    /// another for as long as nobody else wants the core.
    pub fn helper(&self, this: usize) -> Option<usize> {
        if !self.tasks.iter().flatten().any(|task| self.waits(task)) {
            return None;
        }
        let others = || (0..self.cores).filter(|core| *core != this);
        let takes = |core: &usize| self.best_ready(*core).is_some();
        let runs_on = |core: &usize| {
            let task = self.running_on(*core).and_then(|id| self.tasks.get(id)?.as_ref());
            task.is_some_and(|task| matches!(task.state, State::Running { sliced: false, .. }))
        };
        let idle = others().find(|core| self.is_idle(*core) && takes(core));
        idle.or_else(|| others().find(|core| runs_on(core) && takes(core)))
    }

    /// When the task that runs on `core` since its last pick must be looked at again: because others wait for the
    /// core, or because it nears its cap. `None` when neither is so. The core looks then, and is not told of others
    /// that come to wait.
    pub fn slice_end(&mut self, core: usize) -> Option<Instant> {
        let wanted = self.best_ready(core).is_some();
        let task = self.running_on(core).and_then(|id| self.task(id))?;
        let State::Running { since, sliced, .. } = &mut task.state else { return None };
        *sliced = wanted;
        let slice = wanted.then(|| since.plus_nanos(SLICE));
        let owner = task.owner;
        let allowance = self.owners.get(owner).and_then(|owner| owner.allowance.as_ref());
        let cap = allowance.and_then(|allowance| {
            let end = allowance.lasts().map(|nanos| allowance.as_of.plus_nanos(nanos));
            // Where several of its tasks run, others may start or leave meanwhile.
            let look = (allowance.running > 1).then(|| allowance.as_of.plus_nanos(SLICE));
            earlier(end, look)
        });
        earlier(slice, cap)
    }

    /// `core` is going to be busy until its next pick: tasks that wait go to others, and others become the home of those
    /// that sleep or rest, where they may run elsewhere. Gives those cores, which have to look at their deadlines.
    pub fn hand_over(&mut self, core: usize) -> Vec<usize> {
        self.set_away(core, true);
        let mut heirs = Vec::new();
        for id in 0..self.tasks.len() {
            let heir = self.tasks.get(id).and_then(Option::as_ref).and_then(|task| {
                let sleeps = match task.state {
                    State::Blocked { deadline } => deadline.is_some(),
                    State::Ready { .. } => self.is_resting(task),
                    State::Running { .. } => false,
                };
                let mut others = (core.saturating_add(1)..self.cores).chain(0..core);
                others.find(|other| sleeps && task.home == core && self.allows(task, *other))
            });
            if let (Some(task), Some(heir)) = (self.task(id), heir) {
                task.home = heir;
                if !heirs.contains(&heir) {
                    heirs.push(heir);
                }
            }
        }
        if let Some(helper) = self.helper(core).filter(|helper| !heirs.contains(helper)) {
            heirs.push(helper);
        }
        heirs
    }

    /// When a task whose home is `core` becomes ready by itself: because it has slept or its owner has rested long
    /// enough.
    pub fn next_deadline(&self, core: usize) -> Option<Instant> {
        let at_home = self.tasks.iter().flatten().filter(|task| task.home == core);
        let deadlines = at_home.filter_map(|task| match task.state {
            State::Blocked { deadline } => deadline,
            State::Ready { .. } => self.rests_until(task),
            State::Running { .. } => None,
        });
        deadlines.min()
    }

    /// Whether the task that runs on `core` must give way: its slice is over, its owner has to rest, or one that woke
    /// is far enough behind it.
    pub fn gives_way(&mut self, core: usize, now: Instant) -> bool {
        self.wake_due(core, now);
        let running = self.running_on(core).and_then(|id| self.tasks.get(id)?.as_ref());
        if running.is_some_and(|task| self.is_resting(task)) {
            return true;
        }
        let Some(waiting) = self.best_ready(core).and_then(|id| self.virtual_time(id, now)) else {
            return false;
        };
        let Some(Task { state: State::Running { since, .. }, virtual_time, weight, .. }) = running else {
            return true;
        };
        let ran = now.nanos_since(*since);
        let so_far = virtual_time.saturating_add(weighted(ran, *weight));
        ran >= SLICE || so_far > waiting.saturating_add(WAKE_ADVANTAGE)
    }

    /// The task left its core, and wants to go on. `skip` puts it behind one other slice: it only spins.
    pub fn put_back(&mut self, id: TaskId, now: Instant, skip: bool) -> u64 {
        let ran = self.account(id, now);
        if let Some(task) = self.task(id) {
            if skip {
                task.virtual_time = task.virtual_time.saturating_add(weighted(WAKE_ADVANTAGE, task.weight));
            }
            task.state = State::Ready { since: now };
        }
        ran
    }

    /// The task left its core and waits for an interrupt or `deadline`. Gives how long it ran, in nanoseconds.
    pub fn block(&mut self, id: TaskId, now: Instant, deadline: Option<Instant>) -> u64 {
        let ran = self.account(id, now);
        if let Some(task) = self.task(id) {
            task.state = State::Blocked { deadline };
        }
        ran
    }

    /// Something came for the task, as core `by` knows. Gives the core to interrupt for it, if any: the one it
    /// runs on, or the one that should run it. That may be `by` itself, whose own task was to run on for as long
    /// as nobody else wanted the core.
    pub fn wake(&mut self, id: TaskId, by: usize, now: Instant) -> Option<usize> {
        match self.task(id)?.state {
            State::Running { core, .. } => (core != by).then_some(core),
            State::Ready { .. } => None,
            State::Blocked { .. } => {
                self.make_ready(id, now);
                self.core_for(id, now)
            }
        }
    }

    /// The core that a task runs on.
    pub fn core_of(&self, id: TaskId) -> Option<usize> {
        match self.tasks.get(id)?.as_ref()?.state {
            State::Running { core, .. } => Some(core),
            _ => None,
        }
    }

    /// Whether a task runs on `core`.
    pub fn is_running(&self, core: usize) -> bool {
        self.running_on(core).is_some()
    }

    /// Since when a task runs, where it does.
    pub fn running_since(&self, id: TaskId) -> Option<Instant> {
        match self.tasks.get(id)?.as_ref()?.state {
            State::Running { since, .. } => Some(since),
            _ => None,
        }
    }

    fn task(&mut self, id: TaskId) -> Option<&mut Task> {
        self.tasks.get_mut(id)?.as_mut()
    }

    fn allowance(&mut self, owner: OwnerId) -> Option<&mut Allowance> {
        self.owners.get_mut(owner)?.allowance.as_mut()
    }

    /// The task that runs on `core`.
    fn running_on(&self, core: usize) -> Option<TaskId> {
        self.tasks.iter().position(
            |task| matches!(task, Some(Task { state: State::Running { core: on, .. }, .. }) if *on == core),
        )
    }

    fn allows(&self, task: &Task, core: usize) -> bool {
        self.owner_allows(task.owner, core)
    }

    fn owner_allows(&self, owner: OwnerId, core: usize) -> bool {
        let affinity = self.owners.get(owner).is_some_and(|owner| owner.share.affinity.allows(core));
        affinity && self.dedicated_to(core).is_none_or(|other| other == owner)
    }

    /// Whether a core runs nothing, and would at once when it is told to.
    fn is_idle(&self, core: usize) -> bool {
        let away = self.away.get(core >> 6).is_some_and(|word| word >> (core & 63) & 1 != 0);
        !away && self.running_on(core).is_none()
    }

    fn set_away(&mut self, core: usize, away: bool) {
        if let Some(word) = self.away.get_mut(core >> 6) {
            *word = *word & !(1 << (core & 63)) | u64::from(away) << (core & 63);
        }
    }

    /// Until when a task's owner rests, as far as that is known now.
    fn rests_until(&self, task: &Task) -> Option<Instant> {
        let allowance = self.owners.get(task.owner)?.allowance.as_ref()?;
        allowance.resting.then(|| allowance.as_of.plus_nanos(allowance.debt))
    }

    fn is_resting(&self, task: &Task) -> bool {
        self.rests_until(task).is_some()
    }

    /// Whether a task is kept from running only by others.
    fn waits(&self, task: &Task) -> bool {
        matches!(task.state, State::Ready { .. }) && !self.is_resting(task)
    }

    /// The task's virtual time, running time up to `now` included.
    fn virtual_time(&self, id: TaskId, now: Instant) -> Option<u64> {
        let task = self.tasks.get(id)?.as_ref()?;
        let running = match task.state {
            State::Running { since, .. } => weighted(now.nanos_since(since), task.weight),
            _ => 0,
        };
        Some(task.virtual_time.saturating_add(running))
    }

    fn best_ready(&self, core: usize) -> Option<TaskId> {
        let ready = self.tasks.iter().enumerate().filter_map(|(id, task)| {
            let task = task.as_ref()?;
            (self.waits(task) && self.allows(task, core)).then_some((task.virtual_time, id))
        });
        ready.min().map(|(_, id)| id)
    }

    /// The task that has waited longest of those that have waited for `core` at least twice as long as their part of it
    /// alone would have them wait.
    fn overdue(&self, core: usize, now: Instant) -> Option<TaskId> {
        const PATIENCE: u64 = 2 * SLICE;
        let waited = |task: &Task| match task.state {
            State::Ready { since } if self.waits(task) => now.nanos_since(since),
            _ => 0,
        };
        if !self.tasks.iter().flatten().any(|task| waited(task) > PATIENCE) {
            return None;
        }
        let awake = |task: &Task| matches!(task.state, State::Running { .. }) || self.waits(task);
        let here = self.tasks.iter().flatten().filter(|task| awake(task) && self.allows(task, core));
        let weights = here.fold(0_u64, |sum, task| sum.saturating_add(task.weight.into()));
        let overdue = self.tasks.iter().enumerate().filter_map(|(id, task)| {
            let task = task.as_ref()?;
            let turns = weights.div_ceil(u64::from(task.weight.max(1)));
            let waited = waited(task);
            (waited > PATIENCE.saturating_mul(turns) && self.allows(task, core)).then_some((waited, id))
        });
        overdue.max().map(|(_, id)| id)
    }

    fn wake_due(&mut self, core: usize, now: Instant) {
        self.owners.iter_mut().filter_map(|owner| owner.allowance.as_mut()).for_each(|one| one.settle(now));
        for id in 0..self.tasks.len() {
            let due = self.task(id).is_some_and(|task| {
                task.home == core
                    && matches!(task.state, State::Blocked { deadline: Some(deadline) } if deadline <= now)
            });
            if due {
                self.make_ready(id, now);
            }
        }
    }

    fn make_ready(&mut self, id: TaskId, now: Instant) {
        self.raise_floor(now);
        let floor = self.floor;
        if let Some(task) = self.task(id) {
            let slack = weighted(SLICE, task.weight);
            task.virtual_time = task.virtual_time.max(floor.saturating_sub(slack));
            task.state = State::Ready { since: now };
        }
    }

    /// An idle core that may run the task, its home first; else the core whose task is furthest ahead, so that
    /// it at least starts to share.
    pub fn core_for(&self, id: TaskId, now: Instant) -> Option<usize> {
        let task = self.tasks.get(id)?.as_ref()?;
        let allowed = || (0..self.cores).filter(|core| self.allows(task, *core));
        let idle = |core: &usize| self.is_idle(*core);
        if let Some(core) =
            allowed().find(|core| *core == task.home && idle(core)).or_else(|| allowed().find(idle))
        {
            return Some(core);
        }
        allowed().max_by_key(|core| self.running_on(*core).and_then(|other| self.virtual_time(other, now)))
    }

    /// Adds what the task ran since its pick to its virtual time.
    fn account(&mut self, id: TaskId, now: Instant) -> u64 {
        let Some(task) = self.task(id) else { return 0 };
        let State::Running { since, .. } = task.state else { return 0 };
        let (ran, owner) = (now.nanos_since(since), task.owner);
        task.virtual_time = task.virtual_time.saturating_add(weighted(ran, task.weight));
        // It no longer runs: the floor is found without counting the time twice.
        task.state = State::Ready { since: now };
        if let Some(allowance) = self.allowance(owner) {
            allowance.settle(now);
            allowance.running = allowance.running.saturating_sub(1);
        }
        self.raise_floor(now);
        ran
    }

    fn raise_floor(&mut self, now: Instant) {
        let awake = (0..self.tasks.len()).filter(|id| {
            let task = self.tasks.get(*id).and_then(Option::as_ref);
            task.is_some_and(|task| !matches!(task.state, State::Blocked { .. }))
        });
        if let Some(least) = awake.filter_map(|id| self.virtual_time(id, now)).min() {
            self.floor = self.floor.max(least);
        }
    }
}

/// `nanos` of real time as virtual time at this weight.
fn weighted(nanos: u64, weight: u32) -> u64 {
    nanos.saturating_mul(u64::from(WEIGHT_UNIT)).checked_div(u64::from(weight)).unwrap_or(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn share(weight: u32) -> Share {
        Share { weight, affinity: Affinity::Any, dedicated: false, cap: None }
    }

    fn on(cores: &[usize]) -> Share {
        Share { affinity: Affinity::only(cores.iter().copied()), ..share(256) }
    }

    /// The only task of a new owner, ready from the start.
    fn add(scheduler: &mut Scheduler, share: Share) -> TaskId {
        let owner = scheduler.admit(share, 1, at(0)).unwrap();
        scheduler.add(owner, at(0))
    }

    /// One core, tasks that never sleep: how long each ran after `total` nanoseconds.
    fn spin(weights: &[u32], total: u64) -> Vec<u64> {
        let mut scheduler = Scheduler::new(1);
        let ids: Vec<TaskId> = weights.iter().map(|weight| add(&mut scheduler, share(*weight))).collect();
        let mut ran = alloc::vec![0; ids.len()];
        let mut now = 0;
        while now < total {
            let Choice { task, .. } = scheduler.pick(0, at(now)).unwrap();
            while !scheduler.gives_way(0, at(now)) {
                now += MS / 4;
            }
            ran[ids.iter().position(|id| *id == task).unwrap()] += scheduler.put_back(task, at(now), false);
        }
        ran
    }

    #[test]
    fn spinning_tasks_share_by_weight() {
        let ran = spin(&[256, 512, 1024], 1000 * MS);
        for (ran, share) in ran.iter().zip([1, 2, 4]) {
            let fair = 1000 * MS * share / 7;
            assert!(ran.abs_diff(fair) <= 10 * MS, "{ran} of a fair {fair}");
        }
    }

    #[test]
    fn who_sleeps_runs_soon_after_waking_and_claims_nothing_for_it() {
        let mut scheduler = Scheduler::new(1);
        let spinner = add(&mut scheduler, share(256));
        let sleeper = add(&mut scheduler, share(256));
        assert_eq!(scheduler.pick(0, at(0)).unwrap().task, spinner);
        scheduler.put_back(spinner, at(4 * MS), false);
        assert_eq!(scheduler.pick(0, at(4 * MS)).unwrap().task, sleeper);
        scheduler.block(sleeper, at(5 * MS), Some(at(500 * MS)));
        assert_eq!(scheduler.pick(0, at(5 * MS)).unwrap().task, spinner);
        assert_eq!(scheduler.slice_end(0), None, "nobody else wants the core");
        assert_eq!(scheduler.next_deadline(0), Some(at(500 * MS)));
        assert!(!scheduler.gives_way(0, at(499 * MS)));
        assert!(scheduler.gives_way(0, at(500 * MS)), "the sleeper is far behind");
        scheduler.put_back(spinner, at(500 * MS), false);
        let choice = scheduler.pick(0, at(501 * MS)).unwrap();
        assert_eq!(choice, Choice { task: sleeper, waited: MS });
        // From now on it spins too: it gets its slice's advantage, not half a second.
        let mut ran = 0;
        let mut now = 501 * MS;
        for _ in 0..20 {
            while !scheduler.gives_way(0, at(now)) {
                now += MS / 4;
            }
            let current = if scheduler.core_of(sleeper).is_some() { sleeper } else { spinner };
            let time = scheduler.put_back(current, at(now), false);
            ran += if current == sleeper { time } else { 0 };
            scheduler.pick(0, at(now));
        }
        assert!(ran < (now - 501 * MS) / 2 + 2 * SLICE, "{ran} of {}", now - 501 * MS);
    }

    #[test]
    fn a_woken_task_goes_to_an_idle_core_it_may_use() {
        let mut scheduler = Scheduler::new(3);
        let pinned = add(&mut scheduler, on(&[2]));
        let free = add(&mut scheduler, share(256));
        assert_eq!(scheduler.pick(0, at(0)).unwrap().task, free);
        assert_eq!(scheduler.pick(1, at(0)), None, "the other may not run here");
        assert_eq!(scheduler.pick(2, at(0)).unwrap().task, pinned);
        scheduler.block(pinned, at(MS), None);
        assert_eq!(scheduler.wake(pinned, 1, at(2 * MS)), Some(2));
        assert_eq!(scheduler.wake(pinned, 1, at(2 * MS)), None, "it is on its way");
        assert_eq!(scheduler.wake(free, 1, at(2 * MS)), Some(0), "a running task's core is told");
        assert_eq!(scheduler.wake(free, 0, at(2 * MS)), None, "which knows what it does itself");
    }

    #[test]
    fn a_core_that_wakes_a_task_for_itself_is_interrupted_too() {
        let mut scheduler = Scheduler::new(1);
        let spinner = add(&mut scheduler, share(256));
        let sleeper = add(&mut scheduler, share(256));
        scheduler.pick(0, at(0)).unwrap();
        scheduler.put_back(spinner, at(MS), false);
        assert_eq!(scheduler.pick(0, at(MS)).unwrap().task, sleeper);
        scheduler.block(sleeper, at(MS), None);
        assert_eq!(scheduler.pick(0, at(MS)).unwrap().task, spinner);
        assert_eq!(scheduler.slice_end(0), None, "so no timer is set");
        assert_eq!(scheduler.wake(sleeper, 0, at(2 * MS)), Some(0));
        assert!(scheduler.slice_end(0).is_some());
    }

    #[test]
    fn a_busy_core_leaves_waking_to_those_that_may_run_the_task() {
        let mut scheduler = Scheduler::new(3);
        let pinned = add(&mut scheduler, on(&[0]));
        let choosy = add(&mut scheduler, on(&[0, 2]));
        for id in [pinned, choosy] {
            assert_eq!(scheduler.pick(0, at(0)).unwrap().task, id);
            scheduler.block(id, at(0), Some(at(MS)));
        }
        assert_eq!(scheduler.hand_over(0), [2]);
        assert_eq!(scheduler.next_deadline(2), Some(at(MS)));
        assert_eq!(scheduler.pick(2, at(MS)).unwrap().task, choosy);
        assert_eq!(scheduler.pick(0, at(MS)).unwrap().task, pinned);
    }

    #[test]
    fn a_task_that_woke_starts_the_slice_of_the_one_that_runs() {
        let mut scheduler = Scheduler::new(1);
        let one = add(&mut scheduler, share(256));
        let other = add(&mut scheduler, share(256));
        scheduler.pick(0, at(0)).unwrap();
        scheduler.block(one, at(0), None);
        assert_eq!(scheduler.pick(0, at(0)).unwrap().task, other);
        assert_eq!(scheduler.slice_end(0), None);
        assert_eq!(scheduler.wake(one, 1, at(MS / 10)), Some(0));
        assert_eq!(scheduler.slice_end(0), Some(at(SLICE)));
        assert!(!scheduler.gives_way(0, at(MS / 10)), "both are level");
        assert!(scheduler.gives_way(0, at(SLICE)));
    }

    #[test]
    fn numbers_are_used_again() {
        let mut scheduler = Scheduler::new(1);
        let one = add(&mut scheduler, share(0));
        add(&mut scheduler, share(1));
        scheduler.remove(one);
        assert_eq!(add(&mut scheduler, share(1)), one);
        assert_eq!(scheduler.wake(77, 0, at(0)), None);
    }

    /// Runs all cores of `scheduler` until `end`, in steps of a tenth of a millisecond: how long each task ran.
    fn run(scheduler: &mut Scheduler, tasks: &[TaskId], from: u64, end: u64) -> Vec<u64> {
        let mut ran = alloc::vec![0; tasks.len()];
        let mut on_core = alloc::vec![None; scheduler.cores];
        for now in (from..=end).step_by(MS as usize / 10) {
            for (core, current) in on_core.iter_mut().enumerate() {
                if let Some(task) = *current
                    && (now == end || scheduler.gives_way(core, at(now)))
                {
                    ran[tasks.iter().position(|one| *one == task).unwrap()] +=
                        scheduler.put_back(task, at(now), false);
                    *current = None;
                }
                if current.is_none() && now < end {
                    *current = scheduler.pick(core, at(now)).map(|choice| choice.task);
                }
            }
        }
        ran
    }

    #[test]
    fn a_cap_holds_beside_others_and_alone() {
        let mut scheduler = Scheduler::new(1);
        let capped = add(&mut scheduler, Share { cap: Some(20), ..share(1024) });
        let other = add(&mut scheduler, share(256));
        let ran = run(&mut scheduler, &[capped, other], 0, 2000 * MS);
        assert!(ran[0].abs_diff(400 * MS) <= 10 * MS, "{ran:?}");
        assert!(ran[1] >= 1580 * MS, "{ran:?}");
        scheduler.remove(other);
        let ran = run(&mut scheduler, &[capped], 2000 * MS, 4000 * MS);
        assert!(ran[0].abs_diff(400 * MS) <= 10 * MS, "nobody else wants the core: {ran:?}");
    }

    #[test]
    fn a_cap_is_of_all_tasks_of_an_owner() {
        let mut scheduler = Scheduler::new(4);
        let owner = scheduler.admit(Share { cap: Some(150), ..share(256) }, 3, at(0)).unwrap();
        let tasks = [0; 3].map(|_| scheduler.add(owner, at(0)));
        let ran = run(&mut scheduler, &tasks, 0, 2000 * MS);
        let sum: u64 = ran.iter().sum();
        assert!(sum.abs_diff(3000 * MS) <= 30 * MS, "{ran:?}");
        assert!(ran.iter().all(|ran| ran.abs_diff(sum / 3) <= 60 * MS), "{ran:?}");
    }

    #[test]
    fn who_stays_below_its_cap_is_not_held_up() {
        let mut scheduler = Scheduler::new(1);
        let task = add(&mut scheduler, Share { cap: Some(50), ..share(256) });
        for start in (0..100 * MS).step_by(4 * MS as usize) {
            assert_eq!(scheduler.pick(0, at(start)).map(|choice| choice.task), Some(task), "at {start}");
            scheduler.block(task, at(start + MS), Some(at(start + 4 * MS)));
        }
    }

    #[test]
    fn a_capped_task_is_looked_at_when_its_rest_begins_and_ends() {
        let mut scheduler = Scheduler::new(1);
        let task = add(&mut scheduler, Share { cap: Some(50), ..share(256) });
        scheduler.pick(0, at(0)).unwrap();
        // It runs twice what it may: the debt grows as fast as time passes.
        let rest = scheduler.slice_end(0).unwrap();
        assert!((10 * MS..10 * MS + 10).contains(&rest.as_nanos()), "{rest:?}");
        assert!(!scheduler.gives_way(0, at(9 * MS)) && scheduler.gives_way(0, rest));
        scheduler.put_back(task, rest, false);
        assert_eq!(scheduler.pick(0, at(12 * MS)), None);
        let end = scheduler.next_deadline(0).unwrap();
        assert!((20 * MS..20 * MS + 20).contains(&end.as_nanos()), "{end:?}");
        assert!(scheduler.pick(0, end).is_some());
        // A whole core cannot be overdrawn by one task.
        let mut scheduler = Scheduler::new(1);
        add(&mut scheduler, Share { cap: Some(100), ..share(256) });
        scheduler.pick(0, at(0)).unwrap();
        assert_eq!(scheduler.slice_end(0), None);
    }

    #[test]
    fn dedicated_cores_run_nobody_else_and_have_no_slices() {
        let mut scheduler = Scheduler::new(3);
        let others: Vec<TaskId> = (0..4).map(|_| add(&mut scheduler, share(256))).collect();
        let own = add(&mut scheduler, Share { dedicated: true, ..on(&[1]) });
        assert_eq!(scheduler.pick(1, at(0)).unwrap().task, own);
        assert_eq!(scheduler.slice_end(1), None, "others wait, but not for this core");
        assert!(!scheduler.gives_way(1, at(1000 * MS)));
        scheduler.block(own, at(1000 * MS), None);
        assert_eq!(scheduler.pick(1, at(1000 * MS)), None);
        assert!([0, 2].iter().all(|core| scheduler.pick(*core, at(0)).is_some()));
        assert!(others.iter().all(|task| scheduler.core_of(*task) != Some(1)));
    }

    #[test]
    fn shares_that_cannot_be_had_are_refused_with_what_is_missing() {
        let own = |cores: &[usize]| Share { dedicated: true, ..on(cores) };
        let mut scheduler = Scheduler::new(4);
        let mut admit = |share, tasks| scheduler.admit(share, tasks, at(0));
        let refused = |wanted, there, free| Err(NoCores { wanted, there, free });
        assert_eq!(admit(own(&[2, 3, 9]), 2), Ok(0));
        assert_eq!(admit(on(&[4, 5]), 1), refused(1, 0, 0));
        assert_eq!(admit(on(&[2]), 1), refused(1, 1, 0));
        assert_eq!(admit(own(&[1, 2]), 2), refused(2, 2, 1));
        assert_eq!(admit(own(&[1]), 3), refused(3, 1, 1));
        assert_eq!(admit(on(&[0, 2]), 1), Ok(5));
        assert_eq!(admit(own(&[0]), 1), refused(1, 1, 0), "the one before has no other left");
        assert_eq!(admit(own(&[1, 2]), 1), Ok(7));
        let none = scheduler.add(2, at(0));
        assert_eq!(scheduler.core_for(none, at(0)), None, "a refused owner's task never runs");
        let (first, last) = (scheduler.add(0, at(0)), scheduler.add(7, at(0)));
        assert_eq!(scheduler.core_for(first, at(0)), Some(2));
        assert_eq!(scheduler.core_for(last, at(0)), Some(1));
    }

    /// Lets the cores of `scheduler` do what the monitor does, until `end`: each looks when its timer is due, or when
    /// another has called it. How long each task ran, none of which ever sleeps.
    fn drive(scheduler: &mut Scheduler, tasks: &[TaskId], from: u64, end: u64) -> Vec<u64> {
        let mut ran = alloc::vec![0; tasks.len()];
        let place = |task| tasks.iter().position(|one| *one == task).unwrap();
        let mut looks = alloc::vec![Some(at(from)); scheduler.cores];
        loop {
            let next = (0..scheduler.cores).filter_map(|core| Some((looks[core]?, core))).min();
            let Some((now, core)) = next.filter(|(now, _)| now.as_nanos() < end) else { break };
            if let Some(task) = scheduler.running_on(core)
                && scheduler.gives_way(core, now)
            {
                ran[place(task)] += scheduler.put_back(task, now, false);
            }
            if scheduler.running_on(core).is_none() {
                scheduler.pick(core, now);
            }
            if let Some(helper) = scheduler.helper(core) {
                looks[helper] = Some(now);
            }
            looks[core] = earlier(scheduler.slice_end(core), scheduler.next_deadline(core));
        }
        for core in 0..scheduler.cores {
            if let Some(task) = scheduler.running_on(core) {
                ran[place(task)] += scheduler.put_back(task, at(end), false);
            }
        }
        ran
    }

    #[test]
    fn three_that_spin_share_two_cores() {
        let mut scheduler = Scheduler::new(2);
        let tasks = [0; 3].map(|_| add(&mut scheduler, share(256)));
        let ran = drive(&mut scheduler, &tasks, 0, 3000 * MS);
        assert!(ran.iter().all(|ran| ran.abs_diff(2000 * MS) <= 20 * MS), "{ran:?}");
    }

    #[test]
    fn a_core_without_slices_is_called_when_somebody_comes_to_wait() {
        let mut scheduler = Scheduler::new(2);
        let [one, other] = [0; 2].map(|_| add(&mut scheduler, share(256)));
        assert_eq!(scheduler.pick(0, at(0)).unwrap().task, one);
        assert_eq!(scheduler.pick(1, at(0)).unwrap().task, other);
        assert_eq!([0, 1].map(|core| scheduler.slice_end(core)), [None; 2]);
        let third = add(&mut scheduler, share(256));
        // One of the two cores is told of it, and so both have slices.
        let told = scheduler.core_for(third, at(10 * MS)).unwrap();
        assert_eq!(scheduler.helper(told), Some(1 - told));
        assert!([0, 1].iter().all(|core| scheduler.slice_end(*core).is_some()));
        assert_eq!(scheduler.helper(told), None, "it looks by itself");
    }

    #[test]
    fn who_had_a_core_to_itself_does_not_pay_for_it_later() {
        const MINUTE: u64 = 60_000 * MS;
        // By weight: the second comes ahead of the first, four times as fast.
        let mut scheduler = Scheduler::new(2);
        let mut tasks = alloc::vec![add(&mut scheduler, share(1024)), add(&mut scheduler, share(256))];
        assert_eq!(drive(&mut scheduler, &tasks, 0, MINUTE), [MINUTE; 2]);
        tasks.push(add(&mut scheduler, share(1024)));
        let ran = drive(&mut scheduler, &tasks, MINUTE, MINUTE + 1000 * MS);
        assert!(ran[1] >= 180 * MS, "of 222 ms: {ran:?}");
        // By place: three are on one core, one on the other.
        let mut scheduler = Scheduler::new(2);
        let mut tasks: Vec<TaskId> = [0, 0, 0, 1].map(|core| add(&mut scheduler, on(&[core]))).into();
        assert_eq!(drive(&mut scheduler, &tasks, 0, MINUTE)[3], MINUTE);
        tasks.push(add(&mut scheduler, on(&[1])));
        let ran = drive(&mut scheduler, &tasks, MINUTE, MINUTE + 1000 * MS);
        assert!(ran[3].abs_diff(500 * MS) <= 30 * MS, "{ran:?}");
        assert!(ran[..3].iter().all(|ran| ran.abs_diff(333 * MS) <= 10 * MS), "{ran:?}");
    }

    #[test]
    fn the_next_life_of_one_that_rests_begins_where_it_may() {
        let mut scheduler = Scheduler::new(2);
        let owner = scheduler.admit(Share { cap: Some(50), ..on(&[1]) }, 1, at(0)).unwrap();
        let task = scheduler.add(owner, at(0));
        scheduler.pick(1, at(0)).unwrap();
        let rest = scheduler.slice_end(1).unwrap();
        scheduler.put_back(task, rest, false);
        scheduler.remove(task);
        let task = scheduler.add(owner, rest);
        assert_eq!(scheduler.pick(1, rest), None);
        let end = scheduler.next_deadline(1).unwrap();
        assert_eq!(scheduler.next_deadline(0), None, "it may not run there");
        assert_eq!(scheduler.pick(1, end).unwrap().task, task);
    }

    #[test]
    fn who_waits_does_not_wait_for_a_core_with_long_work() {
        let mut scheduler = Scheduler::new(2);
        let [one, other] = [0; 2].map(|_| add(&mut scheduler, share(256)));
        assert_eq!(scheduler.pick(0, at(0)).unwrap().task, one);
        assert_eq!(scheduler.pick(1, at(0)).unwrap().task, other);
        scheduler.block(other, at(MS), None);
        scheduler.put_back(one, at(MS), false);
        assert_eq!(scheduler.hand_over(0), [1], "it may go on there");
        assert_eq!(scheduler.core_for(one, at(MS)), Some(1));
        assert_eq!(scheduler.pick(1, at(MS)).unwrap().task, one);
        assert_eq!(scheduler.wake(other, 1, at(MS)), Some(1), "the other core would not look");
        scheduler.block(one, at(2 * MS), None);
        scheduler.pick(0, at(3 * MS)).unwrap();
        assert_eq!(scheduler.wake(one, 0, at(3 * MS)), Some(1), "its home");
    }

    #[test]
    fn an_idle_core_is_called_for_who_waits() {
        let mut scheduler = Scheduler::new(2);
        let [one, other] = [0; 2].map(|_| add(&mut scheduler, share(256)));
        assert_eq!(scheduler.pick(0, at(0)).unwrap().task, one);
        assert_eq!(scheduler.helper(0), Some(1));
        assert_eq!(scheduler.pick(1, at(0)).unwrap().task, other);
        assert_eq!(scheduler.helper(0), None, "nobody waits");
        // One sleeps, and wakes where the other runs by then.
        scheduler.block(one, at(MS), Some(at(3 * MS)));
        scheduler.block(other, at(MS), None);
        scheduler.wake(other, 1, at(MS));
        assert_eq!(scheduler.pick(0, at(MS)).unwrap().task, other);
        scheduler.gives_way(0, at(3 * MS));
        assert_eq!(scheduler.helper(0), Some(1));
    }
}
