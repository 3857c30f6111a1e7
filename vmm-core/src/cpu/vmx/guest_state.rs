//! The guest-state area of a VMCS (SDM 25.4), as a value: what a virtual CPU keeps while its VMCS is not
//! current, and what a failed entry is examined by.

use super::vmcs::{Current, Field, access_rights, base, field, limit, selector};
use crate::cpu::state::PAT_AT_RESET;
use crate::cpu::{CpuState, Segment, SegmentRegister};

/// No other VMCS is linked (SDM 25.4.2).
pub const NO_LINK: u64 = u64::MAX;
/// Access rights: the register holds a null selector.
pub const UNUSABLE: u32 = 1 << 16;

const DR7_AT_RESET: u64 = 0x400;

/// All segment registers, in the order of their numbers.
pub const SEGMENTS: [SegmentRegister; 8] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
    SegmentRegister::Ldtr,
    SegmentRegister::Tr,
];

/// Guest interruptibility state (SDM table 25-3).
pub mod interruptibility {
    pub const BLOCKING_BY_STI: u32 = 1 << 0;
    pub const BLOCKING_BY_MOV_SS: u32 = 1 << 1;
    pub const BLOCKING_BY_SMI: u32 = 1 << 2;
    pub const BLOCKING_BY_NMI: u32 = 1 << 3;
    /// The shadow that ends with an instruction.
    pub const SHADOW: u32 = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS;
}

/// A segment register as a VMCS holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmcsSegment {
    /// The visible selector.
    pub selector: u16,
    /// Descriptor bits 40..=55 in bits 0..=15, and [`UNUSABLE`] (SDM table 25-2).
    pub access_rights: u32,
    /// In bytes, granularity already applied.
    pub limit: u32,
    /// The linear address of its first byte.
    pub base: u64,
}

impl VmcsSegment {
    /// Whether it holds a segment at all.
    pub const fn usable(self) -> bool {
        self.access_rights & UNUSABLE == 0
    }

    /// Puts one together from its fields.
    pub fn from_fields(register: SegmentRegister, field: impl Fn(Field) -> u64) -> Self {
        Self {
            selector: field(selector(register)) as u16,
            access_rights: field(access_rights(register)) as u32,
            limit: field(limit(register)) as u32,
            base: field(base(register)),
        }
    }

    /// Its fields and their values.
    pub fn fields(self, register: SegmentRegister) -> [(Field, u64); 4] {
        [
            (selector(register), u64::from(self.selector)),
            (access_rights(register), u64::from(self.access_rights)),
            (limit(register), u64::from(self.limit)),
            (base(register), self.base),
        ]
    }
}

impl From<Segment> for VmcsSegment {
    fn from(segment: Segment) -> Self {
        let attributes = u32::from(segment.attributes);
        let unusable = if segment.present() { 0 } else { UNUSABLE };
        Self {
            selector: segment.selector,
            access_rights: attributes & 0xff | (attributes & 0xf00) << 4 | unusable,
            limit: segment.limit,
            base: segment.base,
        }
    }
}

impl From<VmcsSegment> for Segment {
    fn from(segment: VmcsSegment) -> Self {
        let rights = segment.access_rights;
        let present = if segment.usable() { 0xff } else { 0x7f };
        Self {
            selector: segment.selector,
            attributes: (rights & present | (rights >> 4) & 0xf00) as u16,
            limit: segment.limit,
            base: segment.base,
        }
    }
}

/// The fields of the guest-state area but those of the segment registers.
const REGISTERS: [Field; 25] = [
    field::GUEST_CR0,
    field::GUEST_CR3,
    field::GUEST_CR4,
    field::GUEST_DR7,
    field::GUEST_RSP,
    field::GUEST_RIP,
    field::GUEST_RFLAGS,
    field::GUEST_GDTR_BASE,
    field::GUEST_GDTR_LIMIT,
    field::GUEST_IDTR_BASE,
    field::GUEST_IDTR_LIMIT,
    field::GUEST_DEBUGCTL,
    field::GUEST_SYSENTER_CS,
    field::GUEST_SYSENTER_ESP,
    field::GUEST_SYSENTER_EIP,
    field::GUEST_PAT,
    field::GUEST_EFER,
    field::GUEST_PDPTES[0],
    field::GUEST_PDPTES[1],
    field::GUEST_PDPTES[2],
    field::GUEST_PDPTES[3],
    field::GUEST_INTERRUPTIBILITY,
    field::GUEST_ACTIVITY,
    field::GUEST_PENDING_DEBUG,
    field::VMCS_LINK_POINTER,
];

const FIELD_COUNT: usize = REGISTERS.len() + 4 * SEGMENTS.len();

/// All fields of the guest-state area.
#[expect(clippy::indexing_slicing, reason = "the compiler runs it")]
const FIELDS: [Field; FIELD_COUNT] = {
    let mut fields = [field::GUEST_CR0; FIELD_COUNT];
    let mut place = 0;
    while place < REGISTERS.len() {
        fields[place] = REGISTERS[place];
        place += 1;
    }
    let mut number = 0;
    while number < SEGMENTS.len() {
        let register = SEGMENTS[number];
        [fields[place], fields[place + 1]] = [selector(register), access_rights(register)];
        [fields[place + 2], fields[place + 3]] = [limit(register), base(register)];
        (number, place) = (number + 1, place + 4);
    }
    fields
};

/// The guest-state area, a value a field: CR0 and CR4 are the CPU's, not what the guest reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestState([u64; FIELD_COUNT]);

impl GuestState {
    /// What `state` decides, and all else as after INIT. CR0 and CR4 are left to the caller.
    pub fn new(state: &CpuState) -> Self {
        let mut area = Self([0; FIELD_COUNT]);
        for (register, segment) in SEGMENTS.into_iter().zip(state.segments) {
            area.set_segment(register, segment.into());
        }
        for (field, value) in [
            (field::GUEST_CR3, state.control.cr3),
            (field::GUEST_DR7, DR7_AT_RESET),
            (field::GUEST_GDTR_BASE, state.gdt.base),
            (field::GUEST_GDTR_LIMIT, u64::from(state.gdt.limit)),
            (field::GUEST_IDTR_BASE, state.idt.base),
            (field::GUEST_IDTR_LIMIT, u64::from(state.idt.limit)),
            (field::GUEST_PAT, PAT_AT_RESET),
            (field::GUEST_EFER, state.control.efer),
            (field::VMCS_LINK_POINTER, NO_LINK),
        ] {
            area.set(field, value);
        }
        area
    }

    /// The whole area of the current VMCS.
    pub fn read(current: &Current) -> Self {
        Self(FIELDS.map(|field| current.read(field)))
    }

    /// Fills the whole area of the current VMCS.
    pub fn write(&self, current: &mut Current) {
        for (field, value) in FIELDS.into_iter().zip(self.0) {
            current.write(field, value);
        }
    }

    /// A field; zero for one of another area.
    pub fn get(&self, field: Field) -> u64 {
        let place = FIELDS.iter().position(|known| *known == field);
        place.and_then(|place| self.0.get(place)).copied().unwrap_or(0)
    }

    /// Sets a field; one of another area is left alone.
    pub fn set(&mut self, field: Field, value: u64) {
        let place = FIELDS.iter().position(|known| *known == field);
        if let Some(kept) = place.and_then(|place| self.0.get_mut(place)) {
            *kept = value;
        }
    }

    /// A segment register.
    pub fn segment(&self, register: SegmentRegister) -> VmcsSegment {
        VmcsSegment::from_fields(register, |field| self.get(field))
    }

    /// Sets one.
    pub fn set_segment(&mut self, register: SegmentRegister, segment: VmcsSegment) {
        for (field, value) in segment.fields(register) {
            self.set(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_own_place() {
        let mut state = GuestState::new(&CpuState::reset());
        for (value, field) in (1..).zip(FIELDS) {
            state.set(field, value);
        }
        assert!(FIELDS.into_iter().zip(1..).all(|(field, value)| state.get(field) == value));
        assert_eq!(state.get(field::HOST_CR0), 0);
    }

    #[test]
    fn segments_survive_the_way_into_a_vmcs_and_back() {
        for segment in [
            Segment::flat_code64(8),
            Segment::flat_code32(8),
            Segment::flat_data(16),
            Segment::real_mode(0xf000, true),
            Segment::reset_tss(),
            Segment { selector: 0, attributes: 0x60, limit: 0, base: 0 },
        ] {
            assert_eq!(Segment::from(VmcsSegment::from(segment)), segment);
        }
        assert_eq!(VmcsSegment::from(Segment::flat_code64(8)).access_rights, 0xa09b);
        assert_eq!(VmcsSegment::from(Segment::default()).access_rights, UNUSABLE);
        let null = VmcsSegment { access_rights: UNUSABLE | 0xf3, ..Default::default() };
        assert!(!Segment::from(null).present());
        assert_eq!(Segment::from(null).privilege_level(), 3, "of SS, even when null, it is the CPU's");
    }
}
