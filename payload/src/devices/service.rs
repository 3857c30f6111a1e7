//! Drivers at work: interrupts brought to them, deadlines kept, and the boot's waiting for their answers.

use crate::host::apic::io::IoApics;
use crate::host::time::Clock;
use crate::host::{apic, cpu, interrupts};
use crate::warn;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::pin;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use drivers::Driver;
use drivers::pci::{Function, Kind};
use drivers::platform::Vector;
use spin::Once;
use vmm_core::time::Instant;

/// How often a device that may not interrupt is looked at while it is at work, in nanoseconds.
const POLL: u64 = 500_000;
/// How often the boot core asks whether a deadline is over, in nanoseconds: so much later may it be noticed.
const WATCH: u64 = 1_000_000_000;
/// What a driver takes for all of its interrupts.
const ALL: usize = usize::MAX;

static SERVICE: Once<Service> = Once::new();
/// When the boot core next asks for deadlines, in nanoseconds on the clock.
static NEXT_WATCH: AtomicU64 = AtomicU64::new(u64::MAX);

/// A driver that runs.
pub struct Running {
    /// The driver.
    pub driver: Arc<dyn Driver>,
    /// What it drives.
    pub function: Arc<Function>,
}

impl Running {
    /// Whether it must be looked at though nothing interrupts.
    fn is_polled(&self) -> bool {
        matches!(self.function.interrupt_kind(), Kind::Polled | Kind::Line(_))
    }

    fn is_at_work(&self) -> bool {
        self.driver.deadline().is_some()
    }
}

/// Tells a line that is stuck from one that interrupts.
#[derive(Default)]
struct Stuck(AtomicU32);

impl Stuck {
    /// A line may come so often in a row with nobody at work behind it: another's device, or one that was slow to
    /// take its line back.
    const PATIENCE: u32 = 1000;

    /// The line came; whether that was once too often.
    fn came(&self, at_work: bool) -> bool {
        if at_work {
            self.0.store(0, Ordering::Relaxed);
            return false;
        }
        self.0.fetch_add(1, Ordering::Relaxed) == Self::PATIENCE
    }
}

/// All drivers, and whose each interrupt is.
struct Service {
    clock: &'static Clock,
    io_apics: Option<&'static IoApics>,
    stuck: Stuck,
    running: Vec<Running>,
    /// The vectors of all devices, with the driver's place above and which of its interrupts it is. Several
    /// may share one.
    sources: Vec<(Vector, usize, usize)>,
    /// The places of those that are polled.
    polled: Vec<usize>,
}

/// From now on these are served.
pub fn begin(clock: &'static Clock, io_apics: Option<&'static IoApics>, running: Vec<Running>) {
    let sources = |(place, running): (usize, &Running)| {
        let vectors = running.function.vectors().into_iter().enumerate();
        vectors.map(move |(source, vector)| (vector, place, source)).collect::<Vec<_>>()
    };
    let sources = running.iter().enumerate().flat_map(sources).collect();
    let polled = (0..running.len()).filter(|place| running[*place].is_polled()).collect();
    // A controller without disks is asked for nothing.
    if running.iter().any(|running| !running.driver.disks().is_empty()) {
        NEXT_WATCH.store(clock.now().as_nanos() + WATCH, Ordering::Relaxed);
    }
    SERVICE.call_once(|| Service { clock, io_apics, stuck: Stuck::default(), running, sources, polled });
    interrupts::on_device(interrupt);
}

/// All drivers that run.
pub fn running() -> &'static [Running] {
    SERVICE.get().map_or(&[], |service| &service.running)
}

/// Serves the drivers whose interrupt came on this vector here.
fn interrupt(number: u8) {
    let Some(service) = SERVICE.get() else { return };
    let came = Vector { core: cpu::this().number(), number };
    let (mut line, mut at_work) = (false, false);
    for (_, place, source) in service.sources.iter().filter(|(vector, ..)| *vector == came) {
        let running = &service.running[*place];
        line |= matches!(running.function.interrupt_kind(), Kind::Line(_));
        at_work |= running.is_at_work();
        running.driver.serve(*source);
    }
    if line && service.stuck.came(at_work) {
        // Its drivers' devices are polled as well.
        service.io_apics.inspect(|io_apics| io_apics.mask(number));
        warn!("PCI: an interrupt line comes again and again for nobody, and is not listened to any more");
    }
}

/// When this core must look up from what it does for the sake of devices, in nanoseconds on the clock.
pub fn next_look(now: impl FnOnce() -> Instant) -> u64 {
    let Some(service) = SERVICE.get() else { return u64::MAX };
    let busy = service.polled.iter().any(|place| service.running[*place].is_at_work());
    let poll = if busy { now().as_nanos().saturating_add(POLL) } else { u64::MAX };
    if cpu::this().number() == 0 { poll.min(NEXT_WATCH.load(Ordering::Relaxed)) } else { poll }
}

/// Looks at devices that may not interrupt, and from time to time at deadlines.
pub fn look() {
    let Some(service) = SERVICE.get() else { return };
    for place in &service.polled {
        if service.running[*place].is_at_work() {
            service.running[*place].driver.serve(ALL);
        }
    }
    if cpu::this().number() == 0 {
        service.watch();
    }
}

impl Service {
    /// Asks for deadlines where it is time to.
    fn watch(&self) {
        let next = NEXT_WATCH.load(Ordering::Relaxed);
        if next == u64::MAX {
            return;
        }
        let now = self.clock.now().as_nanos();
        if now < next {
            return;
        }
        for Running { driver, function } in &self.running {
            if driver.deadline().is_some_and(|deadline| deadline <= now) && driver.recover() {
                warn!(
                    "PCI {} ({}): has failed or does not answer, and is reset",
                    function.address(),
                    driver.name()
                );
            }
        }
        // What is being brought back goes on soon.
        let first = self.running.iter().filter_map(|running| running.driver.deadline()).min();
        let soon = first.map_or(u64::MAX, |first| first.max(now + POLL));
        NEXT_WATCH.store(soon.min(now + WATCH), Ordering::Relaxed);
    }
}

/// Who waits on a core that sleeps.
struct Sleeper {
    woken: AtomicBool,
    core: usize,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        if cpu::this().number() != self.core
            && let Some(cpu) = cpu::running().get(self.core)
        {
            apic::local::interrupt(cpu.apic_id(), interrupts::vector::WAKE);
        }
    }
}

/// Waits for what devices do, asleep; other interrupts are served meanwhile. For the boot, which has nothing else to
/// do: a guest's core must not wait so.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let sleeper = Arc::new(Sleeper { woken: AtomicBool::new(false), core: cpu::this().number() });
    let waker = Waker::from(Arc::clone(&sleeper));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        // Interrupts come in nowhere else, and another core's message ends the sleep.
        while !sleeper.woken.swap(false, Ordering::Acquire) {
            if let Some(service) = SERVICE.get() {
                let look = next_look(|| service.clock.now());
                apic::local::arm(service.clock, (look != u64::MAX).then(|| Instant::from_nanos(look)));
            }
            interrupts::idle();
            look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_stuck_once_it_came_for_nobody_too_often_in_a_row() {
        let stuck = Stuck::default();
        for _ in 0..10 {
            assert!((0..Stuck::PATIENCE).all(|_| !stuck.came(false)));
            assert!(!stuck.came(true));
        }
        assert_eq!((0..5000).filter(|_| stuck.came(false)).count(), 1, "it is said once");
    }
}
