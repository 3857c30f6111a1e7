//! A virtual CPU on AMD-V.

use super::core::{Core, SvmFeatures, address_of};
use super::enter::enter;
use super::permissions::PermissionMaps;
use super::step::Step;
use super::vmcb::{
    INTERCEPT_CR8_WRITE, Vmcb, VmcbSegment, event, exit_code, intercept_exception, intercept1, intercept2,
    virtual_interrupt,
};
use crate::cpu::context::{Context, HostFeatures};
use crate::cpu::state::PAT_AT_RESET;
use crate::cpu::tags::{Flush, Tag};
use crate::cpu::{
    Backend, CodeSize, ControlRegisters, CpuState, CpuView, EntryFailure, Event, Exit, Gpr, MemoryAccess,
    PortAccess, Registers, Segment, SegmentRegister, SystemMsr, VirtualCpu, Width, rflags,
};
use crate::memory::{GuestPhys, HostPhys, NestedTables, Paging};
use ::core::sync::atomic::{AtomicU64, Ordering};
use alloc::boxed::Box;
use alloc::sync::Arc;
use x86_64::registers::control::Cr3;
use x86_64::registers::model_specific::Msr;

const EFER_SVME: u64 = 1 << 12;
const CR0_CACHE_BITS: u64 = 0b11 << 29;
const CR0_NOT_WRITE_THROUGH: u64 = 1 << 29;
const DR6_AT_RESET: u64 = 0xffff_0ff0;
const DR7_AT_RESET: u64 = 0x400;
const IA32_SPEC_CTRL: u32 = 0x48;
/// PAUSEs in a tight loop before the guest exits, and how many cycles apart still count as one loop.
const PAUSE_LOOP: (u16, u16) = (3000, 128);

/// What is said of a guest whose state QEMU has lost; `scripts/test` looks for it.
const HOST_STATE_FOR_GUEST: &str = "QEMU has put the host's state in the place of the guest's";

static IDENTITIES: AtomicU64 = AtomicU64::new(1);

/// Until when NMIs stay blocked after one was delivered. There is no flag for it: the guest's IRET is caught
/// (APM 15.21.10 describes the same for CPUs without virtual NMI).
#[derive(Clone, Copy, PartialEq, Eq)]
enum NmiBlocking {
    None,
    UntilIret,
    /// The IRET at this address was caught and let go: over when RIP has moved on.
    IretAt(u64),
}

/// A virtual CPU on AMD-V.
pub struct Vcpu {
    registers: Registers,
    vmcb: Box<Vmcb>,
    context: Context,
    features: HostFeatures,
    svm: SvmFeatures,
    identity: u64,
    asid: Tag,
    spec_ctrl: u64,
    pause_exits: bool,
    nmi_blocking: NmiBlocking,
    /// While a single instruction of the guest's is run, behind which an NMI waits.
    step: Option<Step>,
    /// Where VMSAVE put the host's state, while attached.
    host: Option<HostPhys>,
    // The hardware reads these two as long as this CPU may run.
    permissions: Arc<PermissionMaps>,
    tables: Arc<NestedTables>,
}

impl Vcpu {
    /// A CPU in its reset state that translates through `tables`.
    pub fn new(core: &Core, tables: Arc<NestedTables>) -> Self {
        let mut vcpu = Self {
            registers: Registers::default(),
            vmcb: Vmcb::zeroed(),
            context: Context::new(*core.features()),
            features: *core.features(),
            svm: core.svm_features(),
            identity: IDENTITIES.fetch_add(1, Ordering::Relaxed),
            asid: Tag::default(),
            spec_ctrl: 0,
            pause_exits: true,
            nmi_blocking: NmiBlocking::None,
            step: None,
            host: None,
            permissions: core.permissions(),
            tables,
        };
        vcpu.load(&CpuState::reset());
        vcpu
    }

    fn set_controls(&mut self) {
        let vmcb = &mut *self.vmcb;
        vmcb.intercept_cr = 0;
        vmcb.intercept_dr = 0;
        // A machine check is the machine's, whoever runs when it strikes. The other two can raise themselves
        // again while they are delivered, without end and with nothing that interrupts it but an exit.
        vmcb.intercept_exceptions = intercept_exception::MACHINE_CHECK
            | intercept_exception::DEBUG
            | intercept_exception::ALIGNMENT_CHECK;
        vmcb.intercept1 = intercept1::INTR
            | intercept1::NMI
            | intercept1::SMI
            | intercept1::INIT
            | intercept1::RDPMC
            | intercept1::CPUID
            | intercept1::INVD
            | intercept1::HLT
            | intercept1::INVLPGA
            | intercept1::IOIO
            | intercept1::MSR
            | intercept1::FERR_FREEZE
            | intercept1::SHUTDOWN;
        vmcb.intercept2 = intercept2::VMRUN
            | intercept2::VMMCALL
            | intercept2::VMLOAD
            | intercept2::VMSAVE
            | intercept2::STGI
            | intercept2::CLGI
            | intercept2::SKINIT
            | intercept2::WBINVD
            | intercept2::MONITOR
            | intercept2::MWAIT
            | intercept2::MWAIT_ARMED
            | intercept2::XSETBV
            | intercept2::RDPRU;
        if self.pause_exits && self.svm.pause_filter() {
            vmcb.intercept1 |= intercept1::PAUSE;
            (vmcb.pause_filter_count, vmcb.pause_filter_threshold) = PAUSE_LOOP;
            if !self.svm.pause_filter_threshold() {
                vmcb.pause_filter_threshold = 0;
            }
        }
        vmcb.iopm_base = self.permissions.io_base().get();
        vmcb.msrpm_base = self.permissions.msr_base().get();
        vmcb.virtual_interrupt = virtual_interrupt::MASKING;
        vmcb.nested_paging = 1;
        vmcb.nested_cr3 = self.tables.root().get();
    }

    /// The VMCB's own copies of RAX, RSP, RIP and RFLAGS, from the registers and back.
    fn store_registers(&mut self) {
        self.vmcb.rax = self.registers.get(Gpr::Rax);
        self.vmcb.rsp = self.registers.get(Gpr::Rsp);
        self.vmcb.rip = self.registers.rip;
        self.vmcb.rflags = self.registers.rflags;
    }

    fn fetch_registers(&mut self) {
        self.registers.set(Gpr::Rax, self.vmcb.rax);
        self.registers.set(Gpr::Rsp, self.vmcb.rsp);
        self.registers.rip = self.vmcb.rip;
        self.registers.rflags = self.vmcb.rflags;
    }

    /// An event whose delivery the exit cut short goes in again (APM 15.7.2). Software interrupts, INT3 and
    /// INTO do not: RIP still points at them, and they run again.
    fn keep_interrupted_event(&mut self) {
        let info = self.vmcb.exit_int_info;
        if info & event::VALID == 0 {
            return;
        }
        let kind = info & event::TYPE;
        let software =
            kind == event::SOFTWARE_INTERRUPT || (kind == event::EXCEPTION && matches!(info & 0xff, 3 | 4));
        if kind == event::INTERRUPT {
            // QEMU 7.2 leaves it set until the delivery is complete.
            self.take_virtual_interrupt();
        }
        if !software {
            self.vmcb.event_injection = info;
        }
    }

    /// An interrupt that is to be delivered, and was not yet. The same bit without a vector, but with an intercept,
    /// is the request for a window.
    fn virtual_interrupt(&self) -> Option<u8> {
        let word = self.vmcb.virtual_interrupt;
        let waits = word & virtual_interrupt::IRQ != 0 && self.vmcb.intercept1 & intercept1::VINTR == 0;
        waits.then_some(((word & virtual_interrupt::VECTOR) >> virtual_interrupt::VECTOR_SHIFT) as u8)
    }

    fn take_virtual_interrupt(&mut self) -> Option<u8> {
        use virtual_interrupt::{IGNORE_TPR, IRQ, VECTOR};
        let vector = self.virtual_interrupt()?;
        self.vmcb.virtual_interrupt &= !(IRQ | IGNORE_TPR | VECTOR);
        Some(vector)
    }

    /// Has the CPU deliver an interrupt that it accepts as a virtual one (APM 15.21.4).
    fn set_virtual_interrupt(&mut self, vector: u8) {
        use virtual_interrupt::{IGNORE_TPR, IRQ, VECTOR, VECTOR_SHIFT};
        let vmcb = &mut *self.vmcb;
        vmcb.intercept1 &= !intercept1::VINTR;
        vmcb.virtual_interrupt &= !VECTOR;
        vmcb.virtual_interrupt |= IRQ | IGNORE_TPR | u64::from(vector) << VECTOR_SHIFT;
    }

    fn note_nmi_progress(&mut self) {
        if let NmiBlocking::IretAt(rip) = self.nmi_blocking
            && rip != self.registers.rip
        {
            self.nmi_blocking = NmiBlocking::None;
        }
    }

    fn decode_exit(&mut self) -> Exit {
        match self.vmcb.exit_code {
            exit_code::CPUID => Exit::Cpuid,
            exit_code::MSR if self.vmcb.exit_info1 & 1 == 0 => Exit::ReadMsr,
            exit_code::MSR => Exit::WriteMsr,
            exit_code::IOIO => self.port_access(),
            exit_code::NESTED_PAGE_FAULT if self.holds_host_state() => {
                let code = exit_code::NESTED_PAGE_FAULT;
                Exit::Failed(EntryFailure { code, reason: HOST_STATE_FOR_GUEST })
            }
            exit_code::NESTED_PAGE_FAULT => {
                // EXITINFO1 is a page fault's error code (APM 15.25.6).
                let error = self.vmcb.exit_info1;
                Exit::Memory(MemoryAccess {
                    address: GuestPhys::new(self.vmcb.exit_info2),
                    write: error & 0b10 != 0,
                    fetch: error & 0b1_0000 != 0,
                })
            }
            exit_code::HLT => Exit::Halt,
            exit_code::PAUSE => Exit::Pause,
            exit_code::INTR | exit_code::SMI | exit_code::INIT => Exit::HostInterrupt,
            exit_code::NMI => Exit::HostNmi,
            exit_code::VINTR => {
                self.request_interrupt_window(None);
                Exit::InterruptWindow
            }
            exit_code::IRET => {
                self.vmcb.intercept1 &= !intercept1::IRET;
                self.nmi_blocking = NmiBlocking::IretAt(self.registers.rip);
                Exit::InterruptWindow
            }
            exit_code::XSETBV => Exit::Xsetbv,
            exit_code::WBINVD | exit_code::INVD => Exit::CacheFlush,
            exit_code::VMMCALL => Exit::Hypercall,
            exit_code::SHUTDOWN => Exit::TripleFault,
            exit_code::MACHINE_CHECK => Exit::HostMachineCheck,
            exit_code::DEBUG => {
                self.vmcb.interrupt_shadow &= !1;
                if let Some(step) = self.end_step() {
                    if step.is_guests(self.vmcb.dr6) {
                        self.inject(Event::DEBUG);
                    } else {
                        self.vmcb.dr6 = step.dr6;
                    }
                } else {
                    self.inject(Event::DEBUG);
                }
                Exit::InterruptWindow
            }
            exit_code::ALIGNMENT_CHECK => {
                self.inject(Event::Exception { vector: 17, error_code: Some(0) });
                Exit::InterruptWindow
            }
            exit_code::CR8_WRITE => Exit::WriteTaskPriority,
            exit_code::RDPMC | exit_code::INVLPGA | exit_code::RDPRU => Exit::Undefined,
            exit_code::VMRUN..=exit_code::SKINIT | exit_code::MONITOR..=exit_code::MWAIT_ARMED => {
                Exit::Undefined
            }
            exit_code::INVALID | exit_code::INVALID_SHORT => Exit::Failed(EntryFailure {
                code: exit_code::INVALID,
                reason: "VMEXIT_INVALID: guest state that VMRUN refuses (APM 15.5.1)",
            }),
            code @ exit_code::EXCEPTION_FIRST..=exit_code::EXCEPTION_LAST => {
                Exit::Failed(EntryFailure { code, reason: "an exception that is not intercepted" })
            }
            code => Exit::Failed(EntryFailure { code, reason: "an exit that was not asked for" }),
        }
    }

    /// Whether QEMU's emulation went on translating by the guest's nested tables behind an exit, and so made a second
    /// one of the host's next instruction, whose state now stands where the guest's was: the host's own tables were not
    /// found in the guest (docs/decisions/0010-flags-of-the-first-cpu-under-tcg.md).
    fn holds_host_state(&self) -> bool {
        let tables = |address: u64| address >> 12;
        self.svm.is_tcg()
            && self.vmcb.cr3 == Cr3::read_raw().0.start_address().as_u64()
            && tables(self.vmcb.exit_info2) == tables(self.vmcb.cr3)
    }

    /// Whether nothing but the shadow of STI or MOV SS keeps an interrupt away.
    fn accepts_after_shadow(&self) -> bool {
        let shadow = self.vmcb.interrupt_shadow & 1 != 0;
        shadow && self.registers.rflags & rflags::IF != 0 && !self.injection_pending()
    }

    /// Has the guest run the instruction at RIP and no more, and then exit.
    fn start_step(&mut self) {
        if self.step.is_none() {
            let flags = &mut self.registers.rflags;
            self.step = Some(Step { rip: self.registers.rip, trap: *flags & rflags::TF, dr6: self.vmcb.dr6 });
            *flags |= rflags::TF;
        }
    }

    /// Gives the guest its own trap flag back, unless the IRET that was run has loaded another.
    fn end_step(&mut self) -> Option<Step> {
        let step = self.step.take()?;
        let loaded = self.nmi_blocking == NmiBlocking::IretAt(step.rip) && self.registers.rip != step.rip;
        if !loaded {
            self.registers.rflags = self.registers.rflags & !rflags::TF | step.trap;
        }
        Some(step)
    }

    /// EXITINFO1 of an I/O intercept (APM 15.10.2).
    fn port_access(&self) -> Exit {
        let info = self.vmcb.exit_info1;
        let width = match (info >> 4) & 0b111 {
            1 => Width::Byte,
            2 => Width::Word,
            _ => Width::Dword,
        };
        let string = info & (1 << 2) != 0;
        Exit::Port(PortAccess { port: (info >> 16) as u16, width, write: info & 1 == 0, string })
    }

    /// Whether VMRUN leaves SPEC_CTRL to us.
    fn swaps_spec_ctrl(&self) -> bool {
        self.features.spec_ctrl && !self.svm.virtual_spec_ctrl() && self.spec_ctrl != 0
    }
}

impl CpuView for Vcpu {
    fn registers(&self) -> &Registers {
        &self.registers
    }

    fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        match register {
            SegmentRegister::Ldtr => self.vmcb.ldtr.into(),
            SegmentRegister::Tr => self.vmcb.tr.into(),
            register => {
                self.vmcb.segments.get(register as usize).copied().map(Segment::from).unwrap_or_default()
            }
        }
    }

    fn control(&self) -> ControlRegisters {
        ControlRegisters {
            cr0: self.vmcb.cr0,
            cr2: self.vmcb.cr2,
            cr3: self.vmcb.cr3,
            cr4: self.vmcb.cr4,
            efer: self.vmcb.efer & !EFER_SVME,
        }
    }

    fn set_cr2(&mut self, address: u64) {
        self.vmcb.cr2 = address;
    }

    fn physical_bits(&self) -> u8 {
        self.features.physical_address_bits
    }

    fn code_size(&self) -> CodeSize {
        let [_, code, ..] = self.vmcb.segments.map(Segment::from);
        CodeSize::of(code, self.vmcb.efer)
    }

    fn paging(&self) -> Paging {
        let Vmcb { cr0, cr3, cr4, efer, .. } = *self.vmcb;
        Paging { cr0, cr3, cr4, efer, physical_bits: self.features.physical_address_bits }
    }

    /// SS.DPL is not kept up by every CPU (APM 15.5.1): the VMCB has the level itself.
    fn privilege_level(&self) -> u8 {
        self.vmcb.cpl
    }
}

impl VirtualCpu for Vcpu {
    fn load(&mut self, state: &CpuState) {
        let tsc_offset = self.vmcb.tsc_offset;
        self.detach();
        self.context.reset();
        self.vmcb = Vmcb::zeroed();
        self.set_controls();
        self.registers = state.registers.clone();
        self.nmi_blocking = NmiBlocking::None;
        self.step = None;
        self.spec_ctrl = 0;
        // The block is a new one: nothing cached under the old identifier belongs to it.
        self.asid = Tag::default();

        let vmcb = &mut *self.vmcb;
        vmcb.tsc_offset = tsc_offset;
        let [es, cs, ss, ds, fs, gs, ldtr, tr] = state.segments.map(VmcbSegment::from);
        vmcb.segments = [es, cs, ss, ds, fs, gs];
        (vmcb.ldtr, vmcb.tr) = (ldtr, tr);
        (vmcb.gdtr, vmcb.idtr) = (state.gdt.into(), state.idt.into());
        let ControlRegisters { cr0, cr2, cr3, cr4, efer } = state.control;
        // CD and NW make no difference under nested paging, where the host's memory types rule; NW without
        // CD is a combination that VMRUN refuses.
        vmcb.cr0 = cr0 & !CR0_CACHE_BITS;
        (vmcb.cr2, vmcb.cr3, vmcb.cr4, vmcb.efer) = (cr2, cr3, cr4, efer | EFER_SVME);
        (vmcb.dr6, vmcb.dr7, vmcb.pat) = (DR6_AT_RESET, DR7_AT_RESET, PAT_AT_RESET);
    }

    fn attach(&mut self, core: &mut crate::cpu::Core) {
        #[allow(irrefutable_let_patterns, reason = "a build may have one backend")]
        let Backend::Svm(core) = &mut core.backend else { return };
        self.host = Some(core.save_host_state());
        let (asid, flush) = core.asid(self.asid);
        self.asid = asid;
        self.vmcb.asid = asid.number;
        // TLB_CONTROL (APM 15.16.2): 1 flushes everything, 3 this identifier's entries.
        self.vmcb.tlb_control = match flush {
            Flush::Nothing => 0,
            Flush::Tag if self.svm.flush_by_asid() => 3,
            Flush::Tag | Flush::Everything => 1,
        };
        self.context.attach(core.note_attached(self.identity));
    }

    fn detach(&mut self) {
        self.context.detach();
        self.host = None;
    }

    fn run(&mut self) -> Exit {
        let Some(host) = self.host else {
            let reason = "a virtual CPU that is attached to no core";
            return Exit::Failed(EntryFailure { code: 0, reason });
        };
        if self.vmcb.cr0 & CR0_CACHE_BITS == CR0_NOT_WRITE_THROUGH {
            self.vmcb.cr0 &= !CR0_CACHE_BITS;
        }
        self.store_registers();
        let shadow = self.vmcb.interrupt_shadow & 1;
        let swaps_spec_ctrl = self.swaps_spec_ctrl();
        // SAFETY: this CPU is attached, so SVM is on and `host` holds this core's state; the VMCB, the maps
        // and the tables are owned by `self`. SPEC_CTRL exists where `swaps_spec_ctrl` says so.
        unsafe {
            if swaps_spec_ctrl {
                Msr::new(IA32_SPEC_CTRL).write(self.spec_ctrl);
            }
            enter(&mut self.registers, address_of(&self.vmcb), host);
            if swaps_spec_ctrl {
                Msr::new(IA32_SPEC_CTRL).write(0);
            }
        }
        let rip = self.registers.rip;
        self.fetch_registers();
        if rip == self.registers.rip {
            // QEMU 7.2 forgets the shadow when it enters a guest.
            self.vmcb.interrupt_shadow |= shadow;
        }
        self.vmcb.tlb_control = 0;
        self.vmcb.event_injection = 0;
        self.keep_interrupted_event();
        let exit = self.decode_exit();
        self.note_nmi_progress();
        exit
    }

    fn next_rip(&self) -> Option<u64> {
        match self.vmcb.exit_code {
            // EXITINFO2 holds it on every CPU.
            exit_code::IOIO => Some(self.vmcb.exit_info2),
            _ if self.svm.next_rip_save() && self.vmcb.next_rip != 0 => Some(self.vmcb.next_rip),
            _ => None,
        }
    }

    fn complete_instruction(&mut self, next_rip: u64) {
        if self.step.is_some() {
            self.end_step();
        }
        self.registers.rip = next_rip;
        self.registers.rflags &= !rflags::RF;
        self.vmcb.interrupt_shadow &= !1;
        if self.registers.rflags & rflags::TF != 0 && !self.injection_pending() {
            // Single step: DR6.BS, and the trap after the instruction (APM 13.1.3).
            self.vmcb.dr6 |= 1 << 14;
            self.inject(Event::DEBUG);
        }
    }

    fn inject(&mut self, event: Event) {
        self.end_step();
        self.vmcb.event_injection = event::VALID
            | match event {
                Event::Interrupt(vector) if self.svm.is_tcg() => {
                    return self.set_virtual_interrupt(vector);
                }
                Event::Interrupt(vector) => event::INTERRUPT | u64::from(vector),
                Event::Nmi => {
                    self.nmi_blocking = NmiBlocking::UntilIret;
                    self.vmcb.intercept1 |= intercept1::IRET;
                    event::NMI | 2
                }
                Event::Exception { vector, error_code: None } => event::EXCEPTION | u64::from(vector),
                Event::Exception { vector, error_code: Some(code) } => {
                    event::EXCEPTION | event::ERROR_CODE_VALID | u64::from(vector) | u64::from(code) << 32
                }
            };
    }

    fn injection_pending(&self) -> bool {
        self.vmcb.event_injection & event::VALID != 0 || self.virtual_interrupt().is_some()
    }

    fn accepts_interrupt(&self) -> bool {
        self.registers.rflags & rflags::IF != 0
            && self.vmcb.interrupt_shadow & 1 == 0
            && !self.injection_pending()
    }

    fn accepts_nmi(&self) -> bool {
        self.nmi_blocking == NmiBlocking::None
            && self.vmcb.interrupt_shadow & 1 == 0
            && !self.injection_pending()
    }

    /// An interrupt that the task priority holds back waits for MOV to CR8, another for a virtual interrupt of
    /// ours that is caught the moment it could be delivered. The hardware could compare priorities itself, but
    /// QEMU 7.2 takes equal ones for enough, and ends with an assertion when MOV to CR8 lets such a one in: so
    /// that is caught as long as anything waits.
    ///
    /// An interrupt on its way has the one place that there is for virtual ones: where another may come before that
    /// one's end, it is injected as an event instead.
    fn request_interrupt_window(&mut self, priority_class: Option<u8>) {
        use virtual_interrupt::{IGNORE_TPR, IRQ};
        if let Some(vector) = self.virtual_interrupt()
            && priority_class.is_some_and(|class| class > vector >> 4)
        {
            self.take_virtual_interrupt();
            self.vmcb.event_injection = event::VALID | event::INTERRUPT | u64::from(vector);
        }
        let task_priority = self.task_priority_class();
        let deliverable = priority_class.is_some_and(|class| class > task_priority);
        let on_its_way = self.virtual_interrupt().is_some();
        let vmcb = &mut *self.vmcb;
        if on_its_way {
            // The place is taken; its end, which exits, is soon enough for the other.
        } else if deliverable && vmcb.interrupt_shadow & 1 == 0 {
            vmcb.virtual_interrupt |= IRQ | IGNORE_TPR;
            vmcb.intercept1 |= intercept1::VINTR;
        } else {
            vmcb.virtual_interrupt &= !(IRQ | IGNORE_TPR);
            vmcb.intercept1 &= !intercept1::VINTR;
        }
        if priority_class.is_some() {
            vmcb.intercept_cr |= INTERCEPT_CR8_WRITE;
        } else {
            vmcb.intercept_cr &= !INTERCEPT_CR8_WRITE;
        }
        if deliverable && self.accepts_after_shadow() {
            self.start_step();
        }
    }

    /// An IRET ends the blocking by an NMI's handler, and is caught; then, as behind STI and MOV SS, one
    /// instruction is run. An event that waits goes in first: the next exit comes early enough.
    fn request_nmi_window(&mut self) {
        if self.nmi_blocking != NmiBlocking::UntilIret && !self.injection_pending() {
            self.start_step();
        }
    }

    fn task_priority_class(&self) -> u8 {
        (self.vmcb.virtual_interrupt & virtual_interrupt::TPR) as u8
    }

    fn set_task_priority_class(&mut self, class: u8) {
        let word = &mut self.vmcb.virtual_interrupt;
        *word = *word & !virtual_interrupt::TPR | u64::from(class) & virtual_interrupt::TPR;
    }

    fn system_msr(&self, msr: SystemMsr) -> u64 {
        let segment_base = |register: SegmentRegister| self.segment(register).base;
        match msr {
            SystemMsr::SysenterCs => self.vmcb.sysenter_cs,
            SystemMsr::SysenterEsp => self.vmcb.sysenter_esp,
            SystemMsr::SysenterEip => self.vmcb.sysenter_eip,
            SystemMsr::Pat => self.vmcb.pat,
            SystemMsr::Efer => self.vmcb.efer & !EFER_SVME,
            SystemMsr::Star => self.vmcb.star,
            SystemMsr::Lstar => self.vmcb.lstar,
            SystemMsr::Cstar => self.vmcb.cstar,
            SystemMsr::Sfmask => self.vmcb.sfmask,
            SystemMsr::FsBase => segment_base(SegmentRegister::Fs),
            SystemMsr::GsBase => segment_base(SegmentRegister::Gs),
            SystemMsr::KernelGsBase => self.vmcb.kernel_gs_base,
            SystemMsr::TscAux => self.context.tsc_aux(),
            SystemMsr::SpecCtrl if self.svm.virtual_spec_ctrl() => self.vmcb.spec_ctrl,
            SystemMsr::SpecCtrl => self.spec_ctrl,
        }
    }

    fn set_system_msr(&mut self, msr: SystemMsr, value: u64) {
        let vmcb = &mut *self.vmcb;
        let [_, _, _, _, fs, gs] = &mut vmcb.segments;
        match msr {
            SystemMsr::SysenterCs => vmcb.sysenter_cs = value,
            SystemMsr::SysenterEsp => vmcb.sysenter_esp = value,
            SystemMsr::SysenterEip => vmcb.sysenter_eip = value,
            SystemMsr::Pat => vmcb.pat = value,
            SystemMsr::Efer => vmcb.efer = value | EFER_SVME,
            SystemMsr::Star => vmcb.star = value,
            SystemMsr::Lstar => vmcb.lstar = value,
            SystemMsr::Cstar => vmcb.cstar = value,
            SystemMsr::Sfmask => vmcb.sfmask = value,
            SystemMsr::FsBase => *fs = VmcbSegment::from(Segment { base: value, ..(*fs).into() }),
            SystemMsr::GsBase => *gs = VmcbSegment::from(Segment { base: value, ..(*gs).into() }),
            SystemMsr::KernelGsBase => vmcb.kernel_gs_base = value,
            SystemMsr::TscAux => self.context.set_tsc_aux(value),
            SystemMsr::SpecCtrl => (vmcb.spec_ctrl, self.spec_ctrl) = (value, value),
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
        self.vmcb.tsc_offset = offset;
    }
}
