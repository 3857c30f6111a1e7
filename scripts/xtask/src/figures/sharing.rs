//! How fairly guests share one core, and how soon one that sleeps has it back.

use super::guests::{kernel, rom};
use super::{PATIENCE, counting, number, until};
use crate::error::{Error, Result};
use crate::machine::{Emulator, Machine};
use crate::manifest::Guest;
use crate::project::Project;

/// What one of several guests that spin had of a core they share.
#[derive(Debug, PartialEq, Eq)]
pub struct Share {
    /// The guest's weight.
    pub weight: u64,
    /// Its part of one second, in millionths.
    pub ran: u64,
    /// The part that its weight gives it of what all guests had.
    pub fair: u64,
}

/// Three guests spin on one core for a second, with weights 1 : 2 : 4.
///
/// # Errors
/// One of them says nothing.
pub fn shares(project: &Project) -> Result<Vec<Share>> {
    const WEIGHTS: [(u64, &str, &str); 3] = [
        (1, "spin-1", "weight = <256>;"),
        (2, "spin-2", "weight = <512>;"),
        (4, "spin-4", "weight = <1024>;"),
    ];
    let program = kernel("spin");
    let guests = WEIGHTS.map(|(_, node, weight)| Guest { properties: weight, ..Guest::tiny(node, &program) });
    let rom = rom(project, Emulator::Qemu, "shares", &guests, &["spin"])?;
    let mut machine = Machine::spawn(&counting(rom, 1))?;
    // All spin from before each one's second second until after it.
    for _ in WEIGHTS {
        machine.expect("spin: second 2", PATIENCE)?;
    }
    let transcript = machine.transcript();
    let mut shares = Vec::new();
    for (weight, node, _) in WEIGHTS {
        let part = |what| number(&transcript, &format!(r"{node}: spin: second 2: {what}"));
        let (ran, of) = (part(r"ran (\d+)")?, part(r"ran \d+ of (\d+)")?);
        shares.push(Share { weight, ran: ran * 1_000_000 / of, fair: 0 });
    }
    let (ran, weights) = shares.iter().fold((0, 0), |sum, share| (sum.0 + share.ran, sum.1 + share.weight));
    shares.iter_mut().for_each(|share| share.fair = ran * share.weight / weights);
    Ok(shares)
}

/// How many instructions after its timer a guest that slept executed its next one.
#[derive(Debug, PartialEq, Eq)]
pub struct Lateness {
    /// Beside whom.
    pub beside: &'static str,
    /// The best of a hundred times.
    pub least: u64,
    /// Half of them were sooner.
    pub half: u64,
    /// The worst.
    pub most: u64,
}

/// A guest that sleeps and wakes, alone on a core and beside one that spins there.
///
/// # Errors
/// It says nothing.
pub fn wake_ups(project: &Project) -> Result<[Lateness; 2]> {
    let (sleeps, spins) = (kernel("wake-up"), kernel("spin"));
    let guests = [Guest::tiny("sleeper", &sleeps), Guest::tiny("spinner", &spins)];
    let [alone, beside] = [1, 2].map(|count| -> Result<(u64, u64, u64)> {
        let name = format!("wake-up-{count}");
        let rom = rom(project, Emulator::Qemu, &name, &guests[..count], &["wake-up", "spin"])?;
        let transcript = until(&counting(rom, 1), "(PASS|FAIL) wake-up")?.transcript();
        let of = |what| number(&transcript, &format!(r"wake-up: .*{what} (\d+)"));
        Ok((of("least")?, of("half")?, of("most")?))
    });
    let lateness = |beside, found: Result<(u64, u64, u64)>| {
        let (least, half, most) =
            found.map_err(|e| Error::failed(format!("wake-ups beside {beside}: {e}")))?;
        Ok(Lateness { beside, least, half, most })
    };
    Ok([lateness("nobody", alone)?, lateness("a guest that spins", beside)?])
}
