//! Hardware task switches, which VT-x leaves to the monitor (SDM volume 3, 8.3 and 26.4.2): 32-bit systems use
//! them for double faults, small ones for everything.
//!
//! The CPU has checked the gate and the new TSS's descriptor before the exit.

use super::control_registers::CR0_TS;
use crate::cpu::{ControlRegisters, Event, Gpr, Registers, Segment, SegmentRegister, rflags};
use crate::memory::{Access, AccessKind, GuestMemory, Marking, Paging, translate};

const NT: u64 = 1 << 14;
/// DR7: breakpoints of one task, which its switch turns off.
const DR7_LOCAL: u64 = 0b1_0101_0101;
/// A TSS descriptor's busy flag, in the descriptor and in the attributes.
const BUSY: u64 = 1 << 41;
const BUSY_ATTRIBUTE: u16 = 1 << 1;
/// A descriptor's accessed flag.
const ACCESSED: u64 = 1 << 40;
/// Attributes: a TSS of 32 bits.
const WIDE: u16 = 1 << 3;

const INVALID_TSS: u8 = 10;
const SEGMENT_NOT_PRESENT: u8 = 11;
const STACK_FAULT: u8 = 12;

/// What asked for the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// CALL.
    Call,
    /// IRET with RFLAGS.NT.
    Iret,
    /// JMP.
    Jump,
    /// A task gate in the interrupt table.
    Gate,
}

/// A switch as the exit tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The new task's TSS.
    pub selector: u16,
    /// What asked for it.
    pub source: Source,
    /// Where the old task goes on later.
    pub return_rip: u64,
    /// What is pushed on the new stack.
    pub error_code: Option<u32>,
    /// An interrupt or exception asked for it, no instruction: bit 0 of error codes.
    pub external: bool,
}

impl Request {
    /// The exit qualification (SDM table 28-2), without what the interrupted event adds.
    pub const fn decode(qualification: u64, return_rip: u64) -> Self {
        let source = match (qualification >> 30) & 0b11 {
            0 => Source::Call,
            1 => Source::Iret,
            2 => Source::Jump,
            _ => Source::Gate,
        };
        Self { selector: qualification as u16, source, return_rip, error_code: None, external: false }
    }

    /// Whether the old task goes on some time, nested below.
    const fn nests(&self) -> bool {
        matches!(self.source, Source::Call | Source::Gate)
    }
}

/// What a switch reads and replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The general registers, RIP and RFLAGS.
    pub registers: Registers,
    /// By [`SegmentRegister`].
    pub segments: [Segment; 8],
    /// CR0.TS and CR3 are replaced.
    pub control: ControlRegisters,
    /// Where the GDT lies.
    pub gdt: u64,
    /// Its length less one.
    pub gdt_limit: u64,
    /// Local breakpoints are switched off.
    pub dr7: u64,
}

/// An exception on the way, and CR2 where it is a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What to inject.
    pub event: Event,
    /// The address of a page fault.
    pub address: Option<u64>,
}

impl Fault {
    const fn new(vector: u8, error_code: u32) -> Self {
        Self { event: Event::Exception { vector, error_code: Some(error_code) }, address: None }
    }
}

/// Where things lie in a TSS (SDM figures 8-2 and 8-10). General and segment registers stand in the order of
/// their numbers.
struct Layout {
    /// Bytes of a register's place.
    width: u64,
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    general: u64,
    segments: u64,
    segment_count: u64,
    ldt: u64,
    debug_trap: Option<u64>,
}

const TSS_16: Layout = Layout {
    width: 2,
    cr3: None,
    ip: 0xe,
    flags: 0x10,
    general: 0x12,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
    debug_trap: None,
};

const TSS_32: Layout = Layout {
    width: 4,
    cr3: Some(0x1c),
    ip: 0x20,
    flags: 0x24,
    general: 0x28,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    debug_trap: Some(0x64),
};

impl Layout {
    const fn of(attributes: u16) -> &'static Self {
        if attributes & WIDE != 0 { &TSS_32 } else { &TSS_16 }
    }

    const fn general(&self, number: u64) -> u64 {
        self.general.wrapping_add(number.wrapping_mul(self.width))
    }

    const fn segment(&self, number: u64) -> u64 {
        self.segments.wrapping_add(number.wrapping_mul(self.width))
    }
}

/// Memory as the CPU itself accesses it for a task: linear, with supervisor rights.
struct Linear<'a> {
    memory: &'a GuestMemory,
    paging: Paging,
}

impl Linear<'_> {
    /// Runs `piece` on each page's part of the `len` bytes at `at`: guest-physical address, offset, length.
    fn each_piece(
        &self,
        at: u64,
        len: u64,
        kind: AccessKind,
        mut piece: impl FnMut(crate::memory::GuestPhys, usize, usize),
    ) -> Result<(), Fault> {
        let mut done = 0_u64;
        while done < len {
            let linear = at.wrapping_add(done) & 0xffff_ffff;
            let access = Access { kind, user: false, alignment_check: false };
            let found =
                translate(self.memory, &self.paging, linear, access, Marking::Mark).map_err(|fault| {
                    Fault { event: Event::page_fault(fault.error_code), address: Some(linear) }
                })?;
            let in_page = 0x1000_u64.wrapping_sub(linear & 0xfff);
            let count = found.remaining.min(in_page).min(len.wrapping_sub(done));
            piece(found.address, done as usize, count as usize);
            done = done.wrapping_add(count);
        }
        Ok(())
    }

    /// Reads `len` bytes, 1 to 8, as a number. What is not memory reads as all ones.
    fn read(&self, at: u64, len: u64) -> Result<u64, Fault> {
        let mut bytes = [0xff; 8];
        self.each_piece(at, len, AccessKind::Read, |address, offset, count| {
            if let Some(bytes) = bytes.get_mut(offset..offset.wrapping_add(count)) {
                let _ = self.memory.read(address, bytes);
            }
        })?;
        let unused = 64_u32.wrapping_sub((len as u32).wrapping_mul(8));
        Ok(u64::from_le_bytes(bytes).wrapping_shl(unused).wrapping_shr(unused))
    }

    /// Writes the low `len` bytes of `value`. What is not memory takes none.
    fn write(&self, at: u64, len: u64, value: u64) -> Result<(), Fault> {
        let bytes = value.to_le_bytes();
        self.each_piece(at, len, AccessKind::Write, |address, offset, count| {
            if let Some(bytes) = bytes.get(offset..offset.wrapping_add(count)) {
                let _ = self.memory.write(address, bytes);
            }
        })
    }
}

/// Switches from `task` to the one that `request` names, which takes its place; says whether its TSS asks for
/// a debug trap. A fault is for the task that stands there then: the old one as it was, or the new one.
pub fn switch(
    task: &mut Task,
    memory: &GuestMemory,
    physical_bits: u8,
    request: &Request,
) -> Result<bool, Fault> {
    let switcher = Switch { request, memory, physical_bits };
    let (new, selectors, debug_trap) = switcher.leave(task)?;
    *task = new;
    switcher.enter(task, &selectors)?;
    Ok(debug_trap)
}

struct Switch<'a> {
    request: &'a Request,
    memory: &'a GuestMemory,
    physical_bits: u8,
}

/// The new task's selectors: ES to GS, and LDTR.
type Selectors = ([u16; 6], u16);

impl Switch<'_> {
    fn linear(&self, control: &ControlRegisters) -> Linear<'_> {
        let ControlRegisters { cr0, cr3, cr4, efer, .. } = *control;
        Linear {
            memory: self.memory,
            paging: Paging { cr0, cr3, cr4, efer, physical_bits: self.physical_bits },
        }
    }

    fn fault(&self, vector: u8, selector: u16) -> Fault {
        Fault::new(vector, u32::from(selector & !0b11) | u32::from(self.request.external))
    }

    /// Reads the new task and saves the old one; everything that can still be refused.
    fn leave(&self, old: &Task) -> Result<(Task, Selectors, bool), Fault> {
        let linear = self.linear(&old.control);
        let selector = self.request.selector;
        let place = old.gdt.wrapping_add(u64::from(selector & !0b111));
        if selector & 0b100 != 0 || u64::from(selector | 0b111) > old.gdt_limit {
            return Err(self.fault(INVALID_TSS, selector));
        }
        let descriptor = linear.read(place, 8)?;
        let mut tr = segment(selector, descriptor);
        let layout = Layout::of(tr.attributes);
        let (mut task, selectors) = read_task(old, &linear, layout, tr.base)?;
        let debug_trap = match layout.debug_trap {
            Some(offset) => linear.read(tr.base.wrapping_add(offset), 1)? & 1 != 0,
            None => false,
        };

        let old_tr = tr_of(old);
        self.save(old, &linear, old_tr)?;
        if self.request.nests() {
            linear.write(tr.base, 2, u64::from(old_tr.selector))?;
            task.registers.rflags |= NT;
        } else {
            let place = old.gdt.wrapping_add(u64::from(old_tr.selector & !0b111));
            let descriptor = linear.read(place, 8)?;
            linear.write(place, 8, descriptor & !BUSY)?;
        }
        if self.request.source != Source::Iret {
            linear.write(place, 8, descriptor | BUSY)?;
        }
        tr.attributes |= BUSY_ATTRIBUTE;
        *slot(&mut task.segments, SegmentRegister::Tr) = tr;
        task.control.cr0 |= CR0_TS;
        task.dr7 &= !DR7_LOCAL;
        Ok((task, selectors, debug_trap))
    }

    fn save(&self, old: &Task, linear: &Linear<'_>, tr: Segment) -> Result<(), Fault> {
        let layout = Layout::of(tr.attributes);
        let at = |offset: u64| tr.base.wrapping_add(offset);
        let nested = if self.request.source == Source::Iret { !NT } else { !0 };
        linear.write(at(layout.ip), layout.width, self.request.return_rip)?;
        linear.write(at(layout.flags), layout.width, old.registers.rflags & nested)?;
        for number in 0..8 {
            let value = old.registers.get(Gpr::from_number(number as u8));
            linear.write(at(layout.general(number)), layout.width, value)?;
        }
        for (number, segment) in (0..layout.segment_count).zip(&old.segments) {
            linear.write(at(layout.segment(number)), 2, u64::from(segment.selector))?;
        }
        Ok(())
    }

    /// Loads the new task's segments and pushes the error code: what faults now is the new task's. The
    /// registers fit each other all the time, since the fault is delivered with what is loaded by then.
    fn enter(&self, task: &mut Task, (selectors, ldt): &Selectors) -> Result<(), Fault> {
        let linear = self.linear(&task.control);
        let virtual_8086 = task.registers.rflags & rflags::VM != 0;
        if virtual_8086 {
            for (segment, selector) in task.segments.iter_mut().zip(selectors) {
                let base = u64::from(*selector) << 4;
                *segment = Segment { selector: *selector, attributes: 0xf3, limit: 0xffff, base };
            }
        }
        *slot(&mut task.segments, SegmentRegister::Ldtr) = self.load_ldt(task, &linear, *ldt)?;
        if !virtual_8086 {
            self.load_segments(task, &linear, selectors)?;
        }
        self.push_error_code(task, &linear)
    }

    fn load_segments(&self, task: &mut Task, linear: &Linear<'_>, selectors: &[u16; 6]) -> Result<(), Fault> {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        let [es, cs, ss, ds, fs, gs] = *selectors;
        let level = cs & 3;
        *slot(&mut task.segments, Cs) = self.load_segment(task, linear, Cs, cs, level)?;
        for (register, selector) in [(Ss, ss), (Ds, ds), (Es, es), (Fs, fs), (Gs, gs)] {
            *slot(&mut task.segments, register) =
                Segment { selector, attributes: level << 5, ..Segment::default() };
        }
        for (register, selector) in [(Ss, ss), (Ds, ds), (Es, es), (Fs, fs), (Gs, gs)] {
            *slot(&mut task.segments, register) =
                self.load_segment(task, linear, register, selector, level)?;
        }
        Ok(())
    }

    fn load_ldt(&self, task: &Task, linear: &Linear<'_>, selector: u16) -> Result<Segment, Fault> {
        if selector & !0b11 == 0 {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let invalid = self.fault(INVALID_TSS, selector);
        if selector & 0b100 != 0 {
            return Err(invalid);
        }
        let (_, descriptor) = self.descriptor(task, linear, selector)?;
        let loaded = segment(selector, descriptor);
        // A present system segment of type 2.
        if loaded.attributes & 0x9f == 0x82 { Ok(loaded) } else { Err(invalid) }
    }

    /// Where a descriptor lies, and the descriptor.
    fn descriptor(&self, task: &Task, linear: &Linear<'_>, selector: u16) -> Result<(u64, u64), Fault> {
        let [.., ldt, _] = task.segments;
        let (base, limit) = match (selector & 0b100 != 0, ldt.present()) {
            (false, _) => (task.gdt, task.gdt_limit),
            (true, true) => (ldt.base, u64::from(ldt.limit)),
            (true, false) => return Err(self.fault(INVALID_TSS, selector)),
        };
        if u64::from(selector | 0b111) > limit {
            return Err(self.fault(INVALID_TSS, selector));
        }
        let place = base.wrapping_add(u64::from(selector & !0b111));
        Ok((place, linear.read(place, 8)?))
    }

    /// What `register` holds in a task of privilege level `level` (SDM table 8-1).
    fn load_segment(
        &self,
        task: &Task,
        linear: &Linear<'_>,
        register: SegmentRegister,
        selector: u16,
        level: u16,
    ) -> Result<Segment, Fault> {
        use SegmentRegister::{Cs, Ss};
        let invalid = self.fault(INVALID_TSS, selector);
        if selector & !0b11 == 0 {
            let null = Segment { selector, ..Segment::default() };
            return if matches!(register, Cs | Ss) { Err(invalid) } else { Ok(null) };
        }
        let (place, descriptor) = self.descriptor(task, linear, selector)?;
        let loaded = segment(selector, descriptor);
        let (rpl, dpl) = (selector & 3, u16::from(loaded.privilege_level()));
        let bit = |bit: u16| loaded.attributes & (1 << bit) != 0;
        // S, then of the type: code, conforming, and readable or writable.
        let (memory, code, conforming, permits) = (bit(4), bit(3), bit(2), bit(1));
        let fits = memory
            && match register {
                Cs if conforming => code && dpl <= rpl,
                Cs => code && dpl == rpl,
                Ss => !code && permits && dpl == level && rpl == level,
                _ => (!code || permits) && (code && conforming || dpl >= rpl.max(level)),
            };
        if !fits {
            return Err(invalid);
        }
        if !loaded.present() {
            let vector = if register == Ss { STACK_FAULT } else { SEGMENT_NOT_PRESENT };
            return Err(self.fault(vector, selector));
        }
        if descriptor & ACCESSED == 0 {
            linear.write(place, 8, descriptor | ACCESSED)?;
        }
        Ok(segment(selector, descriptor | ACCESSED))
    }

    fn push_error_code(&self, task: &mut Task, linear: &Linear<'_>) -> Result<(), Fault> {
        let Some(error_code) = self.request.error_code else { return Ok(()) };
        let [_, _, stack, ..] = task.segments;
        let width = Layout::of(tr_of(task).attributes).width;
        let mask = if stack.default_big() { 0xffff_ffff } else { 0xffff };
        let rsp = task.registers.get(Gpr::Rsp);
        let top = rsp.wrapping_sub(width) & mask;
        linear.write(stack.base.wrapping_add(top), width, u64::from(error_code))?;
        task.registers.set(Gpr::Rsp, rsp & !mask | top);
        Ok(())
    }
}

fn tr_of(task: &Task) -> Segment {
    let [.., tr] = task.segments;
    tr
}

fn slot(segments: &mut [Segment; 8], register: SegmentRegister) -> &mut Segment {
    #[expect(clippy::indexing_slicing, reason = "SegmentRegister counts 8 registers, and so does the array")]
    &mut segments[register as usize]
}

/// The task in the TSS at `base`, but for its segments, whose selectors stand beside it.
fn read_task(
    old: &Task,
    linear: &Linear<'_>,
    layout: &Layout,
    base: u64,
) -> Result<(Task, Selectors), Fault> {
    let read = |offset: u64, len: u64| linear.read(base.wrapping_add(offset), len);
    let mut task = old.clone();
    if let Some(cr3) = layout.cr3
        && old.control.cr0 & ControlRegisters::CR0_PG != 0
    {
        task.control.cr3 = read(cr3, 4)?;
    }
    task.registers.rip = read(layout.ip, layout.width)?;
    task.registers.rflags = read(layout.flags, layout.width)? & FLAGS | rflags::FIXED;
    for number in 0..8 {
        let value = read(layout.general(number), layout.width)?;
        let register = Gpr::from_number(number as u8);
        // A 16-bit TSS leaves the high halves as they are.
        let kept = if layout.width == 2 { old.registers.get(register) & 0xffff_0000 } else { 0 };
        task.registers.set(register, kept | value);
    }
    let mut selectors = [0; 6];
    for (number, selector) in (0..layout.segment_count).zip(&mut selectors) {
        *selector = read(layout.segment(number), 2)? as u16;
    }
    let ldt = read(layout.ldt, 2)? as u16;
    Ok((task, (selectors, ldt)))
}

/// The flags that exist: the others are reserved, and an entry refuses them.
const FLAGS: u64 = 0x3f_7fd7;

/// A segment register that holds `descriptor` (SDM figure 3-8).
const fn segment(selector: u16, descriptor: u64) -> Segment {
    let limit = (descriptor & 0xffff | (descriptor >> 32) & 0xf_0000) as u32;
    let granular = descriptor & (1 << 55) != 0;
    Segment {
        selector,
        attributes: ((descriptor >> 40) & 0xff | (descriptor >> 44) & 0xf00) as u16,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        base: (descriptor >> 16) & 0xff_ffff | (descriptor >> 32) & 0xff00_0000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuState;
    use crate::memory::{GuestPhys, HeapBlock, Region};

    const GDT: u64 = 0x1000;
    const OLD_TSS: u64 = 0x2000;
    const NEW_TSS: u64 = 0x2fc0; // Across two pages.
    const CODE: u16 = 8;
    const DATA: u16 = 16;
    const OLD: u16 = 24;
    const NEW: u16 = 32;

    fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
        limit & 0xffff
            | (limit & 0xf_0000) << 32
            | (base & 0xff_ffff) << 16
            | (base >> 24) << 56
            | (attributes & 0xff) << 40
            | (attributes & 0xf00) << 44
    }

    fn memory() -> GuestMemory {
        let block = HeapBlock::zeroed(0x10_0000, 0x1000).unwrap();
        let memory = GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]).unwrap();
        for (selector, content) in [
            (CODE, descriptor(0, 0xf_ffff, 0xc9a)),
            (DATA, descriptor(0, 0xf_ffff, 0xc92)),
            (OLD, descriptor(OLD_TSS, 0x67, 0x8b)),
            (NEW, descriptor(NEW_TSS, 0x67, 0x89)),
        ] {
            memory.write_u64(GuestPhys::new(GDT + u64::from(selector)), content).unwrap();
        }
        for (offset, value) in [(0x20, 0x8000), (0x24, 0x2), (0x28, 0xa), (0x38, 0x9000), (0x4c, 8)] {
            memory.write_u32(GuestPhys::new(NEW_TSS + offset), value).unwrap();
        }
        for offset in [0x48, 0x50, 0x54] {
            memory.write_u32(GuestPhys::new(NEW_TSS + offset), u32::from(DATA)).unwrap();
        }
        memory
    }

    fn old_task() -> Task {
        let mut state = CpuState::flat_protected_mode(0x7000);
        state.segments[7] = Segment { selector: OLD, attributes: 0x8b, limit: 0x67, base: OLD_TSS };
        state.registers.gpr[0] = 0x1234;
        state.registers.rflags = rflags::FIXED | rflags::IF;
        Task {
            registers: state.registers,
            segments: state.segments,
            control: state.control,
            gdt: GDT,
            gdt_limit: 0x27,
            dr7: 0x403,
        }
    }

    fn request(selector: u16, source: Source) -> Request {
        Request { selector, source, return_rip: 0x7003, error_code: None, external: false }
    }

    #[test]
    fn a_call_nests_and_its_return_comes_back() {
        let memory = memory();
        let call = request(NEW, Source::Call);
        let mut task = old_task();
        assert_eq!(switch(&mut task, &memory, 40, &call), Ok(false));
        assert_eq!((task.registers.rip, task.registers.gpr[0], task.registers.gpr[4]), (0x8000, 0xa, 0x9000));
        assert_eq!(task.registers.rflags & NT, NT);
        assert_eq!(task.segments[7], Segment { selector: NEW, attributes: 0x8b, limit: 0x67, base: NEW_TSS });
        assert_eq!(task.segments[1], Segment::flat_code32(CODE), "loaded, and marked accessed");
        assert_ne!(memory.read_u64(GuestPhys::new(GDT + 8)).unwrap() & ACCESSED, 0);
        assert!(!task.segments[4].present() && !task.segments[6].present(), "null selectors");
        assert_eq!((task.control.cr0 & CR0_TS, task.dr7), (CR0_TS, 0x402));
        assert_eq!(memory.read_u16(GuestPhys::new(NEW_TSS)), Ok(OLD), "the way back");
        assert_eq!(memory.read_u32(GuestPhys::new(OLD_TSS + 0x20)), Ok(0x7003));

        let back = request(OLD, Source::Iret);
        assert_eq!(switch(&mut task, &memory, 40, &back), Ok(false));
        assert_eq!((task.registers.rip, task.registers.gpr[0]), (0x7003, 0x1234));
        assert_eq!(task.registers.rflags, rflags::FIXED | rflags::IF);
        assert_eq!(memory.read_u64(GuestPhys::new(GDT + 32)).unwrap() & BUSY, 0);
        assert_ne!(memory.read_u64(GuestPhys::new(GDT + 24)).unwrap() & BUSY, 0);
        assert_eq!(memory.read_u32(GuestPhys::new(NEW_TSS + 0x24)).unwrap() & 0x4000, 0, "NT is not saved");
    }

    #[test]
    fn a_gate_pushes_its_error_code() {
        let memory = memory();
        let gate = Request { error_code: Some(0xabc), external: true, ..request(NEW, Source::Gate) };
        let mut task = old_task();
        assert_eq!(switch(&mut task, &memory, 40, &gate), Ok(false));
        assert_eq!(task.registers.gpr[4], 0x8ffc);
        assert_eq!(memory.read_u32(GuestPhys::new(0x8ffc)), Ok(0xabc));
    }

    #[test]
    fn a_bad_segment_is_the_new_tasks_fault() {
        let memory = memory();
        memory.write_u32(GuestPhys::new(NEW_TSS + 0x4c), u32::from(DATA)).unwrap();
        let call = Request { external: true, ..request(NEW, Source::Call) };
        let mut task = old_task();
        let fault = Fault::new(INVALID_TSS, u32::from(DATA) | 1);
        assert_eq!(switch(&mut task, &memory, 40, &call), Err(fault));
        assert_eq!(task.registers.rip, 0x8000);
        memory.write_u64(GuestPhys::new(GDT + 16), descriptor(0, 0xf_ffff, 0xc12)).unwrap();
        memory.write_u32(GuestPhys::new(NEW_TSS + 0x4c), u32::from(CODE)).unwrap();
        let mut task = old_task();
        let fault = Fault::new(STACK_FAULT, u32::from(DATA) | 1);
        assert_eq!(switch(&mut task, &memory, 40, &call), Err(fault), "SS comes before DS");
        assert!(!task.segments[0].present() && task.segments[1].present());
    }

    #[test]
    fn a_selector_off_the_table_is_refused() {
        let call = request(0x100, Source::Call);
        let mut task = old_task();
        assert_eq!(switch(&mut task, &memory(), 40, &call), Err(Fault::new(INVALID_TSS, 0x100)));
        assert_eq!(task, old_task());
    }

    #[test]
    fn a_narrow_tss_leaves_high_halves() {
        let memory = memory();
        let at = GuestPhys::new(GDT + u64::from(NEW));
        memory.write_u64(at, descriptor(NEW_TSS, 0x2b, 0x81)).unwrap();
        memory.write(GuestPhys::new(NEW_TSS), &[0; 0x68]).unwrap();
        for (offset, value) in [(0xe, 0x5000), (0x12, 7), (0x22, DATA), (0x24, CODE), (0x26, DATA)] {
            memory.write_u16(GuestPhys::new(NEW_TSS + offset), value).unwrap();
        }
        let mut task = old_task();
        task.registers.gpr[0] = 0xdead_1234;
        let jump = request(NEW, Source::Jump);
        assert_eq!(switch(&mut task, &memory, 40, &jump), Ok(false));
        assert_eq!((task.registers.rip, task.registers.gpr[0]), (0x5000, 0xdead_0007));
        assert_eq!(memory.read_u64(GuestPhys::new(GDT + 24)).unwrap() & BUSY, 0, "left for good");
    }

    #[test]
    fn virtual_8086_tasks_have_real_segments() {
        let memory = memory();
        memory.write_u32(GuestPhys::new(NEW_TSS + 0x24), 0x2_0002).unwrap();
        let call = request(NEW, Source::Call);
        let mut task = old_task();
        assert_eq!(switch(&mut task, &memory, 40, &call), Ok(false));
        let code = Segment { selector: 8, attributes: 0xf3, limit: 0xffff, base: 0x80 };
        assert_eq!(task.segments[1], code);
    }

    #[test]
    fn qualifications_tell_the_source() {
        let gate = Request::decode(0xc000_0020, 0);
        assert_eq!((gate.selector, gate.source), (0x20, Source::Gate));
        assert_eq!(Request::decode(0x4000_0018, 0).source, Source::Iret);
    }
}
