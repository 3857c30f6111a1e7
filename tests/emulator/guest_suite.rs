//! The tiny guests of tests/guests on every CPU model: many of them in one boot, as peers on one core.
//!
//! The first test of a model boots all of its selected guests; the others read what theirs said.

use std::iter;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use xtask::error::{Error, Result};
use xtask::guests;
use xtask::machine::{Emulator, Machine, Spec};
use xtask::serial::pattern;
use xtask::suite::{Case, Outcome, Selection};

use crate::bochs;
use crate::lab::Lab;
use crate::manifest::{Guest, manifest};

/// A CPU that the suite runs on: an emulator's model.
#[derive(Debug, Clone, Copy)]
struct Model {
    emulator: Emulator,
    cpu: &'static str,
}

fn models() -> impl Iterator<Item = Model> {
    let qemu = Model { emulator: Emulator::Qemu, cpu: Emulator::Qemu.cpu() };
    let bochs = bochs::MODELS.into_iter().map(|cpu| Model { emulator: Emulator::Bochs, cpu });
    iter::once(qemu).chain(bochs)
}

/// The models that deliver virtual interrupts by themselves. On the others the monitor does it all, and the guests
/// must not notice.
const LENDS_APICS: [&str; 3] = ["corei7_skylake_x", "tigerlake", "corei7_haswell_4770"];

/// How a guest is to end.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// It says that it passes, and powers off.
    Passes,
    /// The monitor stops it, for this reason in its words.
    Stopped(&'static str),
}

/// A program of tests/guests in the suite.
#[derive(Debug, Clone, Copy)]
struct Tiny {
    /// The guest's name, which is the program's unless several guests run it.
    name: &'static str,
    program: &'static str,
    bootargs: &'static str,
    ending: Ending,
    /// No other guest runs beside it: it compares clocks, or an emulator does not keep apart what it uses.
    alone: bool,
    /// A CPU that cannot run it, and why.
    never_on: Option<(&'static str, &'static str)>,
}

impl Tiny {
    /// Why it cannot run on a model, where it cannot.
    fn obstacle(&self, model: Model) -> Option<&'static str> {
        self.never_on.filter(|(cpu, _)| *cpu == model.cpu).map(|(_, reason)| reason)
    }
}

const fn passes(name: &'static str) -> Tiny {
    Tiny { name, program: name, bootargs: "", ending: Ending::Passes, alone: false, never_on: None }
}

/// One of several guests that hold other values in the same registers at the same time.
const fn apart(name: &'static str, seed: &'static str) -> Tiny {
    Tiny { program: "apart", bootargs: seed, ..passes(name) }
}

const fn stops(name: &'static str, reason: &'static str) -> Tiny {
    Tiny { ending: Ending::Stopped(reason), ..passes(name) }
}

const fn passes_alone(name: &'static str) -> Tiny {
    Tiny { alone: true, ..passes(name) }
}

/// The monitor says this when an event's delivery cannot reach memory.
const OFF_MEMORY: &str = "crashed: an event was to be delivered through memory that is not there (0x";

const SUITE: &[Tiny] = &[
    passes("apic-modes"),
    apart("apart-1", "1"),
    apart("apart-2", "2"),
    apart("apart-3", "3"),
    passes("boot-protocol"),
    passes("control-registers"),
    passes("cpuid-view"),
    Tiny {
        never_on: Some(("ryzen", "Bochs 2.7 intercepts a debug exception before DR6 tells its cause")),
        // QEMU 7.2 does not switch breakpoints when it enters and leaves guests.
        ..passes_alone("debug-registers")
    },
    passes("double-fault"),
    passes("eoi-word"),
    passes("exceptions"),
    passes("halt"),
    passes("hello"),
    passes("interrupt-priority"),
    passes("interrupt-shadow"),
    passes("io-apic"),
    passes("memory-end"),
    passes("mmio"),
    passes("modes"),
    passes("msr-view"),
    passes("nmi"),
    Tiny {
        program: "nmi",
        bootargs: "interrupts-off",
        never_on: Some((
            "ryzen",
            "Bochs 2.7 keeps the host's interrupts from a guest that AMD-V enters with its own off",
        )),
        // On VT-x Bochs 2.7 keeps NMIs from every guest while one handles one.
        ..passes_alone("nmi-interrupts-off")
    },
    passes("pic"),
    passes("ports"),
    stops("stack-off-memory", OFF_MEMORY),
    stops("table-off-memory", OFF_MEMORY),
    Tiny {
        never_on: Some(("ryzen", "Bochs 2.7 resets its machine where AMD-V is to catch a shutdown")),
        ..stops("triple-fault", "crashed: triple fault")
    },
    passes("tsc"),
    passes("user"),
    passes("vector-state"),
    Tiny {
        program: "modes",
        bootargs: "virtual-8086",
        never_on: Some(("ryzen", "Bochs 2.7 ends where AMD-V's exit comes from virtual-8086 mode")),
        ..passes("virtual-8086")
    },
    passes_alone("exit-cost"),
    passes_alone("timers"),
];

/// Some guests that run at once, and what they said when they had ended.
struct Batch {
    model: Model,
    guests: Vec<Tiny>,
    transcript: OnceLock<std::result::Result<String, String>>,
}

/// A test for each guest on each model. The models' first guests come first: while one worker boots one model,
/// another boots the next.
pub fn cases(selection: &Selection) -> Vec<Case<Lab>> {
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for model in models() {
        let selected = SUITE.iter().filter(|tiny| selection.selects(&name(model, tiny)));
        let (able, unable): (Vec<Tiny>, Vec<Tiny>) =
            selected.partition(|tiny| tiny.obstacle(model).is_none());
        together.extend(unable.into_iter().map(|tiny| {
            let reason = tiny.obstacle(model).unwrap_or_default();
            (0, Case::new(name(model, &tiny), move |_: &Lab| Ok(Outcome::Skipped(reason.to_owned()))))
        }));
        let (guests, single): (Vec<Tiny>, Vec<Tiny>) = able.into_iter().partition(|tiny| !tiny.alone);
        let cases = batch(model, guests);
        together.extend(cases.into_iter().enumerate());
        let single = single.into_iter().flat_map(|tiny| batch(model, vec![tiny]));
        match model.emulator {
            Emulator::Qemu => alone.extend(single.map(Case::alone)),
            // Its time is its own: it passes with instructions.
            Emulator::Bochs => together.extend(single.map(|case| (0, case))),
        }
    }
    together.sort_by_key(|(place, _)| *place);
    together.into_iter().map(|(_, case)| case).chain(alone).collect()
}

fn name(model: Model, tiny: &Tiny) -> String {
    format!("emulator/guest/{}/{}", model.cpu, tiny.name)
}

fn batch(model: Model, guests: Vec<Tiny>) -> Vec<Case<Lab>> {
    let batch = Arc::new(Batch { model, guests, transcript: OnceLock::new() });
    let case = |tiny: &Tiny| {
        let (tiny, batch) = (*tiny, Arc::clone(&batch));
        Case::new(name(model, &tiny), move |lab| batch.judge(lab, tiny))
    };
    batch.guests.iter().map(case).collect()
}

impl Batch {
    /// Boots the batch unless that is done, and holds what `tiny` said against what it was to say.
    fn judge(&self, lab: &Lab, tiny: Tiny) -> Result<Outcome> {
        let transcript = self.transcript.get_or_init(|| self.boot(lab).map_err(|error| error.to_string()));
        let transcript = transcript.as_ref().map_err(Error::failed)?;
        let said: Vec<&str> =
            transcript.lines().filter(|line| line.contains(&format!("] {}: ", tiny.name))).collect();
        let expected = match tiny.ending {
            Ending::Passes => format!("PASS {}", tiny.program),
            Ending::Stopped(reason) => reason.to_owned(),
        };
        if said.iter().any(|line| line.contains(&expected)) && !said.iter().any(|line| line.contains("FAIL"))
        {
            Ok(Outcome::Passed)
        } else {
            let said = if said.is_empty() { transcript } else { &said.join("\n") };
            Err(Error::failed(format!("no {expected:?}; it said:\n{said}")))
        }
    }

    fn boot(&self, lab: &Lab) -> Result<String> {
        const PATIENCE: Duration = Duration::from_secs(300);
        let label = match self.guests[..] {
            [single] => format!("guests-{}-{}", self.model.cpu, single.name),
            _ => format!("guests-{}", self.model.cpu),
        };
        let variant = lab.unfilled(self.model.emulator, &label, &self.manifest())?;
        for (name, file) in guests::tiny_all(lab.project())? {
            if self.guests.iter().any(|tiny| tiny.program == name) {
                variant.cbfs.add_compressed(&format!("guests/{name}"), &file, "lzma")?;
            }
        }
        let (cpu, memory) = (self.model.cpu.to_owned(), "512M".to_owned());
        let mut machine = Machine::spawn(&Spec { cpu, memory, ..variant.spec() })?;
        // Where a guest crashed the machine stays on. Guests that do not end are judged by what they said.
        machine.wait_for(&pattern("all guests are off|^peerboot> $")?, PATIENCE);
        let transcript = machine.transcript();
        let lends = LENDS_APICS.contains(&self.model.cpu);
        if transcript.contains("virtual-interrupt delivery") == lends {
            Ok(transcript)
        } else {
            Err(Error::failed(format!("local APICs are to be lent to the CPU: {lends}\n{transcript}")))
        }
    }

    fn manifest(&self) -> String {
        let kernels: Vec<String> =
            self.guests.iter().map(|tiny| format!("cbfs:guests/{}", tiny.program)).collect();
        let guests = self.guests.iter().zip(&kernels);
        let guests: Vec<Guest> = guests
            .map(|(tiny, kernel)| Guest { bootargs: tiny.bootargs, ..Guest::tiny(tiny.name, kernel) })
            .collect();
        manifest(&guests)
    }
}
