//! Prints over the debug port and the UART.
#![no_std]
#![no_main]

runtime::guest!(main);

fn main(machine: &runtime::Machine) {
    runtime::println!("hello from the debug port");
    runtime::println!("hello: command line {:?}", machine.command_line());
    runtime::uart::write("hello from the UART\r\n");
}
