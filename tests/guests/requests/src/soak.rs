//! What else the CPU could have done: a process that runs only when no other wants to, and counts. So the CPU never
//! sleeps, and what the count does not account for is what others took.

use crate::linux::{self, Pages, call};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Instructions in one round of its loop.
const ROUND: u64 = 2;

/// The process; it lives as long as this program.
pub struct Soak(Pages);

impl Soak {
    /// Starts it.
    pub fn start() -> Result<Self, i64> {
        let shared = Pages::map(size_of::<AtomicU64>())?;
        if call(linux::FORK, [0; 6])? == 0 {
            soak(&shared);
        }
        Ok(Self(shared))
    }

    /// The instructions that it has executed.
    pub fn count(&self) -> u64 {
        // SAFETY: the page is there as long as this program, and the other process writes whole words.
        unsafe { (*(self.0.address() as *const AtomicU64)).load(Ordering::Relaxed) * ROUND }
    }
}

/// The process's own life.
fn soak(shared: &Pages) -> ! {
    let priority = 0_u32;
    let idle = call(linux::SCHED_SETSCHEDULER, [0, linux::SCHED_IDLE, (&raw const priority) as u64, 0, 0, 0]);
    if idle.is_err() || call(linux::PRCTL, [linux::PR_SET_PDEATHSIG, linux::SIGKILL, 0, 0, 0, 0]).is_err() {
        linux::exit();
    }
    // SAFETY: it adds to a word that this process and its parent share, and to nothing else.
    unsafe {
        asm!("2: add qword ptr [{count}], 1", "jmp 2b", count = in(reg) shared.address(), options(noreturn, nostack))
    }
}
