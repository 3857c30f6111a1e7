//! A virtual CPU of a guest: from one exit to the next entry.

mod interrupts;
mod msr;

use crate::chipset::layout::LOCAL_APIC_BYTES;
use crate::chipset::{Chipset, LocalApic};
use crate::cpu::{
    Core, EntryFailure, Event, Exit, Gpr, MemoryAccess, PortAccess, SegmentRegister, VirtualCpu, Width,
    rflags, xcr0,
};
use crate::cpuid::{CpuidState, CpuidView};
use crate::emulate::{self, Bus, EmulateError, Kind, Progress};
use crate::eoi_word::EoiWord;
use crate::guest::{End, ExitCounter, Guest, Unknown};
use crate::host::Detail;
use crate::kvm_clock::StealTime;
use crate::memory::GuestPhys;
use crate::mtrr::Mtrrs;
use crate::time::{Instant, TscClock};
use alloc::boxed::Box;
use alloc::sync::Arc;
use spin::MutexGuard;

/// KVM's answer to a hypercall that is not there: -1000.
const KVM_ENOSYS: u64 = 1000_u64.wrapping_neg();

/// After so many exits the host's interrupts are let in although none of them was for one: an event that is delivered at
/// an entry, and what its delivery raises, come before them, and can be the next exit without end.
const EXITS_IN_A_ROW: u32 = 1024;

/// Why a virtual CPU came back from its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It waits for an interrupt.
    Halted,
    /// It spins.
    Yielded,
    /// The core had an interrupt, which is served: it may go on.
    Interrupted,
    /// Another CPU of the guest had it start over: see [`Vcpu::prepare`].
    StartsOver,
    /// The guest's life ended.
    Ended,
}

/// A virtual CPU of a guest.
pub struct Vcpu {
    guest: Arc<Guest>,
    index: u32,
    cpu: Box<dyn VirtualCpu>,
    cpuid: CpuidView,
    mtrrs: Mtrrs,
    tsc: TscClock,
    halted: bool,
    /// Something happened that may make an interrupt deliverable.
    attention: bool,
    /// An interrupt waits until the guest can take it.
    window: bool,
    /// When something this CPU must attend to falls due, by its APIC's timer or the board.
    deadline: Option<Instant>,
    /// An access may have changed that.
    deadline_moved: bool,
    /// How many more exits may come before the host's interrupts are let in.
    exits_left: u32,
    /// IA32_APIC_BASE's enable bit, which CPUID shows.
    apic_enabled: bool,
    misc_enable: u64,
    system_time: u64,
    steal_time: StealTime,
    wall_clock: u64,
    eoi_word: EoiWord,
    exits: Arc<ExitCounter>,
}

impl Vcpu {
    /// CPU number `index` of `guest`, in the state its boot protocol loaded into `cpu`.
    pub fn new(guest: Arc<Guest>, index: u32, cpu: Box<dyn VirtualCpu>, cpuid: CpuidView) -> Self {
        if let Some(mut apic) = guest.apics.lock(index as usize) {
            apic.set_page(cpu.apic_page());
        }
        Self {
            tsc: guest.clock,
            guest,
            index,
            cpu,
            mtrrs: Mtrrs::new(cpuid.physical_bits()),
            cpuid,
            halted: index != 0,
            attention: true,
            window: false,
            deadline: None,
            deadline_moved: false,
            exits_left: 0,
            apic_enabled: true,
            misc_enable: 1,
            system_time: 0,
            steal_time: StealTime::default(),
            wall_clock: 0,
            eoi_word: EoiWord::default(),
            exits: Arc::default(),
        }
    }

    /// The guest it belongs to.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// Its exits so far.
    pub fn exits(&self) -> &Arc<ExitCounter> {
        &self.exits
    }

    /// When it must run again although it halts; `None` when only an interrupt from elsewhere can wake it.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Brings it onto this core.
    pub fn attach(&mut self, core: &mut Core) {
        self.cpu.attach(core);
    }

    /// Takes it off its core.
    pub fn detach(&mut self) {
        self.cpu.detach();
    }

    /// Its number in the guest.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Gets ready to be attached at `now`, after it had been kept from a core for `waited` nanoseconds: INIT and
    /// start-up messages are followed, timers brought up to date. False when it has nothing to do.
    pub fn prepare(&mut self, now: Instant, waited: u64) -> bool {
        // Everything a kick may be about is looked at from here on. One that comes later is another.
        self.attention |= self.guest.apics.take_kick(self.index as usize);
        self.follow_start_messages();
        self.find_deadline();
        self.serve_timers(now);
        self.tell_steal_time(waited);
        if self.halted && self.has_interrupt() {
            self.halted = false;
        }
        !self.halted
    }

    /// Runs the guest on the core it is attached to. The host's timer ends that at `slice_end` at the latest.
    pub fn run(&mut self, slice_end: Option<Instant>) -> Left {
        let host = self.guest.host();
        if self.guest.has_ended() {
            // This core itself ended it since the last exit, so no interrupt comes for that.
            return Left::Ended;
        }
        self.find_deadline();
        self.arm(slice_end);
        self.exits_left = EXITS_IN_A_ROW;
        while self.exits_left > 0 {
            self.exits_left = self.exits_left.wrapping_sub(1);
            if self.needs_attention() {
                if self.starts_over() {
                    return Left::StartsOver;
                }
                self.deliver_interrupts();
            }
            let exit = self.cpu.run();
            self.exits.count(&exit);
            match exit {
                Exit::Cpuid => self.cpuid(),
                Exit::ReadMsr => self.read_msr(),
                Exit::WriteMsr => self.write_msr(),
                Exit::Port(access) => self.port(&access),
                Exit::Memory(access) => self.memory(&access),
                Exit::Halt => {
                    // A single-step trap ends HLT as an interrupt does.
                    if self.skip(Kind::Hlt) && !self.cpu.injection_pending() && !self.has_interrupt() {
                        self.halted = true;
                        return Left::Halted;
                    }
                }
                Exit::Pause => {
                    self.skip(Kind::Pause);
                    return Left::Yielded;
                }
                Exit::ApicWrite { offset } => self.complete_apic_write(offset),
                Exit::EndOfInterrupt { vector } => self.follow_end_of_interrupt(vector),
                Exit::WriteTaskPriority => self.write_task_priority(),
                Exit::Xsetbv => self.xsetbv(),
                // The guests' caches are the machine's, and coherent: none has anything of its own to flush.
                Exit::CacheFlush => {
                    self.skip(Kind::Wbinvd);
                }
                Exit::Hypercall => self.hypercall(),
                Exit::Undefined => self.refuse_undefined(),
                Exit::HostInterrupt => return self.let_host_in(),
                // The host's own handler ran as soon as the world switch let it.
                Exit::HostNmi => {}
                Exit::HostMachineCheck => host.machine_check(),
                Exit::InterruptWindow => self.attention = true,
                Exit::TripleFault => self.crash(End::TripleFault),
                Exit::Failed(failure) => self.crash(End::Failed(failure)),
            }
            if self.deadline_moved {
                self.deadline_moved = false;
                self.find_deadline();
                self.arm(slice_end);
            }
            if self.guest.has_ended() {
                return Left::Ended;
            }
            if self.guest.news_wait() {
                // What this exit did may be what a device waits for, of this guest or of another.
                return Left::Interrupted;
            }
        }
        self.let_host_in()
    }

    /// Serves the interrupts of the host that wait, and the guest's own timers.
    fn let_host_in(&mut self) -> Left {
        let host = self.guest.host();
        host.serve_interrupts();
        self.serve_timers(host.now());
        if self.guest.has_ended() { Left::Ended } else { Left::Interrupted }
    }

    fn refuse_undefined(&mut self) {
        let rip = self.cpu.registers().rip;
        self.guest.report(
            Unknown::Instruction(rip),
            format_args!("an instruction that CPUID does not offer, at {rip:#x}"),
        );
        self.cpu.inject(Event::INVALID_OPCODE);
    }

    /// Where the instruction that caused the last exit ends: the hardware says it, or its bytes do.
    fn next_rip(&mut self, kind: Kind) -> Option<u64> {
        if let Some(next_rip) = self.cpu.next_rip() {
            return Some(next_rip);
        }
        match emulate::next_rip(&*self.cpu, self.guest.memory(), kind) {
            Ok(next_rip) => Some(next_rip),
            Err(error) => {
                self.refuse(error);
                None
            }
        }
    }

    /// Completes an instruction that needs nothing else; false when it turned out to be another one.
    fn skip(&mut self, kind: Kind) -> bool {
        let next_rip = self.next_rip(kind);
        next_rip.map(|next_rip| self.cpu.complete_instruction(next_rip)).is_some()
    }

    /// A string instruction has come as far as its registers say: interrupts, and a single-step trap, are taken
    /// before it goes on. It may have taken as long as a thousand other exits.
    fn pause_string(&mut self) {
        self.exits_left = 0;
        let registers = self.cpu.registers();
        if registers.rflags & rflags::TF != 0 {
            self.cpu.complete_instruction(registers.rip);
        }
    }

    /// What could not be emulated is the guest's to deal with.
    fn refuse(&mut self, error: EmulateError) {
        let event = match error {
            EmulateError::Fault(fault) => fault.raise(&mut *self.cpu),
            // Entered again, the guest does what it now wants.
            EmulateError::Changed => return,
            EmulateError::Unsupported(_) | EmulateError::CodeNotMemory(_) => {
                let rip = self.cpu.registers().rip;
                self.guest.report(Unknown::Instruction(rip), format_args!("{error}, at {rip:#x}"));
                Event::INVALID_OPCODE
            }
        };
        self.cpu.inject(event);
    }

    /// Ends the guest's life, and says where this CPU of it stood.
    fn crash(&self, end: End) {
        let (registers, control) = (self.cpu.registers(), self.cpu.control());
        let code = self.cpu.segment(SegmentRegister::Cs);
        self.guest.host().log(
            Detail::Everyone,
            &self.guest.config().name,
            format_args!(
                "CPU {} at {:#x}:{:#x}, RSP {:#x}, RFLAGS {:#x}, CR0 {:#x}, CR2 {:#x}, CR3 {:#x}, CR4 {:#x}, EFER {:#x}",
                self.index,
                code.selector,
                registers.rip,
                registers.get(Gpr::Rsp),
                registers.rflags,
                control.cr0,
                control.cr2,
                control.cr3,
                control.cr4,
                control.efer
            ),
        );
        self.guest.end(end);
    }

    fn cpuid(&mut self) {
        let Some(next_rip) = self.next_rip(Kind::Cpuid) else { return };
        let registers = self.cpu.registers();
        let (leaf, subleaf) = (registers.get(Gpr::Rax) as u32, registers.get(Gpr::Rcx) as u32);
        let state = if CpuidView::depends_on_state(leaf) {
            let (cr4, xcr0) = (self.cpu.control().cr4, self.cpu.xcr0());
            CpuidState { cr4, xcr0, apic_enabled: self.apic_enabled }
        } else {
            CpuidState::default()
        };
        let answer = self.cpuid.read(leaf, subleaf, &state);
        let registers = self.cpu.registers_mut();
        registers.set(Gpr::Rax, u64::from(answer.eax));
        registers.set(Gpr::Rbx, u64::from(answer.ebx));
        registers.set(Gpr::Rcx, u64::from(answer.ecx));
        registers.set(Gpr::Rdx, u64::from(answer.edx));
        self.cpu.complete_instruction(next_rip);
    }

    fn port(&mut self, access: &PortAccess) {
        let now = self.guest.host().now();
        let mut bus = DeviceBus { guest: &self.guest, vcpu: self.index, now };
        match emulate::port(&mut *self.cpu, self.guest.memory(), &mut bus, access) {
            Ok(Progress::Done) => {
                self.skip(match (access.write, access.string) {
                    (false, false) => Kind::In,
                    (false, true) => Kind::Ins,
                    (true, false) => Kind::Out,
                    (true, true) => Kind::Outs,
                });
            }
            Ok(Progress::Partial) => self.pause_string(),
            Err(error) => self.refuse(error),
        }
        self.deadline_moved = Chipset::moves_deadline(access.port, access.write);
    }

    fn memory(&mut self, access: &MemoryAccess) {
        if self.cpu.injection_pending() {
            // No instruction touched it, but the CPU on the way to a handler: the stack or a table lies there.
            return self.crash(End::Failed(EntryFailure {
                code: access.address.get(),
                reason: "an event was to be delivered through memory that is not there",
            }));
        }
        self.settle_end_of_interrupt();
        self.note_task_priority();
        let now = self.guest.host().now();
        let mut bus = DeviceBus { guest: &self.guest, vcpu: self.index, now };
        match emulate::emulate(&mut *self.cpu, self.guest.memory(), &mut bus) {
            Ok(Some(next_rip)) => self.cpu.complete_instruction(next_rip),
            Ok(None) => self.pause_string(),
            Err(error) => self.refuse(error),
        }
        self.attention |= self.show_task_priority();
        self.deadline_moved = true;
    }

    fn write_task_priority(&mut self) {
        match emulate::task_priority_write(&*self.cpu, self.guest.memory()) {
            Ok((class @ 0..16, next_rip)) => {
                self.cpu.set_task_priority_class(class as u8);
                self.cpu.complete_instruction(next_rip);
                self.attention = true;
            }
            Ok(_) => self.cpu.inject(Event::GENERAL_PROTECTION),
            Err(error) => self.refuse(error),
        }
    }

    /// XSETBV (SDM volume 2): XCR0 is the only register, and its bits come in groups.
    fn xsetbv(&mut self) {
        let registers = self.cpu.registers();
        let (index, value) = (registers.get(Gpr::Rcx) as u32, registers.edx_eax());
        let offered = value & !self.cpuid.xcr0_mask() == 0;
        let avx_needs_sse = value & xcr0::AVX == 0 || value & xcr0::SSE != 0;
        let avx512 = value & xcr0::AVX512;
        let avx512_is_whole = avx512 == 0 || avx512 == xcr0::AVX512 && value & xcr0::AVX != 0;
        let valid = index == 0 && value & xcr0::X87 != 0 && offered && avx_needs_sse && avx512_is_whole;
        if self.cpu.privilege_level() != 0 || !valid {
            self.cpu.inject(Event::GENERAL_PROTECTION);
        } else if self.skip(Kind::Xsetbv) {
            self.cpu.set_xcr0(value);
        }
    }

    fn hypercall(&mut self) {
        let number = self.cpu.registers().get(Gpr::Rax);
        self.guest.report(Unknown::Hypercall(number), format_args!("unknown hypercall {number:#x}"));
        if self.skip(Kind::Vmmcall) {
            self.cpu.registers_mut().set(Gpr::Rax, KVM_ENOSYS);
        }
    }
}

/// A guest's devices, as one of its virtual CPUs reaches them at one moment.
struct DeviceBus<'a> {
    guest: &'a Guest,
    vcpu: u32,
    now: Instant,
}

impl DeviceBus<'_> {
    /// The offset into this CPU's local APIC page, when `address` lies there.
    fn local_apic(&self, address: GuestPhys) -> Option<(MutexGuard<'_, LocalApic>, u32)> {
        let mut apic = self.guest.apics.lock(self.vcpu as usize)?;
        let offset = address.offset_from(apic.mmio_base()?)?;
        (offset < LOCAL_APIC_BYTES).then(|| {
            apic.take_back();
            (apic, offset as u32)
        })
    }
}

impl Bus for DeviceBus<'_> {
    fn mmio_read(&mut self, address: GuestPhys, width: Width) -> u64 {
        if let Some((mut apic, offset)) = self.local_apic(address) {
            return apic.mmio_read(offset, width, self.now);
        }
        let value = self.guest.with_chipset(self.now, Some(self.vcpu), |chipset, context| {
            chipset.mmio_read(address, width, context)
        });
        value.unwrap_or_else(|| {
            self.guest.report(
                Unknown::Memory(address.get() >> 12),
                format_args!("read {address}: nothing is there"),
            );
            width.mask()
        })
    }

    fn mmio_write(&mut self, address: GuestPhys, width: Width, value: u64) {
        if let Some((mut apic, offset)) = self.local_apic(address) {
            let effect = apic.mmio_write(offset, width, value, self.now);
            drop(apic);
            self.guest.follow(effect, self.now, self.vcpu);
            return;
        }
        let done = self.guest.with_chipset(self.now, Some(self.vcpu), |chipset, context| {
            chipset.mmio_write(address, width, value, context)
        });
        if done.is_none() {
            self.guest.report(
                Unknown::Memory(address.get() >> 12),
                format_args!("wrote {address}: nothing is there"),
            );
        }
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let value = self.guest.with_chipset(self.now, Some(self.vcpu), |chipset, context| {
            chipset.port_read(port, width, context)
        });
        value.unwrap_or_else(|| {
            self.guest.report(Unknown::Port(port), format_args!("read port {port:#x}: nothing is there"));
            width.mask() as u32
        })
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        let done = self.guest.with_chipset(self.now, Some(self.vcpu), |chipset, context| {
            chipset.port_write(port, width, value, context)
        });
        if done.is_none() {
            self.guest.report(Unknown::Port(port), format_args!("wrote port {port:#x}: nothing is there"));
        }
    }
}
