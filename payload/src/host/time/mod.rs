//! Time: the TSC, calibrated against everything on the board that counts at a known speed.

mod majority;
mod sources;

pub use majority::{Estimate, Source};

use super::acpi::Acpi;
use super::apic;
use super::cpu;
use crate::{info, warn};
use core::time::Duration;
use sources::{Counters, Reading, Sample, sample};
use spin::Once;
use vmm_core::time::Instant;

/// The shortest time over which counters are compared.
const WINDOW: Duration = Duration::from_millis(5);
/// The longest that is waited for the window to pass, in ticks of the TSC, should all counters stand still.
const PATIENCE: u64 = 1 << 28;

static CLOCK: Once<Clock> = Once::new();

/// The monotonic clock: nanoseconds since the payload was entered.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: u64,
    khz: u64,
    nanos_a_tick: Ratio,
    ticks_a_nano: Ratio,
}

/// A ratio to multiply by, exact to 63 bits: guests know the frequency itself, and an error of a millionth of a
/// thousandth would put their timers milliseconds apart from this clock after weeks.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    /// The ratio times two to the power of `shift`.
    factor: u64,
    shift: u32,
}

impl Ratio {
    /// `numerator` over `denominator`: neither is zero, nor above 2³⁸.
    const fn new(numerator: u64, denominator: u64) -> Self {
        let mut shift = 0;
        while shift < 89 && ((numerator as u128) << (shift + 1)) / denominator as u128 <= u64::MAX as u128 {
            shift += 1;
        }
        Self { factor: (((numerator as u128) << shift) / denominator as u128) as u64, shift }
    }

    /// `value` times this, rounded down; saturates.
    const fn times(self, value: u64) -> u64 {
        let product = (value as u128 * self.factor as u128) >> self.shift;
        if product > u64::MAX as u128 { u64::MAX } else { product as u64 }
    }
}

impl Clock {
    /// A clock that stood at zero when the TSC stood at `origin`; `khz` is not zero.
    pub const fn new(origin: u64, khz: u64) -> Self {
        let (nanos_a_tick, ticks_a_nano) = (Ratio::new(1_000_000, khz), Ratio::new(khz, 1_000_000));
        Self { origin, khz, nanos_a_tick, ticks_a_nano }
    }

    /// Now.
    pub fn now(&self) -> Instant {
        self.instant_at(cpu::tsc())
    }

    /// The TSC's frequency in kHz.
    pub const fn tsc_khz(&self) -> u64 {
        self.khz
    }

    /// The moment at which the TSC stood at `tsc`; the clock's origin for any time before.
    pub const fn instant_at(&self, tsc: u64) -> Instant {
        Instant::from_nanos(self.nanos_a_tick.times(tsc.saturating_sub(self.origin)))
    }

    /// What the TSC reads at `instant`, or a tick after; saturates.
    pub const fn tsc_at(&self, instant: Instant) -> u64 {
        self.origin.saturating_add(self.ticks_a_nano.times(instant.as_nanos())).saturating_add(1)
    }
}

/// How often something that runs at `khz` ticks in a nanosecond, times 2³²: so that nobody divides later.
pub const fn per_nano(khz: u64) -> u64 {
    (((khz as u128) << 32) / 1_000_000) as u64
}

/// A comparison of the TSC with the board's counters, under way.
pub struct Calibration {
    counters: Counters,
    start: Reading,
    apic_start: Sample,
}

impl Calibration {
    /// Begins to compare. The local APIC has been started.
    pub fn start(acpi: Option<&Acpi>) -> Self {
        let counters = Counters::find(acpi);
        let start = counters.read();
        Self { counters, start, apic_start: sample(apic_timer) }
    }

    /// Ends the comparison once it has lasted long enough, and starts the clock, whose origin is `origin`
    /// ticks of the TSC, and the APIC timer. What was done since the start has cost no time.
    pub fn finish(self, origin: u64) -> &'static Clock {
        let began = cpu::tsc();
        while self.counters.since(&self.start) < WINDOW && cpu::tsc() - began < PATIENCE {
            core::hint::spin_loop();
        }
        let apic_end = sample(apic_timer);
        // It counts 32 bits down.
        let apic_ticks = (self.apic_start.value as u32).wrapping_sub(apic_end.value as u32);
        let apic_span = apic_end.tsc - self.apic_start.tsc;
        let estimates = self.counters.estimates(&self.start);
        let chosen = majority::choose(&estimates).unwrap_or_else(|| {
            warn!("nothing says how fast the TSC runs; 1 GHz is assumed");
            Estimate { source: Source::BaseFrequency, khz: 1_000_000 }
        });
        for other in &estimates {
            if !other.agrees_with(&chosen) {
                warn!(
                    "{} says that the TSC runs at {} kHz, but {} says {}",
                    other.source, other.khz, chosen.source, chosen.khz
                );
            }
        }
        let agreeing = estimates.iter().filter(|other| other.agrees_with(&chosen)).count();
        let clock = CLOCK.call_once(|| Clock::new(origin, chosen.khz.max(1)));
        crate::log::set_clock(since_entry);
        info!(
            "time: TSC at {} kHz by {}; {agreeing} of {} sources agree",
            chosen.khz,
            chosen.source,
            estimates.len()
        );
        if !cpu::Features::read().invariant_tsc {
            info!("time: the CPU does not promise that the TSC never changes its speed");
        }
        let khz = u128::from(apic_ticks) * u128::from(chosen.khz) / u128::from(apic_span.max(1));
        apic::local::start_timer(khz as u64);
        clock
    }
}

/// What the local APIC's timer shows.
fn apic_timer() -> u64 {
    u64::from(apic::local::remaining_count())
}

/// Time since the payload was entered; zero until the clock runs.
fn since_entry() -> Duration {
    CLOCK.get().map_or(Duration::ZERO, |clock| clock.now().since(Instant::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::time::TscClock;

    #[test]
    fn instants_and_ticks_agree() {
        for khz in [1_000_000, 2_399_987, 3_600_000] {
            let clock = Clock::new(1_234, khz);
            assert_eq!(clock.instant_at(1_000), Instant::ZERO);
            for nanos in [0_u64, 1, 999, 5_000_000_000, 86_400_000_000_000] {
                let back = clock.instant_at(clock.tsc_at(Instant::from_nanos(nanos))).as_nanos();
                assert!(back.abs_diff(nanos) <= 1, "{khz} {nanos} {back}");
            }
            // A year, as somebody counts who knows nothing but the frequency: a guest.
            let year = 365 * 86_400 * 1_000 * khz;
            let guests = TscClock::new(khz, Instant::ZERO).instant_of(year);
            assert!(clock.instant_at(1_234 + year).as_nanos().abs_diff(guests.as_nanos()) <= 1, "{khz}");
        }
        assert_eq!(Clock::new(5, 3_000_000).tsc_at(Instant::from_nanos(u64::MAX)), u64::MAX);
    }
}
