//! Says that it is there, and computes without end: for tests of who gets how much of a core. With `pause` for its
//! command line it only waits, as locks do.
#![no_std]
#![no_main]

use runtime::cpu;

runtime::guest!(main);

fn main(machine: &runtime::Machine) {
    runtime::uart::write("busy: here, ");
    runtime::uart::write(machine.command_line());
    runtime::uart::write("\r\n");
    if machine.command_line().contains("pause") {
        loop {
            core::hint::spin_loop();
        }
    }
    loop {
        cpu::work();
    }
}
