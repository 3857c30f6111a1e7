//! One guest: a node in `/chosen`.

use alloc::{boxed::Box, string::String, vec::Vec};

use super::{
    boot::{self, Boot},
    device::{self, Network},
    disk::{self, Disk},
    error::{GuestError, Result, Warning},
    node::Node,
    source::Source,
};

/// What makes a node in `/chosen` a guest.
pub(super) const COMPATIBLE: &str = "peerboot,guest";
/// The most vCPUs of a guest: what an 8-bit APIC ID can tell apart.
pub const MAX_CPUS: u32 = 255;
/// The least memory of a guest, in bytes.
pub const MIN_MEMORY: u64 = 1 << 20;
/// The weight of a guest that names none.
pub const DEFAULT_WEIGHT: u16 = 256;

/// The highest cap of a guest, in percent of one CPU: as much as its vCPUs could ever run.
pub const MAX_CAP: u32 = MAX_CPUS * 100;

const KIB: u64 = 1 << 10;
const PAGE: u64 = 4 << 10;
const MAX_NAME_LEN: usize = 31;
/// Every property that some guest may have.
const PROPERTIES: [&str; 21] = [
    "compatible",
    "label",
    "memory",
    "cpus",
    "cpu-affinity",
    "weight",
    "cap",
    "dedicated-cpus",
    "boot",
    "entry",
    "kernel",
    "ramdisk",
    "bootargs",
    "console",
    "on-crash",
    "on-reboot",
    "on-poweroff",
    "autostart",
    "debug-port",
    "watchdog",
    "entropy",
];

/// A guest to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// Its name: 1 to 31 letters, digits, `-`, `_` and `.`; no other guest has it.
    pub name: String,
    /// The path of its node.
    pub node: String,
    /// Its memory in bytes: whole 4 KiB pages, at least [`MIN_MEMORY`].
    pub memory: u64,
    /// How many vCPUs it has: 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// The host's CPUs that may run it, counted from 0 in the order of the MADT, rising; empty for all.
    pub cpu_affinity: Vec<u32>,
    /// Its share of a CPU that it shares with others, relative to theirs: 1 to 65535.
    pub weight: u16,
    /// How much its vCPUs together may run at most, in percent of one CPU: 1 to [`MAX_CAP`]. None for no limit.
    pub cap: Option<u32>,
    /// Whether the CPUs that may run it run no other guest.
    pub dedicated_cpus: bool,
    /// How it starts.
    pub boot: Boot,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network interfaces.
    pub networks: Vec<Network>,
    /// What it has for a console.
    pub console: Console,
    /// What follows its crash (a triple fault, a failed entry, or a watchdog that was not fed).
    pub on_crash: Action,
    /// What follows its reset.
    pub on_reboot: Action,
    /// What follows its power-off.
    pub on_poweroff: Action,
    /// Whether it starts with the machine.
    pub autostart: bool,
    /// Whether what it writes to port 0xE9 goes to the log.
    pub debug_port: bool,
    /// Whether it has a watchdog timer.
    pub watchdog: bool,
    /// Whether it has a source of random numbers, by virtio.
    pub entropy: bool,
}

impl GuestConfig {
    /// Every file beside disks that the guest needs: to start, and on its own disks.
    pub fn files(&self) -> impl Iterator<Item = &Source> {
        self.boot.files().chain(disk::files(&self.disks))
    }
}

/// What a guest has for a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// A 16550 UART at port 0x3F8, shown on the host's console.
    Uart,
    /// The same, and a virtio console beside it, which has what is typed while the guest drives it.
    Virtio,
    /// None: the UART is there, but nobody reads or types.
    None,
}

/// What follows when a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It stays off.
    Stop,
    /// It starts anew.
    Restart,
}

const ACTIONS: [(&str, Action); 2] = [("stop", Action::Stop), ("restart", Action::Restart)];

/// The guest of a node; what is unknown in it is warned of, whether it is sound or not.
pub(super) fn read(node: &Node<'_, '_>, warnings: &mut Vec<Warning>) -> Result<GuestConfig> {
    node.warn_of_unknown_properties(&PROPERTIES, warnings);
    let (disks, networks) = device::read(node, warnings)?;
    let action = |property, default| node.word(property, &ACTIONS).map(|action| action.unwrap_or(default));
    Ok(GuestConfig {
        name: name(node)?,
        node: node.path().into(),
        memory: memory(node)?,
        cpus: node.number("cpus", 1..=MAX_CPUS)?.unwrap_or(1),
        cpu_affinity: cpu_affinity(node)?,
        weight: weight(node)?,
        cap: node.number("cap", 1..=MAX_CAP)?,
        dedicated_cpus: node.flag("dedicated-cpus")?,
        boot: boot::read(node, disks.len(), warnings)?,
        disks,
        networks,
        console: node
            .word(
                "console",
                &[("uart", Console::Uart), ("virtio", Console::Virtio), ("none", Console::None)],
            )?
            .unwrap_or(Console::Uart),
        on_crash: action("on-crash", Action::Stop)?,
        on_reboot: action("on-reboot", Action::Restart)?,
        on_poweroff: action("on-poweroff", Action::Stop)?,
        autostart: node.flag("autostart")?,
        debug_port: node.flag("debug-port")?,
        watchdog: node.flag("watchdog")?,
        entropy: node.flag("entropy")?,
    })
}

fn name(node: &Node<'_, '_>) -> Result<String> {
    const EXPECTED: &str = "1 to 31 letters, digits, '-', '_' and '.'";
    let sound = |name: &str| {
        let letter = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
        (1..=MAX_NAME_LEN).contains(&name.len()) && name.chars().all(letter)
    };
    match node.text("label")? {
        Some(label) if sound(label) => Ok(label.into()),
        Some(_) => Err(node.wrong("label", EXPECTED)),
        None => {
            let name = node.name().split('@').next().unwrap_or("");
            let error = || {
                Box::new(GuestError {
                    node: node.path().into(),
                    property: None,
                    found: "a node name that cannot be a guest's".into(),
                    expected: alloc::format!("{EXPECTED}, or a property label of these"),
                })
            };
            sound(name).then(|| name.into()).ok_or_else(error)
        }
    }
}

/// In bytes; the manifest says KiB.
fn memory(node: &Node<'_, '_>) -> Result<u64> {
    let kib = match node.cells("memory").as_deref() {
        Some([kib]) => Some(u64::from(*kib)),
        Some([high, low]) => Some(u64::from(*high) << 32 | u64::from(*low)),
        _ => None,
    };
    let bytes = kib.and_then(|kib| kib.checked_mul(KIB));
    let bytes = bytes.filter(|bytes| *bytes >= MIN_MEMORY && bytes.is_multiple_of(PAGE));
    bytes.ok_or_else(|| node.wrong("memory", "KiB in one or two cells, at least 1024, a multiple of 4"))
}

fn cpu_affinity(node: &Node<'_, '_>) -> Result<Vec<u32>> {
    if node.value("cpu-affinity").is_none() {
        return Ok(Vec::new());
    }
    let error = || node.wrong("cpu-affinity", "numbers of host CPUs, one cell each, none of them twice");
    let cpus = node.cells("cpu-affinity").filter(|cpus| !cpus.is_empty()).ok_or_else(error)?;
    let mut sorted = Vec::with_capacity(cpus.len());
    for cpu in cpus {
        match sorted.binary_search(&cpu) {
            Ok(_) => return Err(error()),
            Err(at) => sorted.insert(at, cpu),
        }
    }
    Ok(sorted)
}

fn weight(node: &Node<'_, '_>) -> Result<u16> {
    let weight = node.number("weight", 1..=u32::from(u16::MAX))?;
    Ok(weight.and_then(|weight| u16::try_from(weight).ok()).unwrap_or(DEFAULT_WEIGHT))
}
