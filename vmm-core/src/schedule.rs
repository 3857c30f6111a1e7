//! Which virtual CPU runs on which core: fair by weight.
//!
//! Each task (a virtual CPU) has a virtual time that runs the slower the more weight it has; of those ready, the
//! one that is furthest behind runs next, for one slice. A task that slept is put at most one slice behind the
//! others, so that it runs soon after it wakes, but cannot claim the time that it slept. There is one queue for
//! all cores: a core without work takes whatever may run on it. Where nobody else wants a core there is no
//! slice, and so no timer interrupt for scheduling.
//!
//! This is arithmetic only; the [`crate::monitor`] owns the tasks and the cores.

use crate::time::Instant;
use alloc::vec::Vec;

/// How long a task runs while others wait for its core, in nanoseconds.
pub const SLICE: u64 = 4_000_000;
/// How far a woken task must be behind a running one to take its core at once, in nanoseconds of virtual time.
const WAKE_ADVANTAGE: u64 = 500_000;
/// The weight at which virtual time runs like real time.
pub const WEIGHT_UNIT: u32 = 256;

/// A task by its number.
pub type TaskId = usize;

/// The cores that a task may run on, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Any.
    Any,
    /// One of these.
    Cores(Vec<usize>),
}

impl Affinity {
    fn allows(&self, core: usize) -> bool {
        match self {
            Self::Any => true,
            Self::Cores(cores) => cores.contains(&core),
        }
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
    },
}

struct Task {
    affinity: Affinity,
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
    cores: usize,
    /// The least virtual time of those that run or are ready; never goes back.
    floor: u64,
}

impl Scheduler {
    /// A scheduler for `cores` cores without tasks.
    pub const fn new(cores: usize) -> Self {
        Self { tasks: Vec::new(), cores, floor: 0 }
    }

    /// A new task, ready at `now`. A weight of zero counts as one.
    pub fn add(&mut self, weight: u32, affinity: Affinity, now: Instant) -> TaskId {
        let task = Task {
            affinity,
            weight: weight.max(1),
            virtual_time: self.floor,
            home: 0,
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

    /// Picks what `core` runs next: the ready task allowed there that is furthest behind.
    pub fn pick(&mut self, core: usize, now: Instant) -> Option<Choice> {
        self.wake_due(core, now);
        let id = self.best_ready(core)?;
        let task = self.task(id)?;
        let State::Ready { since } = task.state else { return None };
        task.state = State::Running { core, since: now };
        task.home = core;
        Some(Choice { task: id, waited: now.nanos_since(since) })
    }

    /// When the task that runs on `core` since its last pick must be looked at again because others wait for
    /// the core; `None` when nobody does.
    pub fn slice_end(&self, core: usize) -> Option<Instant> {
        let since = self.tasks.iter().flatten().find_map(|task| match task.state {
            State::Running { core: on, since } if on == core => Some(since),
            _ => None,
        })?;
        self.best_ready(core).map(|_| since.plus_nanos(SLICE))
    }

    /// When a blocked task whose home is `core` wakes by itself.
    pub fn next_deadline(&self, core: usize) -> Option<Instant> {
        let deadlines = self.tasks.iter().flatten().filter(|task| task.home == core).filter_map(|task| {
            match task.state {
                State::Blocked { deadline } => deadline,
                _ => None,
            }
        });
        deadlines.min()
    }

    /// Whether the task that runs on `core` must give way: its slice is over, or one that woke is far enough
    /// behind it.
    pub fn gives_way(&mut self, core: usize, now: Instant) -> bool {
        self.wake_due(core, now);
        let Some(waiting) = self.best_ready(core).and_then(|id| self.virtual_time(id, now)) else {
            return false;
        };
        let running = self.tasks.iter().flatten().find_map(|task| match task.state {
            State::Running { core: on, since } if on == core => Some((task, since)),
            _ => None,
        });
        let Some((task, since)) = running else { return true };
        let ran = now.nanos_since(since);
        let so_far = task.virtual_time.saturating_add(weighted(ran, task.weight));
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
            let fits = matches!(task.state, State::Ready { .. }) && task.affinity.allows(core);
            fits.then_some((task.virtual_time, id))
        });
        ready.min().map(|(_, id)| id)
    }

    fn wake_due(&mut self, core: usize, now: Instant) {
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
        let running_on = |core: usize| {
            self.tasks.iter().position(|task| {
                matches!(task, Some(Task { state: State::Running { core: on, .. }, .. }) if *on == core)
            })
        };
        let allowed = || (0..self.cores).filter(|core| task.affinity.allows(*core));
        let idle = |core: &usize| running_on(*core).is_none();
        if let Some(core) =
            allowed().find(|core| *core == task.home && idle(core)).or_else(|| allowed().find(idle))
        {
            return Some(core);
        }
        allowed().max_by_key(|core| running_on(*core).and_then(|other| self.virtual_time(other, now)))
    }

    /// Adds what the task ran since its pick to its virtual time.
    fn account(&mut self, id: TaskId, now: Instant) -> u64 {
        let Some(task) = self.task(id) else { return 0 };
        let State::Running { since, .. } = task.state else { return 0 };
        let ran = now.nanos_since(since);
        task.virtual_time = task.virtual_time.saturating_add(weighted(ran, task.weight));
        // It no longer runs: the floor is found without counting the time twice.
        task.state = State::Ready { since: now };
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

    /// One core, tasks that never sleep: how long each ran after `total` nanoseconds.
    fn spin(weights: &[u32], total: u64) -> Vec<u64> {
        let mut scheduler = Scheduler::new(1);
        let ids: Vec<TaskId> =
            weights.iter().map(|weight| scheduler.add(*weight, Affinity::Any, at(0))).collect();
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
        let spinner = scheduler.add(256, Affinity::Any, at(0));
        let sleeper = scheduler.add(256, Affinity::Any, at(0));
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
        let pinned = scheduler.add(256, Affinity::Cores(alloc::vec![2]), at(0));
        let free = scheduler.add(256, Affinity::Any, at(0));
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
        let spinner = scheduler.add(256, Affinity::Any, at(0));
        let sleeper = scheduler.add(256, Affinity::Any, at(0));
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
    fn a_task_that_woke_starts_the_slice_of_the_one_that_runs() {
        let mut scheduler = Scheduler::new(1);
        let one = scheduler.add(256, Affinity::Any, at(0));
        let other = scheduler.add(256, Affinity::Any, at(0));
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
        let one = scheduler.add(0, Affinity::Any, at(0));
        scheduler.add(1, Affinity::Any, at(0));
        scheduler.remove(one);
        assert_eq!(scheduler.add(1, Affinity::Any, at(0)), one);
        assert_eq!(scheduler.wake(77, 0, at(0)), None);
    }
}
