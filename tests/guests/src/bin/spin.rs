//! Spins without an exit, and says of each second how much of it this guest had a core.
#![no_std]
#![no_main]

use core::hint::black_box;
use runtime::alarm::Alarm;
use runtime::{apic, cpu, println};

runtime::guest!(main);

/// In microseconds: what takes longer between two looks at the clock was another's time on the core.
const GAP: u64 = 50;
const SECOND: u64 = 1_000_000;
const VECTOR: u8 = 0x40;

fn main(_: &runtime::Machine) {
    apic::enable();
    let alarm = Alarm::new(VECTOR);
    // Bochs 2.7 keeps even the monitor's interrupts from a guest that was entered with its own off.
    cpu::enable_interrupts();
    let (gap, second) = (alarm.ticks(GAP), alarm.ticks(SECOND));
    for number in 1_u64.. {
        let start = cpu::tsc();
        let (mut last, mut ran) = (start, 0);
        while last - start < second {
            for round in 0..100 {
                black_box(round);
            }
            let now = cpu::tsc();
            if now - last < gap {
                ran += now - last;
            }
            last = now;
        }
        println!("spin: second {number}: ran {} of {}", ran, last - start);
    }
}
