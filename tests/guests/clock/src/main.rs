//! Tells the time to whoever asks on its console.
#![no_std]
#![no_main]

use core::time::Duration;
use runtime::clock::{now, sleep, uptime};
use runtime::{console, print, println};

runtime::app!(main);

fn main(_: &runtime::Machine) {
    println!(
        "clock: a Peerboot guest without an operating system. Ask for time, uptime, or nap; quit ends it."
    );
    loop {
        print!("clock> ");
        let line = console::read_line();
        match line.trim() {
            "" => {}
            "time" => println!("{}", now()),
            "uptime" => println!("up {:.3} s", uptime().as_secs_f64()),
            "nap" => {
                sleep(Duration::from_secs(1));
                println!("slept for a second");
            }
            "quit" => return println!("good-bye"),
            other => println!("{other:?} is none of time, uptime, nap, quit"),
        }
    }
}
