//! Why the CPU refused a VM entry: its own checks (SDM 27.2.1 and 27.3.1), made again in its order, to name
//! the first field that fails. Runs only after a failure.

use super::capabilities::Fixed;
use super::control_registers::pdpte_is_valid;
use super::event::Injection;
use super::guest_state::{GuestState, NO_LINK, SEGMENTS, UNUSABLE, VmcsSegment, interruptibility};
use super::vmcs::field;
use crate::cpu::{ControlRegisters, SegmentRegister, rflags};

/// What decides beside the guest-state area itself.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// CR0 in VMX operation.
    pub cr0: Fixed,
    /// CR4 in VMX operation.
    pub cr4: Fixed,
    /// How many bits a physical address has.
    pub physical_bits: u8,
    /// Bits of a linear address: 48, or 57 where the CPU has five-level paging.
    pub linear_bits: u8,
    /// The entry control IA-32e mode guest.
    pub long_mode: bool,
    /// What the entry was to inject.
    pub injection: Option<Injection>,
}

type Verdict = Result<(), &'static str>;

const fn ensure(holds: bool, otherwise: &'static str) -> Verdict {
    if holds { Ok(()) } else { Err(otherwise) }
}

/// A sentence about a field of the guest-state area.
macro_rules! bad {
    ($field:literal) => {
        concat!("VM entry with invalid guest state: ", $field)
    };
}

/// The first field of `state` that a VM entry does not accept, in a sentence.
pub fn first_bad_field(state: &GuestState, rules: &Rules) -> Option<&'static str> {
    let check = || -> Verdict {
        control_registers(state, rules)?;
        model_specific(state, rules)?;
        segments(state, rules)?;
        descriptor_tables(state, rules)?;
        instruction_pointer_and_flags(state, rules)?;
        non_register_state(state, rules)?;
        page_directory_pointers(state, rules)
    };
    check().err()
}

/// What is wrong with the control fields that change from entry to entry; the others were computed from what
/// the CPU said it can do.
pub fn bad_control(
    injection: Option<Injection>,
    protected: bool,
    tpr_threshold: u32,
    task_priority_class: u8,
) -> Option<&'static str> {
    let check = || -> Verdict {
        ensure(
            tpr_threshold <= u32::from(task_priority_class),
            "VM entry with invalid control field: TPR threshold above VTPR",
        )?;
        let Some(injection) = injection else { return Ok(()) };
        let pushes = injection.pushed_error_code().is_some();
        ensure(
            !injection.is_nmi() || injection.vector() == 2,
            "VM entry with invalid control field: NMI injected with another vector than 2",
        )?;
        ensure(
            !injection.is_exception() || injection.is_software() || injection.vector() < 32,
            "VM entry with invalid control field: exception injected with a vector above 31",
        )?;
        ensure(
            !pushes || protected,
            "VM entry with invalid control field: error code injected into real mode",
        )?;
        ensure(
            injection.error_code >> 16 == 0,
            "VM entry with invalid control field: error code of more than 16 bits",
        )?;
        ensure(
            !injection.is_software() || (1..=15).contains(&injection.instruction_length),
            "VM entry with invalid control field: VM-entry instruction length",
        )
    };
    check().err()
}

const fn is_canonical(address: u64, bits: u8) -> bool {
    let unused = 64_u32.saturating_sub(bits as u32);
    (address.wrapping_shl(unused) as i64).wrapping_shr(unused) as u64 == address
}

impl Rules {
    const fn canonical(&self, address: u64) -> bool {
        is_canonical(address, self.linear_bits)
    }
}

const CR0_CACHE_BITS: u64 = 0b11 << 29;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_CET: u64 = 1 << 23;

fn control_registers(state: &GuestState, rules: &Rules) -> Verdict {
    use ControlRegisters as C;
    // Unrestricted guest frees PE and PG; CD and NW are never checked.
    let ones = rules.cr0.ones & !(C::CR0_PE | C::CR0_PG);
    ensure(
        state.get(field::GUEST_CR0) & ones == ones,
        bad!("CR0 lacks a bit that VMX operation fixes to 1"),
    )?;
    let zeros = !rules.cr0.possible & !CR0_CACHE_BITS;
    ensure(state.get(field::GUEST_CR0) & zeros == 0, bad!("CR0 has a bit that VMX operation fixes to 0"))?;
    let (paging, protected) =
        (state.get(field::GUEST_CR0) & C::CR0_PG != 0, state.get(field::GUEST_CR0) & C::CR0_PE != 0);
    ensure(!paging || protected, bad!("CR0.PG without CR0.PE"))?;
    ensure(
        state.get(field::GUEST_CR4) & rules.cr4.ones == rules.cr4.ones,
        bad!("CR4 lacks a bit that VMX operation fixes to 1"),
    )?;
    ensure(
        state.get(field::GUEST_CR4) & !rules.cr4.possible == 0,
        bad!("CR4 has a bit that VMX operation fixes to 0"),
    )?;
    ensure(
        state.get(field::GUEST_CR4) & CR4_CET == 0 || state.get(field::GUEST_CR0) & C::CR0_WP != 0,
        bad!("CR4.CET without CR0.WP"),
    )?;
    // Bits 0, 1 and 6 to 15 are defined.
    ensure(state.get(field::GUEST_DEBUGCTL) & !0xffc3 == 0, bad!("reserved bits of IA32_DEBUGCTL"))?;
    ensure(!rules.long_mode || paging, bad!("CR0.PG clear in IA-32e mode"))?;
    ensure(
        !rules.long_mode || state.get(field::GUEST_CR4) & C::CR4_PAE != 0,
        bad!("CR4.PAE clear in IA-32e mode"),
    )?;
    ensure(
        rules.long_mode || state.get(field::GUEST_CR4) & CR4_PCIDE == 0,
        bad!("CR4.PCIDE outside IA-32e mode"),
    )?;
    let too_high = u64::MAX.wrapping_shl(u32::from(rules.physical_bits));
    ensure(state.get(field::GUEST_CR3) & too_high == 0, bad!("CR3 above the physical address width"))?;
    ensure(state.get(field::GUEST_DR7) >> 32 == 0, bad!("bits 63:32 of DR7"))
}

fn model_specific(state: &GuestState, rules: &Rules) -> Verdict {
    use ControlRegisters as C;
    ensure(
        rules.canonical(state.get(field::GUEST_SYSENTER_ESP)),
        bad!("IA32_SYSENTER_ESP is not canonical"),
    )?;
    ensure(
        rules.canonical(state.get(field::GUEST_SYSENTER_EIP)),
        bad!("IA32_SYSENTER_EIP is not canonical"),
    )?;
    let types_known =
        state.get(field::GUEST_PAT).to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7));
    ensure(types_known, bad!("IA32_PAT holds an unknown memory type"))?;
    let known = 1 | C::EFER_LME | C::EFER_LMA | C::EFER_NXE;
    ensure(state.get(field::GUEST_EFER) & !known == 0, bad!("reserved bits of IA32_EFER"))?;
    let (enabled, active) =
        (state.get(field::GUEST_EFER) & C::EFER_LME != 0, state.get(field::GUEST_EFER) & C::EFER_LMA != 0);
    ensure(active == rules.long_mode, bad!("IA32_EFER.LMA differs from the control IA-32e mode guest"))?;
    let paging = state.get(field::GUEST_CR0) & C::CR0_PG != 0;
    ensure(!paging || active == enabled, bad!("IA32_EFER.LMA differs from LME while CR0.PG is set"))
}

const TYPE: u32 = 0xf;
const CODE_OR_DATA: u32 = 1 << 4;
const PRESENT: u32 = 1 << 7;
const LONG: u32 = 1 << 13;
const DEFAULT_BIG: u32 = 1 << 14;
const GRANULARITY: u32 = 1 << 15;
const RESERVED: u32 = 0xf << 8 | !0 << 17;

impl VmcsSegment {
    const fn kind(self) -> u32 {
        self.access_rights & TYPE
    }
    const fn has(self, bits: u32) -> bool {
        self.access_rights & bits != 0
    }
    const fn level(self) -> u32 {
        (self.access_rights >> 5) & 3
    }
    const fn table_indicator(self) -> bool {
        self.selector & 0b100 != 0
    }
    /// Limit and granularity fit each other.
    const fn granular(self) -> bool {
        (self.limit & 0xfff == 0xfff || !self.has(GRANULARITY))
            && (self.limit >> 20 == 0 || self.has(GRANULARITY))
    }
}

fn segments(state: &GuestState, rules: &Rules) -> Verdict {
    let (tr, ldtr) = (state.segment(SegmentRegister::Tr), state.segment(SegmentRegister::Ldtr));
    ensure(!tr.table_indicator(), bad!("TR selects from the LDT"))?;
    ensure(!ldtr.usable() || !ldtr.table_indicator(), bad!("LDTR selects from the LDT"))?;
    ensure(rules.canonical(tr.base), bad!("TR base is not canonical"))?;
    ensure(rules.canonical(state.segment(SegmentRegister::Fs).base), bad!("FS base is not canonical"))?;
    ensure(rules.canonical(state.segment(SegmentRegister::Gs).base), bad!("GS base is not canonical"))?;
    ensure(!ldtr.usable() || rules.canonical(ldtr.base), bad!("LDTR base is not canonical"))?;
    if state.get(field::GUEST_RFLAGS) & rflags::VM != 0 {
        virtual_8086_segments(state)?;
    } else {
        code_segment(state, rules)?;
        stack_segment(state)?;
        data_segments(state)?;
    }
    task_register(tr, rules)?;
    local_descriptor_table(ldtr)
}

fn virtual_8086_segments(state: &GuestState) -> Verdict {
    SEGMENTS.iter().take(6).map(|register| state.segment(*register)).try_for_each(|segment| {
        let base = u64::from(segment.selector) << 4;
        ensure(segment.base == base, bad!("a segment base is not selector * 16 in virtual-8086 mode"))?;
        ensure(segment.limit == 0xffff, bad!("a segment limit is not FFFF in virtual-8086 mode"))?;
        ensure(segment.access_rights == 0xf3, bad!("segment access rights are not F3 in virtual-8086 mode"))
    })
}

fn code_segment(state: &GuestState, rules: &Rules) -> Verdict {
    let (cs, ss) = (state.segment(SegmentRegister::Cs), state.segment(SegmentRegister::Ss));
    ensure(cs.base >> 32 == 0, bad!("bits 63:32 of CS base"))?;
    // Type 3, data, is what a real-mode CS may hold under unrestricted guest.
    ensure(matches!(cs.kind(), 3 | 9 | 11 | 13 | 15), bad!("CS type"))?;
    ensure(cs.has(CODE_OR_DATA), bad!("CS is a system segment"))?;
    let level_fits = match cs.kind() {
        3 => cs.level() == 0,
        9 | 11 => cs.level() == ss.level(),
        _ => cs.level() <= ss.level(),
    };
    ensure(level_fits, bad!("CS privilege level does not fit its type and SS"))?;
    ensure(cs.has(PRESENT), bad!("CS is not present"))?;
    ensure(!cs.has(RESERVED | UNUSABLE), bad!("reserved bits of CS access rights"))?;
    let both_sizes = rules.long_mode && cs.has(LONG) && cs.has(DEFAULT_BIG);
    ensure(!both_sizes, bad!("CS.L and CS.D both set"))?;
    ensure(cs.granular(), bad!("CS limit does not fit its granularity"))
}

fn stack_segment(state: &GuestState) -> Verdict {
    let (cs, ss) = (state.segment(SegmentRegister::Cs), state.segment(SegmentRegister::Ss));
    let real = state.get(field::GUEST_CR0) & ControlRegisters::CR0_PE == 0;
    ensure(!(real || cs.kind() == 3) || ss.level() == 0, bad!("SS privilege level in real mode"))?;
    if !ss.usable() {
        return Ok(());
    }
    ensure(ss.base >> 32 == 0, bad!("bits 63:32 of SS base"))?;
    ensure(matches!(ss.kind(), 3 | 7), bad!("SS type"))?;
    ensure(ss.has(CODE_OR_DATA), bad!("SS is a system segment"))?;
    ensure(ss.has(PRESENT), bad!("SS is not present"))?;
    ensure(!ss.has(RESERVED), bad!("reserved bits of SS access rights"))?;
    ensure(ss.granular(), bad!("SS limit does not fit its granularity"))
}

fn data_segments(state: &GuestState) -> Verdict {
    for register in [SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Fs, SegmentRegister::Gs] {
        let segment = state.segment(register);
        if !segment.usable() {
            continue;
        }
        let high_base =
            matches!(register, SegmentRegister::Ds | SegmentRegister::Es) && segment.base >> 32 != 0;
        ensure(!high_base, bad!("bits 63:32 of DS or ES base"))?;
        let accessed = segment.has(1);
        let readable = !segment.has(1 << 3) || segment.has(1 << 1);
        ensure(accessed && readable, bad!("type of DS, ES, FS or GS"))?;
        ensure(segment.has(CODE_OR_DATA), bad!("DS, ES, FS or GS is a system segment"))?;
        ensure(segment.has(PRESENT), bad!("DS, ES, FS or GS is not present"))?;
        ensure(!segment.has(RESERVED), bad!("reserved bits of DS, ES, FS or GS access rights"))?;
        ensure(segment.granular(), bad!("limit of DS, ES, FS or GS does not fit its granularity"))?;
    }
    Ok(())
}

fn task_register(tr: VmcsSegment, rules: &Rules) -> Verdict {
    let busy = tr.kind() == 11 || tr.kind() == 3 && !rules.long_mode;
    ensure(busy && !tr.has(CODE_OR_DATA), bad!("TR is not a busy TSS"))?;
    ensure(tr.has(PRESENT) && tr.usable(), bad!("TR is not present"))?;
    ensure(!tr.has(RESERVED), bad!("reserved bits of TR access rights"))?;
    ensure(tr.granular(), bad!("TR limit does not fit its granularity"))
}

fn local_descriptor_table(ldtr: VmcsSegment) -> Verdict {
    if !ldtr.usable() {
        return Ok(());
    }
    ensure(ldtr.kind() == 2 && !ldtr.has(CODE_OR_DATA), bad!("LDTR is not an LDT"))?;
    ensure(ldtr.has(PRESENT), bad!("LDTR is not present"))?;
    ensure(!ldtr.has(RESERVED), bad!("reserved bits of LDTR access rights"))?;
    ensure(ldtr.granular(), bad!("LDTR limit does not fit its granularity"))
}

fn descriptor_tables(state: &GuestState, rules: &Rules) -> Verdict {
    let sound = |base, limit| rules.canonical(state.get(base)) && state.get(limit) >> 16 == 0;
    let (gdtr, idtr) = (
        sound(field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT),
        sound(field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT),
    );
    ensure(gdtr, bad!("GDTR base is not canonical, or its limit above FFFF"))?;
    ensure(idtr, bad!("IDTR base is not canonical, or its limit above FFFF"))
}

/// Bits 63 to 22, 15, 5 and 3.
const RFLAGS_ZEROS: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;

fn instruction_pointer_and_flags(state: &GuestState, rules: &Rules) -> Verdict {
    let long_code = rules.long_mode && state.segment(SegmentRegister::Cs).has(LONG);
    let in_reach = if long_code {
        rules.canonical(state.get(field::GUEST_RIP))
    } else {
        state.get(field::GUEST_RIP) >> 32 == 0
    };
    ensure(in_reach, bad!("RIP is out of reach in this mode"))?;
    let flags = state.get(field::GUEST_RFLAGS);
    ensure(flags & RFLAGS_ZEROS == 0 && flags & rflags::FIXED != 0, bad!("reserved bits of RFLAGS"))?;
    let protected = state.get(field::GUEST_CR0) & ControlRegisters::CR0_PE != 0;
    let virtual_8086 = flags & rflags::VM != 0;
    ensure(!virtual_8086 || protected && !rules.long_mode, bad!("RFLAGS.VM in real or IA-32e mode"))?;
    let interrupt = rules.injection.is_some_and(|event| event.is_external_interrupt());
    ensure(!interrupt || flags & rflags::IF != 0, bad!("interrupt injected while RFLAGS.IF is clear"))
}

/// Single step is pending.
const PENDING_SINGLE_STEP: u64 = 1 << 14;
/// Bits 0 to 3, 12, 14 and 16 are defined.
const PENDING_DEBUG_RESERVED: u64 = !0x1_500f;
const DEBUGCTL_BTF: u64 = 1 << 1;

fn non_register_state(state: &GuestState, rules: &Rules) -> Verdict {
    use interruptibility::{BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_SMI, BLOCKING_BY_STI, SHADOW};
    let blocking = state.get(field::GUEST_INTERRUPTIBILITY) as u32;
    ensure(state.get(field::GUEST_ACTIVITY) <= 3, bad!("activity state"))?;
    let ring_0 = state.segment(SegmentRegister::Ss).level() == 0;
    ensure(state.get(field::GUEST_ACTIVITY) != 1 || ring_0, bad!("activity state HLT outside ring 0"))?;
    ensure(
        state.get(field::GUEST_ACTIVITY) == 0 || blocking & SHADOW == 0,
        bad!("activity state not active after STI or MOV SS"),
    )?;
    ensure(blocking >> 5 == 0, bad!("reserved bits of the interruptibility state"))?;
    ensure(blocking & SHADOW != SHADOW, bad!("blocking by both STI and MOV SS"))?;
    let enabled = state.get(field::GUEST_RFLAGS) & rflags::IF != 0;
    ensure(blocking & BLOCKING_BY_STI == 0 || enabled, bad!("blocking by STI while RFLAGS.IF is clear"))?;
    ensure(blocking & BLOCKING_BY_SMI == 0, bad!("blocking by SMI outside SMM"))?;
    if let Some(event) = rules.injection {
        let interrupt = event.is_external_interrupt();
        ensure(
            !interrupt || blocking & SHADOW == 0,
            bad!("interrupt injected while blocked by STI or MOV SS"),
        )?;
        let blocked = blocking & (BLOCKING_BY_MOV_SS | BLOCKING_BY_NMI) != 0;
        ensure(!event.is_nmi() || !blocked, bad!("NMI injected while blocked by MOV SS or NMI"))?;
    }
    let pending = state.get(field::GUEST_PENDING_DEBUG);
    ensure(pending & PENDING_DEBUG_RESERVED == 0, bad!("reserved bits of the pending debug exceptions"))?;
    if blocking & SHADOW != 0 || state.get(field::GUEST_ACTIVITY) == 1 {
        let steps = state.get(field::GUEST_RFLAGS) & rflags::TF != 0
            && state.get(field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0;
        let said = pending & PENDING_SINGLE_STEP != 0;
        ensure(steps == said, bad!("pending debug exceptions do not fit RFLAGS.TF"))?;
    }
    ensure(state.get(field::VMCS_LINK_POINTER) == NO_LINK, bad!("VMCS link pointer"))
}

fn page_directory_pointers(state: &GuestState, rules: &Rules) -> Verdict {
    let pae = state.get(field::GUEST_CR0) & ControlRegisters::CR0_PG != 0
        && state.get(field::GUEST_CR4) & ControlRegisters::CR4_PAE != 0
        && !rules.long_mode;
    let valid =
        field::GUEST_PDPTES.iter().all(|entry| pdpte_is_valid(state.get(*entry), rules.physical_bits));
    ensure(!pae || valid, bad!("a page-directory-pointer-table entry has reserved bits set"))
}

#[cfg(test)]
mod tests {
    use super::super::vmcs::{access_rights, limit};
    use super::*;
    use crate::cpu::{CpuState, Event};

    fn rules(long_mode: bool) -> Rules {
        Rules {
            cr0: Fixed { ones: 0x8000_0021, possible: 0xffff_ffff },
            cr4: Fixed { ones: 0x2000, possible: 0x3f_27ff },
            physical_bits: 40,
            linear_bits: 48,
            long_mode,
            injection: None,
        }
    }

    fn state(cpu: &CpuState) -> GuestState {
        let mut state = GuestState::new(cpu);
        state.set(field::GUEST_CR0, cpu.control.cr0 & 0xffff_ffff | 0x20);
        state.set(field::GUEST_CR4, cpu.control.cr4 | 0x2000);
        state.set(field::GUEST_RIP, cpu.registers.rip);
        state.set(field::GUEST_RFLAGS, rflags::FIXED);
        state
    }

    #[test]
    fn what_guests_start_with_is_accepted() {
        for (cpu, long) in [
            (CpuState::reset(), false),
            (CpuState::flat_protected_mode(0x10_0000), false),
            (CpuState::long_mode(0x20_0000, 0x1000, 0x10, 0x18), true),
        ] {
            assert_eq!(first_bad_field(&state(&cpu), &rules(long)), None);
        }
    }

    /// Breaks one thing after the other and expects it to be named.
    #[test]
    fn the_first_bad_field_is_named() {
        use SegmentRegister as S;
        let long = CpuState::long_mode(0x20_0000, 0x1000, 0x10, 0x18);
        let cases = [
            (field::GUEST_CR0, 0x8000_0011, "CR0 lacks"),
            (field::GUEST_CR0, 0x8000_0030, "CR0.PG without CR0.PE"),
            (field::GUEST_CR4, 0x20, "CR4 lacks"),
            (field::GUEST_CR4, 0x80_2020, "CR4 has"),
            (field::GUEST_CR4, 0x2000, "CR4.PAE"),
            (field::GUEST_CR3, 1 << 40, "CR3"),
            (field::GUEST_DR7, 1 << 32, "DR7"),
            (field::GUEST_SYSENTER_ESP, 1 << 47, "SYSENTER_ESP"),
            (field::GUEST_PAT, 2, "PAT"),
            (field::GUEST_EFER, 0x4500, "reserved bits of IA32_EFER"),
            (field::GUEST_EFER, 0, "LMA"),
            (access_rights(S::Cs), 0xa091, "CS type"),
            (access_rights(S::Cs), 0xe09b, "CS.L and CS.D"),
            (access_rights(S::Cs), 0xa0fb, "CS privilege"),
            (access_rights(S::Ss), 0xc091, "SS type"),
            (access_rights(S::Ds), 0xc092, "type of DS"),
            (limit(S::Ds), 0x1000, "limit of DS"),
            (access_rights(S::Tr), 0x83, "TR is not a busy"),
            (access_rights(S::Tr), u64::from(UNUSABLE) | 0x8b, "TR is not present"),
            (access_rights(S::Ldtr), 0x8b, "LDTR is not"),
            (field::GUEST_GDTR_LIMIT, 0x1_0000, "GDTR"),
            (field::GUEST_IDTR_BASE, 1 << 50, "IDTR"),
            (field::GUEST_RIP, 1 << 48, "RIP"),
            (field::GUEST_RFLAGS, 0, "RFLAGS"),
            (field::GUEST_RFLAGS, rflags::VM | 2, "a segment base"),
            (field::GUEST_ACTIVITY, 7, "activity"),
            (field::GUEST_INTERRUPTIBILITY, 1, "STI while"),
            (field::GUEST_INTERRUPTIBILITY, 3, "both"),
            (field::GUEST_PENDING_DEBUG, 1 << 5, "pending debug"),
            (field::VMCS_LINK_POINTER, 0, "link"),
        ];
        for (field, value, expected) in cases {
            let mut state = state(&long);
            state.set(field, value);
            let found = first_bad_field(&state, &rules(true));
            assert!(found.is_some_and(|found| found.contains(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn a_single_step_in_the_shadow_must_be_pending() {
        let mut state = state(&CpuState::flat_protected_mode(0));
        state.set(field::GUEST_INTERRUPTIBILITY, u64::from(interruptibility::BLOCKING_BY_MOV_SS));
        assert_eq!(first_bad_field(&state, &rules(false)), None);
        state.set(field::GUEST_RFLAGS, rflags::FIXED | rflags::TF);
        assert!(first_bad_field(&state, &rules(false)).unwrap().contains("pending debug"));
        state.set(field::GUEST_PENDING_DEBUG, PENDING_SINGLE_STEP);
        assert_eq!(first_bad_field(&state, &rules(false)), None);
    }

    #[test]
    fn injected_events_must_be_possible() {
        let mut rules = rules(false);
        let mut state = state(&CpuState::flat_protected_mode(0));
        rules.injection = Some(Injection::new(Event::Interrupt(32), true));
        assert!(first_bad_field(&state, &rules).unwrap().contains("RFLAGS.IF"));
        state.set(field::GUEST_RFLAGS, rflags::FIXED | rflags::IF);
        state.set(field::GUEST_INTERRUPTIBILITY, u64::from(interruptibility::BLOCKING_BY_STI));
        assert!(first_bad_field(&state, &rules).unwrap().contains("blocked by STI"));
        rules.injection = Some(Injection::new(Event::Nmi, true));
        state.set(field::GUEST_INTERRUPTIBILITY, u64::from(interruptibility::BLOCKING_BY_NMI));
        assert!(first_bad_field(&state, &rules).unwrap().contains("NMI"));
        state.set(field::GUEST_INTERRUPTIBILITY, 0);
        assert_eq!(first_bad_field(&state, &rules), None);
    }

    #[test]
    fn pae_tables_are_checked() {
        let mut state = state(&CpuState::flat_protected_mode(0));
        state.set(field::GUEST_CR0, ControlRegisters::CR0_PG | 0x31);
        state.set(field::GUEST_CR4, ControlRegisters::CR4_PAE | 0x2000);
        assert_eq!(first_bad_field(&state, &rules(false)), None);
        state.set(field::GUEST_PDPTES[2], 3);
        assert!(first_bad_field(&state, &rules(false)).unwrap().contains("page-directory-pointer"));
    }

    #[test]
    fn bad_controls_are_named() {
        assert_eq!(bad_control(None, true, 3, 3), None);
        assert!(bad_control(None, true, 4, 3).unwrap().contains("TPR threshold"));
        let fault = Some(Injection::new(Event::GENERAL_PROTECTION, true));
        assert!(bad_control(fault, false, 0, 0).unwrap().contains("real mode"));
        assert_eq!(bad_control(fault, true, 0, 0), None);
        let int = Injection::interrupted(0x8000_0480, 0, 0);
        assert!(bad_control(int, true, 0, 0).unwrap().contains("instruction length"));
    }
}
