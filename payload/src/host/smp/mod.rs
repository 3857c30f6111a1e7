//! The other CPUs: found, started from wherever firmware parked them, and put to work.
//!
//! ACPI's MADT lists them. Where it does not, all are called and counted first. Each that comes draws a ticket,
//! and with it a stack; what comes late, or finds no stack left, halts for good.

mod agreement;
mod start_up;

use super::acpi::Acpi;
use super::apic::local::{self, Target};
use super::cpu::{self, PerCpu};
use super::memory::{FrameAllocator, PAGE};
use super::stacks::CpuStacks;
use super::time::Clock;
use super::{interrupts, mtrr, paging};
use crate::{info, warn};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use core::time::Duration;
use spin::Once;
use start_up::StartUpPage;
use vmm_core::cpu::Core;

/// How long the CPUs that ACPI lists are waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long after the last CPU came another may come, where it is not known how many there are.
const SILENCE: Duration = Duration::from_millis(100);
/// How long a CPU may take to compare its time-stamp counter. It takes a microsecond, but where CPUs take turns
/// on fewer real ones.
const COMPARISON: Duration = Duration::from_secs(2);
/// The highest APIC number that fits the APIC's older mode; 255 there means all.
const HIGHEST_XAPIC_ID: u32 = 254;

/// A page below 1 MiB that CPUs can start at.
static START_UP_PAGE: Once<u64> = Once::new();
/// The CPUs that are started, by their tickets.
static COMING: Once<Vec<Coming>> = Once::new();
/// How many CPUs had memory types other than the boot CPU's.
static ADOPTED: AtomicUsize = AtomicUsize::new(0);
/// What they all are to do.
static TASK: Once<Task> = Once::new();

/// What a CPU is to do with its virtualization.
pub type Task = &'static (dyn Fn(&mut Core) + Sync);

/// A CPU that may come, and where it stands.
struct Coming {
    cpu: PerCpu,
    state: AtomicU8,
}

/// The states of [`Coming`].
const AWAITED: u8 = 0;
const RUNS: u8 = 1;
const LEFT_OUT: u8 = 2;

impl Coming {
    /// Goes from [`AWAITED`] to `state`, unless somebody was quicker.
    fn becomes(&self, state: u8) -> bool {
        self.state.compare_exchange(AWAITED, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }
}

/// Notes where CPUs may start.
pub fn set_start_up_page(page: Option<u64>) {
    if let Some(page) = page {
        START_UP_PAGE.call_once(|| page);
    }
}

/// Whether some CPU has a number that only x2APIC mode knows.
pub fn needs_x2apic(acpi: &Acpi) -> bool {
    let cpus = acpi.madt.iter().flat_map(|madt| &madt.cpus);
    cpus.filter(|cpu| cpu.enabled).any(|cpu| cpu.apic_id > HIGHEST_XAPIC_ID)
}

/// Starts all other CPUs and switches their virtualization on; then they halt until [`run`]. The local APIC and
/// the clock have been started.
pub fn start(acpi: Option<&Acpi>, frames: &'static FrameAllocator, clock: &Clock) {
    let listed = acpi.and_then(others);
    let whom: Vec<Target> = match &listed {
        Some(ids) => ids.iter().copied().map(Target::Cpu).collect(),
        None => [Target::Others].into(),
    };
    let mut running = Vec::new();
    match START_UP_PAGE.get() {
        _ if whom.is_empty() => {}
        None => warn!("no memory below 1 MiB is free to start other CPUs from"),
        Some(page) => {
            let page = StartUpPage::new(*page);
            let count = listed.as_ref().map_or_else(|| count(&page, clock), Vec::len);
            running = bring_up(&page, &whom, count, frames, clock);
        }
    }
    for id in listed.iter().flatten().filter(|id| running.iter().all(|cpu| cpu.apic_id() != **id)) {
        warn!("the CPU whose APIC is {id:#x} did not start");
    }
    cpu::set_running(running);
    let adopted = ADOPTED.load(Ordering::Relaxed);
    if adopted != 0 {
        info!("MTRRs: {adopted} CPU(s) took the boot CPU's");
    }
    info!("cores: {} run", cpu::running().len());
    compare_counters(clock);
}

/// The APICs' numbers of the CPUs besides this one that are there and can be reached; `None` where ACPI tells of
/// no CPU at all.
fn others(acpi: &Acpi) -> Option<Vec<u32>> {
    let madt = acpi.madt.as_ref().filter(|madt| !madt.cpus.is_empty())?;
    let reachable = |id: u32| local::knows_large_numbers() || id <= HIGHEST_XAPIC_ID;
    let mut ids = Vec::new();
    for cpu in madt.cpus.iter().filter(|cpu| cpu.enabled && cpu.apic_id != local::id()) {
        // Firmware may list a CPU for each of the two modes.
        if let Err(place) = ids.binary_search(&cpu.apic_id) {
            ids.insert(place, cpu.apic_id);
        }
    }
    let found = ids.len();
    ids.retain(|id| reachable(*id));
    if ids.len() < found {
        warn!(
            "{} CPU(s) have APIC numbers that only x2APIC mode knows, which is not there",
            found - ids.len()
        );
    }
    Some(ids)
}

/// Calls all CPUs, and counts those that come; they halt again.
fn count(page: &StartUpPage, clock: &Clock) -> usize {
    page.start(&[Target::Others], &[], |pause| wait(clock, pause, || false));
    let mut seen = usize::MAX;
    while page.come() != seen {
        seen = page.come();
        wait(clock, SILENCE, || page.come() != seen);
    }
    seen
}

/// Starts `count` CPUs among `whom`; those that came in time.
fn bring_up(
    page: &StartUpPage,
    whom: &[Target],
    count: usize,
    frames: &'static FrameAllocator,
    clock: &Clock,
) -> Vec<&'static PerCpu> {
    if count == 0 {
        return Vec::new();
    }
    let len = (count * size_of::<CpuStacks>()) as u64;
    let Some(stacks) = frames.allocate(len, PAGE, u64::MAX).map(CpuStacks::in_frames) else {
        warn!("no memory is left for the stacks of {count} more CPUs");
        return Vec::new();
    };
    if let Err(error) = paging::remove_guards(stacks.iter().flat_map(CpuStacks::guards)) {
        warn!("the stacks of other CPUs: {error}");
        return Vec::new();
    }
    mtrr::note();
    let coming = COMING.call_once(|| {
        let new =
            |(ticket, stacks)| Coming { cpu: PerCpu::new(ticket + 1, stacks), state: AtomicU8::new(AWAITED) };
        stacks.iter().enumerate().map(new).collect()
    });
    page.start(whom, stacks, |pause| wait(clock, pause, || false));
    wait(clock, PATIENCE, || coming.iter().all(|coming| !coming.is(AWAITED)));
    page.close();
    coming
        .iter()
        .filter(|coming| !coming.becomes(LEFT_OUT) && coming.is(RUNS))
        .map(|coming| &coming.cpu)
        .collect()
}

/// Waits until `done`, and `longest` at most.
fn wait(clock: &Clock, longest: Duration, done: impl Fn() -> bool) {
    let start = clock.now();
    while !done() && clock.now().since(start) < longest {
        core::hint::spin_loop();
    }
}

/// A CPU's way from its first Rust function on: makes it like the boot CPU, and has it wait for something to do.
fn join(ticket: usize) -> ! {
    let Some(coming) = COMING.get().and_then(|all| all.get(ticket)) else { cpu::halt() };
    coming.cpu.load();
    paging::join();
    if mtrr::adopt() {
        ADOPTED.fetch_add(1, Ordering::Relaxed);
    }
    local::join();
    coming.cpu.set_apic_id(local::id());
    // Where a CPU is not what the others are, it must be known before anything counts on it.
    let mut core = match super::enable_virtualization() {
        Ok(core) => core,
        Err(error) => {
            warn!("the CPU whose APIC is {:#x}: {error}", local::id());
            coming.becomes(LEFT_OUT);
            cpu::halt()
        }
    };
    if !coming.becomes(RUNS) {
        cpu::halt();
    }
    while TASK.get().is_none() {
        interrupts::idle();
        agreement::answer(coming.cpu.number());
    }
    if let Some(task) = TASK.get() {
        task(&mut core);
    }
    loop {
        interrupts::idle();
    }
}

/// Compares the time-stamp counters, and tells how far they are apart.
fn compare_counters(clock: &Clock) {
    let nanos = |ticks: u64| (u128::from(ticks) * 1_000_000 / u128::from(clock.tsc_khz())) as u64;
    let mut most = 0;
    for cpu in cpu::running().iter().skip(1) {
        let start = clock.now();
        let wake = || local::interrupt(cpu.apic_id(), interrupts::vector::WAKE);
        match agreement::compare(cpu.number(), wake, || clock.now().since(start) > COMPARISON) {
            None => warn!("CPU {} did not compare its TSC", cpu.number()),
            Some(found) => {
                most = most.max(found.at_most());
                if !found.agrees() {
                    let (ahead, by) = (found.ahead > 0, nanos(found.ahead.unsigned_abs()));
                    let order = if ahead { "ahead of" } else { "behind" };
                    warn!("the TSC of CPU {} is {by} ns {order} the boot CPU's", cpu.number());
                }
            }
        }
    }
    if cpu::running().len() > 1 {
        info!("time: the TSCs of all CPUs are at most {} ns apart", nanos(most));
    }
}

/// Has every other CPU do `task`. Called once; a CPU that comes back halts.
pub fn run(task: Task) {
    TASK.call_once(|| task);
    for cpu in cpu::running().iter().skip(1) {
        local::interrupt(cpu.apic_id(), interrupts::vector::WAKE);
    }
}
