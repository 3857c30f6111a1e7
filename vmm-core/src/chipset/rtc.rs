//! The MC146818 real-time clock and the CMOS memory behind it.

use super::calendar::{DAY_SECONDS, DateTime};
use super::layout::{CMOS_CENTURY, CMOS_PORT};
use super::oscillator::Oscillator;
use crate::time::Instant;

/// CMOS addresses of the clock's registers.
mod register {
    pub const SECOND: u8 = 0x00;
    pub const SECOND_ALARM: u8 = 0x01;
    pub const MINUTE: u8 = 0x02;
    pub const MINUTE_ALARM: u8 = 0x03;
    pub const HOUR: u8 = 0x04;
    pub const HOUR_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
}

const A_UPDATING: u8 = 1 << 7;
/// The divider that makes seconds of a 32768 Hz quartz.
const A_RUNNING: u8 = 0b010 << 4;
const A_DIVIDER: u8 = 0b111 << 4;

const B_SET: u8 = 1 << 7;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;

/// Flags in register C, each enabled by the same bit of register B.
const FLAG_PERIODIC: u8 = 1 << 6;
const FLAG_ALARM: u8 = 1 << 5;
const FLAG_UPDATE: u8 = 1 << 4;
const FLAGS: u8 = FLAG_PERIODIC | FLAG_ALARM | FLAG_UPDATE;
const C_REQUEST: u8 = 1 << 7;

/// RAM and time are valid: the battery is good.
const D_VALID: u8 = 1 << 7;

/// How long before a second's end the update-in-progress bit is on.
const UPDATE_NANOS: u64 = 244_000;
const SECOND_NANOS: u64 = 1_000_000_000;
/// The first second after the divider's reset is half a second.
const RESTART_NANOS: u64 = SECOND_NANOS / 2;

/// An alarm register of this value or above matches always.
const ALARM_ANY: u8 = 0xc0;

/// The clock and 256 bytes of CMOS memory.
#[derive(Debug)]
pub(super) struct Rtc {
    /// All but the running clock's own registers.
    cmos: [u8; 256],
    index: u8,
    upper_index: u8,
    /// The time when it stood still or last was set, in seconds since 1970.
    seconds: u64,
    /// When `seconds` ends; `None` while the clock stands still.
    next_second: Option<Instant>,
    /// Register C's flags.
    flags: u8,
    /// Up to when `flags` tell what happened.
    seen: Instant,
}

impl Rtc {
    /// A clock that shows `unix_seconds` at `now`, in BCD and 24 hours as firmware leaves it.
    pub(super) fn new(unix_seconds: u64, now: Instant) -> Self {
        let mut rtc = Self {
            cmos: [0; 256],
            index: 0,
            upper_index: 0,
            seconds: unix_seconds,
            next_second: Some(now.plus_nanos(SECOND_NANOS)),
            flags: 0,
            seen: now,
        };
        rtc.set_cmos(register::A, A_RUNNING | 6);
        rtc.set_cmos(register::B, B_24_HOURS);
        rtc.set_cmos(register::D, D_VALID);
        rtc
    }

    /// Fills the bytes that firmware keeps about memory: what lies below 4 GiB and what lies above.
    pub(super) fn describe_memory(&mut self, low_bytes: u64, high_bytes: u64) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let mut word = |at: u8, value: u64| {
            let [low, high] = u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
            self.set_cmos(at, low);
            self.set_cmos(at.wrapping_add(1), high);
        };
        word(0x15, 640);
        let extended = low_bytes.saturating_sub(MIB).wrapping_div(KIB);
        word(0x17, extended);
        word(0x30, extended);
        word(0x34, low_bytes.saturating_sub(16 * MIB).wrapping_div(64 * KIB));
        let high = high_bytes.wrapping_div(64 * KIB).min(0xff_ffff);
        let [low, middle, top, ..] = high.to_le_bytes();
        for (at, byte) in [(0x5b, low), (0x5c, middle), (0x5d, top)] {
            self.set_cmos(at, byte);
        }
        // A coprocessor, no floppy; and the checksum over what describes the machine.
        self.set_cmos(0x14, 0x02);
        let sum = (0x10..=0x2d).fold(0u16, |sum, at| sum.wrapping_add(u16::from(self.cmos(at))));
        let [low, high] = sum.to_be_bytes();
        self.set_cmos(0x2e, low);
        self.set_cmos(0x2f, high);
    }

    /// Reads one of the four ports; `None` when it is not one. [`Self::advance`] comes first.
    pub(super) fn read(&mut self, port: u16, now: Instant) -> Option<u8> {
        match port.wrapping_sub(CMOS_PORT) {
            // Indexes are write-only.
            0 | 2 => Some(0xff),
            1 => Some(self.read_cmos(self.index, now)),
            3 => Some(self.read_cmos(self.upper_index, now)),
            _ => None,
        }
    }

    /// Writes one of the four ports; `None` when it is not one. [`Self::advance`] comes first.
    pub(super) fn write(&mut self, port: u16, value: u8, now: Instant) -> Option<()> {
        match port.wrapping_sub(CMOS_PORT) {
            // Bit 7 masks NMIs, of which this board's sources have none.
            0 => self.index = value & 0x7f,
            1 => self.write_cmos(self.index, value, now),
            2 => self.upper_index = value | 0x80,
            3 => self.write_cmos(self.upper_index, value, now),
            _ => return None,
        }
        Some(())
    }

    /// The interrupt wire.
    pub(super) fn irq(&self) -> bool {
        self.flags & self.cmos(register::B) & FLAGS != 0
    }

    /// When an enabled interrupt next happens. None while one is pending: the wire is high already.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let enabled = self.cmos(register::B) & FLAGS;
        if enabled == 0 || self.irq() {
            return None;
        }
        let periodic = (enabled & FLAG_PERIODIC != 0).then(|| self.next_period()).flatten();
        let update = self.next_update().filter(|_| enabled & FLAG_UPDATE != 0);
        let alarm = (enabled & FLAG_ALARM != 0).then(|| self.next_alarm()).flatten();
        [periodic, update, alarm].into_iter().flatten().min()
    }

    /// Notes in register C what happened up to `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        let due = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        if due(self.next_period()) {
            self.flags |= FLAG_PERIODIC;
        }
        if due(self.next_update()) {
            self.flags |= FLAG_UPDATE;
            if due(self.next_alarm()) {
                self.flags |= FLAG_ALARM;
            }
        }
        self.seen = self.seen.max(now);
    }

    #[expect(clippy::indexing_slicing, reason = "a byte indexes 256 of them")]
    const fn cmos(&self, at: u8) -> u8 {
        self.cmos[at as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "a byte indexes 256 of them")]
    const fn set_cmos(&mut self, at: u8, value: u8) {
        self.cmos[at as usize] = value;
    }

    fn read_cmos(&mut self, at: u8, now: Instant) -> u8 {
        match at {
            register::A => {
                let updating =
                    self.next_second.is_some() && self.second_end(now).nanos_since(now) <= UPDATE_NANOS;
                self.cmos(at) | if updating { A_UPDATING } else { 0 }
            }
            register::C => {
                let request = if self.irq() { C_REQUEST } else { 0 };
                core::mem::take(&mut self.flags) | request
            }
            at if is_time(at) && self.next_second.is_some() => self.encode_time(at, self.seconds_at(now)),
            at => self.cmos(at),
        }
    }

    fn write_cmos(&mut self, at: u8, value: u8, now: Instant) {
        match at {
            register::A => {
                self.set_cmos(at, value & !A_UPDATING);
                self.start_or_stop(now, RESTART_NANOS);
            }
            register::B => {
                // Setting the clock takes the update interrupt away.
                let value = if value & B_SET != 0 { value & !B_UPDATE } else { value };
                // The registers change their format only when they are next written.
                self.set_cmos(at, value);
                self.start_or_stop(now, SECOND_NANOS);
            }
            register::C | register::D => {}
            at if is_time(at) && self.next_second.is_some() => {
                self.hold_time(self.seconds_at(now));
                self.set_cmos(at, value);
                self.next_second = Some(self.second_end(now));
                self.seconds = self.decode_time();
            }
            at => self.set_cmos(at, value),
        }
    }

    /// The clock runs while its divider does and nobody sets it.
    fn start_or_stop(&mut self, now: Instant, first_second: u64) {
        let runs = self.cmos(register::A) & A_DIVIDER == A_RUNNING && self.cmos(register::B) & B_SET == 0;
        match (self.next_second, runs) {
            (Some(_), false) => {
                self.seconds = self.seconds_at(now);
                self.next_second = None;
                self.hold_time(self.seconds);
            }
            (None, true) => {
                self.seconds = self.decode_time();
                self.next_second = Some(now.plus_nanos(first_second));
            }
            _ => {}
        }
    }

    fn seconds_at(&self, now: Instant) -> u64 {
        match self.next_second {
            Some(next) if next <= now => {
                let whole = now.nanos_since(next).wrapping_div(SECOND_NANOS);
                self.seconds.saturating_add(whole).saturating_add(1)
            }
            _ => self.seconds,
        }
    }

    /// When the second that runs at `now` ends.
    fn second_end(&self, now: Instant) -> Instant {
        match self.next_second {
            Some(next) if next <= now => {
                let into = now.nanos_since(next).wrapping_rem(SECOND_NANOS);
                now.plus_nanos(SECOND_NANOS.saturating_sub(into))
            }
            next => next.unwrap_or(now),
        }
    }

    /// The first update later than what was seen.
    fn next_update(&self) -> Option<Instant> {
        self.next_second.map(|_| self.second_end(self.seen))
    }

    /// The first periodic tick later than what was seen.
    fn next_period(&self) -> Option<Instant> {
        let a = self.cmos(register::A);
        let ticks = match a & 0x0f {
            0 => return None,
            // The two lowest rates of a 32768 Hz quartz repeat 8 and 9.
            rate @ 1..=2 => 64u64 << rate,
            rate => 1 << rate.saturating_sub(1),
        };
        if a & A_DIVIDER != A_RUNNING {
            return None;
        }
        let seen = Oscillator::RTC.ticks_at(self.seen).checked_div(ticks)?;
        Some(Oscillator::RTC.instant_of(seen.saturating_add(1).saturating_mul(ticks)))
    }

    /// The first match of the alarm registers later than what was seen; `None` when there can be none.
    fn next_alarm(&self) -> Option<Instant> {
        let update = self.next_update()?;
        let first = self.seconds_at(self.seen).wrapping_rem(DAY_SECONDS).saturating_add(1);
        let field = |at, decode: fn(&Self, u8) -> u8| match self.cmos(at) {
            ALARM_ANY.. => None,
            value => Some(u64::from(decode(self, value))),
        };
        let hour = field(register::HOUR_ALARM, Self::decode_hour);
        let minute = field(register::MINUTE_ALARM, Self::decode);
        let second = field(register::SECOND_ALARM, Self::decode);
        let differs = |alarm: Option<u64>, now: u64| alarm.is_some_and(|alarm| alarm != now);
        let next_multiple = |at: u64, unit: u64| at.saturating_add(1).next_multiple_of(unit);

        if second.is_some_and(|second| second > 59) || minute.is_some_and(|minute| minute > 59) {
            return None;
        }

        // Walk on by the largest unit that does not match: at most a day's hours, an hour's minutes and a
        // minute's seconds.
        let mut at = first;
        while at <= first.saturating_add(DAY_SECONDS) {
            let time = at.wrapping_rem(DAY_SECONDS);
            if differs(hour, time.wrapping_div(3_600)) {
                at = next_multiple(at, 3_600);
            } else if differs(minute, time.wrapping_div(60).wrapping_rem(60)) {
                at = next_multiple(at, 60);
            } else if differs(second, time.wrapping_rem(60)) {
                at = at.saturating_add(1);
            } else {
                return Some(update.plus_nanos(at.saturating_sub(first).saturating_mul(SECOND_NANOS)));
            }
        }
        None
    }

    /// Puts a moment into the time registers, in the guest's format.
    fn hold_time(&mut self, seconds: u64) {
        for at in 0..=u8::MAX {
            if is_time(at) {
                self.set_cmos(at, self.encode_time(at, seconds));
            }
        }
    }

    /// What the time register `at` shows of a moment.
    fn encode_time(&self, at: u8, seconds: u64) -> u8 {
        let date = DateTime::from_unix(seconds);
        self.encode(match at {
            register::SECOND => date.second,
            register::MINUTE => date.minute,
            register::HOUR => return self.encode_hour(date.hour),
            register::WEEKDAY => date.weekday,
            register::DAY => date.day,
            register::MONTH => date.month,
            register::YEAR => date.year.wrapping_rem(100) as u8,
            _ => date.year.wrapping_div(100) as u8,
        })
    }

    /// The moment in the time registers. The weekday follows from the date.
    fn decode_time(&self) -> u64 {
        let field = |at| self.decode(self.cmos(at));
        let century = u16::from(field(CMOS_CENTURY));
        DateTime {
            year: century.wrapping_mul(100).wrapping_add(u16::from(field(register::YEAR))),
            month: field(register::MONTH),
            day: field(register::DAY),
            weekday: 1,
            hour: self.decode_hour(self.cmos(register::HOUR)),
            minute: field(register::MINUTE),
            second: field(register::SECOND),
        }
        .to_unix()
    }

    const fn is_binary(&self) -> bool {
        self.cmos(register::B) & B_BINARY != 0
    }

    const fn encode(&self, value: u8) -> u8 {
        if self.is_binary() { value } else { value.wrapping_div(10) << 4 | value.wrapping_rem(10) }
    }

    const fn decode(&self, value: u8) -> u8 {
        if self.is_binary() { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 0xf) }
    }

    /// In 12-hour mode bit 7 means afternoon, and midnight is 12.
    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos(register::B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let of_twelve = match hour.wrapping_rem(12) {
            0 => 12,
            other => other,
        };
        self.encode(of_twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.cmos(register::B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & 0x7f).wrapping_rem(12);
        if value & 0x80 != 0 { hour.wrapping_add(12) } else { hour }
    }
}

const fn is_time(at: u8) -> bool {
    matches!(
        at,
        register::SECOND | register::MINUTE | register::HOUR | register::WEEKDAY
            ..=register::YEAR | CMOS_CENTURY
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = SECOND_NANOS;
    /// 2024-02-29 23:59:58.
    const LEAP_NIGHT: u64 = 1_709_251_198;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn read(rtc: &mut Rtc, register: u8, now: u64) -> u8 {
        rtc.advance(at(now));
        rtc.write(0x70, register, at(now)).unwrap();
        rtc.read(0x71, at(now)).unwrap()
    }

    fn write(rtc: &mut Rtc, register: u8, value: u8, now: u64) {
        rtc.advance(at(now));
        rtc.write(0x70, register, at(now)).unwrap();
        rtc.write(0x71, value, at(now)).unwrap();
    }

    fn time(rtc: &mut Rtc, now: u64) -> [u8; 7] {
        [CMOS_CENTURY, 9, 8, 7, 4, 2, 0].map(|register| read(rtc, register, now))
    }

    #[test]
    fn time_passes_over_the_leap_day() {
        let mut rtc = Rtc::new(LEAP_NIGHT, at(500));
        assert_eq!(time(&mut rtc, 500), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
        assert_eq!(read(&mut rtc, 6, 500), 5, "Thursday");
        assert_eq!(time(&mut rtc, 499 + SECOND), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
        assert_eq!(time(&mut rtc, 500 + 2 * SECOND), [0x20, 0x24, 0x03, 0x01, 0, 0, 0]);
    }

    #[test]
    fn the_update_bit_warns_of_the_second() {
        let mut rtc = Rtc::new(0, at(0));
        assert_eq!(read(&mut rtc, 0x0a, 0), 0x26);
        assert_eq!(read(&mut rtc, 0x0a, 5 * SECOND - 244_001), 0x26);
        assert_eq!(read(&mut rtc, 0x0a, 5 * SECOND - 244_000), 0xa6);
        assert_eq!(read(&mut rtc, 0x0a, 5 * SECOND - 1), 0xa6);
        assert_eq!(read(&mut rtc, 0x0a, 5 * SECOND), 0x26);
        assert_eq!(read(&mut rtc, 0x0d, 0), 0x80);
    }

    /// Linux's way of setting it: SET, divider reset, registers, divider, SET off.
    #[test]
    fn it_can_be_set() {
        let mut rtc = Rtc::new(0, at(0));
        write(&mut rtc, 0x0b, 0x82, 0);
        write(&mut rtc, 0x0a, 0x76, 0);
        for (register, value) in
            [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59), (CMOS_CENTURY, 0x19)]
        {
            write(&mut rtc, register, value, 3 * SECOND);
        }
        assert_eq!(time(&mut rtc, 9 * SECOND), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]);
        write(&mut rtc, 0x0b, 0x02, 9 * SECOND);
        write(&mut rtc, 0x0a, 0x26, 9 * SECOND);
        assert_eq!(time(&mut rtc, 9 * SECOND + SECOND / 2 - 1)[6], 0x59);
        assert_eq!(time(&mut rtc, 9 * SECOND + SECOND / 2), [0x20, 0, 0x01, 0x01, 0, 0, 0]);
        write(&mut rtc, 0, 0x30, 10 * SECOND);
        assert_eq!(time(&mut rtc, 10 * SECOND), [0x20, 0, 0x01, 0x01, 0, 0, 0x30], "while it runs");
        assert_eq!(time(&mut rtc, 10 * SECOND + SECOND / 2)[6], 0x31, "and in step");
    }

    #[test]
    fn binary_and_twelve_hours() {
        let mut rtc = Rtc::new(LEAP_NIGHT, at(0));
        write(&mut rtc, 0x0b, 0x04, 0);
        assert_eq!(time(&mut rtc, 0), [20, 24, 2, 29, 0x80 | 11, 59, 58]);
        assert_eq!(read(&mut rtc, 4, 2 * SECOND), 12, "midnight");
        write(&mut rtc, 4, 0x80 | 12, 2 * SECOND);
        write(&mut rtc, 0x0b, 0x02, 2 * SECOND);
        assert_eq!(read(&mut rtc, 4, 2 * SECOND), 0x12, "noon");
    }

    #[test]
    fn an_update_interrupts_until_c_is_read() {
        let mut rtc = Rtc::new(0, at(0));
        write(&mut rtc, 0x0b, 0x12, 10);
        assert_eq!(rtc.next_deadline(), Some(at(SECOND)));
        rtc.advance(at(SECOND));
        assert!(rtc.irq());
        assert_eq!(rtc.next_deadline(), None);
        assert_eq!(read(&mut rtc, 0x0c, SECOND) & 0xb0, 0x90);
        assert!(!rtc.irq());
        assert_eq!(rtc.next_deadline(), Some(at(2 * SECOND)));
        write(&mut rtc, 0x0b, 0x92, SECOND + 10);
        assert_eq!(rtc.next_deadline(), None, "SET stops updates");
        assert_eq!(read(&mut rtc, 0x0b, SECOND + 10), 0x82);
    }

    #[test]
    fn an_alarm_comes_when_all_fields_match() {
        let mut rtc = Rtc::new(LEAP_NIGHT, at(0));
        for (register, value) in [(5, 0x06), (3, 0x30), (1, 0x15), (0x0b, 0x22)] {
            write(&mut rtc, register, value, 0);
        }
        let due = (2 + 6 * 3600 + 30 * 60 + 15) * SECOND;
        assert_eq!(rtc.next_deadline(), Some(at(due)));
        rtc.advance(at(due - 1));
        assert!(!rtc.irq());
        rtc.advance(at(due));
        assert!(rtc.irq());
        assert_eq!(read(&mut rtc, 0x0c, due) & 0xa0, 0xa0);
        assert_eq!(rtc.next_deadline(), Some(at(due + DAY_SECONDS * SECOND)));
        write(&mut rtc, 5, 0xff, due);
        assert_eq!(rtc.next_deadline(), Some(at(due + 3600 * SECOND)));
        write(&mut rtc, 3, 0xff, due);
        assert_eq!(rtc.next_deadline(), Some(at(due + 60 * SECOND)));
        write(&mut rtc, 1, 0xff, due);
        assert_eq!(rtc.next_deadline(), Some(at(due + SECOND)));
        write(&mut rtc, 5, 0x24, due);
        assert_eq!(rtc.next_deadline(), None, "never 24 o'clock");
        write(&mut rtc, 5, 0xff, due);
        write(&mut rtc, 1, 0x60, due);
        assert_eq!(rtc.next_deadline(), None, "nor 60 seconds");
    }

    #[test]
    fn the_periodic_rate_is_a_power_of_two() {
        let mut rtc = Rtc::new(0, at(0));
        for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
            write(&mut rtc, 0x0a, 0x20 | rate, 1);
            write(&mut rtc, 0x0b, 0x42, 1);
            read(&mut rtc, 0x0c, 1);
            assert_eq!(rtc.next_deadline(), Some(at(SECOND.div_ceil(hz))), "{hz} Hz");
        }
        write(&mut rtc, 0x0a, 0x20, 1);
        assert_eq!(rtc.next_deadline(), None);
        write(&mut rtc, 0x0a, 0x26, 1);
        rtc.advance(at(SECOND));
        assert_eq!(read(&mut rtc, 0x0c, SECOND) & 0xc0, 0xc0);
    }

    #[test]
    fn cmos_remembers_and_describes_memory() {
        let mut rtc = Rtc::new(0, at(0));
        rtc.describe_memory(256 << 20, 1 << 30);
        let mut word =
            |register| u16::from_le_bytes([read(&mut rtc, register, 0), read(&mut rtc, register + 1, 0)]);
        assert_eq!([word(0x15), word(0x17), word(0x30)], [640, 65535, 65535]);
        assert_eq!(word(0x34), (240 << 20 >> 16) as u16);
        assert_eq!([word(0x5b), word(0x5d)], [0x4000, 0]);
        let sum: u16 = (0x10..=0x2d).map(|register| u16::from(read(&mut rtc, register, 0))).sum();
        assert_eq!(sum.to_be_bytes(), [read(&mut rtc, 0x2e, 0), read(&mut rtc, 0x2f, 0)]);
        write(&mut rtc, 0x40 | 0x80, 0x5a, 0);
        assert_eq!(read(&mut rtc, 0x40, 0), 0x5a, "bit 7 is the NMI mask");
        rtc.write(0x72, 0x40, at(0)).unwrap();
        rtc.write(0x73, 0xa5, at(0)).unwrap();
        assert_eq!(rtc.read(0x73, at(0)), Some(0xa5));
        assert_eq!(read(&mut rtc, 0x40, 0), 0x5a);
        write(&mut rtc, 0x0d, 0, 0);
        assert_eq!(read(&mut rtc, 0x0d, 0), 0x80);
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            start: u64,
            steps in prop::collection::vec((0u8..5, any::<u8>(), any::<u8>(), any::<u64>()), 0..100),
        ) {
            let mut rtc = Rtc::new(start, at(0));
            let mut now = 0u64;
            for (action, register, value, time) in steps {
                now = now.saturating_add(time >> (time & 63));
                match action {
                    0 => write(&mut rtc, register & 0x0f, value, now),
                    1 => write(&mut rtc, register, value, now),
                    2 => { read(&mut rtc, register & 0x7f, now); }
                    3 => {
                        rtc.advance(at(now));
                        rtc.write(CMOS_PORT + u16::from(register & 3), value, at(now)).unwrap();
                    }
                    _ => {
                        let due = rtc.next_deadline().is_some_and(|deadline| deadline <= at(now));
                        let before = rtc.irq();
                        rtc.advance(at(now));
                        prop_assert_eq!(rtc.irq(), before || due);
                    }
                }
            }
        }
    }
}
