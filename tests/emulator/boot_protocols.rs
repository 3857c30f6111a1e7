//! Ways to start other than Linux's 64-bit protocol, with programs nobody here wrote.

use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT, command, wait_for_shell};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};

/// iPXE starts in real mode, on BIOS services: banner, prompt, an answer to what is typed, and its end.
pub fn ipxe(lab: &Lab, emulator: Emulator, cpu: &str) -> Result<Outcome> {
    let variant = lab.variant(emulator, &format!("ipxe-{cpu}"))?;
    variant.cbfs.add("guests/ipxe", &guests::ipxe(lab.project())?)?;
    let guest = Guest {
        kernel: "cbfs:guests/ipxe",
        bootargs: "",
        properties: "on-reboot = \"stop\";",
        ..Guest::new("ipxe")
    };
    variant.manifest(&manifest(&[guest]))?;
    let mut spec = variant.spec();
    spec.cpu = cpu.to_owned();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect("iPXE 1[.].* -- Open Source Network Boot Firmware", BOOT)?;
    machine.expect_unfinished("Press Ctrl-B for the iPXE command line", ANSWER)?;
    machine.send("\x02")?;
    machine.expect("iPXE> $", ANSWER)?;
    // More than the key buffer holds, in one go.
    machine.send("set left typed\rset right ahead\recho ${left}-${right} 1234567890 1234567890\r")?;
    machine.expect("^typed-ahead 1234567890 1234567890", ANSWER)?;
    machine.expect("iPXE> $", ANSWER)?;
    machine.send("exit\r")?;
    machine.expect("ipxe: reset", ANSWER)?;
    Ok(Outcome::Passed)
}

/// Each BIOS service does what it should, on this CPU model.
pub fn bios_services(lab: &Lab, emulator: Emulator, cpu: &str) -> Result<Outcome> {
    let variant = lab.variant(emulator, &format!("bios-services-{cpu}"))?;
    variant.cbfs.add("guests/tiny", &guests::real_mode(lab.project(), "bios-services")?)?;
    let guest = Guest {
        memory: "<0x0 0x8000>",
        boot: "linux",
        properties: "on-reboot = \"stop\";",
        ..Guest::tiny("tiny", "cbfs:guests/tiny")
    };
    variant.manifest(&manifest(&[guest]))?;
    let mut spec = variant.spec();
    spec.cpu = cpu.to_owned();
    let mut machine = Machine::spawn(&spec)?;
    let line = machine.expect("bios-services: type x|FAIL bios-services", BOOT)?;
    if !line.contains("FAIL") {
        machine.send("x")?;
        machine.expect("(PASS|FAIL) bios-services", ANSWER)?;
        machine.expect("tiny: reset", ANSWER)?;
    }
    let transcript = machine.transcript();
    let failure = transcript.lines().find(|line| line.contains("FAIL"));
    failure.map_or(Ok(Outcome::Passed), |line| Err(Error::failed(line.to_owned())))
}

/// Debian's kernel through its own real-mode set-up code: BIOS services say what boot_params says otherwise.
pub fn linux_from_real_mode(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "linux-16-bit")?;
    variant.manifest(&manifest(&[Guest { properties: "entry = \"16-bit\";", ..good() }]))?;
    let mut machine = variant.boot()?;
    wait_for_shell(&mut machine)?;
    let map = command(&mut machine, "dmesg | grep -c 'BIOS-e820:.* usable'", ANSWER)?.join("\n");
    if map.trim() != "2" {
        return Err(Error::failed(format!("{map:?} usable ranges, expected 2")));
    }
    let tables = command(&mut machine, "dmesg | grep -c 'ACPI: RSDP'", ANSWER)?.join("\n");
    if tables.trim() == "1" { Ok(Outcome::Passed) } else { Err(Error::failed("no ACPI tables")) }
}

/// memtest86+ for 32-bit machines makes all quick tests, entered in protected mode and in real mode.
pub fn memtest_32_bit(lab: &Lab) -> Result<Outcome> {
    const FIRST_TESTS: Duration = Duration::from_secs(300);
    for entry in ["entry = \"32-bit\";", "entry = \"16-bit\";"] {
        let variant = lab.variant(Emulator::Qemu, "memtest-32-bit")?;
        variant.cbfs.add("guests/memtest", &guests::memtest_32_bit(lab.project())?)?;
        let guest = Guest {
            memory: "<0x0 0x2000>",
            kernel: "cbfs:guests/memtest",
            bootargs: "console=ttyS0,115200",
            properties: entry,
            ..Guest::new("memtest")
        };
        variant.manifest(&manifest(&[guest]))?;
        let mut machine = variant.boot()?;
        // The last test, which lets memory rest for minutes: all others have found no error.
        machine.expect_text(r"Bit fade.{1,400}Errors: 0 ", FIRST_TESTS)?;
    }
    Ok(Outcome::Passed)
}

/// One file starts by PVH, Multiboot and Multiboot2, with the same modules and command lines.
pub fn protocols(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "boot-protocols")?;
    variant.cbfs.add("guests/tiny", &guests::tiny(lab.project(), "boot-protocol")?)?;
    let files: [Vec<u8>; 2] = [(0..50_000_u32).map(|at| (at * 7 % 251) as u8).collect(), b"two".to_vec()];
    let mut nodes = String::new();
    for (number, bytes) in files.iter().enumerate() {
        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        let name = format!("guests/file{number}");
        variant.cbfs.add(&name, &variant.write(&format!("file{number}"), bytes)?)?;
        nodes += &format!(
            "file{number} {{ compatible = \"peerboot,module\"; source = \"cbfs:{name}\"; bootargs = \"{sum}\"; }};"
        );
    }
    let guest = |boot| Guest {
        boot,
        bootargs: "one two",
        properties: &nodes,
        ..Guest::tiny("tiny", "cbfs:guests/tiny")
    };
    for (boot, loader) in [("pvh", "Pvh"), ("multiboot", "Multiboot"), ("multiboot2", "Multiboot2")] {
        variant.manifest(&manifest(&[guest(boot)]))?;
        let mut machine = variant.boot()?;
        machine.expect(&format!("boot-protocol: {loader}, 2 modules, command line one two"), BOOT)?;
        let end = machine.expect("(PASS|FAIL) boot-protocol", ANSWER)?;
        if end.contains("FAIL") {
            return Err(Error::failed(format!("{boot}: {end}")));
        }
    }
    Ok(Outcome::Passed)
}
