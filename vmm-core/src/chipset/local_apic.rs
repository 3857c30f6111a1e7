//! One vCPU's local APIC (SDM volume 3, chapter 11).
//!
//! The guest reaches it through memory in xAPIC mode and through MSRs in x2APIC mode. What an access asks of
//! others comes back as an [`ApicEffect`], so that no local APIC calls another.

use super::apic_message::{ApicMessage, DeliveryMode, Destination, Trigger};
use super::apic_timer::{ApicTimer, TimerMode};
use super::layout::LOCAL_APIC_BASE;
use super::vector_set::VectorSet;
use crate::cpu::{APIC_BASE, ApicAccess, ApicLoan, ApicPage, Width};
use crate::memory::GuestPhys;
use crate::time::{Instant, TscClock};
use alloc::sync::Arc;

/// The frequency of the timer's clock before its divider: one count is one nanosecond. A guest may learn it
/// from CPUID.
pub const BUS_HZ: u64 = 1_000_000_000;

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first of the 256 MSRs that hold the registers in x2APIC mode.
pub const MSR_X2APIC: u32 = 0x800;

/// The access is one the SDM forbids: the guest gets #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What a register write asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ApicEffect {
    /// Nothing.
    None,
    /// Route the message to its destinations.
    Send(ApicMessage),
    /// Tell the IOAPIC that a level-triggered interrupt was served.
    EndOfInterrupt {
        /// The interrupt's vector.
        vector: u8,
    },
}

/// Register numbers: MMIO offset over 16, and MSR less [`MSR_X2APIC`] (SDM table 11-6).
mod register {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const RRD: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const ISR_LAST: u32 = 0x17;
    pub const TMR: u32 = 0x18;
    pub const TMR_LAST: u32 = 0x1f;
    pub const IRR: u32 = 0x20;
    pub const IRR_LAST: u32 = 0x27;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Integrated APIC (0x14) with six LVT entries, no EOI-broadcast suppression.
const VERSION: u32 = 0x14 | 5 << 16;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_MODE: u64 = BASE_X2APIC | BASE_ENABLE;
/// The base address, of which a guest-physical address has at most 52 bits.
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SVR_ENABLE: u32 = 1 << 8;
/// Vector, software enable, focus checking.
const SVR_BITS: u32 = 0x3ff;

/// LVT: delivery status and remote IRR, which only the local APIC sets.
const LVT_STATUS: u32 = 1 << 12 | 1 << 14;
const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;

/// The xAPIC's ICR, lower half: what software may write.
const ICR_BITS: u32 = 0x000c_cfff;

/// ESR bits (SDM 11.5.3).
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

/// Whether a CPU that this build knows takes local APICs on loan: VT-x does.
const LENT: bool = cfg!(feature = "vt-x");

/// Vectors below belong to exceptions.
const FIRST_VECTOR: u8 = 16;

/// The local vector table's entries, in register order.
#[derive(Clone, Copy)]
enum Lvt {
    Timer,
    Thermal,
    PerformanceCounter,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    const fn from_register(register: u32) -> Option<Self> {
        match register.wrapping_sub(register::LVT_TIMER) {
            0 => Some(Self::Timer),
            1 => Some(Self::Thermal),
            2 => Some(Self::PerformanceCounter),
            3 => Some(Self::Lint0),
            4 => Some(Self::Lint1),
            5 => Some(Self::Error),
            _ => None,
        }
    }

    /// The bits software may write.
    const fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x7_00ff,
            Self::Thermal | Self::PerformanceCounter => 0x1_07ff,
            Self::Lint0 | Self::Lint1 => 0x1_a7ff,
            Self::Error => 0x1_00ff,
        }
    }
}

/// A vCPU's local APIC.
#[derive(Debug)]
pub struct LocalApic {
    id: u32,
    /// IA32_APIC_BASE.
    base: u64,
    task_priority: u8,
    /// The xAPIC's own; in x2APIC mode the logical ID follows from the ID.
    logical: u32,
    destination_format: u32,
    spurious: u32,
    lvt: [u32; 6],
    icr: u64,
    /// What the guest's last write to ESR brought to light, and what happened since.
    errors: u32,
    new_errors: u32,
    requested: VectorSet,
    in_service: VectorSet,
    level_triggered: VectorSet,
    /// The priority below which nothing interrupts: always the higher of task and in-service priority.
    processor_priority: u8,
    /// The highest requested vector above that priority, zero for none: what every entry looks at.
    deliverable: u8,
    timer: ApicTimer,
    intr: bool,
    /// An ExtINT message came: the vector is the 8259 pair's to name.
    external_message: bool,
    nmi: bool,
    init: bool,
    startup: Option<u8>,
    waiting_for_startup: bool,
    /// Where the CPU can work on the registers, if it can.
    page: Option<Arc<ApicPage>>,
    /// The CPU has IRR, ISR and TPR, and the xAPIC's ICR: what is requested here came since.
    lent: bool,
    /// What else is in the page differs from here.
    page_stale: bool,
}

impl LocalApic {
    /// The local APIC of the vCPU `id` after RESET: in xAPIC mode, software-disabled. The vCPU 0 is the
    /// bootstrap processor; all others wait for a start-up message. `clock` is the guest's TSC.
    pub fn new(id: u32, clock: TscClock) -> Self {
        let bootstrap = if id == 0 { BASE_BSP } else { 0 };
        Self {
            id,
            base: LOCAL_APIC_BASE.get() | BASE_ENABLE | bootstrap,
            task_priority: 0,
            logical: 0,
            destination_format: u32::MAX,
            spurious: 0xff,
            lvt: [LVT_MASKED; 6],
            icr: 0,
            errors: 0,
            new_errors: 0,
            requested: VectorSet::default(),
            in_service: VectorSet::default(),
            level_triggered: VectorSet::default(),
            processor_priority: 0,
            deliverable: 0,
            timer: ApicTimer::new(clock),
            intr: false,
            external_message: false,
            nmi: false,
            init: false,
            startup: None,
            waiting_for_startup: id != 0,
            page: None,
            lent: false,
            page_stale: true,
        }
    }

    /// Its ID, which is also its vCPU's number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    pub const fn apic_base(&self) -> u64 {
        self.base
    }

    /// Where its registers lie in memory; `None` outside xAPIC mode.
    pub const fn mmio_base(&self) -> Option<GuestPhys> {
        match self.base & BASE_MODE {
            BASE_ENABLE => Some(GuestPhys::new(self.base & BASE_ADDRESS)),
            _ => None,
        }
    }

    /// Whether the guest switched it to x2APIC mode.
    pub const fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// Whether IA32_APIC_BASE has it on.
    pub const fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    const fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.spurious & SVR_ENABLE != 0
    }

    // What the vCPU asks before each entry.

    /// The vector to inject now, unless the vCPU has interrupts off.
    pub const fn pending_vector(&self) -> Option<u8> {
        match self.deliverable {
            0 => None,
            vector => Some(vector),
        }
    }

    /// The vCPU took the interrupt `vector` from [`Self::pending_vector`]: it is in service until its EOI.
    pub fn acknowledge(&mut self, vector: u8) {
        self.requested.remove(vector);
        self.in_service.insert(vector);
        self.arbitrate();
    }

    /// Whether the vCPU should take an interrupt whose vector the 8259 pair names.
    pub const fn external_pending(&self) -> bool {
        self.external_message || self.intr && self.accepts_external()
    }

    /// The vCPU asked the 8259 pair for its vector. The pair lowers its wire by itself.
    pub const fn acknowledge_external(&mut self) {
        self.external_message = false;
    }

    /// Whether the 8259 pair's wire reaches the vCPU: through LINT0 as ExtINT (virtual wire mode), or
    /// directly when the bootstrap processor's local APIC is off.
    pub const fn accepts_external(&self) -> bool {
        if !self.is_enabled() {
            return self.base & BASE_BSP != 0;
        }
        let entry = self.lvt(Lvt::Lint0);
        entry & LVT_MASKED == 0 && matches!(DeliveryMode::from_bits(entry >> 8), Some(DeliveryMode::ExtInt))
    }

    /// The highest vector that is requested and not yet in service, whatever the task priority: one that
    /// may become deliverable as soon as the vCPU lowers CR8.
    pub fn highest_request(&self) -> Option<u8> {
        self.requested
            .highest()
            .filter(|vector| vector & 0xf0 > self.in_service.highest().unwrap_or(0) & 0xf0)
    }

    /// Whether the end of the interrupt in service concerns nobody: no other waits for it, and nobody wants to be told.
    pub fn ends_quietly(&self) -> bool {
        let in_service = self.in_service.highest();
        !self.lent
            && self.requested.highest().is_none()
            && in_service.is_some_and(|vector| !self.level_triggered.contains(vector))
    }

    /// Whether a non-maskable interrupt waits.
    pub const fn nmi_pending(&self) -> bool {
        self.nmi
    }

    /// Takes the pending non-maskable interrupt.
    pub const fn take_nmi(&mut self) -> bool {
        core::mem::replace(&mut self.nmi, false)
    }

    /// Whether an INIT waits.
    pub const fn init_pending(&self) -> bool {
        self.init
    }

    /// Takes the pending INIT; the local APIC has already reset itself. The bootstrap processor then starts
    /// at the reset vector, any other waits for [`Self::take_startup`].
    pub const fn take_init(&mut self) -> bool {
        core::mem::replace(&mut self.init, false)
    }

    /// Takes the pending start-up message: the vCPU begins in real mode at this page, address over 4096.
    pub const fn take_startup(&mut self) -> Option<u8> {
        self.startup.take()
    }

    /// Whether the vCPU does nothing until a start-up message comes.
    pub const fn is_waiting_for_startup(&self) -> bool {
        self.waiting_for_startup
    }

    /// Whether a halted vCPU has a reason to go on. Interrupts count only while the vCPU has them on, and one that has
    /// not begun takes nothing (SDM 3, 9.4.4 and 24.4.2): it is not halted where INIT left it, and must not go on
    /// there, until [`Self::take_startup`] says where.
    pub const fn has_event(&self, interrupts_on: bool) -> bool {
        let begun = !self.waiting_for_startup && self.startup.is_none();
        begun && (self.nmi || interrupts_on && (self.deliverable != 0 || self.external_pending()))
    }

    // Where the CPU does part of the work while the guest runs.

    /// From now on, [`Self::lend`] can put the registers into `page`.
    pub fn set_page(&mut self, page: Option<Arc<ApicPage>>) {
        self.page = page;
    }

    /// Whether the CPU has the registers.
    pub const fn is_lent(&self) -> bool {
        self.lent
    }

    /// Lends the registers to the CPU that runs the guest: which is how it is to go about it, or `None` where it is
    /// to leave this local APIC alone.
    pub fn lend(&mut self) -> Option<ApicLoan> {
        if !LENT {
            return None;
        }
        let access = match self.mmio_base() {
            _ if !self.is_software_enabled() => return None,
            Some(APIC_BASE) => ApicAccess::Memory,
            Some(_) => return None,
            None => ApicAccess::Msrs,
        };
        let page = &**self.page.as_ref()?;
        if self.page_stale {
            self.show(page);
        }
        page.write(ApicPage::TPR, u32::from(self.task_priority));
        for n in 0..8 {
            page.write(ApicPage::ISR | n << 4, self.in_service.register(n));
            page.write(ApicPage::IRR | n << 4, self.requested.register(n));
        }
        let requested = core::mem::take(&mut self.requested).highest().unwrap_or(0);
        (self.lent, self.page_stale) = (true, false);
        Some(ApicLoan {
            access,
            requested,
            in_service: self.in_service.highest().unwrap_or(0),
            told: self.level_triggered.words(),
        })
    }

    /// Takes them back, unless that is done, or a reset has made them void. Says whether they were lent.
    pub fn take_back(&mut self) -> bool {
        if !LENT || !core::mem::take(&mut self.lent) {
            return false;
        }
        let Some(page) = &self.page else { return false };
        self.task_priority = page.read(ApicPage::TPR) as u8;
        self.in_service = VectorSet::default();
        for n in 0..8 {
            self.in_service.insert_register(n, page.read(ApicPage::ISR | n << 4));
            self.requested.insert_register(n, page.read(ApicPage::IRR | n << 4));
        }
        if !self.is_x2apic() {
            let (low, high) = (page.read(register::ICR << 4), page.read(register::ICR_HIGH << 4));
            self.icr = u64::from(high & 0xff00_0000) << 32 | u64::from(low & ICR_BITS);
        }
        self.arbitrate();
        true
    }

    /// Writes the registers that the CPU only shows to the guest.
    fn show(&self, page: &ApicPage) {
        let x2apic = self.is_x2apic();
        let (id, logical) =
            if x2apic { (self.id, x2apic_logical_id(self.id)) } else { (self.id << 24, self.logical) };
        let (icr, icr_high) = (self.icr as u32, (self.icr >> 32) as u32);
        let registers = [
            (register::ID, id),
            (register::VERSION, VERSION),
            (register::LDR, logical),
            (register::DFR, self.destination_format),
            (register::SVR, self.spurious),
            (register::ESR, self.errors),
            (register::ICR, icr),
            (register::ICR_HIGH, icr_high),
            (register::TIMER_INITIAL, self.timer.initial()),
            (register::DIVIDE, self.timer.divide()),
        ];
        let lvt = (register::LVT_TIMER..).zip(self.lvt);
        let trigger_mode = (0..8).map(|n| (register::TMR | n, self.level_triggered.register(n)));
        for (register, value) in registers.into_iter().chain(lvt).chain(trigger_mode) {
            page.write(register << 4, value);
        }
        // The x2APIC's ICR is the only register of 64 bits.
        page.write(register::ICR << 4 | 4, if x2apic { icr_high } else { 0 });
    }

    /// The guest wrote the register at `offset`, where the CPU left the value in the page.
    pub fn complete_write(&mut self, offset: u32, now: Instant) -> ApicEffect {
        if !LENT {
            return ApicEffect::None;
        }
        self.take_back();
        let value = self.page.as_ref().map_or(0, |page| u64::from(page.read(offset)));
        if self.is_x2apic() {
            let index = MSR_X2APIC | offset >> 4;
            return self.write_msr(index, value, now).unwrap_or(ApicEffect::None);
        }
        self.mmio_write(offset & !3, Width::Dword, value, now)
    }

    // Time.

    /// When [`Self::advance`] next has something to do.
    pub const fn next_deadline(&self) -> Option<Instant> {
        if self.lvt(Lvt::Timer) & LVT_MASKED != 0 {
            return None;
        }
        self.timer.deadline()
    }

    /// Raises the timer's interrupt if it is due at `now`.
    pub fn advance(&mut self, now: Instant) {
        if self.timer.expire(now) {
            self.raise_local(Lvt::Timer);
        }
    }

    /// The guest's TSC changed: a TSC deadline means another moment now.
    pub fn set_tsc_clock(&mut self, clock: TscClock) {
        self.timer.set_clock(clock);
    }

    // What comes from other parts of the board.

    /// Whether a message to `destination` is for this local APIC.
    pub const fn matches(&self, destination: Destination) -> bool {
        match destination {
            Destination::Physical(id) => id == self.id || id == Destination::BROADCAST,
            Destination::Logical(set) => self.matches_logical(set),
            Destination::All => true,
            Destination::AllExcept(id) => id != self.id,
        }
    }

    const fn matches_logical(&self, set: u32) -> bool {
        if self.is_x2apic() {
            let own = x2apic_logical_id(self.id);
            return set == Destination::BROADCAST || set >> 16 == own >> 16 && set & own & 0xffff != 0;
        }
        let own = self.logical >> 24;
        if self.destination_format >> 28 == 0xf {
            return set & own != 0;
        }
        // The cluster model: a cluster number, then a set of four. Cluster 15 is all of them.
        let same_cluster = set >> 4 & 0xf == 0xf || set >> 4 & 0xf == own >> 4;
        same_cluster && set & own & 0xf != 0
    }

    /// The priority by which a lowest-priority message chooses; `None` when it cannot take one.
    pub const fn arbitration_priority(&self) -> Option<u8> {
        if self.is_software_enabled() { Some(self.processor_priority) } else { None }
    }

    /// Takes a message that [`Self::matches`]; says whether it had any effect.
    pub fn accept(&mut self, message: &ApicMessage) -> bool {
        match message.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.is_software_enabled() && self.request(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => {
                self.nmi = true;
                true
            }
            DeliveryMode::Init => {
                self.reset();
                self.init = true;
                true
            }
            DeliveryMode::Startup => {
                if self.waiting_for_startup {
                    self.startup = Some(message.vector);
                    self.waiting_for_startup = false;
                    return true;
                }
                false
            }
            DeliveryMode::ExtInt => {
                self.external_message = self.is_enabled();
                self.external_message
            }
            // There is no system-management mode.
            DeliveryMode::Smi => false,
        }
    }

    /// The 8259 pair's wire, at LINT0, went high or low.
    pub fn set_intr(&mut self, high: bool) {
        let rising = high && !self.intr;
        self.intr = high;
        if rising && self.is_enabled() {
            self.raise_local(Lvt::Lint0);
        }
    }

    /// A pulse on LINT1, where a PC's NMI button and error lines end.
    pub fn pulse_lint1(&mut self) {
        if self.is_enabled() {
            self.raise_local(Lvt::Lint1);
        } else {
            self.nmi = true;
        }
    }

    // MSRs.

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// #GP where the register does not exist, is write-only, or the mode is not x2APIC.
    pub fn read_msr(&mut self, index: u32, now: Instant) -> Result<u64, GeneralProtection> {
        match index {
            MSR_APIC_BASE => return Ok(self.base),
            MSR_TSC_DEADLINE => {
                self.advance(now);
                return Ok(self.timer.tsc_deadline());
            }
            _ => {}
        }
        match self.x2apic_register(index)? {
            register::ICR => Ok(self.icr),
            register::ID => Ok(u64::from(self.id)),
            register::LDR => Ok(u64::from(x2apic_logical_id(self.id))),
            register::APR | register::RRD | register::DFR | register::ICR_HIGH | register::EOI => {
                Err(GeneralProtection)
            }
            register => self.read_register(register, now).map(u64::from).ok_or(GeneralProtection),
        }
    }

    /// WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// #GP where the register does not exist or is read-only, the value has a reserved bit or asks for an
    /// impossible change of mode, or the mode is not x2APIC.
    pub fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        now: Instant,
    ) -> Result<ApicEffect, GeneralProtection> {
        // The two that a busy guest writes most come first.
        if index == MSR_TSC_DEADLINE {
            self.timer.set_tsc_deadline(value);
            self.advance(now);
            return Ok(ApicEffect::None);
        }
        if index == MSR_APIC_BASE {
            return self.set_apic_base(value).map(|()| ApicEffect::None);
        }
        let register = self.x2apic_register(index)?;
        self.page_stale = true;
        if register == register::ICR {
            return self.write_x2apic_icr(value);
        }
        let value = u32::try_from(value).map_err(|_| GeneralProtection)?;
        let allowed = match register {
            register::EOI | register::ESR => 0,
            register::TPR | register::SELF_IPI => 0xff,
            register::SVR => SVR_BITS,
            register::TIMER_INITIAL => u32::MAX,
            register::DIVIDE => 0b1011,
            register => match Lvt::from_register(register) {
                // The status bits are read-only, not reserved: Linux writes them back.
                Some(lvt) => lvt.writable() | LVT_STATUS,
                None => return Err(GeneralProtection),
            },
        };
        if value & !allowed != 0 {
            return Err(GeneralProtection);
        }
        if register == register::SELF_IPI {
            self.self_ipi(value as u8);
            return Ok(ApicEffect::None);
        }
        Ok(self.write_register(register, value, now))
    }

    fn x2apic_register(&self, index: u32) -> Result<u32, GeneralProtection> {
        match index.wrapping_sub(MSR_X2APIC) {
            register @ 0..=0xff if self.is_x2apic() => Ok(register),
            _ => Err(GeneralProtection),
        }
    }

    /// Disabled ↔ xAPIC → x2APIC → disabled are the ways there are (SDM figure 11-27).
    fn set_apic_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        const DISABLED: u64 = 0;
        const XAPIC: u64 = BASE_ENABLE;
        const X2APIC: u64 = BASE_MODE;
        if value & !(BASE_ADDRESS | BASE_MODE | BASE_BSP) != 0 {
            return Err(GeneralProtection);
        }
        match (self.base & BASE_MODE, value & BASE_MODE) {
            (_, BASE_X2APIC) | (DISABLED, X2APIC) | (X2APIC, XAPIC) => return Err(GeneralProtection),
            (XAPIC | X2APIC, DISABLED) => self.clear(),
            _ => {}
        }
        self.page_stale = true;
        // Which processor is the bootstrap one is the board's choice.
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        self.arbitrate();
        Ok(())
    }

    /// The x2APIC's ICR is one 64-bit register, and has no delivery status.
    fn write_x2apic_icr(&mut self, value: u64) -> Result<ApicEffect, GeneralProtection> {
        const RESERVED: u64 = 0xfff3_2000;
        if value & RESERVED != 0 {
            return Err(GeneralProtection);
        }
        self.icr = value & !(1 << 12);
        let (field, low) = ((value >> 32) as u32, value as u32);
        let destination = match low & (1 << 11) {
            0 => Destination::Physical(field),
            _ => Destination::Logical(field),
        };
        Ok(self.send(low, destination))
    }

    // Memory-mapped registers.

    /// A read at `offset` (0 to 4095) of the register page. What lies outside the first four bytes of each
    /// sixteen reads zero.
    pub fn mmio_read(&mut self, offset: u32, width: Width, now: Instant) -> u64 {
        let value = match (offset >> 4) & 0xff {
            register::ID => self.id << 24,
            register::LDR => self.logical,
            register::DFR => self.destination_format,
            register::ICR => self.icr as u32,
            register::ICR_HIGH => (self.icr >> 32) as u32,
            register::APR | register::RRD => 0,
            register => self.read_register(register, now).unwrap_or_else(|| {
                self.report(ILLEGAL_REGISTER);
                0
            }),
        };
        match offset & 0xf {
            byte @ 0..=3 => (u64::from(value) >> (byte << 3)) & width.mask(),
            _ => 0,
        }
    }

    /// A write at `offset` (0 to 4095) of the register page. Only aligned 32-bit writes are defined (SDM
    /// 11.4.1): all others are ignored.
    pub fn mmio_write(&mut self, offset: u32, width: Width, value: u64, now: Instant) -> ApicEffect {
        if offset & 0xf != 0 || width < Width::Dword {
            return ApicEffect::None;
        }
        let value = value as u32;
        self.page_stale = true;
        match (offset >> 4) & 0xff {
            // The ID is the vCPU's number, for good.
            register::ID => {}
            register::LDR => self.logical = value & 0xff00_0000,
            register::DFR => self.destination_format = value | 0x0fff_ffff,
            register::ICR => {
                self.icr = self.icr >> 32 << 32 | u64::from(value & ICR_BITS);
                let destination = Destination::from_xapic((self.icr >> 56) as u8, value & (1 << 11) != 0);
                return self.send(value, destination);
            }
            register::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            register => return self.write_register(register, value, now),
        }
        ApicEffect::None
    }

    // Registers that are the same in both modes.

    fn read_register(&mut self, register: u32, now: Instant) -> Option<u32> {
        Some(match register {
            register::VERSION => VERSION,
            // To be written only; what a read gives is not defined.
            register::EOI => 0,
            register::TPR => u32::from(self.task_priority),
            register::PPR => u32::from(self.processor_priority),
            register::SVR => self.spurious,
            register::ISR..=register::ISR_LAST => self.in_service.register(register & 7),
            register::TMR..=register::TMR_LAST => self.level_triggered.register(register & 7),
            register::IRR..=register::IRR_LAST => {
                self.advance(now);
                self.requested.register(register & 7)
            }
            register::ESR => self.errors,
            register::LVT_TIMER..=register::LVT_ERROR => self.lvt(Lvt::from_register(register)?),
            register::TIMER_INITIAL => self.timer.initial(),
            register::TIMER_CURRENT => {
                self.advance(now);
                self.timer.current(now)
            }
            register::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    fn write_register(&mut self, register: u32, value: u32, now: Instant) -> ApicEffect {
        match register {
            register::EOI => return self.end_of_interrupt(),
            register::TPR => self.set_task_priority(value as u8),
            register::SVR => self.set_spurious(value & SVR_BITS),
            register::ESR => self.errors = core::mem::take(&mut self.new_errors),
            register::TIMER_INITIAL => {
                // What was due before the restart still counts.
                self.advance(now);
                self.timer.start(value, now);
            }
            register::DIVIDE => {
                self.advance(now);
                self.timer.set_divide(value, now);
            }
            // Read-only ones.
            register::VERSION
            | register::APR
            | register::PPR
            | register::RRD
            | register::ISR..=register::IRR_LAST
            | register::TIMER_CURRENT => {}
            register => match Lvt::from_register(register) {
                Some(lvt) => self.set_lvt(lvt, value, now),
                None => self.report(ILLEGAL_REGISTER),
            },
        }
        ApicEffect::None
    }

    /// The task-priority register, whose upper half is CR8.
    pub const fn task_priority(&self) -> u8 {
        self.task_priority
    }

    /// Sets the task-priority register.
    pub fn set_task_priority(&mut self, priority: u8) {
        self.task_priority = priority;
        self.arbitrate();
    }

    /// Sets the task priority as CR8 does, to a class of 0 to 15; cheap while it stays what it is.
    pub fn set_task_priority_class(&mut self, class: u8) {
        if self.task_priority >> 4 != class {
            self.set_task_priority(class << 4);
        }
    }

    /// The guest finished with the interrupt of highest priority in service.
    pub fn end_of_interrupt(&mut self) -> ApicEffect {
        let Some(vector) = self.in_service.highest() else { return ApicEffect::None };
        self.in_service.remove(vector);
        self.arbitrate();
        if self.level_triggered.contains(vector) {
            return ApicEffect::EndOfInterrupt { vector };
        }
        ApicEffect::None
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value;
        if value & SVR_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    const fn lvt(&self, lvt: Lvt) -> u32 {
        #[expect(clippy::indexing_slicing, reason = "Lvt counts six entries, and so does the array")]
        self.lvt[lvt as usize]
    }

    fn set_lvt(&mut self, lvt: Lvt, value: u32, now: Instant) {
        // What was due under the old entry happens under the old entry.
        self.advance(now);
        let mut value = value & lvt.writable();
        if self.spurious & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if matches!(lvt, Lvt::Timer) {
            self.timer.set_mode(TimerMode::from_lvt(value));
        }
        #[expect(clippy::indexing_slicing, reason = "Lvt counts six entries, and so does the array")]
        {
            self.lvt[lvt as usize] = value;
        }
    }

    // Interrupts.

    fn send(&mut self, command: u32, destination: Destination) -> ApicEffect {
        let Some(delivery) = DeliveryMode::from_bits(command >> 8) else { return ApicEffect::None };
        let vector = command as u8;
        let deassert = command & (1 << 14) == 0;
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < FIRST_VECTOR => {
                self.report(SEND_ILLEGAL_VECTOR);
                return ApicEffect::None;
            }
            // The end of INIT's level: nothing since the Pentium 4.
            DeliveryMode::Init if deassert && command & LVT_LEVEL != 0 => return ApicEffect::None,
            _ => {}
        }
        let destination = match (command >> 18) & 3 {
            0 => destination,
            1 => {
                if matches!(delivery, DeliveryMode::Fixed) {
                    self.self_ipi(vector);
                }
                return ApicEffect::None;
            }
            2 => Destination::All,
            _ => Destination::AllExcept(self.id),
        };
        ApicEffect::Send(ApicMessage { destination, delivery, vector, trigger: Trigger::Edge })
    }

    fn self_ipi(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            self.report(SEND_ILLEGAL_VECTOR);
        } else if self.is_software_enabled() {
            self.request(vector, Trigger::Edge);
        }
    }

    /// One of the local sources fires.
    fn raise_local(&mut self, lvt: Lvt) {
        let entry = self.lvt(lvt);
        if entry & LVT_MASKED != 0 {
            return;
        }
        let fixed = matches!(lvt, Lvt::Timer | Lvt::Error);
        match DeliveryMode::from_bits(entry >> 8) {
            Some(DeliveryMode::Nmi) if !fixed => self.nmi = true,
            Some(DeliveryMode::Init) if !fixed => {
                self.reset();
                self.init = true;
            }
            mode if fixed || mode == Some(DeliveryMode::Fixed) => {
                self.request(entry as u8, Trigger::Edge);
            }
            // ExtINT follows the wire; SMI and the reserved modes go nowhere.
            _ => {}
        }
    }

    /// Puts `vector` into the IRR; says whether it is one an interrupt may have.
    fn request(&mut self, vector: u8, trigger: Trigger) -> bool {
        if vector < FIRST_VECTOR {
            self.report(RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.requested.insert(vector);
        let level = trigger == Trigger::Level;
        if level != self.level_triggered.contains(vector) {
            self.page_stale = true;
            match trigger {
                Trigger::Edge => self.level_triggered.remove(vector),
                Trigger::Level => self.level_triggered.insert(vector),
            }
        }
        self.arbitrate();
        true
    }

    /// Notes an error, and raises the error interrupt for one of a new kind.
    fn report(&mut self, error: u32) {
        if self.new_errors & error != 0 {
            return;
        }
        self.new_errors |= error;
        let entry = self.lvt(Lvt::Error);
        // An error interrupt with an illegal vector must not report itself for ever.
        if entry & LVT_MASKED == 0 && entry as u8 >= FIRST_VECTOR {
            self.request(entry as u8, Trigger::Edge);
        }
    }

    /// Recomputes what is cached: after every change of IRR, ISR, TPR or mode (SDM 11.8.3.1).
    fn arbitrate(&mut self) {
        let serving = self.in_service.highest().unwrap_or(0);
        self.processor_priority =
            if self.task_priority >> 4 >= serving >> 4 { self.task_priority } else { serving & 0xf0 };
        let requested = self.requested.highest().unwrap_or(0);
        let above = requested >> 4 > self.processor_priority >> 4;
        self.deliverable = if above && self.is_enabled() { requested } else { 0 };
    }

    /// INIT: everything but the ID and IA32_APIC_BASE as after RESET (SDM 11.4.7.3).
    fn reset(&mut self) {
        self.clear();
        self.waiting_for_startup = self.base & BASE_BSP == 0;
    }

    /// The registers' state after RESET; the wire from the 8259 pair stays as it is.
    fn clear(&mut self) {
        *self = Self {
            base: self.base,
            intr: self.intr,
            waiting_for_startup: self.waiting_for_startup,
            nmi: self.nmi,
            init: self.init,
            startup: self.startup,
            page: self.page.take(),
            ..Self::new(self.id, self.timer.clock())
        };
    }
}

/// Cluster in the upper half, a bit for the member in the lower (SDM 11.12.10.2).
const fn x2apic_logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const XAPIC_SVR: u32 = 0xf0;
    const X2APIC_ENABLE: u64 = LOCAL_APIC_BASE.get() | BASE_MODE;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn clock() -> TscClock {
        TscClock::new(2_000_000, Instant::ZERO)
    }

    fn message(vector: u8, trigger: Trigger) -> ApicMessage {
        ApicMessage { destination: Destination::Physical(0), delivery: DeliveryMode::Fixed, vector, trigger }
    }

    fn write(apic: &mut LocalApic, offset: u32, value: u32) -> ApicEffect {
        apic.mmio_write(offset, Width::Dword, u64::from(value), Instant::ZERO)
    }

    fn read(apic: &mut LocalApic, offset: u32) -> u32 {
        apic.mmio_read(offset, Width::Dword, Instant::ZERO) as u32
    }

    fn wrmsr(apic: &mut LocalApic, index: u32, value: u64, now: Instant) {
        assert_eq!(apic.write_msr(index, value, now), Ok(ApicEffect::None));
    }

    #[test]
    fn status_bits_of_an_lvt_entry_may_be_written_and_are_ignored() {
        const LINT0: u32 = MSR_X2APIC + 0x35;
        let mut apic = LocalApic::new(0, clock());
        wrmsr(&mut apic, MSR_APIC_BASE, X2APIC_ENABLE, Instant::ZERO);
        wrmsr(&mut apic, MSR_X2APIC + 0xf, 0x1ff, Instant::ZERO);
        // What Linux writes before it powers off.
        wrmsr(&mut apic, LINT0, 0x5700, Instant::ZERO);
        assert_eq!(apic.read_msr(LINT0, Instant::ZERO), Ok(0x700));
        assert_eq!(apic.write_msr(LINT0, 0x2_0700, Instant::ZERO), Err(GeneralProtection));
    }

    fn enabled() -> LocalApic {
        let mut apic = LocalApic::new(0, clock());
        assert_eq!(write(&mut apic, XAPIC_SVR, 0x1ff), ApicEffect::None);
        apic
    }

    fn x2apic(id: u32) -> LocalApic {
        let mut apic = LocalApic::new(id, clock());
        wrmsr(&mut apic, MSR_APIC_BASE, X2APIC_ENABLE, Instant::ZERO);
        wrmsr(&mut apic, 0x80f, 0x1ff, Instant::ZERO);
        apic
    }

    #[test]
    fn priority_decides_what_interrupts_what() {
        let mut apic = enabled();
        assert!(apic.accept(&message(0x41, Trigger::Edge)));
        assert_eq!(apic.pending_vector(), Some(0x41));
        apic.acknowledge(0x41);
        assert_eq!(apic.pending_vector(), None);
        assert_eq!(read(&mut apic, 0xa0), 0x40);

        apic.accept(&message(0x4f, Trigger::Edge));
        assert_eq!(apic.pending_vector(), None, "same class waits");
        apic.accept(&message(0x51, Trigger::Edge));
        assert_eq!(apic.pending_vector(), Some(0x51));
        apic.acknowledge(0x51);
        assert_eq!(apic.end_of_interrupt(), ApicEffect::None);
        assert_eq!(apic.pending_vector(), None);
        assert_eq!(write(&mut apic, 0xb0, 0), ApicEffect::None);
        assert_eq!(apic.pending_vector(), Some(0x4f));

        let _ = write(&mut apic, 0x80, 0x40);
        assert_eq!(apic.pending_vector(), None);
        let _ = write(&mut apic, 0x80, 0x3f);
        assert_eq!(apic.pending_vector(), Some(0x4f));
        assert_eq!(read(&mut apic, 0x220), 1 << 15, "IRR of vectors 0x40 to 0x5f");
    }

    #[test]
    fn only_a_level_interrupt_reports_its_end() {
        let mut apic = enabled();
        apic.accept(&message(0x61, Trigger::Level));
        apic.acknowledge(0x61);
        assert_eq!(read(&mut apic, 0x1b0), 1 << 1, "TMR");
        assert_eq!(apic.end_of_interrupt(), ApicEffect::EndOfInterrupt { vector: 0x61 });
        apic.accept(&message(0x61, Trigger::Edge));
        apic.acknowledge(0x61);
        assert_eq!(apic.end_of_interrupt(), ApicEffect::None);
        assert_eq!(apic.end_of_interrupt(), ApicEffect::None, "nothing in service");
    }

    #[test]
    fn a_software_disabled_apic_takes_nmi_but_no_vector() {
        let mut apic = LocalApic::new(0, clock());
        assert!(!apic.accept(&message(0x41, Trigger::Edge)));
        assert!(apic.accept(&ApicMessage { delivery: DeliveryMode::Nmi, ..message(0, Trigger::Edge) }));
        assert!(apic.has_event(false));
        assert!(apic.take_nmi());
        assert!(!apic.take_nmi());
        assert!(!apic.has_event(true));
        let _ = write(&mut apic, 0x350, 0x700);
        assert_eq!(read(&mut apic, 0x350), 0x1_0700, "LVT entries stay masked");
    }

    #[test]
    fn the_registers_after_reset_are_the_manuals() {
        let mut apic = LocalApic::new(3, clock());
        let expected = [
            (0x20, 3 << 24),
            (0x30, 0x0005_0014),
            (0x80, 0),
            (0xd0, 0),
            (0xe0, 0xffff_ffff),
            (0xf0, 0xff),
            (0x300, 0),
            (0x320, 0x1_0000),
            (0x370, 0x1_0000),
            (0x380, 0),
            (0x390, 0),
            (0x3e0, 0),
        ];
        for (offset, value) in expected {
            assert_eq!(read(&mut apic, offset), value, "{offset:#x}");
        }
        assert_eq!(apic.apic_base(), 0xfee0_0800);
        assert_eq!(LocalApic::new(0, clock()).apic_base(), 0xfee0_0900);
        assert_eq!(apic.mmio_base(), Some(LOCAL_APIC_BASE));
    }

    #[test]
    fn only_the_manuals_mode_changes_are_possible() {
        const DISABLED: u64 = 0xfee0_0000;
        const XAPIC: u64 = 0xfee0_0800;
        const X2APIC: u64 = 0xfee0_0c00;
        let allowed = [
            (XAPIC, XAPIC),
            (XAPIC, X2APIC),
            (XAPIC, DISABLED),
            (X2APIC, X2APIC),
            (X2APIC, DISABLED),
            (DISABLED, DISABLED),
            (DISABLED, XAPIC),
        ];
        for from in [DISABLED, XAPIC, X2APIC] {
            for to in [DISABLED, XAPIC, X2APIC, 0xfee0_0400] {
                let mut apic = LocalApic::new(1, clock());
                let mut set = |value| apic.write_msr(MSR_APIC_BASE, value, Instant::ZERO).is_ok();
                assert!(set(from));
                assert_eq!(set(to), allowed.contains(&(from, to)), "{from:#x} to {to:#x}");
            }
        }
        let mut apic = LocalApic::new(1, clock());
        for reserved in [0xfee0_0801, 0xfee0_0a00, 1 << 52 | XAPIC] {
            assert_eq!(apic.write_msr(MSR_APIC_BASE, reserved, Instant::ZERO), Err(GeneralProtection));
        }
        wrmsr(&mut apic, MSR_APIC_BASE, 0xfed0_0800, Instant::ZERO);
        assert_eq!(apic.mmio_base(), Some(GuestPhys::new(0xfed0_0000)));
    }

    #[test]
    fn x2apic_registers_follow_the_table() {
        let mut apic = x2apic(0x25);
        assert_eq!(apic.mmio_base(), None);
        let now = Instant::ZERO;
        assert_eq!(apic.read_msr(0x802, now), Ok(0x25));
        assert_eq!(apic.read_msr(0x80d, now), Ok(0x2_0020));
        for index in [0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x831, 0x83a, 0x83f, 0x840, 0x8ff, 0x900] {
            assert_eq!(apic.read_msr(index, now), Err(GeneralProtection), "read {index:#x}");
        }
        for index in [0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x820, 0x831, 0x839] {
            assert_eq!(apic.write_msr(index, 0, now), Err(GeneralProtection), "write {index:#x}");
        }
        for (index, value) in [(0x80b, 1), (0x828, 1), (0x808, 0x100), (0x80f, 1 << 32), (0x830, 1 << 20)] {
            assert_eq!(apic.write_msr(index, value, now), Err(GeneralProtection), "{index:#x}");
        }
        assert_eq!(apic.write_msr(0x80b, 0, now), Ok(ApicEffect::None));

        let mut xapic = enabled();
        assert_eq!(xapic.read_msr(0x802, now), Err(GeneralProtection), "not in xAPIC mode");
    }

    #[test]
    fn the_command_register_sends() {
        let mut apic = enabled();
        let _ = write(&mut apic, 0x310, 2 << 24);
        let fixed = ApicMessage { destination: Destination::Physical(2), ..message(0xfd, Trigger::Edge) };
        assert_eq!(write(&mut apic, 0x300, 0x40fd), ApicEffect::Send(fixed));
        assert_eq!(read(&mut apic, 0x310), 2 << 24);
        assert_eq!(read(&mut apic, 0x300), 0x40fd);

        let startup = ApicMessage { delivery: DeliveryMode::Startup, vector: 0x9a, ..fixed };
        assert_eq!(write(&mut apic, 0x300, 0x69a), ApicEffect::Send(startup));
        assert_eq!(write(&mut apic, 0x300, 0x8500), ApicEffect::None, "INIT de-assert");
        let init = ApicMessage { delivery: DeliveryMode::Init, vector: 0, ..fixed };
        assert_eq!(write(&mut apic, 0x300, 0xc500), ApicEffect::Send(init));

        let others = ApicMessage { destination: Destination::AllExcept(0), ..fixed };
        assert_eq!(write(&mut apic, 0x300, 0xc_40fd), ApicEffect::Send(others));
        assert_eq!(write(&mut apic, 0x300, 0x4_40fc), ApicEffect::None);
        assert_eq!(apic.pending_vector(), Some(0xfc), "the shorthand for itself");

        let mut apic = x2apic(1);
        let logical = ApicMessage { destination: Destination::Logical(0x1_0003), ..fixed };
        assert_eq!(
            apic.write_msr(0x830, 0x0001_0003_0000_48fd, Instant::ZERO),
            Ok(ApicEffect::Send(logical))
        );
        assert_eq!(apic.write_msr(0x83f, 0x33, Instant::ZERO), Ok(ApicEffect::None));
        assert_eq!(apic.pending_vector(), Some(0x33));
    }

    #[test]
    fn errors_show_after_a_write_and_interrupt() {
        let mut apic = enabled();
        let _ = write(&mut apic, 0x370, 0xfe);
        assert_eq!(write(&mut apic, 0x300, 0x4005), ApicEffect::None, "vector 5 goes nowhere");
        assert_eq!(read(&mut apic, 0x280), 0);
        let _ = write(&mut apic, 0x280, 0);
        assert_eq!(read(&mut apic, 0x280), SEND_ILLEGAL_VECTOR);
        assert_eq!(apic.pending_vector(), Some(0xfe));
        assert!(!apic.accept(&message(3, Trigger::Edge)));
        read(&mut apic, 0x3f0);
        let _ = write(&mut apic, 0x280, 0);
        assert_eq!(read(&mut apic, 0x280), RECEIVE_ILLEGAL_VECTOR | ILLEGAL_REGISTER);
        let _ = write(&mut apic, 0x280, 0);
        assert_eq!(read(&mut apic, 0x280), 0);
    }

    #[test]
    fn a_one_shot_timer_fires_once() {
        let mut apic = enabled();
        let _ = write(&mut apic, 0x3e0, 0b0011);
        let _ = write(&mut apic, 0x320, 0x40);
        let _ = apic.mmio_write(0x380, Width::Dword, 1000, at(500));
        assert_eq!(apic.next_deadline(), Some(at(16_500)), "divided by 16");
        assert_eq!(apic.mmio_read(0x390, Width::Dword, at(500)), 1000);
        assert_eq!(apic.mmio_read(0x390, Width::Dword, at(8_500)), 500);
        apic.advance(at(16_499));
        assert_eq!(apic.pending_vector(), None);
        apic.advance(at(16_500));
        assert_eq!(apic.pending_vector(), Some(0x40));
        assert_eq!(apic.next_deadline(), None);
        assert_eq!(apic.mmio_read(0x390, Width::Dword, at(20_000)), 0);
    }

    #[test]
    fn a_periodic_timer_keeps_its_beat() {
        let mut apic = enabled();
        let _ = write(&mut apic, 0x3e0, 0b1011);
        let _ = write(&mut apic, 0x320, 0x2_0040);
        let _ = write(&mut apic, 0x380, 1000);
        apic.advance(at(2_300));
        assert_eq!(apic.pending_vector(), Some(0x40));
        assert_eq!(apic.next_deadline(), Some(at(3_000)));
        assert_eq!(apic.mmio_read(0x390, Width::Dword, at(2_300)), 700);
        let _ = write(&mut apic, 0x320, 0x3_0040);
        assert_eq!(apic.next_deadline(), None, "masked");
        assert_eq!(apic.mmio_read(0x390, Width::Dword, at(3_400)), 600, "yet it counts");
        let _ = write(&mut apic, 0x380, 0);
        let _ = write(&mut apic, 0x320, 0x2_0040);
        assert_eq!(apic.next_deadline(), None);
    }

    #[test]
    fn a_tsc_deadline_fires_and_disarms() {
        let mut apic = x2apic(0);
        wrmsr(&mut apic, MSR_TSC_DEADLINE, 4000, at(0));
        assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, at(0)), Ok(0), "not in this mode");
        wrmsr(&mut apic, 0x832, 0x4_00ec, at(0));
        wrmsr(&mut apic, MSR_TSC_DEADLINE, 4000, at(0));
        assert_eq!(apic.next_deadline(), Some(at(2000)));
        assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, at(1999)), Ok(4000));
        assert_eq!(apic.read_msr(MSR_TSC_DEADLINE, at(2000)), Ok(0));
        assert_eq!(apic.pending_vector(), Some(0xec));
        apic.acknowledge(0xec);
        let _ = apic.end_of_interrupt();
        wrmsr(&mut apic, MSR_TSC_DEADLINE, 1, at(3000));
        assert_eq!(apic.pending_vector(), Some(0xec), "a deadline in the past fires at once");
        wrmsr(&mut apic, MSR_TSC_DEADLINE, 9000, at(3000));
        apic.set_tsc_clock(TscClock::new(1_000_000, Instant::ZERO));
        assert_eq!(apic.next_deadline(), Some(at(9000)));
        wrmsr(&mut apic, MSR_TSC_DEADLINE, 0, at(3000));
        assert_eq!(apic.next_deadline(), None);
    }

    #[test]
    fn init_and_startup_wake_an_application_processor() {
        let mut apic = LocalApic::new(1, clock());
        let startup = ApicMessage { delivery: DeliveryMode::Startup, ..message(0x99, Trigger::Edge) };
        let init = ApicMessage { delivery: DeliveryMode::Init, ..message(0, Trigger::Edge) };
        let _ = write(&mut apic, XAPIC_SVR, 0x1ff);
        assert!(apic.accept(&init));
        assert!(apic.take_init());
        assert_eq!(read(&mut apic, XAPIC_SVR), 0xff);
        assert!(apic.is_waiting_for_startup());
        apic.accept(&ApicMessage { delivery: DeliveryMode::Nmi, ..init });
        assert!(!apic.has_event(true), "an NMI begins nothing");
        assert!(apic.accept(&startup));
        assert!(!apic.has_event(true), "it has not been told where yet");
        assert_eq!(apic.take_startup(), Some(0x99));
        assert!(!apic.accept(&startup), "the second one comes too late");
        assert_eq!(apic.take_startup(), None);
        let mut bootstrap = enabled();
        bootstrap.accept(&init);
        assert!(bootstrap.take_init() && !bootstrap.is_waiting_for_startup());
    }

    #[test]
    fn lint0_is_the_gate_to_the_8259_pair() {
        let mut apic = enabled();
        apic.set_intr(true);
        assert!(!apic.external_pending());
        let _ = write(&mut apic, 0x350, 0x700);
        assert!(apic.external_pending() && apic.has_event(true) && !apic.has_event(false));
        apic.acknowledge_external();
        apic.set_intr(false);
        assert!(!apic.external_pending());
        let _ = write(&mut apic, 0x350, 0x31);
        apic.set_intr(true);
        assert_eq!(apic.pending_vector(), Some(0x31), "LINT0 as an ordinary interrupt");
        let _ = write(&mut apic, 0x360, 0x400);
        apic.pulse_lint1();
        assert!(apic.take_nmi());

        let mut apic = LocalApic::new(0, clock());
        wrmsr(&mut apic, MSR_APIC_BASE, 0, Instant::ZERO);
        apic.set_intr(true);
        assert!(apic.external_pending(), "without a local APIC the wire is the CPU's own");
        let extint = ApicMessage { delivery: DeliveryMode::ExtInt, ..message(0, Trigger::Edge) };
        let mut apic = enabled();
        assert!(apic.accept(&extint) && apic.external_pending());
        apic.acknowledge_external();
        assert!(!apic.external_pending());
    }

    #[test]
    fn logical_destinations_match_by_model() {
        let mut apic = enabled();
        let _ = write(&mut apic, 0xd0, 0x0400_0000);
        assert!(apic.matches(Destination::Logical(0x06)));
        assert!(!apic.matches(Destination::Logical(0x03)));
        assert!(apic.matches(Destination::Logical(0xff)));
        let _ = write(&mut apic, 0xe0, 0);
        let _ = write(&mut apic, 0xd0, 0x2400_0000);
        assert!(apic.matches(Destination::Logical(0x2c)));
        assert!(!apic.matches(Destination::Logical(0x1c)));
        assert!(!apic.matches(Destination::Logical(0x23)));
        assert!(apic.matches(Destination::Logical(0xff)));

        let apic = x2apic(0x25);
        assert!(apic.matches(Destination::Logical(0x2_0020)));
        assert!(!apic.matches(Destination::Logical(0x1_0020)));
        assert!(!apic.matches(Destination::Logical(0x2_0010)));
        assert!(apic.matches(Destination::Logical(u32::MAX)));
        assert!(apic.matches(Destination::Physical(u32::MAX)));
        assert!(!apic.matches(Destination::Physical(0xff)));
    }

    #[test]
    fn what_is_lent_comes_back_with_what_came_since() {
        let (mut apic, page) = (enabled(), ApicPage::new());
        assert_eq!(apic.lend(), None, "no CPU that could");
        apic.set_page(Some(Arc::clone(&page)));
        for vector in [0x41, 0x51] {
            apic.accept(&message(vector, Trigger::Edge));
        }
        apic.accept(&message(0x33, Trigger::Level));
        apic.acknowledge(0x51);
        apic.set_task_priority(0x15);
        let loan = apic.lend().unwrap();
        let told = [1 << 0x33, 0, 0, 0];
        let expected = ApicLoan { access: ApicAccess::Memory, requested: 0x41, in_service: 0x51, told };
        assert_eq!(loan, expected);
        let words = [(0x80, 0x15), (0x120, 1 << 17), (0x220, 2), (0x210, 8 << 16), (0x190, 8 << 16)];
        for (offset, value) in words {
            assert_eq!(page.read(offset), value, "{offset:#x}");
        }
        assert_eq!(apic.highest_request(), None);
        apic.accept(&message(0x61, Trigger::Edge));
        assert_eq!(apic.highest_request(), Some(0x61), "what came since");
        // 0x51 ends, 0x41 goes into service, 0x32 is sent to itself, and the priority falls.
        for (offset, value) in [(0x120, 2), (0x220, 0), (0x210, 8 << 16 | 4 << 16), (0x80, 0)] {
            page.write(offset, value);
        }
        assert!(apic.take_back() && !apic.take_back());
        assert_eq!((read(&mut apic, 0x80), read(&mut apic, 0xa0)), (0, 0x40));
        assert_eq!(read(&mut apic, 0x120), 2);
        assert_eq!((read(&mut apic, 0x210), read(&mut apic, 0x230)), (0xc << 16, 2));
        assert_eq!(apic.pending_vector(), Some(0x61));
    }

    #[test]
    fn a_reset_voids_the_loan() {
        let (mut apic, page) = (enabled(), ApicPage::new());
        apic.set_page(Some(Arc::clone(&page)));
        apic.accept(&message(0x41, Trigger::Edge));
        assert!(apic.lend().is_some());
        apic.accept(&ApicMessage { delivery: DeliveryMode::Init, ..message(0, Trigger::Edge) });
        assert!(!apic.take_back());
        assert_eq!(apic.highest_request(), None);
        assert_eq!(apic.lend(), None, "software-disabled");
        let _ = write(&mut apic, XAPIC_SVR, 0x1ff);
        wrmsr(&mut apic, MSR_APIC_BASE, 0xfed0_0800, Instant::ZERO);
        assert_eq!(apic.lend(), None, "where the CPU does not look");
    }

    #[test]
    fn the_page_shows_what_was_written() {
        let (mut apic, page) = (enabled(), ApicPage::new());
        apic.set_page(Some(Arc::clone(&page)));
        let writes = [(0x320, u32::MAX, 0x7_00ff), (0xd0, u32::MAX, 0xff00_0000), (0x370, 0x31, 0x31)];
        for (offset, written, expected) in writes {
            apic.lend();
            page.write(offset, written);
            assert_eq!(apic.complete_write(offset, Instant::ZERO), ApicEffect::None);
            apic.lend();
            assert_eq!(page.read(offset), expected, "{offset:#x}");
        }
        // The CPU keeps the upper half to itself, the lower one sends.
        page.write(0x310, 2 << 24 | 1);
        page.write(0x300, 0x40fd);
        let sent = ApicMessage { destination: Destination::Physical(2), ..message(0xfd, Trigger::Edge) };
        assert_eq!(apic.complete_write(0x300, Instant::ZERO), ApicEffect::Send(sent));

        let (mut apic, page) = (x2apic(0x25), ApicPage::new());
        apic.set_page(Some(Arc::clone(&page)));
        wrmsr(&mut apic, 0x80f, 0x1ff, Instant::ZERO);
        let _ = apic.write_msr(0x830, 7 << 32 | 0x40fd, Instant::ZERO);
        assert_eq!(apic.lend().map(|loan| loan.access), Some(ApicAccess::Msrs));
        let registers = [(0x20, 0x25), (0x24, 0), (0xd0, 0x2_0020), (0x300, 0x40fd), (0x304, 7)];
        for (offset, value) in registers {
            assert_eq!(page.read(offset), value, "{offset:#x}");
        }
        // A vector that is none comes to us.
        page.write(0x3f0, 5);
        assert_eq!(apic.complete_write(0x3f0, Instant::ZERO), ApicEffect::None);
        wrmsr(&mut apic, 0x828, 0, Instant::ZERO);
        assert_eq!(apic.read_msr(0x828, Instant::ZERO), Ok(u64::from(SEND_ILLEGAL_VECTOR)));
    }

    #[test]
    fn an_interrupt_ends_quietly_when_nobody_waits_for_that() {
        let mut apic = x2apic(0);
        wrmsr(&mut apic, 0x80f, 0x1ff, Instant::ZERO);
        assert!(!apic.ends_quietly(), "nothing in service");
        apic.accept(&message(0x41, Trigger::Edge));
        assert!(!apic.ends_quietly(), "nothing in service, and a request");
        apic.acknowledge(0x41);
        assert!(apic.ends_quietly());
        apic.accept(&message(0x31, Trigger::Edge));
        assert!(!apic.ends_quietly(), "one waits for its end");
        let _ = apic.end_of_interrupt();
        apic.acknowledge(0x31);
        assert!(apic.ends_quietly());
        apic.accept(&message(0x51, Trigger::Level));
        apic.acknowledge(0x51);
        assert!(!apic.ends_quietly(), "the IOAPIC is to be told");
        let _ = apic.end_of_interrupt();
        assert!(apic.ends_quietly(), "the first is in service again");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Read(u32, u8),
        Write(u32, u8, u32),
        ReadMsr(u32),
        WriteMsr(u32, u64),
        Message(u8, u8, bool),
        Acknowledge,
        Advance,
        Intr(bool),
        Loan,
    }

    fn step() -> impl Strategy<Value = Step> {
        let msr = || prop_oneof![0x800u32..0x840, Just(MSR_APIC_BASE), Just(MSR_TSC_DEADLINE), any::<u32>()];
        let base = prop_oneof![Just(0u64), Just(BASE_ENABLE), Just(BASE_MODE), Just(BASE_X2APIC)]
            .prop_map(|mode| Step::WriteMsr(MSR_APIC_BASE, LOCAL_APIC_BASE.get() | mode));
        prop_oneof![
            (0u32..0x1000, 0u8..4).prop_map(|(o, w)| Step::Read(o, w)),
            (0u32..0x40, any::<u32>()).prop_map(|(o, v)| Step::Write(o << 4, 2, v)),
            (any::<u32>(), 0u8..4, any::<u32>()).prop_map(|(o, w, v)| Step::Write(o, w, v)),
            msr().prop_map(Step::ReadMsr),
            (msr(), prop_oneof![any::<u64>(), 0u64..0x1_0000]).prop_map(|(i, v)| Step::WriteMsr(i, v)),
            base,
            (0u8..8, any::<u8>(), any::<bool>()).prop_map(|(m, v, l)| Step::Message(m, v, l)),
            Just(Step::Acknowledge),
            Just(Step::Advance),
            any::<bool>().prop_map(Step::Intr),
            Just(Step::Loan),
        ]
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(steps in prop::collection::vec((step(), any::<u32>()), 0..200)) {
            let mut apic = LocalApic::new(0, clock());
            apic.set_page(Some(ApicPage::new()));
            let mut now = 0u64;
            for (step, time) in steps {
                now += u64::from(time);
                let width = |w: u8| Width::from_bytes(1 << w).unwrap();
                match step {
                    Step::Read(offset, w) => {
                        apic.mmio_read(offset, width(w), at(now));
                    }
                    Step::Write(offset, w, value) => {
                        let _ = apic.mmio_write(offset, width(w), u64::from(value), at(now));
                    }
                    Step::ReadMsr(index) => {
                        let _ = apic.read_msr(index, at(now));
                    }
                    Step::WriteMsr(index, value) => {
                        let _ = apic.write_msr(index, value, at(now));
                    }
                    Step::Message(mode, vector, level) => {
                        let trigger = if level { Trigger::Level } else { Trigger::Edge };
                        if let Some(delivery) = DeliveryMode::from_bits(u32::from(mode)) {
                            apic.accept(&ApicMessage { delivery, ..message(vector, trigger) });
                        }
                    }
                    Step::Acknowledge => {
                        if let Some(vector) = apic.pending_vector() {
                            prop_assert!(vector >= FIRST_VECTOR);
                            apic.acknowledge(vector);
                        }
                    }
                    Step::Advance => {
                        apic.advance(at(now));
                        prop_assert!(apic.next_deadline().is_none_or(|next| next > at(now)));
                    }
                    Step::Intr(high) => apic.set_intr(high),
                    Step::Loan => {
                        let state = |apic: &LocalApic| {
                            (apic.requested.clone(), apic.in_service.clone(), apic.task_priority, apic.icr)
                        };
                        let before = state(&apic);
                        prop_assert_eq!(apic.lend().is_some(), apic.take_back());
                        prop_assert_eq!(before, state(&apic));
                    }
                }
                // The caches say what a search would.
                let serving = apic.in_service.highest().unwrap_or(0);
                let (task, serving) = (apic.task_priority, serving & 0xf0);
                let priority = if task & 0xf0 >= serving { task } else { serving };
                prop_assert_eq!(apic.processor_priority, priority);
                let requested = apic.requested.highest().filter(|v| v >> 4 > priority >> 4);
                prop_assert_eq!(apic.pending_vector(), requested.filter(|_| apic.is_enabled()));
            }
        }
    }
}
