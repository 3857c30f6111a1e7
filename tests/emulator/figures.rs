//! Promises that are numbers. QEMU counts instructions, so that they are the same on every machine.

use xtask::error::{Error, Result};
use xtask::figures::disks::{self, CACHED_READ, PATTERNS, Request};
use xtask::figures::{BOOTED, PROCESSORS, bare_boot, exit_costs, milestone, peerboot_boot};
use xtask::suite::Outcome;

use crate::lab::Lab;

/// From reset to userspace takes at most 1.15 times what it takes with QEMU's own firmware.
pub fn boot_time(lab: &Lab) -> Result<Outcome> {
    let bare = milestone(&bare_boot(lab.project())?, BOOTED).unwrap_or_default();
    let ours = milestone(&peerboot_boot(lab.project())?.milestones, BOOTED).unwrap_or(u64::MAX);
    if ours / 115 <= bare / 100 {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("userspace after {ours} ns, on bare QEMU after {bare} ns")))
    }
}

/// A CPUID exit costs at most 600 instructions, the guest's own included.
pub fn exit_cost(lab: &Lab) -> Result<Outcome> {
    let [processor, ..] = &PROCESSORS;
    let costs = exit_costs(lab.project(), processor)?;
    match costs.iter().find(|cost| cost.exit == "cpuid") {
        Some(cost) if cost.average <= 600 => Ok(Outcome::Passed),
        Some(cost) => Err(Error::failed(format!("a CPUID exit costs {} instructions", cost.average))),
        None => Err(Error::failed("the cost of CPUID was not measured")),
    }
}

/// Sequential reading, as most programs do it, takes at most 1.05 times the instructions that it takes on bare QEMU.
pub fn disk_read(lab: &Lab) -> Result<Outcome> {
    let ([bare, ..], [ours, ..]) = (disks::BARE, disks::VIRTIO);
    let mib = |place| -> Result<u64> {
        let measured = disks::requests(lab.project(), &place, &[CACHED_READ])?;
        Ok(measured.first().map_or(0, |mib| mib.instructions))
    };
    let (bare, ours) = (mib(bare)?, mib(ours)?);
    if ours > 0 && ours / 105 <= bare / 100 {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("a MiB takes {ours} instructions, on bare QEMU {bare}")))
    }
}

/// A request to a disk costs at most two exits, the doorbell's and the one of the interrupt of the machine's disk; and
/// one more where the guest has interrupts off as it ends.
pub fn disk_exits(lab: &Lab) -> Result<Outcome> {
    /// Two, in hundredths, and half of one: the timer's cannot all be told apart where the machine at hand is slow.
    const MOST: u64 = 250;
    const WITH_WINDOWS: u64 = MOST + 100;
    let [_, place, _] = disks::VIRTIO;
    let measured = disks::requests(lab.project(), &place, &PATTERNS[..8])?;
    let kept = |request: &Request| {
        let exits = request.exits;
        // One that never exits is not measured.
        (1..=WITH_WINDOWS).contains(&exits.all) && exits.all - exits.windows <= MOST
    };
    if measured.iter().all(kept) {
        Ok(Outcome::Passed)
    } else {
        Err(Error::failed(format!("exits in hundred requests: {measured:?}")))
    }
}
