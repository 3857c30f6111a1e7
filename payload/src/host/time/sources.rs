//! What counts at a known speed: CPUID's own word, the HPET, the ACPI PM timer and the PIT.

use super::majority::{Estimate, Source};
use crate::host::acpi::{Acpi, Register, Space};
use crate::host::cpu;
use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, map_device};
use crate::host::port::Ports;
use alloc::vec::Vec;
use core::time::Duration;

/// The PM timer's frequency (ACPI 6.5, 4.8.2.1).
const PM_TIMER_HZ: u64 = 3_579_545;
/// The PIT's frequency.
const PIT_HZ: u64 = 1_193_182;
/// A counter is read so often, and the quickest reading is believed.
const TRIES: usize = 4;

/// The board's counters, as far as they are there.
pub struct Counters {
    hpet: Option<HpetCounter>,
    pm_timer: Option<PmTimer>,
    pit: Option<PitChannel2>,
}

/// A counter's value and the TSC's at that moment.
#[derive(Clone, Copy)]
pub struct Sample {
    pub tsc: u64,
    pub value: u64,
}

/// All counters at about one moment.
pub struct Reading {
    hpet: Option<Sample>,
    pm_timer: Option<Sample>,
    pit: Option<Sample>,
}

/// Reads a counter between two readings of the TSC, several times, and keeps the closest pair: between two
/// readings this CPU may be kept busy for milliseconds, by SMM or by an emulator.
pub fn sample(read: impl Fn() -> u64) -> Sample {
    let once = |_| {
        let before = cpu::tsc();
        let value = read();
        let width = cpu::tsc() - before;
        (width, Sample { tsc: before + width / 2, value })
    };
    let first = once(0);
    (1..TRIES).map(once).fold(first, |best, next| if next.0 < best.0 { next } else { best }).1
}

impl Counters {
    /// Finds and starts the counters that `acpi` names, and the PIT.
    pub fn find(acpi: Option<&Acpi>) -> Self {
        let fadt = acpi.and_then(|acpi| acpi.fadt.as_ref());
        Self {
            hpet: acpi.and_then(|acpi| acpi.hpet).and_then(HpetCounter::start),
            pm_timer: fadt.and_then(|fadt| PmTimer::new(fadt.pm_timer?, fadt.pm_timer_32_bits)),
            pit: PitChannel2::start(),
        }
    }

    /// Reads them all.
    pub fn read(&self) -> Reading {
        Reading {
            hpet: self.hpet.as_ref().map(|hpet| sample(|| u64::from(hpet.count()))),
            pm_timer: self.pm_timer.as_ref().map(|timer| sample(|| u64::from(timer.count()))),
            pit: self.pit.as_ref().map(|pit| sample(|| u64::from(pit.count()))),
        }
    }

    /// The longest time that any counter has seen pass since `start`; without counters, for ever.
    pub fn since(&self, start: &Reading) -> Duration {
        let hpet = self.hpet.as_ref().zip(start.hpet);
        let hpet = hpet.map(|(hpet, start)| hpet.nanos(u64::from(hpet.count()), start.value));
        let pm_timer = self.pm_timer.as_ref().zip(start.pm_timer);
        let pm_timer = pm_timer.map(|(timer, start)| timer.nanos(u64::from(timer.count()), start.value));
        let pit = self.pit.as_ref().zip(start.pit);
        let pit = pit.and_then(|(pit, start)| pit.nanos(u64::from(pit.count()), start.value));
        let longest = [hpet, pm_timer, pit].into_iter().flatten().max();
        longest.map_or(Duration::MAX, Duration::from_nanos)
    }

    /// What each source says, now that time has passed since `start`. A counter that stood still says nothing.
    pub fn estimates(&self, start: &Reading) -> Vec<Estimate> {
        let end = self.read();
        let measured = |source, start: Option<Sample>, end: Option<Sample>, nanos: Option<u64>| {
            let ticks = end?.tsc.checked_sub(start?.tsc)?;
            let nanos = nanos.filter(|nanos| *nanos > 0)?;
            let khz = u128::from(ticks) * 1_000_000 / u128::from(nanos);
            Some(Estimate { source, khz: khz as u64 })
        };
        let both = |start: Option<Sample>, end: Option<Sample>| Some((end?.value, start?.value));
        let hpet = both(start.hpet, end.hpet)
            .and_then(|(end, start)| self.hpet.as_ref().map(|hpet| hpet.nanos(end, start)));
        let pm_timer = both(start.pm_timer, end.pm_timer)
            .and_then(|(end, start)| self.pm_timer.as_ref().map(|timer| timer.nanos(end, start)));
        let pit = both(start.pit, end.pit)
            .and_then(|(end, start)| self.pit.as_ref().and_then(|pit| pit.nanos(end, start)));
        [
            crystal(),
            hypervisor(),
            measured(Source::Hpet, start.hpet, end.hpet, hpet),
            measured(Source::PmTimer, start.pm_timer, end.pm_timer, pm_timer),
            measured(Source::Pit, start.pit, end.pit, pit),
            base_frequency(),
        ]
        .into_iter()
        .flatten()
        .filter(|estimate| estimate.khz > 0)
        .collect()
    }
}

/// CPUID 0x15: EBX/EAX times the crystal's frequency in ECX (SDM 2A).
fn crystal() -> Option<Estimate> {
    let [denominator, numerator, hertz, _] = cpu::cpuid(0x15, 0);
    if denominator == 0 || numerator == 0 || hertz == 0 {
        return None;
    }
    let hertz = u128::from(hertz) * u128::from(numerator) / u128::from(denominator);
    Some(Estimate { source: Source::Crystal, khz: (hertz / 1000) as u64 })
}

/// CPUID 0x40000010: the TSC's frequency in kHz, from hypervisors that follow VMware's custom.
fn hypervisor() -> Option<Estimate> {
    /// CPUID.1:ECX: a hypervisor is present.
    const PRESENT: u32 = 1 << 31;
    if cpu::cpuid(1, 0)[2] & PRESENT == 0 {
        return None;
    }
    let khz = cpu::cpuid(0x4000_0010, 0)[0];
    (khz != 0).then_some(Estimate { source: Source::Hypervisor, khz: u64::from(khz) })
}

/// CPUID 0x16: the base frequency in MHz, in EAX.
fn base_frequency() -> Option<Estimate> {
    let mhz = cpu::cpuid(0x16, 0)[0] & 0xffff;
    (mhz != 0).then_some(Estimate { source: Source::BaseFrequency, khz: u64::from(mhz) * 1000 })
}

/// The HPET's main counter (HPET specification, 2.3).
struct HpetCounter {
    registers: Mmio,
    femtoseconds: u64,
}

impl HpetCounter {
    const PERIOD: u64 = 0x04;
    const CONFIGURATION: u64 = 0x10;
    const COUNTER: u64 = 0xf0;
    /// In the configuration: the counter runs.
    const ENABLE: u32 = 1;
    /// A longer period than 100 ns is against the specification.
    const LONGEST_PERIOD: u32 = 100_000_000;

    fn start(at: u64) -> Option<Self> {
        let registers = map_device(Range::with_len(at, 0x400), Cache::Uncached).ok()?;
        let femtoseconds = registers.read_u32(Self::PERIOD);
        if !(1..=Self::LONGEST_PERIOD).contains(&femtoseconds) {
            return None;
        }
        let configuration = registers.read_u32(Self::CONFIGURATION);
        registers.write_u32(Self::CONFIGURATION, configuration | Self::ENABLE);
        Some(Self { registers, femtoseconds: u64::from(femtoseconds) })
    }

    fn count(&self) -> u32 {
        self.registers.read_u32(Self::COUNTER)
    }

    fn nanos(&self, end: u64, start: u64) -> u64 {
        u64::from((end as u32).wrapping_sub(start as u32)) * self.femtoseconds / 1_000_000
    }
}

/// The ACPI PM timer.
struct PmTimer {
    port: Ports,
    mask: u64,
}

impl PmTimer {
    fn new(register: Register, bits_32: bool) -> Option<Self> {
        let port = u16::try_from(register.address).ok().filter(|_| register.space == Space::Port)?;
        Some(Self { port: Ports::new(port, 4)?, mask: if bits_32 { 0xffff_ffff } else { 0xff_ffff } })
    }

    fn count(&self) -> u32 {
        self.port.read_u32(0)
    }

    fn nanos(&self, end: u64, start: u64) -> u64 {
        (end.wrapping_sub(start) & self.mask) * 1_000_000_000 / PM_TIMER_HZ
    }
}

/// The PIT's channel 2, counting down once from 65535: 55 ms.
struct PitChannel2 {
    counter: Ports,
    command: Ports,
    control: Ports,
}

impl PitChannel2 {
    /// System control port B: bit 0 lets channel 2 count, bit 1 lets the speaker hear it, bit 5 is its output.
    const GATE: u8 = 1 << 0;
    const SPEAKER: u8 = 1 << 1;
    const OUTPUT: u8 = 1 << 5;
    /// Channel 2, both bytes, mode 0: the output goes high at zero.
    const COUNT_ONCE: u8 = 0b1011_0000;
    /// Channel 2: hold the count for reading.
    const LATCH: u8 = 0b1000_0000;

    fn start() -> Option<Self> {
        let pit = Self {
            counter: Ports::new(0x42, 1)?,
            command: Ports::new(0x43, 1)?,
            control: Ports::new(0x61, 1)?,
        };
        let control = pit.control.read_u8(0) & !(Self::SPEAKER | Self::GATE);
        pit.control.write_u8(0, control);
        pit.command.write_u8(0, Self::COUNT_ONCE);
        pit.counter.write_u8(0, 0xff);
        pit.counter.write_u8(0, 0xff);
        pit.control.write_u8(0, control | Self::GATE);
        Some(pit)
    }

    fn count(&self) -> u16 {
        self.command.write_u8(0, Self::LATCH);
        u16::from_le_bytes([self.counter.read_u8(0), self.counter.read_u8(0)])
    }

    /// `None` once it has run out.
    fn nanos(&self, end: u64, start: u64) -> Option<u64> {
        let running = self.control.read_u8(0) & Self::OUTPUT == 0;
        running.then(|| start.saturating_sub(end) * 1_000_000_000 / PIT_HZ)
    }
}
