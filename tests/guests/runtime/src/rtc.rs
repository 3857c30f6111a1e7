//! The real-time clock.

use crate::calendar::DateTime;
use crate::cpu::{read_port_u8, write_port_u8};

/// The IOAPIC pin that its interrupt reaches.
pub const PIN: u8 = 8;
const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const STATUS_A: u8 = 10;
const STATUS_B: u8 = 11;
const STATUS_C: u8 = 12;
const PERIODIC_INTERRUPT: u8 = 1 << 6;
/// Status A: the usual divider, and 1024 periods a second.
const RATE_1024: u8 = 0x26;

/// Reads a register.
pub fn read(index: u8) -> u8 {
    write_port_u8(INDEX, index);
    read_port_u8(DATA)
}

/// Writes a register.
pub fn write(index: u8, value: u8) {
    write_port_u8(INDEX, index);
    write_port_u8(DATA, value);
}

/// An interrupt 1024 times a second; each must be acknowledged.
pub fn start_periodic() {
    write(STATUS_A, RATE_1024);
    write(STATUS_B, read(STATUS_B) | PERIODIC_INTERRUPT);
    acknowledge();
}

/// Lets the next interrupt come, and gives the reasons of the last.
pub fn acknowledge() -> u8 {
    read(STATUS_C)
}

/// No more interrupts.
pub fn stop() {
    write(STATUS_B, read(STATUS_B) & !PERIODIC_INTERRUPT);
    acknowledge();
}

/// Status A: the time is about to change.
const UPDATING: u8 = 1 << 7;
/// Status B: 24 hours a day.
const HOURS_24: u8 = 1 << 1;
/// Status B: numbers are binary, not decimal digits.
const BINARY: u8 = 1 << 2;
/// In the hour, where a day has twice 12.
const AFTERNOON: u8 = 1 << 7;

/// The date and time that it shows, of this century.
pub fn now() -> DateTime {
    loop {
        while read(STATUS_A) & UPDATING != 0 {}
        let fields = || [9, 8, 7, 4, 2, 0].map(read);
        let shown = fields();
        // A change between two readings shows in the second.
        if shown == fields() {
            return date_time(shown, read(STATUS_B));
        }
    }
}

fn date_time([year, month, day, hour, minute, second]: [u8; 6], status: u8) -> DateTime {
    let number =
        |field: u8| u64::from(if status & BINARY != 0 { field } else { field / 16 * 10 + field % 16 });
    let hour = match (status & HOURS_24 != 0, hour & AFTERNOON != 0) {
        (true, _) => number(hour),
        (false, afternoon) => number(hour & !AFTERNOON) % 12 + if afternoon { 12 } else { 0 },
    };
    DateTime {
        year: 2000 + number(year),
        month: number(month),
        day: number(day),
        hour,
        minute: number(minute),
        second: number(second),
    }
}
