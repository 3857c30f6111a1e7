//! One life of a guest after the other: nothing is kept of one, and everything is given back.

use std::time::{Duration, Instant};

use serde_json::json;
use xtask::debian_disk;
use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine, Spec};
use xtask::suite::Outcome;

use crate::console::{ANSWER, BOOT, command, wait_for_shell};
use crate::lab::Lab;
use crate::manifest::{Guest, good, manifest};
use crate::multiplexer::{KEY, MANAGEMENT, manage};

/// Lives before memory is first looked at, and between that and the second time.
const LIVES_BEFORE: u32 = 20;
const LIVES_BETWEEN: u32 = 1000;
/// Wall time for those.
const LIVES: Duration = Duration::from_secs(1200);
/// Wall time for a start from a disk.
const START: Duration = Duration::from_secs(300);
/// How much of the heap may be in use that was not before, in KiB: a leak of a hundred bytes a life is more.
const HEAP_SLACK: u64 = 64;

/// A guest resets a thousand times, on both cores. Each life finds memory and devices as the first did, and after the
/// last as much memory is free as before.
pub fn lives_leave_nothing(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "lives")?;
    variant.cbfs.add("guests/next-life", &guests::tiny(lab.project(), "next-life")?)?;
    variant.manifest(&manifest(&[Guest {
        memory: "<0x1000>",
        ..Guest::tiny("cat", "cbfs:guests/next-life")
    }]))?;
    let mut machine = variant.boot()?;
    machine.expect("cat: starts again", BOOT)?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;

    live(&mut machine, LIVES_BEFORE)?;
    let before = Memory::ask(&mut machine)?;
    // Until it was followed, the list calls the guest off.
    machine.send("start cat\r")?;
    machine.expect(r"\] cat: starts again$", ANSWER)?;
    machine.expect(MANAGEMENT, ANSWER)?;
    live(&mut machine, LIVES_BEFORE + LIVES_BETWEEN)?;
    let after = Memory::ask(&mut machine)?;
    if before.free != after.free {
        return Err(Error::failed(format!("free was {:#?}, and now is {:#?}", before.free, after.free)));
    }
    if after.heap > before.heap + HEAP_SLACK {
        return Err(Error::failed(format!("of the heap, {} KiB were used, now {}", before.heap, after.heap)));
    }
    Ok(Outcome::Passed)
}

/// Waits until the guest has had so many lives, and stops it. Pauses, which grow as no life is long, are cut short.
fn live(machine: &mut Machine, lives: u32) -> Result<()> {
    let deadline = Instant::now() + LIVES;
    loop {
        let line = state(machine)?;
        match line.split_whitespace().nth(7).and_then(|count| count.parse::<u32>().ok()) {
            // It asserts, and switches itself off where it is wrong.
            _ if line.contains(" off") => return Err(Error::failed(machine.transcript())),
            None => return Err(Error::failed(line)),
            Some(lived) if lived >= lives => break,
            Some(_) if Instant::now() > deadline => return Err(Error::failed(format!("too slow: {line}"))),
            Some(_) => {
                machine.send("start cat\r")?;
                machine.expect(MANAGEMENT, ANSWER)?;
            }
        }
    }
    // In the pause between two lives there is nothing to be seen of it.
    machine.send("stop cat 0\r")?;
    let deadline = Instant::now() + ANSWER;
    loop {
        let line = state(machine)?;
        if line.ends_with(" off: reset") || line.ends_with(" off: stopped") {
            return Ok(());
        }
        if line.contains(" off") || Instant::now() > deadline {
            return Err(Error::failed(machine.transcript()));
        }
    }
}

/// The guest's line in the list.
fn state(machine: &mut Machine) -> Result<String> {
    machine.send("list\r")?;
    let line = machine.expect(r"^ 1 cat .*(running|ending|starting|restarting|off.*)$", ANSWER)?;
    machine.expect(MANAGEMENT, ANSWER)?;
    Ok(line)
}

/// What the prompt says of memory while no guest lives.
#[derive(Debug)]
struct Memory {
    /// The free pieces.
    free: Vec<String>,
    /// How much of the heap is used, in KiB.
    heap: u64,
}

impl Memory {
    fn ask(machine: &mut Machine) -> Result<Self> {
        let from = machine.transcript().len();
        machine.send("memory\r")?;
        machine.expect("MiB free, ", ANSWER)?;
        let transcript = machine.transcript();
        let lines = transcript.get(from..).unwrap_or_default().lines();
        let free: Vec<String> =
            lines.clone().filter(|line| line.ends_with(": free")).map(str::to_owned).collect();
        let heap =
            lines.filter_map(|line| line.strip_prefix("heap: ")?.split(' ').next()?.parse().ok()).next();
        match heap {
            Some(heap) if !free.is_empty() => Ok(Self { free, heap }),
            _ => Err(Error::failed("the prompt does not say how much memory is free")),
        }
    }
}

/// What a guest starts from is read from a disk that is next to standing still: another guest, on the same core, goes on
/// meanwhile, the prompt answers, and the guest is said to be starting. It starts once the disk is as fast as others.
/// So it is when the user asks what there is to boot.
pub fn slow_start(lab: &Lab) -> Result<Outcome> {
    /// Bytes in a second. The files to read have tens of millions.
    const CRAWL: u64 = 131_072;
    /// So few that what there is to boot is found in minutes only; but no read takes as long as a driver waits.
    const STANDSTILL: u64 = 4096;
    const SLOW: &str =
        "memory = <0x60000>; boot = \"disk\"; disk0 { source = \"disk:virtio0\"; read-only; };";
    let steady = Guest { properties: "cpu-affinity = <0>;", ..Guest::tiny("steady", "cbfs:guests/steady") };
    let slow = format!("slow {{ compatible = \"peerboot,guest\"; {SLOW} }};");
    let source = manifest(&[steady]).replace("chosen {", &format!("chosen {{ {slow}"));
    let variant = lab.unfilled(Emulator::Qemu, "slow-start", &source)?;
    for (name, file) in guests::hostile(lab.project())? {
        variant.cbfs.add(&format!("guests/{name}"), &file)?;
    }
    let system = debian_disk::system(lab.project())?.display().to_string().replace(',', ",,");
    let mut spec = Spec { smp: 1, ..variant.spec() };
    spec.extra = [
        "-drive",
        &format!("if=none,id=slow,format=raw,readonly=on,file={system},throttling.bps-total={CRAWL}"),
    ]
    .into_iter()
    .chain(["-device", "virtio-blk-pci,drive=slow"])
    .map(str::to_owned)
    .collect();
    let mut machine = Machine::spawn(&spec)?;
    machine.expect("steady: beat", START)?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    let throttle = |machine: &mut Machine, bytes: u64| {
        let limits = json!({
            "device": "slow", "bps": bytes, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0
        });
        machine.query("block_set_io_throttle", &limits).map(drop)
    };
    throttle(&mut machine, STANDSTILL)?;
    machine.send("entries slow\r")?;
    manage(&mut machine, "list", "^ 1 slow .* off$")?;
    machine.expect("steady: beat", ANSWER)?;
    if machine.transcript().lines().any(|line| line.contains("* 1 ")) {
        return Err(Error::failed("the disk did not stand still"));
    }
    throttle(&mut machine, 0)?;
    machine.expect(r"^\* 1 .*Debian", START)?;
    throttle(&mut machine, CRAWL)?;
    machine.send("start slow\r")?;
    machine.expect(r#"\] slow: boots "Debian"#, START)?;
    for _ in 0..20 {
        machine.expect("steady: beat", ANSWER)?;
    }
    manage(&mut machine, "list", "^ 1 slow .* starting$")?;
    throttle(&mut machine, 0)?;
    machine.expect(r"\] slow: starts$", START)?;
    manage(&mut machine, "list", "^ 1 slow .* running$")?;
    Ok(Outcome::Passed)
}

/// What comes for a guest that halts with interrupts off wakes nobody and costs nobody anything: the prompt answers,
/// and the guest can be stopped.
pub fn deaf_guest(lab: &Lab) -> Result<Outcome> {
    let variant = lab.variant(Emulator::Qemu, "deaf-guest")?;
    variant.cbfs.add("guests/deaf", &guests::tiny(lab.project(), "deaf")?)?;
    variant.manifest(&manifest(&[Guest {
        properties: "cpu-affinity = <0>;",
        ..Guest::tiny("deaf", "cbfs:guests/deaf")
    }]))?;
    let mut machine = variant.boot()?;
    machine.expect("deaf: deaf from now on", BOOT)?;
    machine.send("is anybody there?\r")?;
    // The answer to this shows that the guest was told: whatever is wrong after that begins before the next key.
    machine.send(&format!("{KEY}l"))?;
    machine.expect(r"^ 1 deaf .* running$", ANSWER)?;
    machine.send(&format!("{KEY}m"))?;
    machine.expect(MANAGEMENT, ANSWER)?;
    machine.send("stop deaf 0\r")?;
    machine.expect(r"\] deaf: stopped$", ANSWER)?;
    Ok(Outcome::Passed)
}

/// A guest sends its second CPU, which has a core of its own, back to its beginning thousands of times.
pub fn start_up(lab: &Lab) -> Result<Outcome> {
    on_two_cores(lab, "start-up")
}

/// A guest is interrupted thousands of times while its second CPU has the emulator stop the first again and again.
pub fn delivered_once(lab: &Lab) -> Result<Outcome> {
    on_two_cores(lab, "delivered-once")
}

/// A tiny guest with two CPUs passes.
fn on_two_cores(lab: &Lab, program: &str) -> Result<Outcome> {
    let kernel = format!("cbfs:guests/{program}");
    let guest = Guest { properties: "cpus = <2>;", ..Guest::tiny("tiny", &kernel) };
    let variant = lab.unfilled(Emulator::Qemu, program, &manifest(&[guest]))?;
    variant.cbfs.add(&format!("guests/{program}"), &guests::tiny(lab.project(), program)?)?;
    let mut machine = variant.boot()?;
    let verdict = machine.expect(&format!("(PASS|FAIL) {program}"), BOOT)?;
    if verdict.contains("FAIL") {
        return Err(Error::failed(machine.transcript()));
    }
    machine.expect(r"\] tiny: powered off$", ANSWER)?;
    Ok(Outcome::Passed)
}

/// Debian's kernel finds the watchdog timer with its own driver. As long as it is fed the guest lives; then the guest
/// has crashed, and its owner wants it to start again.
pub fn watchdog(lab: &Lab) -> Result<Outcome> {
    const RAMDISK: &str = "guests/debian/initramfs";
    let variant = lab.variant(Emulator::Qemu, "watchdog")?;
    variant.cbfs.remove(RAMDISK)?;
    variant.cbfs.add(
        RAMDISK,
        &variant.write(
            "initramfs",
            &lab.initramfs_with(&["drivers/watchdog/watchdog.ko", "drivers/watchdog/wdat_wdt.ko"])?,
        )?,
    )?;
    variant.manifest(&manifest(&[Guest { properties: "watchdog; on-crash = \"restart\";", ..good() }]))?;
    let mut machine = variant.boot()?;
    wait_for_shell(&mut machine)?;
    command(&mut machine, "insmod /lib/watchdog.ko && insmod /lib/wdat_wdt.ko", ANSWER)?;
    let said = command(&mut machine, "cat /sys/class/watchdog/watchdog0/identity", ANSWER)?;
    if said != ["wdat_wdt"] {
        return Err(Error::failed(format!("the watchdog's driver is {said:?}")));
    }
    // Started, to expire after 8 seconds, and fed each second, for longer than that.
    command(&mut machine, "watchdog -t 1 -T 8 /dev/watchdog; sleep 12", Duration::from_secs(300))?;
    machine.send("kill -STOP $(pidof watchdog)\n")?;
    machine.expect(r"\] good: crashed: its watchdog was not fed in time$", Duration::from_secs(300))?;
    machine.expect(r"\] good: starts again$", ANSWER)?;
    wait_for_shell(&mut machine)?;
    Ok(Outcome::Passed)
}
