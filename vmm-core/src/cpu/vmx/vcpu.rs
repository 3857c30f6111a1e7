//! A virtual CPU on VT-x.

use super::check::{Rules, bad_control, first_bad_field};
use super::control_registers::{
    Access, CR0_TS, Change, GeneralProtection, Mode, Shared as SharedRegister, cr4_offered, pdpte_is_valid,
};
use super::controls::{entry, primary};
use super::core::{Core, Shared};
use super::enter::{Switch, deliver_host_nmi, enter};
use super::event::{Caught, DEBUG, EXCEPTIONS, Injection};
use super::exit::{ENTRY_FAILURE, EptViolation, apic_access, port_access, reason, tells_instruction_length};
use super::guest_state::{GuestState, SEGMENTS, VmcsSegment, interruptibility};
use super::host_state;
use super::task_switch::{Request, Source, Task, switch};
use super::unswitched::Unswitched;
use super::vmcs::{self, Current, Field, Region, Scope, field, instruction_error};
use crate::cpu::context::Context;
use crate::cpu::state::PAT_AT_RESET;
use crate::cpu::tags::Tag;
use crate::cpu::{
    ApicAccess, ApicLoan, ApicPage, Backend, CodeSize, ControlRegisters, CpuState, CpuView, EntryFailure,
    Event, Exit, Gpr, Registers, Segment, SegmentRegister, SystemMsr, VirtualCpu, rflags,
};
use crate::memory::{GuestPhys, HostPhys, NestedTables};
use ::core::cell::Cell;
use ::core::mem;
use ::core::sync::atomic::{AtomicU64, Ordering};
use alloc::boxed::Box;
use alloc::sync::Arc;
use x86_64::registers::control::Cr4;
use x86_64::registers::model_specific::Msr;

const IA32_SPEC_CTRL: u32 = 0x48;
/// What a guest's EFER may hold on VT-x: SCE, LME, LMA, NXE.
const EFER_KNOWN: u64 =
    1 | ControlRegisters::EFER_LME | ControlRegisters::EFER_LMA | ControlRegisters::EFER_NXE;
/// How many cycles apart PAUSEs still count as one loop, and how many it may last.
const PAUSE_LOOP_GAP: u64 = 128;
const PAUSE_LOOP_WINDOW: u64 = 4096;
/// DR6: single step; and all that a debug exception may report.
const DR6_SINGLE_STEP: u64 = 1 << 14;
const DR6_BREAKPOINTS: u64 = 0xf;
const DR6_REPORTED: u64 = DR6_BREAKPOINTS | 1 << 13 | DR6_SINGLE_STEP;
const DR6_TASK_SWITCH: u64 = 1 << 15;
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// TSS types: busy, of 16 and of 32 or 64 bits.
const BUSY_TSS_16: u32 = 3;
const BUSY_TSS: u32 = 11;

/// Fields that [`Registers`] holds too.
const IN_REGISTERS: [Field; 3] = [field::GUEST_RIP, field::GUEST_RSP, field::GUEST_RFLAGS];

static IDENTITIES: AtomicU64 = AtomicU64::new(1);

/// A 32-bit field that entries keep up to date, written only where it changes.
struct Tracked {
    field: Field,
    written: Option<u32>,
}

impl Tracked {
    const fn new(field: Field) -> Self {
        Self { field, written: None }
    }

    fn set(&mut self, current: &mut Current, value: u32) {
        if self.written != Some(value) {
            current.write(self.field, u64::from(value));
            self.written = Some(value);
        }
    }
}

/// A virtual CPU on VT-x.
pub struct Vcpu {
    registers: Registers,
    /// [`IN_REGISTERS`] as the VMCS has them.
    in_vmcs: [u64; 3],
    /// The VMCS, while it is this core's current one.
    current: Option<Current>,
    /// The guest-state area, while it is not.
    saved: GuestState,
    /// Whether the VMCS must be filled anew from `saved`.
    stale: bool,
    primary_controls: Tracked,
    entry_controls: Tracked,
    tpr_threshold: Tracked,
    switch: Switch,
    context: Context,
    unswitched: Unswitched,
    cr0: SharedRegister,
    cr4: SharedRegister,
    /// What the guest reads of CR0's and CR4's bits that are not its own.
    cr0_shadow: u64,
    cr4_shadow: u64,
    efer: u64,
    pat: u64,
    spec_ctrl: u64,
    tsc_offset: u64,
    pause_exits: bool,
    exit_reason: u16,
    injection: Option<Injection>,
    /// The priority class of the interrupt that waits for a window.
    waiting_class: Option<u8>,
    nmi_waits: bool,
    /// Whether the controls must be computed anew. While an interrupt waits, they are at every entry: the
    /// guest may have changed its task priority.
    controls_change: bool,
    /// What [`CpuView::control`] found since the last exit.
    control: Cell<Option<ControlRegisters>>,
    /// The local APIC that is lent to the CPU, if it is.
    apic_loan: Option<ApicLoan>,
    identity: u64,
    tag: Tag,
    // The hardware reads and writes all of these as long as this CPU may run.
    region: Box<Region>,
    virtual_apic: Arc<ApicPage>,
    shared: Arc<Shared>,
    tables: Arc<NestedTables>,
}

impl Vcpu {
    /// A CPU in its reset state that translates through `tables`.
    pub fn new(core: &Core, tables: Arc<NestedTables>) -> Self {
        let shared = core.shared();
        let capabilities = &shared.capabilities;
        let mut vcpu = Self {
            registers: Registers::default(),
            in_vmcs: [0; 3],
            current: None,
            saved: GuestState::new(&CpuState::reset()),
            stale: true,
            primary_controls: Tracked::new(field::PRIMARY_CONTROLS),
            entry_controls: Tracked::new(field::ENTRY_CONTROLS),
            tpr_threshold: Tracked::new(field::TPR_THRESHOLD),
            switch: Switch::new(shared.hygiene.clear_buffers),
            context: Context::new(shared.features),
            unswitched: Unswitched::new(0),
            cr0: SharedRegister::cr0(capabilities.cr0),
            cr4: SharedRegister::cr4(capabilities.cr4, Cr4::read_raw()),
            cr0_shadow: 0,
            cr4_shadow: 0,
            efer: 0,
            pat: 0,
            spec_ctrl: 0,
            tsc_offset: 0,
            pause_exits: true,
            exit_reason: 0,
            injection: None,
            waiting_class: None,
            nmi_waits: false,
            controls_change: true,
            control: Cell::new(None),
            identity: IDENTITIES.fetch_add(1, Ordering::Relaxed),
            tag: Tag::default(),
            region: Region::new(capabilities.revision()),
            apic_loan: None,
            virtual_apic: ApicPage::new(),
            shared,
            tables,
        };
        vcpu.load(&CpuState::reset());
        vcpu
    }

    /// What the CPU finds nested tables by: where they lie, four levels, write-back or uncached.
    fn ept_pointer(&self, root: HostPhys) -> u64 {
        let memory_type = if self.shared.capabilities.ept_write_back() { 6 } else { 0 };
        root.get() | 3 << 3 | memory_type
    }

    /// The nested tables without and with the page that stands for a lent local APIC.
    fn ept_pointers(&self) -> [u64; 2] {
        let plain = self.tables.root();
        [plain, self.tables.trapping().map_or(plain, |view| view.root)].map(|root| self.ept_pointer(root))
    }

    /// What depends on how the guest reaches a local APIC that is lent to the CPU, if one is.
    fn apic_fields(&self) -> [(Field, u64); 3] {
        let access = self.apic_loan.map(|loan| loan.access);
        let [plain, trapping] = self.ept_pointers();
        let bitmap = match access {
            Some(ApicAccess::Msrs) => &self.shared.x2apic_bitmap,
            _ => &self.shared.msr_bitmap,
        };
        [
            (
                field::SECONDARY_CONTROLS,
                u64::from(self.shared.controls.secondary_with(access, self.pause_exits)),
            ),
            (field::EPT_POINTER, if access == Some(ApicAccess::Memory) { trapping } else { plain }),
            (field::MSR_BITMAP, bitmap.address().get()),
        ]
    }

    /// The values of [`IN_REGISTERS`].
    fn in_registers(&self) -> [u64; 3] {
        [self.registers.rip, self.registers.get(Gpr::Rsp), self.registers.rflags]
    }

    /// Fills the whole VMCS but for the host-state area.
    fn fill(&mut self, current: &mut Current) {
        let controls = &self.shared.controls;
        for (field, value) in [
            (field::PIN_CONTROLS, u64::from(controls.pin)),
            (field::EXIT_CONTROLS, u64::from(controls.exit)),
            (field::EXCEPTION_BITMAP, u64::from(EXCEPTIONS)),
            (field::PAGE_FAULT_MASK, 0),
            (field::PAGE_FAULT_MATCH, 0),
            (field::CR3_TARGET_COUNT, 0),
            (field::EXIT_MSR_STORE_COUNT, 0),
            (field::EXIT_MSR_LOAD_COUNT, 0),
            (field::ENTRY_MSR_LOAD_COUNT, 0),
            (field::ENTRY_INTERRUPTION_INFORMATION, 0),
            (field::TSC_OFFSET, self.tsc_offset),
            (field::CR0_MASK, self.cr0.mask()),
            (field::CR0_SHADOW, self.cr0_shadow),
            (field::CR4_MASK, self.cr4.mask()),
            (field::CR4_SHADOW, self.cr4_shadow),
        ] {
            current.write(field, value);
        }
        for (field, value) in self.apic_fields() {
            current.write(field, value);
        }
        if controls.tpr_shadow() {
            current.write(field::VIRTUAL_APIC_PAGE, self.virtual_apic.address().get());
        }
        if let Some(view) = self.tables.trapping() {
            current.write(field::APIC_ACCESS_PAGE, view.page.get());
        }
        if controls.pause_loop_exiting() {
            current.write(field::PAUSE_LOOP_GAP, PAUSE_LOOP_GAP);
            current.write(field::PAUSE_LOOP_WINDOW, PAUSE_LOOP_WINDOW);
        }
        for tracked in [&mut self.primary_controls, &mut self.entry_controls, &mut self.tpr_threshold] {
            tracked.written = None;
        }
        self.controls_change = true;
        self.in_vmcs = self.in_registers();
        for (field, value) in IN_REGISTERS.into_iter().zip(self.in_vmcs) {
            self.saved.set(field, value);
        }
        self.saved.write(current);
        self.switch = Switch::new(self.shared.hygiene.clear_buffers);
    }

    /// A field of the guest-state area, wherever that is now.
    fn guest(&self, field: Field) -> u64 {
        match &self.current {
            Some(current) => current.read(field),
            None => self.saved.get(field),
        }
    }

    /// Sets one.
    fn set_guest(&mut self, field: Field, value: u64) {
        if let Some(current) = &mut self.current {
            current.write(field, value);
        } else {
            self.saved.set(field, value);
            self.stale = true;
        }
    }

    fn interruptibility(&self) -> u32 {
        self.guest(field::GUEST_INTERRUPTIBILITY) as u32
    }

    fn set_interruptibility(&mut self, value: u32) {
        self.set_guest(field::GUEST_INTERRUPTIBILITY, u64::from(value));
    }

    fn protected(&self) -> bool {
        self.guest(field::GUEST_CR0) & ControlRegisters::CR0_PE != 0
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: VmcsSegment) {
        for (field, value) in segment.fields(register) {
            self.set_guest(field, value);
        }
    }

    fn set_efer(&mut self, value: u64) {
        self.efer = value;
        self.set_guest(field::GUEST_EFER, value);
        self.controls_change = true;
        self.control.set(None);
    }

    /// Brings what changed since the last exit into the VMCS.
    fn prepare_entry(&mut self) {
        if let Some(injection) = &self.injection {
            if injection.fault {
                self.registers.rflags |= rflags::RF;
            }
            if injection.is_nmi() {
                // If it was on its way when the exit came, its delivery blocks the next one anew.
                self.set_interruptibility(self.interruptibility() & !interruptibility::BLOCKING_BY_NMI);
            }
        }
        if self.controls_change || self.waiting_class.is_some() {
            self.update_controls();
        }
        let registers = self.in_registers();
        let Some(current) = &mut self.current else { return };
        if let Some(injection) = &self.injection {
            current.write(field::ENTRY_INTERRUPTION_INFORMATION, u64::from(injection.information));
            current.write(field::ENTRY_EXCEPTION_ERROR_CODE, u64::from(injection.error_code));
            current.write(field::ENTRY_INSTRUCTION_LENGTH, u64::from(injection.instruction_length));
        }
        for ((field, value), written) in IN_REGISTERS.into_iter().zip(registers).zip(self.in_vmcs) {
            if value != written {
                current.write(field, value);
            }
        }
        self.in_vmcs = registers;
    }

    /// Computes the controls that depend on what waits, on the task priority and on long mode.
    fn update_controls(&mut self) {
        self.controls_change = false;
        let after_sti = self.nmi_waits && self.interruptibility() & interruptibility::BLOCKING_BY_STI != 0;
        let class = self.task_priority_class();
        let Some(current) = &mut self.current else { return };

        // An interrupt waits for RFLAGS.IF, or first for the guest to lower its task priority. An NMI waits
        // for the handler's IRET, or for the instruction after STI, where interrupts are on by definition.
        let open_by_priority = self.waiting_class.is_some_and(|waiting| waiting > class);
        let mut controls = self.shared.controls.primary;
        if open_by_priority || after_sti {
            controls |= primary::INTERRUPT_WINDOW_EXITING;
        }
        if self.nmi_waits && !after_sti {
            controls |= primary::NMI_WINDOW_EXITING;
        }
        self.primary_controls.set(current, controls);
        if self.shared.controls.tpr_shadow() {
            let threshold = self.waiting_class.filter(|_| !open_by_priority).unwrap_or(0);
            self.tpr_threshold.set(current, u32::from(threshold));
        }
        let long_mode = self.efer & ControlRegisters::EFER_LMA != 0;
        let long_mode = if long_mode { entry::IA32E_MODE_GUEST } else { 0 };
        self.entry_controls.set(current, self.shared.controls.entry | long_mode);
    }

    /// One entry and its exit; `None` when the exit was this backend's own business.
    fn run_once(&mut self) -> Option<Exit> {
        self.prepare_entry();
        self.control.set(None);
        let swaps_spec_ctrl = self.shared.features.spec_ctrl && self.spec_ctrl != 0;
        self.shared.hygiene.flush_l1d();
        // SAFETY: this CPU is attached, so its VMCS is current here and describes this core as the host; what
        // the VMCS points to is owned by `self`. SPEC_CTRL exists where `swaps_spec_ctrl` says so.
        let refused = unsafe {
            if swaps_spec_ctrl {
                Msr::new(IA32_SPEC_CTRL).write(self.spec_ctrl);
            }
            let refused = enter(&mut self.registers, &mut self.switch);
            if swaps_spec_ctrl {
                Msr::new(IA32_SPEC_CTRL).write(0);
            }
            refused
        };
        let Some(current) = &self.current else { return Some(not_attached()) };
        if refused != 0 {
            return Some(self.explain_refusal(current, refused));
        }
        let exit_reason = current.read32(field::EXIT_REASON);
        self.exit_reason = exit_reason as u16;
        if exit_reason & ENTRY_FAILURE != 0 {
            return Some(self.explain_entry_failure(current, exit_reason));
        }
        self.switch.launched = true;
        let [rip, rsp, rflags] = IN_REGISTERS.map(|field| current.read(field));
        self.in_vmcs = [rip, rsp, rflags];
        // An event whose delivery the exit cut short goes in again.
        self.injection = interrupted_event(current);
        (self.registers.rip, self.registers.rflags) = (rip, rflags);
        self.registers.set(Gpr::Rsp, rsp);
        self.decode_exit()
    }

    fn decode_exit(&mut self) -> Option<Exit> {
        let qualification = || self.exit_field(field::EXIT_QUALIFICATION);
        Some(match self.exit_reason {
            reason::CPUID => Exit::Cpuid,
            reason::RDMSR => Exit::ReadMsr,
            reason::WRMSR => Exit::WriteMsr,
            reason::IO_INSTRUCTION => Exit::Port(port_access(qualification())),
            reason::EPT_VIOLATION => self.ept_violation(EptViolation(qualification())),
            reason::APIC_WRITE => Exit::ApicWrite { offset: qualification() as u32 & 0xfff },
            reason::VIRTUALIZED_EOI => Exit::EndOfInterrupt { vector: qualification() as u8 },
            reason::APIC_ACCESS if self.injection.is_none() => Exit::Memory(apic_access(qualification())),
            reason::HLT => Exit::Halt,
            reason::PAUSE => Exit::Pause,
            // An INIT waits until VMX operation ends: nothing to do about it, and no harm. The host's own timer is due
            // when the CPU's is, or something keeps its interrupt away.
            reason::EXTERNAL_INTERRUPT | reason::INIT_SIGNAL | reason::PREEMPTION_TIMER => {
                Exit::HostInterrupt
            }
            reason::EXCEPTION_OR_NMI => return self.exception(qualification()),
            reason::INTERRUPT_WINDOW | reason::NMI_WINDOW | reason::TPR_BELOW_THRESHOLD => {
                (self.waiting_class, self.nmi_waits, self.controls_change) = (None, false, true);
                Exit::InterruptWindow
            }
            reason::CONTROL_REGISTER => return self.control_register(Access::decode(qualification())),
            reason::XSETBV => Exit::Xsetbv,
            reason::WBINVD | reason::INVD => Exit::CacheFlush,
            reason::VMCALL => Exit::Hypercall,
            reason::TRIPLE_FAULT => Exit::TripleFault,
            reason::VMCLEAR..=reason::VMXON
            | reason::GETSEC
            | reason::RDPMC
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID => Exit::Undefined,
            reason::TASK_SWITCH => return self.task_switch(qualification()),
            reason::EPT_MISCONFIGURATION => self.failed("EPT misconfiguration"),
            _ => self.failed("an exit that was not asked for"),
        })
    }

    fn exit_field(&self, field: Field) -> u64 {
        self.current.as_ref().map_or(0, |current| current.read(field))
    }

    fn failed(&self, reason: &'static str) -> Exit {
        Exit::Failed(EntryFailure { code: u64::from(self.exit_reason), reason })
    }

    fn ept_violation(&mut self, violation: EptViolation) -> Exit {
        if self.injection.is_some() {
            return self.failed("an event was to be delivered through memory that is not there");
        }
        self.block_nmis_again(violation.unblocked_nmi());
        Exit::Memory(violation.access(self.exit_field(field::GUEST_PHYSICAL_ADDRESS)))
    }

    /// After an IRET that unblocked NMIs and then faulted: it will run again.
    fn block_nmis_again(&mut self, unblocked: bool) {
        if unblocked && self.injection.is_none() {
            self.set_interruptibility(self.interruptibility() | interruptibility::BLOCKING_BY_NMI);
        }
    }

    /// An NMI of the host, a machine check, or one of the guest's own exceptions that goes back to it.
    fn exception(&mut self, qualification: u64) -> Option<Exit> {
        let information = self.exit_field(field::EXIT_INTERRUPTION_INFORMATION) as u32;
        let error_code = self.exit_field(field::EXIT_INTERRUPTION_ERROR_CODE) as u32;
        let length = self.exit_field(field::EXIT_INSTRUCTION_LENGTH) as u32;
        let Some(event) = Injection::interrupted(information, error_code, length) else {
            return Some(self.failed("an exit for an exception that is none"));
        };
        match event.caught() {
            Caught::HostNmi => {
                deliver_host_nmi();
                return Some(Exit::HostNmi);
            }
            Caught::HostMachineCheck => return Some(Exit::HostMachineCheck),
            Caught::Debug => self.record_debug_exception(qualification),
            Caught::AlignmentCheck => {}
            Caught::NotAskedFor => return Some(self.failed("an exception that is not intercepted")),
        }
        self.block_nmis_again(information & 1 << 12 != 0);
        self.injection = Some(event);
        None
    }

    /// The debug registers, as the delivery of #DB would have left them (SDM 28.3.1).
    fn record_debug_exception(&mut self, qualification: u64) {
        let reported = qualification & DR6_REPORTED;
        self.unswitched.set_dr6(self.unswitched.dr6() & !DR6_BREAKPOINTS | reported);
        let dr7 = self.guest(field::GUEST_DR7);
        if dr7 & DR7_GENERAL_DETECT != 0 {
            self.set_guest(field::GUEST_DR7, dr7 & !DR7_GENERAL_DETECT);
        }
        // Entry insists on a pending single step where the shadow of STI or MOV SS lasts.
        let shadow = self.interruptibility() & interruptibility::SHADOW != 0;
        if shadow && self.registers.rflags & rflags::TF != 0 {
            self.set_guest(field::GUEST_PENDING_DEBUG, DR6_SINGLE_STEP);
        }
    }

    /// A MOV to a bit that the guest does not own; `None` when it is done.
    fn control_register(&mut self, access: Access) -> Option<Exit> {
        let changed = match access {
            Access::MoveTo { number: 0, register } => {
                self.mode().move_to_cr0(self.operand(register)).and_then(|change| self.change_cr0(change))
            }
            Access::MoveTo { number: 4, register } => {
                let offered = cr4_offered(&self.shared.capabilities);
                self.mode()
                    .move_to_cr4(self.operand(register), offered)
                    .and_then(|change| self.change_cr4(change))
            }
            Access::MoveTo { number: 8, register } => {
                let value = self.operand(register);
                if value >> 4 == 0 {
                    self.set_task_priority_class(value as u8);
                    Ok(())
                } else {
                    Err(GeneralProtection)
                }
            }
            Access::MoveFrom { number: 8, register } => {
                self.registers.set(register, u64::from(self.task_priority_class()));
                Ok(())
            }
            _ => return Some(self.failed("a control-register access that was not asked for")),
        };
        match (changed, self.next_rip()) {
            (Ok(()), Some(next_rip)) => self.complete_instruction(next_rip),
            _ => self.inject(Event::GENERAL_PROTECTION),
        }
        None
    }

    fn operand(&self, register: Gpr) -> u64 {
        let value = self.registers.get(register);
        if self.code_size() == CodeSize::Bits64 { value } else { value & 0xffff_ffff }
    }

    fn mode(&self) -> Mode {
        Mode { control: self.control(), long_code: self.code_size() == CodeSize::Bits64 }
    }

    fn change_cr0(&mut self, change: Change) -> Result<(), GeneralProtection> {
        let pdptes = self.pdptes(change)?;
        self.cr0_shadow = change.value;
        if change.efer & !self.efer & ControlRegisters::EFER_LMA != 0 {
            self.widen_task_register();
        }
        self.set_efer(change.efer);
        let in_hardware = self.cr0.in_hardware(change.value, ControlRegisters::CR0_PG);
        self.write_control_register([field::GUEST_CR0, field::CR0_SHADOW], in_hardware, change.value, pdptes);
        Ok(())
    }

    fn change_cr4(&mut self, change: Change) -> Result<(), GeneralProtection> {
        let pdptes = self.pdptes(change)?;
        self.cr4_shadow = change.value;
        let in_hardware = self.cr4.in_hardware(change.value, 0);
        self.write_control_register([field::GUEST_CR4, field::CR4_SHADOW], in_hardware, change.value, pdptes);
        Ok(())
    }

    fn write_control_register(
        &mut self,
        [register, shadow]: [Field; 2],
        in_hardware: u64,
        value: u64,
        pdptes: Option<[u64; 4]>,
    ) {
        self.control.set(None);
        let Some(current) = &mut self.current else { return };
        current.write(register, in_hardware);
        current.write(shadow, value);
        for (field, entry) in field::GUEST_PDPTES.into_iter().zip(pdptes.into_iter().flatten()) {
            current.write(field, entry);
        }
        self.forget_translations();
    }

    /// The page-directory-pointer table that CR3 points to, where the change loads it.
    fn pdptes(&self, change: Change) -> Result<Option<[u64; 4]>, GeneralProtection> {
        change.loads_pdptes.then(|| self.read_pdptes(self.guest(field::GUEST_CR3))).transpose()
    }

    fn read_pdptes(&self, cr3: u64) -> Result<[u64; 4], GeneralProtection> {
        let mut entries = [0; 4];
        for (entry, offset) in entries.iter_mut().zip((0_u64..).step_by(8)) {
            let at = GuestPhys::new(cr3 & 0xffff_ffe0 | offset);
            *entry = self.tables.memory().read_u64(at).map_err(|_| GeneralProtection)?;
            if !pdpte_is_valid(*entry, self.shared.features.physical_address_bits) {
                return Err(GeneralProtection);
            }
        }
        Ok(entries)
    }

    /// Forgets this CPU's linear translations, as a MOV to a control register does (SDM 4.10.4.1).
    fn forget_translations(&self) {
        if self.current.is_some() && self.shared.controls.vpid() {
            let single = self.shared.capabilities.invvpid_single();
            let scope = if single { Scope::Single } else { Scope::All };
            // SAFETY: attached, so in VMX operation; VPIDs are used only where there is INVVPID.
            unsafe { vmcs::invvpid(scope, self.tag.number as u16) }
        }
    }

    /// A switch between tasks, by an instruction or a task gate.
    fn task_switch(&mut self, qualification: u64) -> Option<Exit> {
        let mut blocking = self.interruptibility() & !interruptibility::SHADOW;
        let mut length = self.exit_field(field::EXIT_INSTRUCTION_LENGTH);
        let mut request = Request::decode(qualification, 0);
        if request.source == Source::Iret {
            blocking &= !interruptibility::BLOCKING_BY_NMI;
        }
        if let Some(event) = self.injection.take().filter(|_| request.source == Source::Gate) {
            // The switch is its delivery.
            (request.external, request.error_code) = (!event.is_software(), event.pushed_error_code());
            length = u64::from(event.instruction_length);
            if event.is_nmi() {
                blocking |= interruptibility::BLOCKING_BY_NMI;
            }
        }
        request.return_rip = self.registers.rip.wrapping_add(length) & 0xffff_ffff;
        let mut task = self.task();
        let bits = self.shared.features.physical_address_bits;
        let result = switch(&mut task, self.tables.memory(), bits, &request);
        self.set_interruptibility(blocking);
        self.set_task(task);
        match result {
            Ok(false) => {}
            Ok(true) => {
                self.unswitched.set_dr6(self.unswitched.dr6() | DR6_TASK_SWITCH);
                self.inject(Event::Exception { vector: DEBUG, error_code: None });
            }
            Err(fault) => {
                if let Some(address) = fault.address {
                    self.set_cr2(address);
                }
                self.inject(fault.event);
            }
        }
        None
    }

    fn task(&self) -> Task {
        Task {
            registers: self.registers.clone(),
            segments: SEGMENTS.map(|register| self.segment(register)),
            control: self.control(),
            gdt: self.guest(field::GUEST_GDTR_BASE),
            gdt_limit: self.guest(field::GUEST_GDTR_LIMIT),
            dr7: self.guest(field::GUEST_DR7),
        }
    }

    fn set_task(&mut self, task: Task) {
        for (register, segment) in SEGMENTS.into_iter().zip(task.segments) {
            self.set_segment(register, segment.into());
        }
        self.registers = task.registers;
        self.set_guest(field::GUEST_DR7, task.dr7);
        let task_switched = task.control.cr0 & CR0_TS;
        self.set_guest(field::GUEST_CR0, self.guest(field::GUEST_CR0) | task_switched);
        self.set_guest(field::GUEST_CR3, task.control.cr3);
        let pae = task.control.cr0 & ControlRegisters::CR0_PG != 0
            && task.control.cr4 & ControlRegisters::CR4_PAE != 0;
        match pae.then(|| self.read_pdptes(task.control.cr3)) {
            Some(Ok(entries)) => {
                for (field, entry) in field::GUEST_PDPTES.into_iter().zip(entries) {
                    self.set_guest(field, entry);
                }
            }
            Some(Err(GeneralProtection)) => self.inject(Event::GENERAL_PROTECTION),
            None => {}
        }
        self.control.set(None);
        self.forget_translations();
    }

    /// Long mode knows no 16-bit TSS: entry refuses one that was loaded before.
    fn widen_task_register(&mut self) {
        let mut tr = VmcsSegment::from(self.segment(SegmentRegister::Tr));
        if tr.access_rights & 0xf == BUSY_TSS_16 {
            tr.access_rights |= BUSY_TSS;
            self.set_segment(SegmentRegister::Tr, tr);
        }
    }

    fn explain_refusal(&self, current: &Current, refused: u64) -> Exit {
        let (code, reason) = if refused & 1 != 0 {
            (0, "VMfailInvalid: no VMCS is current")
        } else {
            let number = current.read32(field::INSTRUCTION_ERROR);
            let named = (number == 7).then(|| self.bad_control()).flatten();
            (number, named.unwrap_or(instruction_error(number)))
        };
        Exit::Failed(EntryFailure { code: u64::from(code), reason })
    }

    fn bad_control(&self) -> Option<&'static str> {
        let threshold = self.tpr_threshold.written.unwrap_or(0);
        bad_control(self.injection, self.protected(), threshold, self.task_priority_class())
    }

    fn explain_entry_failure(&self, current: &Current, exit_reason: u32) -> Exit {
        let reason = match exit_reason as u16 {
            reason::MACHINE_CHECK_DURING_ENTRY => return Exit::HostMachineCheck,
            reason::INVALID_GUEST_STATE => self
                .bad_guest_state(current)
                .unwrap_or("VM entry with invalid guest state, in a field that could not be told"),
            reason::MSR_LOADING => "VM-entry failure due to MSR loading",
            _ => "VM-entry failure for a reason that the manual does not list",
        };
        Exit::Failed(EntryFailure { code: u64::from(exit_reason), reason })
    }

    fn bad_guest_state(&self, current: &Current) -> Option<&'static str> {
        let capabilities = &self.shared.capabilities;
        let five_levels = capabilities.cr4.possible & ControlRegisters::CR4_LA57 != 0;
        let rules = Rules {
            cr0: capabilities.cr0,
            cr4: capabilities.cr4,
            physical_bits: self.shared.features.physical_address_bits,
            linear_bits: if five_levels { 57 } else { 48 },
            long_mode: self.efer & ControlRegisters::EFER_LMA != 0,
            injection: self.injection,
        };
        first_bad_field(&GuestState::read(current), &rules)
    }
}

fn not_attached() -> Exit {
    Exit::Failed(EntryFailure { code: 0, reason: "a virtual CPU that is attached to no core" })
}

fn interrupted_event(current: &Current) -> Option<Injection> {
    const VALID: u32 = 1 << 31;
    let information = current.read32(field::IDT_VECTORING_INFORMATION);
    if information & VALID == 0 {
        return None;
    }
    let error_code = current.read32(field::IDT_VECTORING_ERROR_CODE);
    Injection::interrupted(information, error_code, current.read32(field::EXIT_INSTRUCTION_LENGTH))
}

impl CpuView for Vcpu {
    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        VmcsSegment::from_fields(register, |field| self.guest(field)).into()
    }

    fn control(&self) -> ControlRegisters {
        self.control.get().unwrap_or_else(|| {
            let control = ControlRegisters {
                cr0: self.cr0.seen(self.guest(field::GUEST_CR0), self.cr0_shadow),
                cr2: self.unswitched.cr2(),
                cr3: self.guest(field::GUEST_CR3),
                cr4: self.cr4.seen(self.guest(field::GUEST_CR4), self.cr4_shadow),
                efer: self.efer,
            };
            self.control.set(Some(control));
            control
        })
    }

    fn set_cr2(&mut self, address: u64) {
        self.unswitched.set_cr2(address);
        self.control.set(None);
    }

    fn physical_bits(&self) -> u8 {
        self.shared.features.physical_address_bits
    }

    /// SS.DPL, which VT-x keeps even for a null selector (SDM 25.4.1).
    fn privilege_level(&self) -> u8 {
        let rights = self.guest(vmcs::access_rights(SegmentRegister::Ss));
        ((rights >> 5) & 3) as u8
    }

    fn code_size(&self) -> CodeSize {
        let rights = self.guest(vmcs::access_rights(SegmentRegister::Cs));
        let (long, big) = (rights & 1 << 13 != 0, rights & 1 << 14 != 0);
        match (self.efer & ControlRegisters::EFER_LMA != 0 && long, big) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        }
    }
}

impl VirtualCpu for Vcpu {
    fn load(&mut self, state: &CpuState) {
        self.detach();
        self.context.reset();
        self.registers = state.registers.clone();
        let ControlRegisters { cr0, cr2, cr4, efer, .. } = state.control;
        (self.cr0_shadow, self.cr4_shadow) = (cr0, cr4);
        self.efer = efer & EFER_KNOWN;
        self.saved = GuestState::new(state);
        self.saved.set(field::GUEST_CR0, self.cr0.in_hardware(cr0, ControlRegisters::CR0_PG));
        self.saved.set(field::GUEST_CR4, self.cr4.in_hardware(cr4, 0));
        self.saved.set(field::GUEST_EFER, self.efer);
        self.pat = PAT_AT_RESET;
        self.stale = true;
        self.unswitched = Unswitched::new(cr2);
        self.spec_ctrl = 0;
        (self.injection, self.waiting_class, self.nmi_waits) = (None, None, false);
        self.set_task_priority_class(0);
        self.apic_loan = None;
        self.control.set(None);
        // Nothing cached under the old identifier belongs to the new state.
        self.tag = Tag::default();
    }

    fn attach(&mut self, core: &mut crate::cpu::Core) {
        #[allow(irrefutable_let_patterns, reason = "a build may have one backend")]
        let Backend::Vmx(core) = &mut core.backend else { return };
        if self.current.is_some() {
            return;
        }
        self.tag = core.tag(self.tag, self.ept_pointers());
        if self.stale {
            // SAFETY: a `Core` exists only on a core in VMX operation.
            let _ = unsafe { vmcs::clear(&self.region) };
        }
        // SAFETY: as above. The region is active nowhere: `detach` cleared it. Between `attach` and `detach`
        // this CPU stays on its core, and no other one is attached there: the contract of `VirtualCpu`.
        let Ok(mut current) = (unsafe { Current::load(&self.region) }) else { return };
        if self.stale {
            self.fill(&mut current);
            self.stale = false;
        }
        if self.shared.controls.vpid() {
            current.write(field::VPID, u64::from(self.tag.number));
        }
        host_state::write(&mut current);
        self.current = Some(current);
        self.context.attach(core.note_attached(self.identity));
        self.unswitched.attach();
    }

    fn detach(&mut self) {
        let Some(current) = self.current.take() else { return };
        self.unswitched.detach();
        self.context.detach();
        self.saved = GuestState::read(&current);
        current.clear(&self.region);
        self.switch.launched = false;
    }

    fn run(&mut self) -> Exit {
        if self.current.is_none() {
            return not_attached();
        }
        loop {
            if let Some(exit) = self.run_once() {
                return exit;
            }
            if self.injection.is_some() {
                // What its delivery raises may be the next exit, before any interrupt of the host.
                return Exit::InterruptWindow;
            }
        }
    }

    fn next_rip(&self) -> Option<u64> {
        if !tells_instruction_length(self.exit_reason) {
            return None;
        }
        let rip = self.registers.rip;
        let next_rip = rip.wrapping_add(self.exit_field(field::EXIT_INSTRUCTION_LENGTH));
        // EIP has 32 bits: only where the sum leaves them does the mode matter.
        let wraps = rip >> 32 == 0 && next_rip >> 32 != 0 && self.code_size() != CodeSize::Bits64;
        Some(if wraps { next_rip & 0xffff_ffff } else { next_rip })
    }

    fn complete_instruction(&mut self, next_rip: u64) {
        self.registers.rip = next_rip;
        self.registers.rflags &= !rflags::RF;
        let blocking = self.interruptibility();
        if blocking & interruptibility::SHADOW != 0 {
            self.set_interruptibility(blocking & !interruptibility::SHADOW);
        }
        if self.registers.rflags & rflags::TF != 0 && !self.injection_pending() {
            // Single step: DR6.BS, and the trap after the instruction (SDM 18.3.1.4).
            self.unswitched.set_dr6(self.unswitched.dr6() | DR6_SINGLE_STEP);
            self.inject(Event::Exception { vector: DEBUG, error_code: None });
        }
    }

    fn inject(&mut self, event: Event) {
        self.injection = Some(Injection::new(event, self.protected()));
    }

    fn injection_pending(&self) -> bool {
        self.injection.is_some()
    }

    fn accepts_interrupt(&self) -> bool {
        self.registers.rflags & rflags::IF != 0
            && !self.injection_pending()
            && self.interruptibility() & interruptibility::SHADOW == 0
    }

    fn accepts_nmi(&self) -> bool {
        let blocking = interruptibility::SHADOW | interruptibility::BLOCKING_BY_NMI;
        !self.injection_pending() && self.interruptibility() & blocking == 0
    }

    fn request_interrupt_window(&mut self, priority_class: Option<u8>) {
        self.waiting_class = priority_class;
        self.controls_change = true;
    }

    fn request_nmi_window(&mut self) {
        self.nmi_waits = true;
        self.controls_change = true;
    }

    fn task_priority_class(&self) -> u8 {
        (self.virtual_apic.read(ApicPage::TPR) >> 4) as u8 & 0xf
    }

    fn set_task_priority_class(&mut self, class: u8) {
        self.virtual_apic.write(ApicPage::TPR, u32::from(class & 0xf) << 4);
    }

    fn has_preemption_timer(&self) -> bool {
        self.shared.controls.preemption_timer()
    }

    fn set_preemption_timer(&mut self, ticks: u64) {
        let count = ticks.wrapping_shr(self.shared.capabilities.preemption_timer_shift()).saturating_add(1);
        if let Some(current) = &mut self.current {
            current.write(field::PREEMPTION_TIMER, count.min(u64::from(u32::MAX)));
        }
    }

    fn apic_page(&self) -> Option<Arc<ApicPage>> {
        self.shared.controls.lends_apics.then(|| Arc::clone(&self.virtual_apic))
    }

    fn lend_apic(&mut self, loan: Option<ApicLoan>) {
        let before = mem::replace(&mut self.apic_loan, loan);
        let changes_access = before.map(|loan| loan.access) != loan.map(|loan| loan.access);
        let fields = changes_access.then(|| self.apic_fields());
        let Some(current) = &mut self.current else { return };
        for (field, value) in fields.into_iter().flatten() {
            current.write(field, value);
        }
        let Some(loan) = loan else { return };
        // Requested, and in service (SDM 25.4.2).
        let status = u64::from(loan.requested) | u64::from(loan.in_service) << 8;
        current.write(field::GUEST_INTERRUPT_STATUS, status);
        if before.is_none_or(|before| before.told != loan.told) {
            for (field, vectors) in field::EOI_EXIT_BITMAPS.into_iter().zip(loan.told) {
                current.write(field, vectors);
            }
        }
    }

    fn system_msr(&self, msr: SystemMsr) -> u64 {
        match msr {
            SystemMsr::SysenterCs => self.guest(field::GUEST_SYSENTER_CS),
            SystemMsr::SysenterEsp => self.guest(field::GUEST_SYSENTER_ESP),
            SystemMsr::SysenterEip => self.guest(field::GUEST_SYSENTER_EIP),
            SystemMsr::Pat => self.pat,
            SystemMsr::Efer => self.efer,
            SystemMsr::FsBase => self.segment(SegmentRegister::Fs).base,
            SystemMsr::GsBase => self.segment(SegmentRegister::Gs).base,
            SystemMsr::TscAux => self.context.tsc_aux(),
            SystemMsr::SpecCtrl => self.spec_ctrl,
            SystemMsr::Star
            | SystemMsr::Lstar
            | SystemMsr::Cstar
            | SystemMsr::Sfmask
            | SystemMsr::KernelGsBase => self.unswitched.msr(msr).unwrap_or(0),
        }
    }

    fn set_system_msr(&mut self, msr: SystemMsr, value: u64) {
        let set_base = |vcpu: &mut Self, register| {
            let segment = Segment { base: value, ..vcpu.segment(register) };
            vcpu.set_segment(register, segment.into());
        };
        match msr {
            SystemMsr::SysenterCs => {
                self.set_guest(field::GUEST_SYSENTER_CS, value & 0xffff_ffff);
            }
            SystemMsr::SysenterEsp => {
                self.set_guest(field::GUEST_SYSENTER_ESP, value);
            }
            SystemMsr::SysenterEip => {
                self.set_guest(field::GUEST_SYSENTER_EIP, value);
            }
            SystemMsr::Pat => {
                self.pat = value;
                self.set_guest(field::GUEST_PAT, value);
            }
            SystemMsr::Efer => self.set_efer(value & EFER_KNOWN),
            SystemMsr::FsBase => set_base(self, SegmentRegister::Fs),
            SystemMsr::GsBase => set_base(self, SegmentRegister::Gs),
            SystemMsr::TscAux => self.context.set_tsc_aux(value),
            SystemMsr::SpecCtrl => self.spec_ctrl = value,
            SystemMsr::Star
            | SystemMsr::Lstar
            | SystemMsr::Cstar
            | SystemMsr::Sfmask
            | SystemMsr::KernelGsBase => {
                self.unswitched.set_msr(msr, value);
            }
        }
    }

    fn xcr0(&self) -> u64 {
        self.context.xcr0()
    }

    fn set_xcr0(&mut self, value: u64) {
        self.context.set_xcr0(value);
    }

    fn set_pause_exits(&mut self, wanted: bool) {
        self.pause_exits = wanted;
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
        if let Some(current) = &mut self.current {
            current.write(field::TSC_OFFSET, offset);
        } else {
            self.stale = true;
        }
    }
}

impl Drop for Vcpu {
    /// The CPU must not write the VMCS back into memory that is given away.
    fn drop(&mut self) {
        self.detach();
    }
}
