//! When the boot reached which step.

use crate::host::cpu;
use crate::host::memory::Range;
use crate::host::paging::{Cache, DeviceError, map_device};
use crate::host::time::Clock;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use coreboot_config::timestamps::{COUNT_OFFSET, HEADER_LEN, Header};

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The payload's first instruction.
    PayloadEntry,
    /// The machine's own devices are ready.
    Devices,
    /// The guests' images are in memory.
    ImagesLoaded,
    /// The first guest's first instruction.
    FirstGuestInstruction,
}

impl Step {
    const ALL: [Self; 4] =
        [Self::PayloadEntry, Self::Devices, Self::ImagesLoaded, Self::FirstGuestInstruction];

    const fn name(self) -> &'static str {
        match self {
            Self::PayloadEntry => "payload entry",
            Self::Devices => "devices ready",
            Self::ImagesLoaded => "images loaded",
            Self::FirstGuestInstruction => "first guest instruction",
        }
    }

    /// The step's number in coreboot's timestamp table. 1101 is coreboot's own for a payload that jumps to a
    /// kernel; from 1400 on nobody has taken any.
    const fn timestamp_id(self) -> u32 {
        match self {
            Self::PayloadEntry => 1400,
            Self::Devices => 1401,
            Self::ImagesLoaded => 1402,
            Self::FirstGuestInstruction => 1101,
        }
    }
}

/// The TSC at each step, zero for steps not reached.
static REACHED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Which steps are in coreboot's table.
static PUBLISHED: [AtomicBool; 4] = [const { AtomicBool::new(false) }; 4];

/// Notes that `step` is reached now, unless it was before.
pub fn mark(step: Step) {
    mark_at(step, cpu::tsc());
}

/// Notes that `step` was reached when the TSC stood at `tsc`, unless it was before.
pub fn mark_at(step: Step, tsc: u64) {
    let _ = REACHED[step as usize].compare_exchange(0, tsc.max(1), Ordering::Relaxed, Ordering::Relaxed);
}

/// The steps reached so far, a line each: since reset (where the TSC began at zero) and since the payload's entry.
pub fn lines(clock: &Clock) -> impl Iterator<Item = String> {
    let millis = |ticks: u64| Millis((u128::from(ticks) * 1_000 / u128::from(clock.tsc_khz())) as u64);
    let entry = REACHED[Step::PayloadEntry as usize].load(Ordering::Relaxed);
    Step::ALL.into_iter().filter_map(move |step| {
        let tsc = REACHED[step as usize].load(Ordering::Relaxed);
        let since_entry = millis(tsc.saturating_sub(entry));
        let (name, since_reset) = (step.name(), millis(tsc));
        (tsc != 0).then(|| format!("{name:<24} {since_reset} ms after reset, {since_entry} ms after entry"))
    })
}

/// A number of thousandths, printed in ones.
struct Millis(u64);

impl core::fmt::Display for Millis {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:5}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// Appends the steps reached since the last time to coreboot's timestamp table at `address`, as far as it has
/// room.
pub fn publish(address: u64) -> Result<(), DeviceError> {
    let header = map_device(Range::with_len(address, HEADER_LEN as u64), Cache::WriteBack)?;
    let Some(mut header) = Header::decode(&header.read_bytes::<HEADER_LEN>(0)) else { return Ok(()) };
    let table = map_device(Range::with_len(address, header.table_len() as u64), Cache::WriteBack)?;
    for step in Step::ALL {
        let tsc = REACHED[step as usize].load(Ordering::Relaxed);
        if tsc == 0 || PUBLISHED[step as usize].swap(true, Ordering::Relaxed) {
            continue;
        }
        let Some((at, entry)) = header.append(step.timestamp_id(), tsc) else { break };
        for (offset, byte) in (at..).zip(entry) {
            table.write_u8(offset, byte);
        }
    }
    table.write_u32(COUNT_OFFSET, header.num_entries);
    Ok(())
}
