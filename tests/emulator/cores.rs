//! Every core of the machine is found and started, and what befalls one is told with its number.

use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT, command, wait_for_shell};
use crate::lab::Lab;

/// One core, the usual few, and as many as nobody compiled in.
pub fn all_run(lab: &Lab) -> Result<Outcome> {
    for count in [1, 4, 64] {
        run(&Spec { smp: count, ..lab.example(Emulator::Qemu) })?;
    }
    Ok(Outcome::Passed)
}

/// Without ACPI tables that list them, cores are called and counted; sockets that are empty hold none.
pub fn unlisted_run(lab: &Lab) -> Result<Outcome> {
    for count in [1, 4] {
        let mut spec = Spec { smp: count, ..lab.example(Emulator::Qemu) };
        spec.extra.push("-no-acpi".to_owned());
        if !run(&spec)?.transcript().contains("there are no ACPI tables") {
            return Err(Error::failed("the machine has ACPI tables after all"));
        }
    }
    let mut spec = Spec { smp: 2, ..lab.example(Emulator::Qemu) };
    // The last word counts.
    spec.extra.extend(["-smp", "2,maxcpus=6"].map(str::to_owned));
    run(&spec)?;
    Ok(Outcome::Passed)
}

/// Boots, and sees that as many cores run as the machine has.
fn run(spec: &Spec) -> Result<Machine> {
    let mut machine = Machine::spawn(spec)?;
    let said = machine.expect("cores: [0-9]+ run", BOOT)?;
    if !said.ends_with(&format!("cores: {} run", spec.smp)) {
        return Err(Error::failed(format!("of {} cores: {said}", spec.smp)));
    }
    if spec.smp > 1 {
        machine.expect("the TSCs of all CPUs are at most [0-9]+ ns apart", BOOT)?;
    }
    let transcript = machine.transcript();
    match transcript
        .lines()
        .find(|line| line.contains("did not") || line.contains(" ns behind") || line.contains(" ns ahead"))
    {
        Some(line) => Err(Error::failed(line)),
        None => Ok(machine),
    }
}

/// The board's non-maskable interrupt is reported, and life goes on; a machine check on any core is reported with
/// what its banks hold, and ends it.
pub fn errors_are_told(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&Spec { smp: 4, ..lab.example(Emulator::Qemu) })?;
    wait_for_shell(&mut machine)?;
    machine.monitor("nmi")?;
    machine.expect("a non-maskable interrupt came on CPU 0", ANSWER)?;
    // More than a serial port's FIFO holds, for a guest that need not be on the core which gets what is typed.
    machine.send("echo a line that needs $((40 + 2)) bytes and more\n")?;
    machine.expect("needs 42 bytes and more", ANSWER)?;
    // Core, bank, status (valid, uncorrected, enabled, with an address), global status, address, details.
    machine.monitor("mce 2 9 0xbd00000000000000 0x5 0x1234 0x8c")?;
    machine.expect("machine check on CPU 2", ANSWER)?;
    machine.expect("CPU 2, bank 9: status 0xbd00000000000000, address 0x1234", ANSWER)?;
    machine.expect("#MC machine check .* on CPU 2", ANSWER)?;
    Ok(Outcome::Passed)
}

/// The board's non-maskable interrupt that strikes while a guest runs ends that run, is told, and reaches no guest.
pub fn nmi_in_a_guest(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&Spec { smp: 1, ..lab.example(Emulator::Qemu) })?;
    wait_for_shell(&mut machine)?;
    // What else runs on this core is little: of five, one strikes the guest.
    command(&mut machine, "(while :; do :; done) & true", ANSWER)?;
    for _ in 0..5 {
        machine.monitor("nmi")?;
        machine.expect("a non-maskable interrupt came on CPU 0", ANSWER)?;
    }
    // What exits there were is known once the guest halts.
    let said = command(&mut machine, "kill $!; dmesg | grep -ci nmi.received", ANSWER)?;
    if said != ["0"] {
        return Err(Error::failed(format!("the guest had {said:?} of them")));
    }
    machine.send("\x1dm")?;
    machine.expect("peerboot> $", ANSWER)?;
    machine.send("exits debian\r")?;
    machine.expect("host nmi [1-5]", ANSWER)?;
    Ok(Outcome::Passed)
}
