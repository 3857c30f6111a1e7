//! This machine as the monitor sees it.

#[cfg(feature = "guest-virtio")]
use crate::host::entropy;
use crate::host::memory::FrameAllocator;
use crate::host::time::Clock;
use crate::host::{apic, cpu, exceptions, heap, interrupts, rtc};
use crate::{console::serial, info};
use crate::{debug, devices};
use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use spin::LazyLock;
use vmm_core::host::{Detail, Host};
use vmm_core::memory::HostBlock;
use vmm_core::own_memory::OwnMemory;
use vmm_core::time::Instant;

/// How often a UART without an interrupt is looked at, in nanoseconds.
const SERIAL_POLL: u64 = 10_000_000;

/// When the boot core has something to do beside guests, in nanoseconds on the clock.
static ATTENTION: AtomicU64 = AtomicU64::new(u64::MAX);

/// Has the boot core look up from its guests at `deadline`, from when it next arms its timer on.
pub fn attend_at(deadline: Option<Instant>) {
    ATTENTION.store(deadline.map_or(u64::MAX, Instant::as_nanos), Ordering::Relaxed);
}

/// What guests, and what they are given, may have of our memory: of what was free when this was first asked, before
/// there were any.
pub fn own_memory() -> &'static OwnMemory {
    static ACCOUNT: LazyLock<OwnMemory> = LazyLock::new(|| {
        let (used, size) = heap::usage();
        // What is in pieces is as good as used.
        OwnMemory::new(size.saturating_sub(used) / 4 * 3)
    });
    &ACCOUNT
}

/// What of this machine the monitor uses.
pub struct Machine {
    clock: &'static Clock,
    frames: &'static FrameAllocator,
    /// Seconds since 1970 at the clock's origin.
    unix_origin: u64,
}

impl Machine {
    /// Reads the real-time clock and is ready.
    pub fn new(clock: &'static Clock, frames: &'static FrameAllocator) -> Self {
        let uptime = clock.now().as_nanos() / 1_000_000_000;
        Self { clock, frames, unix_origin: rtc::unix_time().saturating_sub(uptime) }
    }
}

/// Whether this core has to look at the UART from time to time: one of them is enough.
fn polls_serial() -> bool {
    serial::needs_polling() && cpu::this().number() == 0
}

impl Host for Machine {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn tsc_khz(&self) -> u64 {
        self.clock.tsc_khz()
    }

    fn now_and_tsc(&self) -> (Instant, u64) {
        let tsc = cpu::tsc();
        (self.clock.instant_at(tsc), tsc)
    }

    fn core(&self) -> usize {
        cpu::this().number()
    }

    fn cores(&self) -> usize {
        cpu::running().len().max(1)
    }

    fn interrupt_core(&self, core: usize) {
        if let Some(cpu) = cpu::running().get(core) {
            apic::local::interrupt(cpu.apic_id(), interrupts::vector::WAKE);
        }
    }

    fn unix_time(&self) -> u64 {
        self.unix_origin + self.clock.now().as_nanos() / 1_000_000_000
    }

    fn arm_timer(&self, deadline: Option<Instant>) {
        let mut deadline = deadline.map_or(u64::MAX, Instant::as_nanos);
        deadline = deadline.min(devices::next_look(|| self.clock.now()));
        if self.core() == 0 {
            deadline = deadline.min(ATTENTION.load(Ordering::Relaxed));
            if serial::needs_polling() {
                deadline = deadline.min(self.clock.now().plus_nanos(SERIAL_POLL).as_nanos());
            }
        }
        let deadline = (deadline != u64::MAX).then(|| Instant::from_nanos(deadline));
        apic::local::arm(self.clock, deadline);
    }

    fn serve_interrupts(&self) {
        interrupts::service_interrupts();
        devices::look();
        if polls_serial() {
            serial::poll();
        }
    }

    fn wait_for_interrupt(&self) {
        interrupts::idle();
        devices::look();
        if polls_serial() {
            serial::poll();
        }
    }

    fn machine_check(&self) {
        exceptions::machine_check_in_guest();
    }

    fn allocate(&self, len: u64, align: u64) -> Option<Box<dyn HostBlock>> {
        let mut frames = self.frames.allocate(len, align, u64::MAX)?;
        frames.zero();
        Some(Box::new(frames))
    }

    fn free_memory(&self) -> u64 {
        self.frames.free()
    }

    fn largest_block(&self) -> u64 {
        self.frames.longest()
    }

    fn own_memory(&self) -> &'static OwnMemory {
        own_memory()
    }

    #[cfg(feature = "guest-virtio")]
    fn fill_random(&self, bytes: &mut [u8]) {
        entropy::fill(bytes);
    }

    fn log(&self, detail: Detail, guest: &str, message: fmt::Arguments<'_>) {
        match detail {
            Detail::Everyone => info!("{guest}: {message}"),
            Detail::Expert => debug!("{guest}: {message}"),
        }
    }
}
