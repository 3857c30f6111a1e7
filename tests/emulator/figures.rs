//! Promises that are numbers. QEMU counts instructions, so that they are the same on every machine.

use xtask::error::{Error, Result};
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
