//! A guest: what it is made of, and one life of it.
//!
//! A life begins with zeroed memory ([`Blank`]) into which [`Guest::build`] puts what the guest starts from, read anew,
//! and ends when the guest switches off, resets or fails. Nothing of it reaches the next.

use crate::boot::memory_map::MemoryMapError;
use crate::boot::{self, BootError, BootProtocol, MemoryMap};
use crate::chipset::{
    AddressTaken, ApicBus, ApicEffect, Chipset, ChipsetConfig, Complaint, Console, Context, LocalApics,
    PciAddress, PciConfigError, PlatformEvent,
    layout::{FIRST_SLOT, LAST_SLOT},
};
use crate::cpu::{Core, EntryFailure, Exit};
use crate::cpuid::{CpuidConfig, CpuidInstruction, CpuidView, kvm};
use crate::disk::{DiskError, GuestDisk};
use crate::host::{Detail, Host, Terminal};
use crate::memory::{GuestMemory, LayoutError, NestedTables, Region, TooHigh};
use crate::news::News;
use crate::own_memory::Shortage;
use crate::provision::{Image, Provider, Providing, Provisions};
use crate::schedule::{NoCores, Share};
use crate::time::{Instant, TscClock};
use crate::vcpu::Vcpu;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Mutex;

/// What to do when a guest's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Build it again.
    Restart,
    /// Leave it off.
    Stop,
}

/// Everything the monitor needs to know to give a guest a life.
#[derive(Clone)]
pub struct GuestConfig {
    /// Its name in logs; unique.
    pub name: String,
    /// Memory in bytes.
    pub memory: u64,
    /// How many virtual CPUs, 1 and up.
    pub vcpus: u32,
    /// Its share of the machine's cores.
    pub share: Share,
    /// How it boots.
    pub protocol: BootProtocol,
    /// What it starts from, and its disks.
    pub provider: Arc<dyn Provider>,
    /// Whether port 0xE9 leads to the log.
    pub debug_port: bool,
    /// Whether it has a watchdog timer.
    pub watchdog: bool,
    /// Whether it has a virtio console beside its serial port.
    pub virtio_console: bool,
    /// Whether it has a source of random numbers: a virtio entropy device.
    pub entropy: bool,
    /// What follows a crash.
    pub on_crash: Action,
    /// What follows a reset that the guest asked for.
    pub on_reboot: Action,
    /// What follows a power-off that the guest asked for.
    pub on_poweroff: Action,
}

/// What a guest may take of the monitor's own memory, its console's backlog included, in bytes.
const OWN_MEMORY: u64 = 128 << 10;
/// What each of its virtual CPUs may take in addition.
const OWN_MEMORY_OF_VCPU: u64 = 24 << 10;
/// What each of its disks may take in addition, with all the requests that can be under way.
const OWN_MEMORY_OF_DISK: u64 = 192 << 10;
/// Nested tables with pages of 2 MiB take a page for each so many bytes of its memory.
const BYTES_OF_NESTED_TABLE: u64 = 1 << 30;

impl GuestConfig {
    /// What a life of it takes of the monitor's own memory at most, in bytes.
    pub fn own_memory(&self) -> u64 {
        let vcpus = u64::from(self.vcpus).saturating_mul(OWN_MEMORY_OF_VCPU);
        let tables = self.memory.div_ceil(BYTES_OF_NESTED_TABLE).saturating_mul(4096);
        let disks = (self.provider.disks() as u64).saturating_mul(OWN_MEMORY_OF_DISK);
        let disks = disks.saturating_add(self.provider.own_memory());
        OWN_MEMORY.saturating_add(vcpus).saturating_add(tables).saturating_add(disks)
    }

    /// What follows a life that ended this way.
    pub fn action_after(&self, end: &End) -> Action {
        match end {
            End::PowerOff => self.on_poweroff,
            End::Reset => self.on_reboot,
            End::TripleFault | End::Failed(_) | End::Watchdog => self.on_crash,
            End::Stopped => Action::Stop,
            End::Restarted => Action::Restart,
        }
    }
}

/// How a guest's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// A fault while it delivered a double fault.
    TripleFault,
    /// The CPU would not run it on.
    Failed(EntryFailure),
    /// It did not feed its watchdog in time.
    Watchdog,
    /// The user stopped it.
    Stopped,
    /// The user had it start again.
    Restarted,
}

impl End {
    /// Whether it failed.
    pub const fn is_crash(self) -> bool {
        matches!(self, Self::TripleFault | Self::Failed(_) | Self::Watchdog)
    }

    /// Whether the user had it end.
    pub const fn is_users(self) -> bool {
        matches!(self, Self::Stopped | Self::Restarted)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("powered off"),
            Self::Reset => f.write_str("reset"),
            Self::Stopped => f.write_str("stopped"),
            Self::Restarted => f.write_str("reset by the user"),
            Self::TripleFault => f.write_str("crashed: triple fault"),
            Self::Watchdog => f.write_str("crashed: its watchdog was not fed in time"),
            Self::Failed(failure) => write!(f, "crashed: {} ({:#x})", failure.reason, failure.code),
        }
    }
}

/// Why a guest is not admitted to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The monitor's own memory does not suffice for it.
    OwnMemory(Shortage),
    /// The machine's cores cannot give it its share.
    Cores(NoCores),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnMemory(error) => error.fmt(f),
            Self::Cores(error) => error.fmt(f),
        }
    }
}

/// Why a guest could not be given a life.
#[derive(Debug)]
pub enum BuildError {
    /// The machine has less free memory than it wants; both in bytes.
    Memory {
        /// What it asks for.
        wanted: u64,
        /// How much of that there is not.
        missing: u64,
    },
    /// It was not admitted.
    Refused(Refusal),
    /// Its memory does not form an address space.
    Layout(LayoutError),
    /// Its memory reaches past what nested tables can map.
    TooHigh(TooHigh),
    /// No machine has memory of this size.
    MemoryMap(MemoryMapError),
    /// What it starts from, or a disk, cannot be had.
    Provisions(String),
    /// Its images are not what its boot protocol asks for, or do not fit.
    Boot(BootError),
    /// A device cannot be had.
    Device(DeviceError),
    /// The disk of this number cannot be had.
    Disk(usize, DiskError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { wanted, missing } => {
                write!(
                    f,
                    "asks for {} MiB of memory, of which the machine lacks {} MiB",
                    wanted >> 20,
                    missing.div_ceil(1 << 20)
                )
            }
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Layout(error) => error.fmt(f),
            Self::TooHigh(TooHigh(at)) => write!(f, "memory at guest-physical {at} is out of reach"),
            Self::MemoryMap(error) => error.fmt(f),
            Self::Provisions(reason) => f.write_str(reason),
            Self::Boot(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Disk(number, error) => write!(f, "disk{number}: {error}"),
        }
    }
}

impl core::error::Error for BuildError {}

/// Why a guest cannot have a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// This build has no virtio devices for guests.
    NoVirtio,
    /// Its place on the bus is another's.
    Address(AddressTaken),
    /// It does not fit its configuration space.
    Config(PciConfigError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVirtio => f.write_str("this build has no virtio devices for guests"),
            Self::Address(error) => error.fmt(f),
            Self::Config(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DeviceError {}

/// Who can have a virtual CPU run that waits, or look up when it runs elsewhere.
pub trait Wake: Sync {
    /// Something came for the virtual CPU of this number of the guest `guest`.
    fn wake(&self, guest: usize, vcpu: u32);
    /// Where news for guests' devices are left.
    fn news(&self) -> &Arc<News>;
}

/// A life to be: memory that is its own already, while what it starts from is still to be had.
pub struct Blank {
    config: GuestConfig,
    map: MemoryMap,
    memory: Arc<GuestMemory>,
    tables: Arc<NestedTables>,
}

impl Blank {
    /// Takes zeroed memory, laid out for a guest of this kind.
    ///
    /// # Errors
    /// No machine has so much memory, or this one lacks it.
    pub fn new(config: GuestConfig, core: &Core, host: &dyn Host) -> Result<Self, BuildError> {
        let map = MemoryMap::new(config.memory, core.features().physical_address_bits)
            .map_err(BuildError::MemoryMap)?;
        let memory = Arc::new(allocate(&map, host)?);
        let tables = core.new_nested_tables(Arc::clone(&memory)).map_err(BuildError::TooHigh)?;
        Ok(Self { config, map, memory, tables: Arc::new(tables) })
    }

    /// Gets what the life has from outside.
    pub fn provide(&self) -> Providing {
        Arc::clone(&self.config.provider).provide()
    }
}

/// One life of a guest: what its virtual CPUs share.
pub struct Guest {
    config: GuestConfig,
    host: &'static dyn Host,
    terminal: Arc<dyn Terminal>,
    memory: Arc<GuestMemory>,
    pub(crate) chipset: Mutex<Chipset>,
    pub(crate) apics: LocalApics,
    pub(crate) clock: TscClock,
    /// Seconds since 1970 at the clock's zero.
    pub(crate) unix_time: u64,
    /// The guest's number with its waker.
    number: usize,
    waker: &'static dyn Wake,
    news: Arc<News>,
    /// When the board has something to do next, in nanoseconds, as the first virtual CPU knows it.
    board_deadline: AtomicU64,
    ended: AtomicBool,
    end: Mutex<Option<End>>,
    reported: Mutex<Reported>,
}

/// What the log was told of accesses to what is not there.
#[derive(Default)]
struct Reported {
    logged: BTreeSet<Unknown>,
    /// How many accesses it was not told of: repeated ones, and those past the most that are logged.
    left_out: u64,
}

/// Something a guest touched that is not there: logged once each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unknown {
    Port(u16),
    /// By page.
    Memory(u64),
    ReadMsr(u32),
    WriteMsr(u32),
    Hypercall(u64),
    /// By RIP.
    Instruction(u64),
    /// By what kind of device its driver has broken.
    Driver(&'static str),
}

/// Guest memory comes in pieces of at least this many bytes, so that nested pages of that size fit.
const PIECE: u64 = 2 << 20;
/// How many different unknown things are logged for one life of a guest.
const REPORTED_AT_MOST: usize = 24;

impl Guest {
    /// A new life: devices, images in memory, and virtual CPUs ready for the boot protocol's entry.
    ///
    /// # Errors
    /// The images or disks are not what they are taken for, or do not fit.
    pub fn build(
        Blank { config, map, memory, tables }: Blank,
        Provisions { files, disks }: Provisions,
        core: &Core,
        host: &'static dyn Host,
        terminal: Arc<dyn Terminal>,
        (number, waker): (usize, &'static dyn Wake),
    ) -> Result<(Arc<Self>, Vec<Vcpu>), BuildError> {
        let features = core.features();
        let modules: Vec<boot::Module> = files
            .modules
            .iter()
            .map(|module| boot::Module { image: module.image.bytes(), bootargs: &module.bootargs })
            .collect();
        let images = boot::Images {
            kernel: files.kernel.bytes(),
            ramdisk: files.ramdisk.as_ref().map(Image::bytes),
            modules: &modules,
            bootargs: &files.bootargs,
        };
        let state = boot::load(config.protocol, &memory, &map, config.vcpus, config.watchdog, &images)
            .map_err(BuildError::Boot)?;

        let (now, tsc) = host.now_and_tsc();
        let clock = TscClock::new(host.tsc_khz(), now);
        let unix_time = host.unix_time();
        let board = ChipsetConfig {
            start: now,
            unix_time,
            memory_bytes: config.memory,
            debug_port: config.debug_port,
            watchdog: config.watchdog,
        };
        let news = Arc::clone(waker.news());
        let mut chipset = Chipset::new(&board, news.waker(number));
        for (n, disk) in disks.iter().enumerate() {
            attach(&mut chipset, n, disk, config.vcpus).map_err(|error| BuildError::Disk(n, error))?;
        }
        add_devices(&mut chipset, &config, host).map_err(BuildError::Device)?;
        let vcpus = config.vcpus;
        let guest = Arc::new(Self {
            config,
            host,
            terminal,
            memory,
            chipset: Mutex::new(chipset),
            apics: LocalApics::new(vcpus, clock),
            clock,
            unix_time,
            number,
            waker,
            news,
            board_deadline: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            end: Mutex::new(None),
            reported: Mutex::new(Reported::default()),
        });
        let cpuid_config = CpuidConfig {
            features: *features,
            vcpus,
            tsc_khz: u32::try_from(clock.khz()).unwrap_or(u32::MAX),
            invariant_tsc: features.invariant_tsc,
            physical_bits: features.physical_address_bits,
            five_level_paging: true,
            arch_capabilities: false,
            kvm_features: kvm::NOP_IO_DELAY
                | kvm::CLOCKSOURCE2
                | kvm::CLOCKSOURCE_STABLE
                | kvm::STEAL_TIME
                | kvm::PV_EOI,
        };
        let vcpus = (0..vcpus)
            .map(|index| {
                let cpuid = CpuidView::compose(&CpuidInstruction, &cpuid_config, index);
                let mut cpu = core.new_virtual_cpu(Arc::clone(&tables));
                cpu.set_tsc_offset(tsc.wrapping_neg());
                // On cores of its own there is nobody to make room for.
                cpu.set_pause_exits(!guest.config.share.dedicated);
                cpu.load(&state);
                Vcpu::new(Arc::clone(&guest), index, cpu, cpuid)
            })
            .collect();
        Ok((guest, vcpus))
    }

    /// What it was built from.
    pub fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether devices have news, of this guest or another: somebody has to look.
    #[inline]
    pub(crate) fn news_wait(&self) -> bool {
        self.news.waits()
    }

    /// Has the devices look at what has come for them from outside.
    pub(crate) fn poll_devices(&self, now: Instant) {
        self.with_chipset(now, None, |chipset, context| chipset.poll(context));
    }

    /// The life is over: its devices take no more requests. Whether none is under way any more.
    pub(crate) fn wind_down(&self, now: Instant) -> bool {
        self.with_chipset(now, None, |chipset, context| chipset.wind_down(context))
    }

    /// Whether nothing else keeps its memory: no virtual CPU's tables map it any more, and no request is about it.
    pub(crate) fn owns_memory(&mut self) -> bool {
        Arc::get_mut(&mut self.memory).is_some()
    }

    /// The machine it runs on.
    pub fn host(&self) -> &'static dyn Host {
        self.host
    }

    /// How this life ended, once it has.
    pub fn ended(&self) -> Option<End> {
        *self.end.lock()
    }

    /// Its number with the monitor.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether its terminal has a byte for it, or room again.
    pub fn has_terminal_news(&self) -> bool {
        self.terminal.has_news()
    }

    /// Whether this life has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Ends this life; the first end counts.
    pub fn end(&self, end: End) {
        self.end.lock().get_or_insert(end);
        self.ended.store(true, Ordering::Release);
        for vcpu in 0..self.config.vcpus {
            self.apics.kick(vcpu as usize);
            self.waker.wake(self.number, vcpu);
        }
    }

    /// When the board has something to do next; notes that the first virtual CPU knows.
    pub(crate) fn board_deadline(&self) -> Option<Instant> {
        let deadline = self.chipset.lock().next_deadline();
        self.board_deadline.store(deadline.map_or(u64::MAX, Instant::as_nanos), Ordering::Relaxed);
        deadline
    }

    /// Wakes the virtual CPUs for which something came, but for the one that runs this.
    fn wake_kicked(&self, by: Option<u32>) {
        for vcpu in self.apics.kicked() {
            if by != Some(vcpu as u32) {
                self.waker.wake(self.number, vcpu as u32);
            }
        }
    }

    /// Runs `work` on the chipset with what its devices may ask for, and follows what the guest asked of the
    /// board with it. `by` is the virtual CPU that runs this.
    pub(crate) fn with_chipset<R>(
        &self,
        now: Instant,
        by: Option<u32>,
        work: impl FnOnce(&mut Chipset, &mut Context<'_>) -> R,
    ) -> R {
        let mut chipset = self.chipset.lock();
        let mut console = &*self.terminal;
        let (apics, memory) = (&self.apics, &self.memory);
        let mut context = Context { now, console: &mut console, apics, memory, complaint: None };
        let result = work(&mut chipset, &mut context);
        let complaint = context.complaint;
        let event = chipset.take_event();
        if by != Some(0) {
            let deadline = chipset.next_deadline().map_or(u64::MAX, Instant::as_nanos);
            if deadline < self.board_deadline.load(Ordering::Relaxed) {
                self.apics.kick(0);
            }
        }
        drop(chipset);
        if let Some(Complaint { device, what }) = complaint {
            self.report(Unknown::Driver(device), format_args!("{what}"));
        }
        match event {
            Some(PlatformEvent::PowerOff) => self.end(End::PowerOff),
            Some(PlatformEvent::Reset) => self.end(End::Reset),
            Some(PlatformEvent::Watchdog) => self.end(End::Watchdog),
            None => {}
        }
        self.wake_kicked(by);
        result
    }

    /// Does what a write to a local APIC asks of others.
    pub(crate) fn follow(&self, effect: ApicEffect, now: Instant, by: u32) {
        match effect {
            ApicEffect::None => {}
            ApicEffect::Send(message) => {
                self.apics.deliver(message);
                self.wake_kicked(Some(by));
            }
            ApicEffect::EndOfInterrupt { vector } => {
                self.with_chipset(now, Some(by), |chipset, context| {
                    chipset.end_of_interrupt(vector, context)
                });
            }
        }
    }

    /// Asks the 8259 pair for the vector of the interrupt it signals.
    pub(crate) fn acknowledge_external(&self, by: u32) -> u8 {
        let now = self.host.now();
        self.with_chipset(now, Some(by), |chipset, context| chipset.acknowledge_external(context))
    }

    /// Tells the guest's serial port what is new at its terminal: room, and what waits there, as far as the port
    /// takes it.
    pub fn hear_terminal(&self, now: Instant) {
        self.with_chipset(now, None, |chipset, context| {
            chipset.check_console_room(context);
            chipset.take_console_input(context);
        });
    }

    /// Presses the power button: an operating system shuts itself down.
    pub fn press_power_button(&self) {
        self.with_chipset(self.host.now(), None, |chipset, context| chipset.press_power_button(context));
    }

    /// Notes an access to something that is not there: in the log, once each and not without end.
    pub(crate) fn report(&self, unknown: Unknown, message: fmt::Arguments<'_>) {
        let mut reported = self.reported.lock();
        if reported.logged.len() < REPORTED_AT_MOST && reported.logged.insert(unknown) {
            self.host.log(Detail::Expert, &self.config.name, message);
        } else {
            reported.left_out = reported.left_out.saturating_add(1);
        }
    }

    /// How many accesses to what is not there the log was not told of.
    pub(crate) fn reports_left_out(&self) -> u64 {
        self.reported.lock().left_out
    }
}

impl Console for &dyn Terminal {
    fn transmit(&mut self, byte: u8) -> bool {
        Terminal::transmit(*self, byte)
    }
    fn has_room(&mut self) -> bool {
        Terminal::has_room(*self)
    }
    fn receive(&mut self) -> Option<u8> {
        Terminal::receive(*self)
    }
    fn debug(&mut self, byte: u8) {
        Terminal::debug(*self, byte);
    }
}

/// Puts disk number `n` onto the board.
fn attach(chipset: &mut Chipset, n: usize, disk: &GuestDisk, vcpus: u32) -> Result<(), DiskError> {
    let slot = u8::try_from(n).ok().and_then(|n| FIRST_SLOT.checked_add(n));
    let slot = slot.filter(|slot| *slot <= LAST_SLOT).ok_or(DiskError::NoSlot)?;
    chipset
        .add_pci_function(PciAddress::new(0, slot, 0), disk.controller(slot, vcpus)?)
        .map_err(|_| DiskError::NoSlot)
}

/// Puts the devices that the guest has beside disks onto the board.
#[cfg(feature = "virtio")]
fn add_devices(
    chipset: &mut Chipset,
    config: &GuestConfig,
    host: &'static dyn Host,
) -> Result<(), DeviceError> {
    use crate::chipset::layout::{CONSOLE_SLOT, ENTROPY_SLOT};
    use crate::virtio::{Device, Entropy, pci::VirtioPci};
    use alloc::boxed::Box;

    struct HostEntropy(&'static dyn Host);
    impl Entropy for HostEntropy {
        fn fill(&mut self, bytes: &mut [u8]) {
            self.0.fill_random(bytes);
        }
    }

    let mut add = |slot, device: Box<dyn Device>| {
        let function = VirtioPci::new(device).map_err(DeviceError::Config)?;
        chipset
            .add_pci_function(PciAddress::new(0, slot, 0), Box::new(function))
            .map_err(DeviceError::Address)
    };
    if config.virtio_console {
        add(CONSOLE_SLOT, Box::<crate::virtio::Console>::default())?;
    }
    if config.entropy {
        add(ENTROPY_SLOT, Box::new(crate::virtio::Rng::new(Box::new(HostEntropy(host)))))?;
    }
    Ok(())
}

/// Puts the devices that the guest has beside disks onto the board.
#[cfg(not(feature = "virtio"))]
fn add_devices(_: &mut Chipset, config: &GuestConfig, _: &'static dyn Host) -> Result<(), DeviceError> {
    if config.virtio_console || config.entropy { Err(DeviceError::NoVirtio) } else { Ok(()) }
}

/// Memory as the map wants it: in one piece where the host has one, or else in as few as it takes.
fn allocate(map: &MemoryMap, host: &dyn Host) -> Result<GuestMemory, BuildError> {
    let lacking =
        |found: u64| BuildError::Memory { wanted: map.size(), missing: map.size().saturating_sub(found) };
    // Before any is zeroed.
    if host.free_memory() < map.size() {
        return Err(lacking(host.free_memory()));
    }
    let (mut regions, mut found) = (Vec::new(), 0_u64);
    for wanted in map.regions() {
        let mut done = 0_u64;
        while done < wanted.len {
            let left = wanted.len.saturating_sub(done);
            let piece = left.min(host.largest_block() & !(PIECE.wrapping_sub(1)));
            let block = (piece > 0)
                .then(|| host.allocate(piece, wanted.alignment).or_else(|| host.allocate(piece, PIECE)))
                .flatten()
                .ok_or_else(|| lacking(found))?;
            let base = wanted.base.checked_add(done).unwrap_or_default();
            regions.push(Region::new(base, block));
            done = done.saturating_add(piece);
            found = found.saturating_add(piece);
        }
    }
    GuestMemory::new(regions).map_err(BuildError::Layout)
}

/// How many exits there were, by reason.
#[derive(Clone, Debug, Default)]
pub struct ExitCounts {
    counts: [u64; ExitCounts::NAMES.len()],
}

/// What a virtual CPU counts of its exits: it alone counts, others may look meanwhile.
#[derive(Debug, Default)]
pub struct ExitCounter {
    counts: [AtomicU64; ExitCounts::NAMES.len()],
}

impl ExitCounts {
    const NAMES: [&str; 19] = [
        "cpuid",
        "rdmsr",
        "wrmsr",
        "port",
        "memory",
        "halt",
        "pause",
        "xsetbv",
        "cache flush",
        "hypercall",
        "undefined",
        "host interrupt",
        "host nmi",
        "interrupt window",
        "triple fault",
        "failed",
        "cr8",
        "apic write",
        "end of interrupt",
    ];

    /// Every reason that happened, with how often.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Self::NAMES.into_iter().zip(self.counts).filter(|(_, count)| *count > 0)
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count = count.wrapping_add(more);
        }
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }
}

impl ExitCounter {
    /// Counts one.
    #[inline]
    pub fn count(&self, exit: &Exit) {
        let slot = match exit {
            Exit::Cpuid => 0,
            Exit::ReadMsr => 1,
            Exit::WriteMsr => 2,
            Exit::Port(_) => 3,
            Exit::Memory(_) => 4,
            Exit::Halt => 5,
            Exit::Pause => 6,
            Exit::Xsetbv => 7,
            Exit::CacheFlush => 8,
            Exit::Hypercall => 9,
            Exit::Undefined => 10,
            Exit::HostInterrupt => 11,
            Exit::HostNmi | Exit::HostMachineCheck => 12,
            Exit::InterruptWindow => 13,
            Exit::TripleFault => 14,
            Exit::Failed(_) => 15,
            Exit::WriteTaskPriority => 16,
            Exit::ApicWrite { .. } => 17,
            Exit::EndOfInterrupt { .. } => 18,
        };
        if let Some(count) = self.counts.get(slot) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Those so far.
    pub fn counts(&self) -> ExitCounts {
        ExitCounts { counts: self.counts.each_ref().map(|count| count.load(Ordering::Relaxed)) }
    }
}

impl fmt::Display for ExitCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.total())?;
        for (reason, count) in self.iter() {
            write!(f, ", {reason} {count}")?;
        }
        Ok(())
    }
}
