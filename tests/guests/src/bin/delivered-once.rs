//! Each interrupt is delivered once, and only where interrupts are on, while another CPU locks the bus without
//! end: for that an emulator stops all others between two of their instructions.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::interrupts::{self, Frame, flag};
use runtime::{apic, cpu, smp};

runtime::guest!(main);

const VECTOR: u8 = 0x50;
const ROUNDS: u64 = 2_000;

static DELIVERED: AtomicU64 = AtomicU64::new(0);
static NESTED: AtomicU64 = AtomicU64::new(0);

fn main(_: &runtime::Machine) {
    apic::enable();
    interrupts::handle(VECTOR, take);
    smp::start(1, lock_the_bus);
    cpu::enable_interrupts();
    for round in 1..=ROUNDS {
        apic::send_self(VECTOR);
        while DELIVERED.load(Relaxed) < round {
            core::hint::spin_loop();
        }
        assert_eq!(DELIVERED.load(Relaxed), round, "interrupts for as many requests");
    }
    assert_eq!(NESTED.load(Relaxed), 0, "interrupts where they were off");
}

fn take(frame: &mut Frame) {
    DELIVERED.fetch_add(1, Relaxed);
    NESTED.fetch_add(u64::from(frame.rflags & flag::IF == 0), Relaxed);
    // Long enough to be stopped in, and without PAUSE, at which QEMU looks around.
    cpu::work();
    apic::end_of_interrupt();
}

fn lock_the_bus() -> ! {
    loop {
        cpu::lock_the_bus();
    }
}
