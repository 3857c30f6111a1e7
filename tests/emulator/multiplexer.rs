//! One serial line for several guests and the management prompt.

use xtask::error::{Error, Result};
use xtask::machine::{Emulator, Machine};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT, PROMPT, USERSPACE, WORK, command, wait_for_shell};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};

/// Peerboot's key, Ctrl-].
pub const KEY: &str = "\x1d";
/// The management prompt.
pub const MANAGEMENT: &str = "peerboot> $";

/// Two guests side by side: each is seen with its name, brought to the foreground with what it said meanwhile,
/// typed at, listed, stopped and started, and the other goes on.
pub fn two_guests(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "two-guests")?;
    variant.manifest(&manifest(&[Guest { node: "one", ..good() }, Guest { node: "two", ..good() }]))?;
    let mut machine = variant.boot()?;
    let first = machine.expect(&format!("^(one|two): {USERSPACE}"), BOOT)?;
    let second = if first.starts_with("one") { "two" } else { "one" };
    machine.expect(&format!("^{second}: {USERSPACE}"), BOOT)?;

    bring_to_front(&mut machine, 1, "one")?;
    command(&mut machine, "hostname first", ANSWER)?;
    bytes_pass(&mut machine)?;
    background_output_waits(&mut machine)?;

    // The list comes without leaving the guest.
    machine.send(&format!("{KEY}l"))?;
    machine.expect(r"^ 1 one +1 +256 MiB +\d+\.\d +\d+:\d\d:\d\d +1  running$", ANSWER)?;
    machine.expect(r"^ 2 two .* 1  running$", ANSWER)?;
    command(&mut machine, "true", ANSWER)?;

    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    manage(&mut machine, "exits two", r"^two: \d+, .*cpuid \d+")?;
    manage(&mut machine, "log two", "out 333")?;
    manage(&mut machine, "stop one 0", r"\] one: stopped$")?;
    manage(&mut machine, "list", r"^ 1 one .* off: stopped$")?;
    // The line before comes back.
    manage(&mut machine, "\x1b[A", r"^ 2 two .* running$")?;
    manage(&mut machine, "start one", r"\] one: starts again$")?;
    // Nothing in this guest listens to its power button.
    manage(&mut machine, "stop two 2", r"two: has not switched off in time")?;
    machine.expect(r"\] two: stopped$", ANSWER)?;

    machine.send("console one\r")?;
    machine.expect("^-- one ", ANSWER)?;
    // What is shown first is of its last life, the shell's prompt included.
    machine.expect("Linux version", BOOT)?;
    wait_for_shell(&mut machine)?;
    let name = command(&mut machine, "hostname", ANSWER)?.join("\n");
    if name == "first" {
        return Err(Error::failed("the guest was not started anew"));
    }
    // Not every guest switched itself off, so the machine stays.
    machine.send("poweroff\n")?;
    machine.expect(r"\] one: powered off$", ANSWER)?;
    machine.expect(MANAGEMENT, ANSWER)?;
    machine.send("poweroff\r")?;
    machine.wait_exit(ANSWER)?;
    Ok(Outcome::Passed)
}

/// While the management prompt is open the machine stays on, though its guest is off; the guest can be started
/// again.
pub fn open_prompt_keeps_the_machine_on(lab: &Lab) -> Result<Outcome> {
    let mut machine = Machine::spawn(&lab.example(Emulator::Qemu))?;
    wait_for_shell(&mut machine)?;
    // Time enough to open the prompt, however slow the machine is.
    machine.send("(sleep 15; poweroff) &\n")?;
    machine.expect(PROMPT, ANSWER)?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    machine.expect(r"\] debian: powered off$", ANSWER)?;
    manage(&mut machine, "start debian", r"\] debian: starts again$")?;
    machine.send("exit\r")?;
    machine.expect("^-- debian ", ANSWER)?;
    machine.expect("Linux version", BOOT)?;
    wait_for_shell(&mut machine)?;
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", ANSWER)?;
    machine.wait_exit(ANSWER)?;
    Ok(Outcome::Passed)
}

fn bring_to_front(machine: &mut Machine, number: u32, name: &str) -> Result<()> {
    machine.send(&format!("{KEY}{number}"))?;
    machine.expect(&format!("^-- {name} "), ANSWER)?;
    machine.expect(PROMPT, ANSWER).map(drop)
}

/// Types a command at the management prompt and waits for a line of its answer, or of what comes of it.
pub fn manage(machine: &mut Machine, line: &str, answer: &str) -> Result<()> {
    machine.send(&format!("{line}\r"))?;
    machine.expect(answer, WORK).map(drop)
}

/// Characters of several bytes pass both ways, and so does Peerboot's key when it is typed twice.
fn bytes_pass(machine: &mut Machine) -> Result<()> {
    machine.send("echo ready $((6 * 7)); read x; echo \"$x\" | od -An -tx1\n")?;
    machine.expect("^ready 42$", ANSWER)?;
    machine.send(&format!("{KEY}{KEY}Grün中\n"))?;
    machine.expect("^ 1d 47 72 c3 bc 6e e4 b8 ad 0a$", ANSWER)?;
    machine.expect(PROMPT, ANSWER)?;
    let said = command(machine, r"printf '\342\224\214 \303\237 \344\270\255\n'", ANSWER)?;
    if said == ["┌ ß 中"] { Ok(()) } else { Err(Error::failed(format!("the guest printed {said:?}"))) }
}

/// What a guest says in the background is not seen before it comes to the foreground, and then is. Starts and ends
/// with guest one in the foreground.
fn background_output_waits(machine: &mut Machine) -> Result<()> {
    const LAST: &str = "out 333";
    bring_to_front(machine, 2, "two")?;
    machine.send("(for n in 1 2 3; do sleep 1; echo out $((n * 111)); done) &\n")?;
    machine.expect(PROMPT, ANSWER)?;
    bring_to_front(machine, 1, "one")?;
    command(machine, "sleep 5", ANSWER)?;
    if machine.transcript().contains(LAST) {
        return Err(Error::failed("a guest in the background is seen"));
    }
    machine.send(&format!("{KEY}n"))?;
    machine.expect("^-- two ", ANSWER)?;
    machine.expect(LAST, ANSWER)?;
    bring_to_front(machine, 1, "one")
}

/// A board whose serial port interrupts by another line than is usual: what is typed arrives all the same, and the log
/// says how.
pub fn interrupts_that_never_come(lab: &Lab) -> Result<Outcome> {
    let mut spec = lab.example(Emulator::Qemu);
    spec.extra.extend(["-global", "isa-serial.irq=5"].map(str::to_owned));
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(USERSPACE, BOOT)?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    manage(&mut machine, "list", "^ 1 debian .* running$")?;
    machine.expect(MANAGEMENT, ANSWER)?;
    manage(&mut machine, "log", "serial console: its interrupts do not come; it is polled$")?;
    Ok(Outcome::Passed)
}
