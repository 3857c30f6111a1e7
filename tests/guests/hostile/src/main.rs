//! One guest for every way to attack: the first word of its command line is the case.
//!
//! A case prints `begins` before it does harm. Those that can be survived end with the runtime's `PASS` and a
//! power-off; the others end as the monitor sees fit, or never.
#![no_std]
#![no_main]
// Unsafe because these guests break their own machine on purpose.
#![allow(unsafe_code)]

mod crashes;
mod floods;
mod random;
mod spins;
mod streams;
mod sweeps;
mod tables;

use runtime::{Machine, println};

runtime::guest!(main);

/// A case: its name, and what it does with the rest of the command line.
type Case = (&'static str, fn(&Machine, &str));

const CASES: &[Case] = &[
    ("triple-fault", crashes::triple_fault),
    ("resets", crashes::reset),
    ("jump-nowhere", crashes::jump_nowhere),
    ("bad-states", crashes::bad_states),
    ("halt-forever", spins::halt_forever),
    ("spin-ring-0", spins::ring_0),
    ("spin-ring-1", spins::ring_1),
    ("spin-ring-2", spins::ring_2),
    ("spin-ring-3", spins::ring_3),
    ("spin-real", spins::real_mode),
    ("spin-v86", spins::virtual_8086),
    ("spin-exceptions", spins::exceptions),
    ("flood-ports", floods::ports),
    ("flood-strings", floods::strings),
    ("flood-device-memory", floods::device_memory),
    ("flood-msrs", floods::msrs),
    ("flood-cpuid", floods::cpuid),
    ("flood-ipis", floods::ipis),
    ("flood-nmis", floods::nmis),
    ("flood-timers", floods::timers),
    ("flood-traps", floods::traps),
    ("flood-control", floods::control),
    ("flood-console", floods::console),
    ("flood-unknown", floods::unknown),
    ("sweep-memory", sweeps::memory),
    ("sweep-ports", sweeps::ports),
    ("sweep-msrs", sweeps::msrs),
    ("sweep-control", sweeps::control),
    ("tables-loop", tables::looping),
    ("tables-nowhere", tables::nowhere),
    ("tables-device", tables::device),
    ("tables-pae", tables::pae),
    ("device-code", tables::device_code),
    ("streams", streams::run),
];

fn main(machine: &Machine) {
    let (name, rest) = machine.command_line().split_once(' ').unwrap_or((machine.command_line(), ""));
    let (name, case) = CASES.iter().find(|(known, _)| *known == name).expect("a case of that name");
    println!("{name} begins");
    case(machine, rest);
}
