//! Seconds since 1970 as a date and back, in the Gregorian calendar.

/// A moment to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// All four digits.
    pub(super) year: u16,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1 to 7, Sunday first.
    pub(super) weekday: u8,
    /// 0 to 23.
    pub(super) hour: u8,
    /// 0 to 59.
    pub(super) minute: u8,
    /// 0 to 59.
    pub(super) second: u8,
}

pub(super) const DAY_SECONDS: u64 = 86_400;
/// 400 years repeat exactly.
const ERA_DAYS: u64 = 146_097;
/// From 1 March of the year 0, where the eras below begin, to 1970.
const EPOCH_DAYS: u64 = 719_468;
/// The last second of 9999: later ones read as this one.
const LAST_SECOND: u64 = 253_402_300_799;

impl DateTime {
    /// The date `seconds` after 1970 began, at most the end of 9999.
    #[expect(clippy::arithmetic_side_effects, reason = "all terms are bounded by LAST_SECOND")]
    pub(super) fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(LAST_SECOND);
        let (days, time) = (seconds / DAY_SECONDS, seconds % DAY_SECONDS);
        // Count years from March, so that the leap day ends one.
        let since_march = days + EPOCH_DAYS;
        let (era, day_of_era) = (since_march / ERA_DAYS, since_march % ERA_DAYS);
        let leap_days = day_of_era / 1_460 + day_of_era / 146_096 - day_of_era / 36_524;
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // From March on, five months hold 153 days.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (year, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
        Self {
            year: (era * 400 + year_of_era + year) as u16,
            month: month as u8,
            day: day as u8,
            // 1970 began on a Thursday.
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (time / 3_600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since 1970; zero for earlier dates. Days and times past their end run over into the next
    /// month or day; the weekday does not matter.
    #[expect(clippy::arithmetic_side_effects, reason = "a u16 year and u8 fields stay far below 2^64")]
    pub(super) fn to_unix(self) -> u64 {
        let month = u64::from(self.month.clamp(1, 12));
        let early = month <= 2;
        let year = u64::from(self.year).saturating_sub(u64::from(early));
        let month_from_march = if early { month + 9 } else { month - 3 };
        let day_of_year = (153 * month_from_march + 2) / 5 + u64::from(self.day.max(1)) - 1;
        let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
        let time = u64::from(self.hour) * 3_600 + u64::from(self.minute) * 60 + u64::from(self.second);
        days.checked_sub(EPOCH_DAYS).map_or(0, |days| days * DAY_SECONDS + time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day, weekday, hour, minute, second| DateTime {
            year,
            month,
            day,
            weekday,
            hour,
            minute,
            second,
        };
        for (seconds, expected) in [
            (0, date(1970, 1, 1, 5, 0, 0, 0)),
            (951_782_400, date(2000, 2, 29, 3, 0, 0, 0)),
            (1_709_251_199, date(2024, 2, 29, 5, 23, 59, 59)),
            (1_709_251_200, date(2024, 3, 1, 6, 0, 0, 0)),
            (4_107_542_400, date(2100, 3, 1, 2, 0, 0, 0)),
            (LAST_SECOND, date(9999, 12, 31, 6, 23, 59, 59)),
        ] {
            assert_eq!(DateTime::from_unix(seconds), expected);
            assert_eq!(expected.to_unix(), seconds);
        }
    }

    proptest! {
        #[test]
        fn dates_and_seconds_agree(seconds in 0..=LAST_SECOND) {
            prop_assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }

        #[test]
        fn any_fields_make_a_date(
            year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8,
        ) {
            let date = DateTime { year, month, day, weekday: 0, hour, minute, second };
            DateTime::from_unix(date.to_unix());
        }
    }
}
