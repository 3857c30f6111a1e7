//! Choosing one TSC frequency from several sources, none of which is trusted alone.

use core::fmt;

/// Who says how fast the TSC runs, the most exact first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// CPUID leaf 0x15: crystal and ratio.
    Crystal,
    /// CPUID leaf 0x4000_0010 of a hypervisor.
    Hypervisor,
    /// The HPET.
    Hpet,
    /// The ACPI PM timer.
    PmTimer,
    /// Channel 2 of the PIT.
    Pit,
    /// CPUID leaf 0x16: the nominal base frequency.
    BaseFrequency,
}

impl Source {
    /// How far it may be off, in parts per million.
    const fn tolerance(self) -> u64 {
        match self {
            Self::Crystal | Self::Hypervisor => 200,
            Self::Hpet | Self::PmTimer => 1_000,
            Self::Pit => 2_000,
            Self::BaseFrequency => 10_000,
        }
    }

    /// Whether this is the CPU's own word, not a measurement: the CPU has one voice, however many leaves say it.
    const fn is_declared(self) -> bool {
        matches!(self, Self::Crystal | Self::BaseFrequency)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crystal => "CPUID 0x15",
            Self::Hypervisor => "CPUID 0x40000010",
            Self::Hpet => "HPET",
            Self::PmTimer => "PM timer",
            Self::Pit => "PIT",
            Self::BaseFrequency => "CPUID 0x16",
        })
    }
}

/// One source's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Who says it.
    pub source: Source,
    /// Thousands of ticks a second.
    pub khz: u64,
}

impl Estimate {
    /// Whether the two are the same but for what either may be off.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let tolerance = self.source.tolerance().max(other.source.tolerance());
        let off = u128::from(self.khz.abs_diff(other.khz)) * 1_000_000;
        off <= u128::from(self.khz.max(other.khz)) * u128::from(tolerance)
    }
}

/// The most exact estimate among those that most others agree with.
pub fn choose(estimates: &[Estimate]) -> Option<Estimate> {
    let votes = |one: &Estimate| {
        let agreeing = |declared| {
            let said = estimates.iter().filter(move |other| other.source.is_declared() == declared);
            said.filter(|other| one.agrees_with(other)).count()
        };
        agreeing(false) + agreeing(true).min(1)
    };
    estimates.iter().copied().max_by_key(|one| (votes(one), core::cmp::Reverse(one.source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(source: Source, khz: u64) -> Estimate {
        Estimate { source, khz }
    }

    #[test]
    fn the_majority_outvotes_a_more_exact_liar() {
        let estimates = [
            estimate(Source::Crystal, 1_900_000),
            estimate(Source::Pit, 2_400_100),
            estimate(Source::PmTimer, 2_399_900),
            estimate(Source::Hpet, 2_400_000),
        ];
        assert_eq!(choose(&estimates), Some(estimates[3]));
        assert!(!estimates[0].agrees_with(&estimates[3]));
    }

    #[test]
    fn the_cpu_has_one_voice() {
        // An emulated CPU repeats what the real one would say of itself.
        let estimates = [
            estimate(Source::Crystal, 2_419_200),
            estimate(Source::PmTimer, 100_006),
            estimate(Source::Pit, 99_995),
            estimate(Source::BaseFrequency, 2_419_000),
        ];
        assert_eq!(choose(&estimates), Some(estimates[1]));
    }

    #[test]
    fn among_equals_the_most_exact_is_chosen() {
        let estimates = [
            estimate(Source::Pit, 2_400_100),
            estimate(Source::BaseFrequency, 2_420_000),
            estimate(Source::Crystal, 2_400_000),
        ];
        assert_eq!(choose(&estimates), Some(estimates[2]));
        let two = [estimate(Source::Pit, 1_000_000), estimate(Source::Hpet, 2_000_000)];
        assert_eq!(choose(&two), Some(two[1]), "without a majority the more exact source is believed");
        assert_eq!(choose(&[]), None);
    }
}
