//! How late a guest that sleeps wakes, in ticks of the time-stamp counter: beside guests that do not sleep, it is to
//! get the core soon.
#![no_std]
#![no_main]

use runtime::alarm::Alarm;
use runtime::{apic, println};

runtime::guest!(main);

const VECTOR: u8 = 0x40;
const ROUNDS: usize = 100;
/// In microseconds; not in step with slices of the core.
const SLEEP: u64 = 2_700;

fn main(_: &runtime::Machine) {
    apic::enable();
    let alarm = Alarm::new(VECTOR);
    let mut late = [0; ROUNDS];
    late.iter_mut().for_each(|late| *late = alarm.sleep(SLEEP));
    late.sort_unstable();
    println!("wake-up: least {}, half {}, most {}", late[0], late[ROUNDS / 2], late[ROUNDS - 1]);
}
