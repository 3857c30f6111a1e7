//! The real-time clock (MC146818), read once for the date that guests start with.

use super::port::Ports;

/// Index and data port.
const CMOS: u16 = 0x70;
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
/// Status A: an update is under way.
const UPDATING: u8 = 1 << 7;
/// Status B: registers are binary, not BCD; hours count to 24.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Hours in 12-hour mode: afternoon.
const AFTERNOON: u8 = 1 << 7;
/// How often a clock that never stops updating is asked.
const PATIENCE: u32 = 100_000;

/// The clock's registers at one moment: second, minute, hour, day, month, year of the century.
type Reading = [u8; 6];

/// Seconds since 1970 by the clock, taken as UTC in this century; zero where there is no sensible clock.
pub fn unix_time() -> u64 {
    let Some(ports) = Ports::new(CMOS, 2) else { return 0 };
    let read = |register| {
        ports.write_u8(0, register);
        ports.read_u8(1)
    };
    let registers = || -> Reading {
        for _ in 0..PATIENCE {
            if read(STATUS_A) & UPDATING == 0 {
                break;
            }
        }
        [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR].map(read)
    };
    // Two equal readings are one that no update cut in two.
    let mut last = registers();
    for _ in 0..4 {
        let next = registers();
        if next == last {
            return seconds(next, read(STATUS_B)).unwrap_or(0);
        }
        last = next;
    }
    0
}

/// Seconds since 1970 that a reading means; `None` where it is no date.
fn seconds(reading: Reading, status_b: u8) -> Option<u64> {
    let binary = |value: u8| match status_b & BINARY {
        0 => (value >> 4).saturating_mul(10).saturating_add(value & 0xf),
        _ => value,
    };
    let [second, minute, hour, day, month, year] = reading;
    let (second, minute, day, month) = (binary(second), binary(minute), binary(day), binary(month));
    let year = 2000 + u64::from(binary(year));
    let hour = if status_b & HOURS_24 != 0 {
        binary(hour)
    } else {
        binary(hour & !AFTERNOON) % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 }
    };
    if second > 59 || minute > 59 || hour > 23 || !(1..=31).contains(&day) || !(1..=12).contains(&month) {
        return None;
    }
    // Years counted from March, so that the leap day is a year's last.
    let (month, year) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * u64::from(month) + 2) / 5 + u64::from(day)
            - 1;
    const DAYS_TO_1970: u64 = 719_468;
    Some((days - DAYS_TO_1970) * 86_400 + u64::from(hour) * 3600 + u64::from(minute) * 60 + u64::from(second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_seconds() {
        let bcd = HOURS_24;
        assert_eq!(seconds([0x00, 0x00, 0x00, 0x01, 0x01, 0x00], bcd), Some(946_684_800));
        assert_eq!(seconds([0x59, 0x59, 0x23, 0x29, 0x02, 0x24], bcd), Some(1_709_251_199));
        assert_eq!(seconds([0x00, 0x00, 0x00, 0x01, 0x03, 0x24], bcd), Some(1_709_251_200));
        assert_eq!(seconds([59, 59, 23, 31, 12, 26], HOURS_24 | BINARY), Some(1_798_761_599));
        assert_eq!(seconds([0, 0, 0x12, 1, 1, 0], 0), Some(946_684_800), "12 am");
        assert_eq!(seconds([0, 0, 0x92, 1, 1, 0], 0), Some(946_684_800 + 43_200), "12 pm");
        assert_eq!(seconds([0, 0, 0, 0, 1, 0], bcd), None);
        assert_eq!(seconds([0xff; 6], bcd), None, "no clock there");
    }
}
