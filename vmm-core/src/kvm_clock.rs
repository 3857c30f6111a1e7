//! The paravirtual clock that Linux knows as kvmclock (Linux: Documentation/virt/kvm/x86/msr.rst).
//!
//! The host's counter runs at one rate on all cores, so what a guest is told once stays true for its life.

use crate::memory::{GuestMemory, GuestPhys, OutOfRange};

/// Where the guest wants its wall clock at boot.
pub const WALL_CLOCK: u32 = 0x4b56_4d00;
/// Where a vCPU wants its time record; bit 0 switches it on.
pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// Where a vCPU wants to be told how long it waited for a core; bit 0 switches it on.
pub const STEAL_TIME: u32 = 0x4b56_4d03;
/// Bits 1 to 5 of [`STEAL_TIME`], which must be zero: the record is aligned to 64 bytes.
const STEAL_TIME_RESERVED: u64 = 0b11_1110;
const ENABLE: u64 = 1;
/// All vCPUs' counters agree.
const FLAG_TSC_STABLE: u8 = 1;

/// How nanoseconds come from counter ticks: `(ticks << shift) * multiplier >> 32`, a negative shift to the
/// right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scale {
    multiplier: u32,
    shift: i8,
}

impl Scale {
    /// For a counter of `khz`; zero is taken as one.
    fn new(khz: u64) -> Self {
        // The multiplier keeps most bits when ticks are scaled to between one and two a nanosecond.
        let (mut ticks_per_second, mut shift) = (khz.max(1).saturating_mul(1000), 0_i8);
        while ticks_per_second > 2_000_000_000 {
            ticks_per_second >>= 1;
            shift = shift.saturating_sub(1);
        }
        while ticks_per_second <= 1_000_000_000 {
            ticks_per_second <<= 1;
            shift = shift.saturating_add(1);
        }
        let multiplier = (1_000_000_000_u64 << 32).checked_div(ticks_per_second).unwrap_or(0);
        Self { multiplier: u32::try_from(multiplier).unwrap_or(u32::MAX), shift }
    }
}

/// Writes a vCPU's time record where the guest asked for it: system time 0 at counter 0.
pub fn write_system_time(memory: &GuestMemory, msr_value: u64, khz: u64) -> Result<(), OutOfRange> {
    if msr_value & ENABLE == 0 {
        return Ok(());
    }
    let Scale { multiplier, shift } = Scale::new(khz);
    const NO_TIMES: [u8; 20] = [0; 20];
    let rate = [multiplier, u32::from_le_bytes([shift.cast_unsigned(), FLAG_TSC_STABLE, 0, 0])];
    let body = [&NO_TIMES[..], rate.map(u32::to_le_bytes).as_flattened()].concat();
    write_record(memory, msr_value & !ENABLE, &body)
}

/// Writes the wall clock at the guest's start, `unix_nanos` after 1970.
pub fn write_wall_clock(memory: &GuestMemory, at: u64, unix_nanos: u64) -> Result<(), OutOfRange> {
    const SECOND: u64 = 1_000_000_000;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the record's seconds have 32 bits; a remainder fits"
    )]
    let time = [(unix_nanos / SECOND) as u32, (unix_nanos % SECOND) as u32];
    write_record(memory, at, time.map(u32::to_le_bytes).as_flattened())
}

/// Writes a record that begins with its version; an odd version means that the rest is being written.
fn write_record(memory: &GuestMemory, at: u64, body: &[u8]) -> Result<(), OutOfRange> {
    let version = |number: u32| memory.write(GuestPhys::new(at), &number.to_le_bytes());
    version(1)?;
    memory.write(GuestPhys::new(at.wrapping_add(4)), body)?;
    version(2)
}

/// How long a vCPU was ready while others had its core, and where the guest reads it.
#[derive(Clone, Copy, Debug, Default)]
pub struct StealTime {
    msr: u64,
    nanos: u64,
}

impl StealTime {
    /// What the guest wrote to [`STEAL_TIME`].
    pub fn msr(&self) -> u64 {
        self.msr
    }

    /// The guest names a place; `None` when it may not be there (#GP).
    pub fn set_msr(&mut self, value: u64, memory: &GuestMemory) -> Option<()> {
        if value & STEAL_TIME_RESERVED != 0 {
            return None;
        }
        self.msr = value;
        self.write(memory).ok()
    }

    /// Adds `nanos` of waiting. A record that no memory backs any more is the guest's own loss.
    pub fn add(&mut self, nanos: u64, memory: &GuestMemory) {
        self.nanos = self.nanos.saturating_add(nanos);
        if nanos > 0 {
            let _ = self.write(memory);
        }
    }

    fn write(&self, memory: &GuestMemory) -> Result<(), OutOfRange> {
        if self.msr & ENABLE == 0 {
            return Ok(());
        }
        let at = |offset: u64| GuestPhys::new((self.msr & !ENABLE).wrapping_add(offset));
        let version = memory.read_u32(at(8))?;
        memory.write_u32(at(8), version | 1)?;
        memory.write_u64(at(0), self.nanos)?;
        memory.write_u32(at(8), (version | 1).wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HeapBlock, Region};

    fn nanos(scale: Scale, ticks: u64) -> u64 {
        let shifted = if scale.shift < 0 { ticks >> -scale.shift } else { ticks << scale.shift };
        ((u128::from(shifted) * u128::from(scale.multiplier)) >> 32) as u64
    }

    #[test]
    fn the_scale_is_right_for_slow_and_fast_counters() {
        for khz in [1_000, 999_999, 1_000_000, 1_000_001, 2_400_000, 3_999_999, 5_000_000] {
            let day = khz * 1000 * 86_400;
            let error = nanos(Scale::new(khz), day).abs_diff(86_400_000_000_000);
            assert!(error < 86_400 * 2, "{khz} kHz is off by {error} ns a day");
        }
    }

    #[test]
    fn the_record_is_where_the_guest_asked() {
        let block = Box::new(HeapBlock::zeroed(0x1000, 0x1000).unwrap());
        let memory = GuestMemory::new(alloc::vec![Region::new(GuestPhys::new(0), block)]).unwrap();
        write_system_time(&memory, 0x101, 2_000_000).unwrap();
        assert_eq!(memory.read_u32(GuestPhys::new(0x100)), Ok(2));
        assert_eq!(memory.read_u32(GuestPhys::new(0x118)), Ok(1 << 31));
        assert_eq!(memory.read_u16(GuestPhys::new(0x11c)), Ok(0x100), "shift 0, stable");
        write_wall_clock(&memory, 0x200, 1_700_000_000_000_000_005).unwrap();
        assert_eq!(memory.read_u32(GuestPhys::new(0x204)), Ok(1_700_000_000));
        assert_eq!(memory.read_u32(GuestPhys::new(0x208)), Ok(5));
        assert!(write_system_time(&memory, 0xff1, 1).is_err());
        assert_eq!(write_system_time(&memory, 0xffff_fff0, 1), Ok(()), "switched off");
    }

    #[test]
    fn stolen_time_adds_up() {
        let block = Box::new(HeapBlock::zeroed(0x1000, 0x1000).unwrap());
        let memory = GuestMemory::new(alloc::vec![Region::new(GuestPhys::new(0), block)]).unwrap();
        let mut steal = StealTime::default();
        steal.add(5, &memory);
        assert_eq!(steal.set_msr(0x43, &memory), None, "not aligned");
        steal.set_msr(0x41, &memory).unwrap();
        steal.add(7, &memory);
        assert_eq!(memory.read_u64(GuestPhys::new(0x40)), Ok(12));
        assert_eq!(memory.read_u32(GuestPhys::new(0x48)), Ok(4), "even: not being written");
        assert_eq!(steal.set_msr(0x1_0001, &memory), None, "no memory there");
    }
}
