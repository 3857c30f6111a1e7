//! Says that it is there, and has nothing to do from then on: for tests of many guests at once.
#![no_std]
#![no_main]

use runtime::cpu;

runtime::guest!(main);

fn main(machine: &runtime::Machine) {
    runtime::uart::write("idle: here, ");
    runtime::uart::write(machine.command_line());
    runtime::uart::write("\r\n");
    loop {
        cpu::wait_for_interrupt();
    }
}
