//! The same monitor in Bochs: Linux and refusals on CPUs that QEMU cannot be, and files that no flash holds.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Bus, Emulator, Machine, Spec};
use xtask::suite::{Case, Outcome};

use crate::apps;
use crate::bad_input::{said, stays};
use crate::boot_protocols;
use crate::console::{PROMPT, USERSPACE, command};
use crate::lab::{Lab, read};
use crate::manifest::{Guest, good, manifest};
use crate::multiplexer::KEY;

/// Wall time until Linux has booted: Bochs executes a hundred million instructions a second, or half of that where
/// two tests share a core.
const BOOT: Duration = Duration::from_secs(600);
/// Wall time until the payload is at its prompt, or a tiny guest has done its work.
const SOON: Duration = Duration::from_secs(300);

/// The CPU models that run guests: AMD-V, and VT-x from the first that has unrestricted guests on.
pub const MODELS: [&str; 5] =
    ["ryzen", "corei7_skylake_x", "tigerlake", "corei7_haswell_4770", "corei7_sandy_bridge_2600k"];
/// The one that boots Linux and iPXE in the short suite.
const LINUX: &str = "corei7_skylake_x";
/// Those that cannot, and what the payload says of each.
const REFUSED: [(&str, &str); 2] = [
    ("core2_penryn_t9600", "virtualization: .*VT-x without EPT, so no guest can run"),
    ("athlon64_venice", "virtualization: .*neither VT-x nor AMD-V, so no guest can run"),
];

/// IA32_FEATURE_CONTROL as firmware may lock it, and what the payload makes of it. That firmware leaves it open is
/// what all other tests have.
const FEATURE_CONTROL: [(&str, u64, &str); 2] =
    [("locked-on", 0b101, "PASS hello"), ("locked-off", 0b001, LOCKED_OFF)];
const LOCKED_OFF: &str = r"virtualization: VT-x is switched off and locked by firmware \(IA32_FEATURE_CONTROL\), so no guest can run";

/// What this kernel says of such CPUs, on bare hardware too: Bochs brings no newer microcode.
const OLD_MICROCODE: [&str; 2] = ["Speculative Return Stack Overflow", "RETBleed"];

/// What only Bochs can show, and what starts in real mode; the tiny guests run there too, by [`crate::guest_suite`].
pub fn cases() -> Vec<Case<Lab>> {
    let mut cases = vec![Case::new("emulator/bochs/memory-files", files_in_memory)];
    for model in MODELS {
        cases.push(if model == LINUX {
            Case::new(format!("emulator/bochs/{model}/two-linux"), move |lab: &Lab| two_linux(lab, model))
        } else {
            Case::new(format!("emulator/bochs/{model}/linux"), move |lab: &Lab| linux(lab, model)).long()
        });
        let services = move |lab: &Lab| boot_protocols::bios_services(lab, Emulator::Bochs, model);
        cases.push(Case::new(format!("emulator/bochs/{model}/bios-services"), services));
        let ipxe = Case::new(format!("emulator/bochs/{model}/ipxe"), move |lab: &Lab| {
            boot_protocols::ipxe(lab, Emulator::Bochs, model)
        });
        cases.push(if model == LINUX { ipxe } else { ipxe.long() });
        let app = Case::new(format!("emulator/bochs/{model}/app"), move |lab: &Lab| {
            apps::clock(lab, Emulator::Bochs, model)
        });
        cases.push(if model == LINUX { app } else { app.long() });
        let disk = Case::new(format!("emulator/bochs/{model}/app-disk"), move |lab: &Lab| {
            apps::disk(lab, Emulator::Bochs, model, (Bus::Ata, "ata0"))
        });
        cases.push(if model == LINUX { disk } else { disk.long() });
    }
    // Not on its AMD-V, where nothing but an interrupt ends a guest's stay: see docs/testing.md.
    let stubborn = |lab: &Lab| stubborn_guest(lab, LINUX);
    cases.push(Case::new(format!("emulator/bochs/{LINUX}/stubborn-guest"), stubborn));
    for (name, register, words) in FEATURE_CONTROL {
        let decided = move |lab: &Lab| feature_control(lab, name, register, words);
        cases.push(Case::new(format!("emulator/bochs/{LINUX}/vt-x-{name}"), decided));
    }
    for (model, words) in REFUSED {
        let refused = move |lab: &Lab| refused(lab, model, words);
        cases.push(Case::new(format!("emulator/bochs/{model}"), refused));
    }
    cases
}

/// Debian's kernel, from RAM, reaches a shell that answers, and has nothing to say against the machine.
fn linux(lab: &Lab, model: &str) -> Result<Outcome> {
    let mut spec = lab.example(Emulator::Bochs);
    spec.cpu = model.to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(USERSPACE, BOOT)?;
    machine.expect(PROMPT, SOON)?;
    is_content(&mut machine)?;
    machine.send("poweroff\n")?;
    machine.expect("all guests are off", SOON)?;
    machine.wait_exit(SOON).map(|_| Outcome::Passed)
}

/// Two of them at once, from the same files, on one core: both reach their shells, and one goes on without the other.
fn two_linux(lab: &Lab, model: &str) -> Result<Outcome> {
    let guests = [Guest { node: "one", ..good() }, Guest { node: "two", ..good() }];
    let variant = lab.unfilled(Emulator::Bochs, "bochs-two-linux", &manifest(&guests))?;
    let mut machine = Machine::spawn(&Spec { cpu: model.to_owned(), ..variant.spec() })?;
    let first = machine.expect(&format!("^(one|two): {USERSPACE}"), 2 * BOOT)?;
    let second = if first.starts_with("one") { "two" } else { "one" };
    machine.expect(&format!("^{second}: {USERSPACE}"), 2 * BOOT)?;
    for (number, name) in [(1, "one"), (2, "two")] {
        machine.send(&format!("{KEY}{number}"))?;
        machine.expect(&format!("^-- {name} "), SOON)?;
        machine.expect(PROMPT, SOON)?;
        is_content(&mut machine)?;
        machine.send("poweroff\n")?;
        machine.expect(&format!(r"\] {name}: powered off$"), SOON)?;
    }
    machine.expect("all guests are off", SOON)?;
    machine.wait_exit(SOON).map(|_| Outcome::Passed)
}

/// The kernel in the foreground has nothing to say against its machine.
fn is_content(machine: &mut Machine) -> Result<()> {
    let complaints = command(machine, "dmesg -r | grep -E '^<[0-4]>|unchecked'", SOON)?;
    let known = |line: &String| OLD_MICROCODE.iter().any(|word| line.contains(word));
    let complaints: Vec<String> = complaints.into_iter().filter(|line| !known(line)).collect();
    if complaints.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!("the kernel complains:\n{}", complaints.join("\n"))))
}

/// A CPU without what guests need is refused in a sentence, and the payload stays at its console.
fn refused(lab: &Lab, model: &str, words: &str) -> Result<Outcome> {
    let mut spec = lab.example(Emulator::Bochs);
    spec.cpu = model.to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect(words, SOON)?;
    stays(&mut machine)
}

/// Firmware has written IA32_FEATURE_CONTROL, for good.
fn feature_control(lab: &Lab, name: &str, value: u64, words: &str) -> Result<Outcome> {
    const IA32_FEATURE_CONTROL: u32 = 0x3a;
    let hello = manifest(&[Guest::tiny("hello", "cbfs:guests/hello")]);
    let variant = lab.unfilled(Emulator::Bochs, &format!("vt-x-{name}"), &hello)?;
    variant.cbfs.add("guests/hello", &guests::tiny(lab.project(), "hello")?)?;
    let record = [&IA32_FEATURE_CONTROL.to_le_bytes()[..], &value.to_le_bytes()].concat();
    variant.cbfs.add("stage/registers", &variant.write("registers", &record)?)?;
    let mut machine = variant.boot()?;
    machine.expect(words, SOON)?;
    if words == LOCKED_OFF { stays(&mut machine) } else { Ok(Outcome::Passed) }
}

/// A guest that spins with interrupts off on the only core shares it with another.
fn stubborn_guest(lab: &Lab, model: &str) -> Result<Outcome> {
    let guests = ["stubborn", "hello"].map(|name| (name, format!("cbfs:guests/{name}")));
    let source = manifest(&guests.each_ref().map(|(name, kernel)| Guest::tiny(name, kernel)));
    let variant = lab.unfilled(Emulator::Bochs, &format!("stubborn-{model}"), &source)?;
    for (name, _) in &guests {
        variant.cbfs.add(&format!("guests/{name}"), &guests::tiny(lab.project(), name)?)?;
    }
    let mut machine = Machine::spawn(&Spec { cpu: model.to_owned(), ..variant.spec() })?;
    machine.expect("stubborn: spinning", SOON)?;
    machine.expect("PASS hello", SOON)?;
    Ok(Outcome::Passed)
}

/// A guest starts from a file in RAM; those whose files lie where no file can be do not, and each says why.
fn files_in_memory(lab: &Lab) -> Result<Outcome> {
    // Where the file begins: beyond the first 128 KiB, the unit in which Bochs gives out memory. And its size.
    const BEFORE: usize = 0x9_0000;
    const SIZE: usize = 0x4_0000;
    const GOOD: &str = "memory:0x2090000+0x40000";
    let variant = lab.variant(Emulator::Bochs, "memory-files")?;
    let mut image = vec![0xA5; BEFORE];
    image.extend(read(&guests::tiny(lab.project(), "hello")?)?);
    image.resize(BEFORE + SIZE, 0);
    variant.write("test.ram", &image)?;

    let named = Guest::tiny;
    variant.manifest(&manifest(&[
        named("nowhere", "memory:0xc0000000+0x1000"),
        named("tables", "memory:0xf6000+0x1000"),
        named("burglar", "memory:0x1000000+0x1000"),
        named("endless", "memory:0x3000000"),
        named("good", GOOD),
    ]))?;
    let mut spec = variant.spec();
    spec.cpu = MODELS[0].to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect("PASS hello", SOON)?;
    said(
        &machine,
        &[
            "nowhere: memory:0xc0000000.0x1000: .* is not all RAM",
            "tables: memory:0xf6000.0x1000: .* is not all RAM",
            "burglar: memory:0x1000000.0x1000: .*Peerboot's own",
            "/chosen/endless, property kernel: found \"memory:0x3000000\", expected \"cbfs:\"",
        ],
    )
}
