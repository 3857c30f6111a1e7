//! What stands in for devices where they are left out: nobody touches them.

use crate::host::acpi::Acpi;
use crate::host::apic::io::IoApics;
use crate::host::memory::FrameAllocator;
use crate::host::time::Clock;
use core::fmt::{self, Write};
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use vmm_core::time::Instant;

/// Leaves all devices as firmware did.
pub fn start(
    _acpi: Option<&Acpi>,
    _frames: &'static FrameAllocator,
    _clock: &'static Clock,
    _io_apics: Option<&'static IoApics>,
    _screen: bool,
) {
}

/// Never, in nanoseconds on the clock.
pub fn next_look(_now: impl FnOnce() -> Instant) -> u64 {
    u64::MAX
}

/// Looks at nothing.
pub fn look() {}

/// Does what without devices waits for nobody.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

/// Says that there is no list.
pub fn list(out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "devices were left out of this payload")
}
