//! Says that it is there, and computes without end: for tests of who gets how much of a core.
#![no_std]
#![no_main]

use runtime::cpu;

runtime::guest!(main);

fn main(machine: &runtime::Machine) {
    runtime::uart::write("busy: here, ");
    runtime::uart::write(machine.command_line());
    runtime::uart::write("\r\n");
    loop {
        cpu::work();
    }
}
