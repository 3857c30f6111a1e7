//! Instructions run one by one against a CPU, memory and a device made for the purpose.

use super::*;
use crate::cpu::{CodeSize, CpuState, Segment, SegmentRegister, rflags};
use crate::memory::{HeapBlock, Region};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

const CODE: u64 = 0x1000;
/// The device's page, behind the end of memory.
const DEVICE: u64 = 0x2_0000;
/// A page of memory right before it.
const LAST_PAGE: u64 = 0x1_f000;
const UNMAPPED: u64 = 0x20_0000;

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Read(u64, Width),
    Write(u64, Width, u64),
    In(u16, Width),
    Out(u16, Width, u32),
}
use Action::{In, Out, Read, Write};

/// A device of 4 KiB that remembers what was done to it, in order.
struct Device {
    bytes: Vec<u8>,
    log: Vec<Action>,
    port: u32,
}

impl Bus for Device {
    fn mmio_read(&mut self, address: GuestPhys, width: Width) -> u64 {
        let offset = address.get() - DEVICE;
        self.log.push(Read(offset, width));
        let mut bytes = [0xee; 8];
        let from = &self.bytes[offset as usize..][..width.bytes() as usize];
        bytes[..from.len()].copy_from_slice(from);
        u64::from_le_bytes(bytes)
    }
    fn mmio_write(&mut self, address: GuestPhys, width: Width, value: u64) {
        let offset = address.get() - DEVICE;
        self.log.push(Write(offset, width, value));
        let len = width.bytes() as usize;
        self.bytes[offset as usize..][..len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.log.push(In(port, width));
        self.port += 1;
        self.port | 0xabcd_0000
    }
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.log.push(Out(port, width, value));
    }
}

struct Machine {
    cpu: CpuState,
    memory: GuestMemory,
    device: Device,
}

impl Machine {
    fn new(size: CodeSize) -> Self {
        let block = HeapBlock::zeroed(DEVICE as usize, 4096).unwrap();
        let memory = GuestMemory::new(vec![Region::new(GuestPhys::new(0), Box::new(block))]).unwrap();
        let state = match size {
            CodeSize::Bits64 => {
                // The first 2 MiB, each 4 KiB page its own, identity-mapped for everyone.
                let set = |at, entry| memory.write_u64(GuestPhys::new(at), entry).unwrap();
                set(0x2000, 0x3007);
                set(0x3000, 0x4007);
                set(0x4000, 0x5007);
                (0..512).for_each(|page| set(0x5000 + page * 8, page << 12 | 7));
                CpuState::long_mode(CODE, 0x2000, 8, 16)
            }
            CodeSize::Bits32 => CpuState::flat_protected_mode(CODE as u32),
            CodeSize::Bits16 => {
                let mut state = CpuState::reset();
                state.registers.rip = CODE;
                state.segments[SegmentRegister::Cs as usize] = Segment::real_mode(0, true);
                state.segments[SegmentRegister::Es as usize] = Segment::real_mode(0x2000, false);
                state
            }
        };
        let device = Device { bytes: vec![0; 0x1000], log: Vec::new(), port: 0 };
        Self { cpu: state, memory, device }
    }

    fn long() -> Self {
        Self::new(CodeSize::Bits64)
    }

    fn with(mut self, register: Gpr, value: u64) -> Self {
        self.cpu.registers.set(register, value);
        self
    }

    fn device_holds(mut self, offset: usize, value: u64) -> Self {
        self.device.bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn flags(mut self, flags: u64) -> Self {
        self.cpu.registers.rflags = rflags::FIXED | flags;
        self
    }

    /// Emulates `code` at RIP once, without moving RIP.
    fn try_run(&mut self, code: &[u8]) -> Result<Option<u64>, EmulateError> {
        self.memory.write(GuestPhys::new(self.cpu.registers.rip), code).unwrap();
        emulate(&mut self.cpu, &self.memory, &mut self.device)
    }

    /// Emulates `code`, which must be one whole instruction and succeed in one call.
    #[track_caller]
    fn run(mut self, code: &[u8]) -> Self {
        let end = self.cpu.registers.rip + code.len() as u64;
        assert_eq!(self.try_run(code), Ok(Some(end)));
        self
    }

    #[track_caller]
    fn fault(&mut self, code: &[u8]) -> (Event, u64) {
        match self.try_run(code) {
            Err(EmulateError::Fault(fault)) => (fault.raise(&mut self.cpu), self.cpu.control.cr2),
            other => panic!("no fault but {other:?}"),
        }
    }

    fn get(&self, register: Gpr) -> u64 {
        self.cpu.registers.get(register)
    }

    fn status(&self) -> u64 {
        self.cpu.registers.rflags & arithmetic::STATUS
    }

    fn device_word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.device.bytes[offset..offset + 8].try_into().unwrap())
    }
}

use Gpr::{R8, R15, Rax, Rbp, Rbx, Rcx, Rdi, Rdx, Rsi};
use Width::{Byte, Dword, Qword, Word};

#[test]
fn mov_moves_every_width() {
    let new = || Machine::long().with(Rbx, DEVICE).with(Rax, 0x1122_3344_5566_7788);
    for (code, width, value) in [
        (&[0x88, 0x43, 8][..], Byte, 0x88),
        (&[0x88, 0x63, 8], Byte, 0x77),
        (&[0x66, 0x89, 0x43, 8], Word, 0x7788),
        (&[0x89, 0x43, 8], Dword, 0x5566_7788),
        (&[0x48, 0x89, 0x43, 8], Qword, 0x1122_3344_5566_7788),
        (&[0xc6, 0x43, 8, 0x80], Byte, 0x80),
        (&[0x66, 0xc7, 0x43, 8, 0x34, 0x80], Word, 0x8034),
        (&[0x48, 0xc7, 0x43, 8, 0, 0, 0, 0x80], Qword, 0xffff_ffff_8000_0000),
        (&[0x48, 0x0f, 0xc3, 0x43, 8], Qword, 0x1122_3344_5566_7788),
        (&[0x48, 0xa3, 8, 0, 2, 0, 0, 0, 0, 0], Qword, 0x1122_3344_5566_7788),
    ] {
        assert_eq!(new().run(code).device.log, [Write(8, width, value)], "{code:x?}");
    }
    for (code, width, value) in [
        (&[0x8a, 0x43, 8][..], Byte, 0x1122_3344_5566_7799),
        (&[0x8a, 0x63, 8], Byte, 0x1122_3344_5566_9988),
        (&[0x66, 0x8b, 0x43, 8], Word, 0x1122_3344_5566_8899),
        (&[0x8b, 0x43, 8], Dword, 0xe677_8899),
        (&[0x48, 0x8b, 0x43, 8], Qword, 0x8233_4455_e677_8899),
        (&[0x0f, 0xb6, 0x43, 8], Byte, 0x99),
        (&[0x66, 0x0f, 0xb6, 0x43, 8], Byte, 0x1122_3344_5566_0099),
        (&[0x0f, 0xb7, 0x43, 8], Word, 0x8899),
        (&[0x0f, 0xbe, 0x43, 8], Byte, 0xffff_ff99),
        (&[0x48, 0x0f, 0xbf, 0x43, 8], Word, 0xffff_ffff_ffff_8899),
        (&[0x48, 0x63, 0x43, 8], Dword, 0xffff_ffff_e677_8899),
        (&[0xa1, 8, 0, 2, 0, 0, 0, 0, 0], Dword, 0xe677_8899),
    ] {
        let machine = new().device_holds(8, 0x8233_4455_e677_8899).run(code);
        assert_eq!(machine.get(Rax), value, "{code:x?}");
        assert_eq!(machine.device.log, [Read(8, width)], "{code:x?}");
    }
}

#[test]
fn addresses_are_formed_as_the_mode_says() {
    let offset = |machine: Machine, code: &[u8]| match machine.run(code).device.log[..] {
        [Read(offset, _)] => offset,
        ref other => panic!("{other:?}"),
    };
    let mut fs = Machine::long().with(R15, 0x10).with(R8, DEVICE + 4);
    assert_eq!(offset(fs.with(Rax, 0), &[0x43, 0x8b, 0x44, 0xb8, 0x7c]), 4 + 0x10 * 4 + 0x7c);
    let displacement = (DEVICE - CODE - 6) as u32;
    assert_eq!(offset(Machine::long(), &[&[0x8b, 5][..], &displacement.to_le_bytes()].concat()), 0);
    fs = Machine::long().with(Rax, 0x20);
    fs.cpu.segments[SegmentRegister::Fs as usize].base = DEVICE;
    fs.cpu.segments[SegmentRegister::Ds as usize].base = 0x99_9999;
    assert_eq!(offset(fs, &[0x64, 0x8b, 0x40, 1]), 0x21);
    let ds = Machine::long().with(Rbp, DEVICE);
    assert_eq!(offset(ds, &[0x8b, 0x45, 2]), 2);
    // A 32-bit address wraps at 4 GiB, a 16-bit one at 64 KiB.
    let narrow = Machine::long().with(Rax, 0x7_ffff_ffff);
    assert_eq!(offset(narrow, &[0x67, 0x8b, 0x80, 0x11, 0, 2, 0]), 0x10);
    let real = Machine::new(CodeSize::Bits16).with(Rbx, 0xfff8).with(Rsi, 0x10);
    assert_eq!(offset(real, &[0x26, 0x8b, 0x40, 4]), 0xc);
}

#[test]
fn arithmetic_reads_calculates_and_writes() {
    let new = || Machine::long().with(Rbx, DEVICE).with(Rax, 0x80).flags(rflags::CF);
    let holding = |value| new().device_holds(0, value);
    let machine = holding(0x80).run(&[0x00, 0x03]);
    assert_eq!(machine.device.log, [Read(0, Byte), Write(0, Byte, 0)]);
    assert_eq!(machine.status(), rflags::CF | rflags::OF | rflags::ZF | rflags::PF);
    // ADC takes the carry in; the source may be the device.
    let machine = holding(0x7f).run(&[0x13, 0x03]);
    assert_eq!((machine.get(Rax), machine.device.log), (0x100, vec![Read(0, Dword)]));
    let machine = holding(0x7f).run(&[0x83, 0x3b, 0x80]);
    assert_eq!(machine.device.log, [Read(0, Dword)], "CMP writes nothing");
    assert_eq!(machine.status(), rflags::CF | rflags::PF);
    let machine = holding(0x0f00).run(&[0xf7, 0x03, 0, 1, 0, 0]);
    assert_eq!((machine.status(), machine.device.log), (rflags::PF, vec![Read(0, Dword)]));
    for (code, value) in [
        (&[0x80, 0x0b, 0xf0][..], 0xff),
        (&[0x80, 0x13, 0xf0], 0x00),
        (&[0x80, 0x1b, 0x0f], 0xff),
        (&[0x80, 0x23, 0x3c], 0x0c),
        (&[0x80, 0x2b, 0x10], 0xff),
        (&[0x80, 0x33, 0xff], 0xf0),
        (&[0xfe, 0x03], 0x10),
        (&[0xfe, 0x0b], 0x0e),
        (&[0xf6, 0x13], 0xf0),
        (&[0xf6, 0x1b], 0xf1),
    ] {
        let machine = holding(0x0f).run(code);
        assert_eq!(machine.device.log, [Read(0, Byte), Write(0, Byte, value)], "{code:x?}");
    }
    assert_eq!(holding(0).run(&[0xff, 0x03]).status(), rflags::CF, "INC leaves the carry");
    let all = holding(1).flags(arithmetic::STATUS).run(&[0xf7, 0x13]);
    assert_eq!(all.status(), arithmetic::STATUS, "NOT changes no flag");
}

#[test]
fn exchanges_give_the_register_what_was_there() {
    let new =
        || Machine::long().with(Rbx, DEVICE).with(Rcx, 0xffff_ffff_1234_5678).device_holds(0, 0x9abc_def0);
    let machine = new().run(&[0x87, 0x0b]);
    assert_eq!((machine.get(Rcx), machine.device_word(0)), (0x9abc_def0, 0x1234_5678));
    let machine = new().run(&[0xf0, 0x0f, 0xc1, 0x0b]);
    assert_eq!((machine.get(Rcx), machine.device_word(0)), (0x9abc_def0, 0xacf1_3568));
    let machine = new().with(Rax, 0x9abc_def0).run(&[0xf0, 0x0f, 0xb1, 0x0b]);
    assert_eq!((machine.device_word(0), machine.status()), (0x1234_5678, rflags::ZF | rflags::PF));
    let machine = new().with(Rax, 0xffff_ffff_0000_0000).run(&[0x0f, 0xb1, 0x0b]);
    assert_eq!((machine.get(Rax), machine.device_word(0)), (0x9abc_def0, 0x9abc_def0));
    assert_eq!(machine.status() & rflags::ZF, 0);
}

#[test]
fn wide_compare_and_exchange_keeps_its_halves() {
    let new = || {
        let machine = Machine::long().with(Rsi, DEVICE + 8).with(Rbx, 0xb).with(Rcx, 0xc);
        machine.device_holds(8, 0x2_0000_0001).device_holds(16, 3)
    };
    let machine = new().with(Rax, 1).with(Rdx, 2).run(&[0xf0, 0x0f, 0xc7, 0x0e]);
    assert_eq!((machine.device_word(8), machine.status()), (0xc_0000_000b, rflags::ZF));
    let machine = new().with(Rax, 1).with(Rdx, 1).run(&[0x0f, 0xc7, 0x0e]);
    assert_eq!((machine.get(Rax), machine.get(Rdx), machine.device_word(8)), (1, 2, 0x2_0000_0001));
    let mut misaligned = new();
    assert_eq!(misaligned.fault(&[0x48, 0x0f, 0xc7, 0x0e]).0, Event::GENERAL_PROTECTION);
    let machine = Machine::long().with(Rsi, DEVICE).with(Rbx, 7).with(Rcx, 8).run(&[0x48, 0x0f, 0xc7, 0x0e]);
    assert_eq!((machine.device_word(0), machine.device_word(8)), (7, 8));
}

#[test]
fn bit_tests_reach_where_the_number_says() {
    let new = || Machine::long().with(Rbx, DEVICE + 0x100).flags(rflags::ZF);
    let machine = new().with(Rcx, -1_i64 as u64).device_holds(0xfc, 0x8000_0000).run(&[0x0f, 0xa3, 0x0b]);
    assert_eq!((machine.status(), machine.device.log), (rflags::CF | rflags::ZF, vec![Read(0xfc, Dword)]));
    let machine = new().with(Rcx, 64 * 8 + 5).run(&[0x48, 0x0f, 0xab, 0x0b]);
    assert_eq!(machine.device.log, [Read(0x140, Qword), Write(0x140, Qword, 1 << 5)]);
    let machine = new().device_holds(0x100, 0xffff).run(&[0x66, 0x0f, 0xba, 0x33, 0x1f]);
    assert_eq!((machine.device_word(0x100), machine.status() & rflags::CF), (0x7fff, rflags::CF));
    let machine = new().device_holds(0x100, 0x10).run(&[0xf0, 0x0f, 0xba, 0x3b, 4]);
    assert_eq!(machine.device_word(0x100), 0);
}

#[test]
fn strings_move_both_ways_and_count() {
    let new = || Machine::long().with(Rsi, 0x8000).with(Rdi, DEVICE).with(Rcx, 3).with(Rax, 0x5a5a);
    let machine = new();
    machine.memory.write(GuestPhys::new(0x8000), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let machine = machine.run(&[0xf3, 0x66, 0xa5]);
    let writes = [Write(0, Word, 0x201), Write(2, Word, 0x403), Write(4, Word, 0x605)];
    assert_eq!(machine.device.log, writes);
    assert_eq!((machine.get(Rsi), machine.get(Rdi), machine.get(Rcx)), (0x8006, DEVICE + 6, 0));
    let machine = new().with(Rdi, DEVICE + 8).flags(rflags::DF).run(&[0xf3, 0xaa]);
    assert_eq!(machine.device.log, [Write(8, Byte, 0x5a), Write(7, Byte, 0x5a), Write(6, Byte, 0x5a)]);
    assert_eq!(machine.get(Rdi), DEVICE + 5);
    let machine = new().with(Rsi, DEVICE + 4).device_holds(4, 0x77).run(&[0x48, 0xad]);
    assert_eq!((machine.get(Rax), machine.get(Rsi), machine.get(Rcx)), (0x77, DEVICE + 12, 3));
    let machine = new().with(Rcx, 0).run(&[0xf3, 0xab]);
    assert!(machine.device.log.is_empty(), "a count of zero does nothing");
    // With a 32-bit address size only ECX counts, and what is written clears the upper halves.
    let machine = new().with(Rcx, 5 << 32 | 1).with(Rdi, 9 << 32 | DEVICE).run(&[0x67, 0xf3, 0xaa]);
    assert_eq!((machine.get(Rcx), machine.get(Rdi)), (0, DEVICE + 1));
}

#[test]
fn strings_compare_until_they_differ() {
    let new = || Machine::long().with(Rdi, DEVICE).with(Rcx, 8).with(Rax, 0x33).device_holds(0, 0x4433_2211);
    let machine = new().run(&[0xf2, 0xae]);
    assert_eq!((machine.get(Rdi), machine.get(Rcx)), (DEVICE + 3, 5));
    assert_eq!(machine.status() & rflags::ZF, rflags::ZF);
    let machine = new().with(Rsi, 0x8000);
    machine.memory.write(GuestPhys::new(0x8000), &[0x11, 0x22, 0x55]).unwrap();
    let machine = machine.run(&[0xf3, 0xa6]);
    assert_eq!((machine.get(Rsi), machine.get(Rdi), machine.get(Rcx)), (0x8003, DEVICE + 3, 5));
    assert_eq!(machine.status() & (rflags::ZF | rflags::CF), 0, "0x55 is above 0x33");
    let machine = new().with(Rcx, 2).run(&[0xf2, 0xae]);
    assert_eq!((machine.get(Rcx), machine.status() & rflags::ZF), (0, 0));
}

#[test]
fn a_long_string_is_done_in_portions() {
    let mut machine = Machine::long().with(Rdi, 0x8000).with(Rcx, 0x1801).with(Rax, 7);
    assert_eq!(machine.try_run(&[0xf3, 0xaa]), Ok(None));
    assert_eq!((machine.get(Rcx), machine.get(Rdi)), (0x801, 0x9000));
    assert_eq!(machine.try_run(&[0xf3, 0xaa]), Ok(Some(CODE + 2)));
    assert_eq!((machine.get(Rcx), machine.get(Rdi)), (0, 0x9801));
    assert_eq!(machine.memory.read_u16(GuestPhys::new(0x9800)), Ok(7));
}

#[test]
fn a_string_that_faults_keeps_what_it_did() {
    let mut machine = Machine::long().with(Rdi, UNMAPPED - 8).with(Rcx, 4);
    machine.memory.write_u64(GuestPhys::new(0x5ff8), 0x8000 | 7).unwrap();
    assert_eq!(machine.fault(&[0xf3, 0xab]), (Event::page_fault(2), UNMAPPED));
    assert_eq!((machine.get(Rdi), machine.get(Rcx)), (UNMAPPED, 2));
}

#[test]
fn an_operand_across_pages_is_split() {
    let machine =
        Machine::long().with(Rbx, DEVICE - 3).with(Rax, 0x1122_3344_5566_7788).run(&[0x48, 0x89, 0x03]);
    assert_eq!(
        machine.device.log,
        [
            Write(0, Byte, 0x55),
            Write(1, Byte, 0x44),
            Write(2, Byte, 0x33),
            Write(3, Byte, 0x22),
            Write(4, Byte, 0x11)
        ]
    );
    assert_eq!(machine.memory.read_u16(GuestPhys::new(DEVICE - 3)), Ok(0x7788));
    let machine = machine.run(&[0x48, 0x8b, 0x0b]);
    assert_eq!(machine.get(Rcx), 0x1122_3344_5566_7788);
    // The second page faults before the first is touched.
    let mut machine = Machine::long().with(Rbx, DEVICE - 2).with(Rax, u64::MAX);
    machine.memory.write_u64(GuestPhys::new(0x5000 + (DEVICE >> 9)), 0).unwrap();
    assert_eq!(machine.fault(&[0x89, 0x03]), (Event::page_fault(2), DEVICE));
    assert_eq!(machine.memory.read_u16(GuestPhys::new(DEVICE - 2)), Ok(0));
}

#[test]
fn accesses_fault_as_on_the_cpu() {
    let mov = [0x89, 0x03];
    assert_eq!(Machine::long().with(Rbx, UNMAPPED + 5).fault(&mov), (Event::page_fault(2), UNMAPPED + 5));
    let mut user = Machine::long().with(Rbx, UNMAPPED);
    user.cpu.set_privilege_level(3);
    assert_eq!(user.fault(&[0x8b, 0x03]).0, Event::page_fault(4));
    let hole = 0x0000_7fff_ffff_fffe;
    assert_eq!(Machine::long().with(Rbx, hole).fault(&mov).0, Event::GENERAL_PROTECTION);
    assert_eq!(Machine::long().with(Rbp, hole).fault(&[0x89, 0x45, 0]).0, Event::STACK_FAULT);
    let small = |register, limit, attributes| {
        let mut machine = Machine::new(CodeSize::Bits32).with(Rbx, DEVICE + 0xffd).with(Rbp, DEVICE);
        let segment = &mut machine.cpu.segments[register as usize];
        (segment.limit, segment.attributes) = (limit, attributes);
        machine
    };
    let limit = DEVICE as u32 + 0xfff;
    assert_eq!(small(SegmentRegister::Ds, limit, 0xc93).fault(&mov).0, Event::GENERAL_PROTECTION);
    assert!(small(SegmentRegister::Ds, limit + 1, 0xc93).try_run(&[0x8b, 0x45, 0]).is_ok());
    assert_eq!(small(SegmentRegister::Ss, 0xfff, 0xc93).fault(&[0x8b, 0x45, 0]).0, Event::STACK_FAULT);
    // Expand-down: valid above the limit.
    assert!(small(SegmentRegister::Ds, 0xfff, 0xc97).try_run(&[0x66, 0x89, 0x03]).is_ok());
    assert_eq!(small(SegmentRegister::Ds, limit, 0xc97).fault(&mov).0, Event::GENERAL_PROTECTION);
    // Read-only data, code that is not readable, and a segment that is not there.
    for attributes in [0xc91, 0xc99, 0xc13] {
        assert_eq!(small(SegmentRegister::Ds, u32::MAX, attributes).fault(&mov).0, Event::GENERAL_PROTECTION);
    }
    assert_eq!(Machine::long().fault(&[0xf0, 0x89, 0x03]).0, Event::INVALID_OPCODE);
    assert_eq!(Machine::long().fault(&[0x2e; 15]).0, Event::GENERAL_PROTECTION);
}

#[test]
fn a_store_marks_its_page_dirty() {
    let machine = Machine::long().with(Rbx, DEVICE).run(&[0x89, 0x03]);
    assert_eq!(machine.memory.read_u64(GuestPhys::new(0x5000 + (DEVICE >> 9))), Ok(DEVICE | 0x67));
}

#[test]
fn other_instructions_are_refused() {
    let refused = |code: &[u8]| Machine::long().with(Rbx, DEVICE).try_run(code).unwrap_err();
    assert!(
        matches!(refused(&[0x0f, 0x11, 0x03]), EmulateError::Unsupported(code) if code.bytes()[..3] == [0x0f, 0x11, 3])
    );
    assert!(matches!(refused(&[0xd9, 0x03]), EmulateError::Unsupported(_)));
    assert_eq!(refused(&[0xff, 0xc0]), EmulateError::Changed);
    // Ports and privileged instructions only come with an exit of their own.
    for code in [&[0x6f][..], &[0xee], &[0x0f, 0x22, 0xd8], &[0x0f, 0x30], &[0xf4]] {
        assert!(matches!(refused(code), EmulateError::Unsupported(_)), "{code:x?}");
    }
}

#[test]
fn code_is_fetched_as_far_as_it_goes() {
    let mut machine = Machine::long();
    machine.memory.write_u64(GuestPhys::new(0x5000 + 0x11 * 8), 0).unwrap();
    machine.cpu.registers.rip = 0x1_0ffd;
    machine.memory.write(GuestPhys::new(0x1_0ffd), &[0x48, 0x8b, 0x80]).unwrap();
    assert_eq!(fetch(&machine.cpu, &machine.memory).unwrap().bytes(), [0x48, 0x8b, 0x80]);
    let Err(EmulateError::Fault(fault)) = fetch_instruction(&machine.cpu, &machine.memory) else { panic!() };
    assert_eq!(fault.raise(&mut machine.cpu), Event::page_fault(0));
    assert_eq!(machine.cpu.control.cr2, 0x1_1000);
    machine.memory.write_u64(GuestPhys::new(0x5000 + 0x11 * 8), 0x9007).unwrap();
    machine.memory.write(GuestPhys::new(0x9000), &[1, 2, 3, 4]).unwrap();
    assert_eq!(fetch_instruction(&machine.cpu, &machine.memory).map(|found| found.length), Ok(7));
    machine.cpu.registers.rip = DEVICE;
    let outside = EmulateError::CodeNotMemory(GuestPhys::new(DEVICE));
    assert_eq!(fetch(&machine.cpu, &machine.memory), Err(outside));
    machine.cpu.registers.rip = DEVICE - 1;
    assert_eq!(fetch(&machine.cpu, &machine.memory).unwrap().bytes(), [0]);
    machine.cpu.registers.rip = 1 << 47;
    assert!(matches!(fetch(&machine.cpu, &machine.memory), Err(EmulateError::Fault(_))));
    let mut machine = Machine::new(CodeSize::Bits32);
    machine.cpu.segments[SegmentRegister::Cs as usize].limit = CODE as u32 + 1;
    assert_eq!(fetch(&machine.cpu, &machine.memory).unwrap().bytes().len(), 2);
}

#[test]
fn next_rip_knows_the_instruction_of_an_exit() {
    let cases: [(Kind, &[u8]); 17] = [
        (Kind::Cpuid, &[0x0f, 0xa2]),
        (Kind::Rdmsr, &[0x0f, 0x32]),
        (Kind::Wrmsr, &[0x0f, 0x30]),
        (Kind::Rdtsc, &[0x0f, 0x31]),
        (Kind::Rdtscp, &[0x0f, 0x01, 0xf9]),
        (Kind::Rdpmc, &[0x0f, 0x33]),
        (Kind::Hlt, &[0xf4]),
        (Kind::Pause, &[0xf3, 0x90]),
        (Kind::Monitor, &[0x0f, 0x01, 0xc8]),
        (Kind::Mwait, &[0x0f, 0x01, 0xc9]),
        (Kind::Vmcall, &[0x0f, 0x01, 0xc1]),
        (Kind::Vmmcall, &[0x0f, 0x01, 0xd9]),
        (Kind::Xsetbv, &[0x0f, 0x01, 0xd1]),
        (Kind::Invd, &[0x0f, 0x08]),
        (Kind::Wbinvd, &[0x0f, 0x09]),
        (Kind::Clts, &[0x0f, 0x06]),
        (Kind::MovToControl, &[0x0f, 0x22, 0xd8]),
    ];
    for (kind, code) in cases {
        for size in [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64] {
            let mut machine = Machine::new(size);
            // The last place in its page too.
            for at in [CODE, LAST_PAGE - code.len() as u64].into_iter().take(if size == CodeSize::Bits16 {
                1
            } else {
                2
            }) {
                machine.cpu.registers.rip = at;
                machine.memory.write(GuestPhys::new(at), code).unwrap();
                let next = next_rip(&machine.cpu, &machine.memory, kind);
                assert_eq!(next, Ok(at + code.len() as u64), "{kind:?} in {size:?}");
                let other = if kind == Kind::Hlt { Kind::Cpuid } else { Kind::Hlt };
                assert_eq!(next_rip(&machine.cpu, &machine.memory, other), Err(EmulateError::Changed));
            }
        }
    }
    let machine = Machine::long();
    machine.memory.write(GuestPhys::new(CODE), &[0x66, 0x2e, 0x0f, 0xa2]).unwrap();
    assert_eq!(next_rip(&machine.cpu, &machine.memory, Kind::Cpuid), Ok(CODE + 4));
}

#[test]
fn ports_meet_the_accumulator_and_strings() {
    let go = |machine: &mut Machine, access: PortAccess, code: &[u8]| {
        machine.memory.write(GuestPhys::new(CODE), code).unwrap();
        port(&mut machine.cpu, &machine.memory, &mut machine.device, &access)
    };
    let mut machine = Machine::long().with(Rax, 0x1111_2222_3333_4444).with(Rsi, 0x8000).with(Rcx, 2);
    machine.memory.write(GuestPhys::new(0x8000), &[1, 2, 3, 4]).unwrap();
    let output = PortAccess { port: 0x60, width: Word, write: true, string: false };
    let input = PortAccess { write: false, ..output };
    assert_eq!(go(&mut machine, output, &[]), Ok(Progress::Done));
    assert_eq!(go(&mut machine, input, &[]), Ok(Progress::Done));
    assert_eq!(machine.get(Rax), 0x1111_2222_3333_0001);
    assert_eq!(go(&mut machine, PortAccess { width: Dword, ..input }, &[]), Ok(Progress::Done));
    assert_eq!(machine.get(Rax), 0xabcd_0002);
    let (outs, ins) = (PortAccess { string: true, ..output }, PortAccess { string: true, ..input });
    assert_eq!(go(&mut machine, outs, &[0xf3, 0x66, 0x6f]), Ok(Progress::Done));
    assert_eq!((machine.get(Rsi), machine.get(Rcx)), (0x8004, 0));
    machine = machine.with(Rdi, 0x8000).with(Rcx, 0x1000);
    assert_eq!(go(&mut machine, ins, &[0xf3, 0x66, 0x6d]), Ok(Progress::Partial));
    assert_eq!(machine.memory.read_u32(GuestPhys::new(0x8000)), Ok(0x0004_0003));
    assert_eq!((machine.get(Rdi), machine.get(Rcx)), (0x9000, 0x800));
    machine = machine.with(Rdi, UNMAPPED).with(Rcx, 1);
    machine.device.log.drain(5..);
    let Err(EmulateError::Fault(fault)) = go(&mut machine, ins, &[0x66, 0x6d]) else { panic!() };
    assert_eq!(fault.raise(&mut machine.cpu), Event::page_fault(2));
    let out = [Out(0x60, Word, 0x4444), Out(0x60, Word, 0x201), Out(0x60, Word, 0x403)];
    let log = &machine.device.log;
    assert_eq!(log[0], out[0]);
    assert_eq!(log[1..3], [In(0x60, Word), In(0x60, Dword)]);
    assert_eq!(log[3..], out[1..], "a fault comes before the port is read");
    // What is there now is another direction or width than the hardware allowed.
    for code in [&[0x66, 0x6f][..], &[0x6d], &[0x90]] {
        assert_eq!(go(&mut machine, ins, code), Err(EmulateError::Changed), "{code:x?}");
    }
}

#[test]
fn port_strings_find_their_memory_in_the_instruction() {
    let mut machine = Machine::new(CodeSize::Bits16).with(Rsi, 0xffff_0000).with(Rdi, 0x5_ffff).with(Rcx, 1);
    machine.cpu.segments[SegmentRegister::Es as usize] = Segment::real_mode(0x800, false);
    let access = PortAccess { port: 0x60, width: Byte, write: true, string: true };
    machine.memory.write(GuestPhys::new(0x8000), &[0x42]).unwrap();
    machine.memory.write(GuestPhys::new(CODE), &[0x26, 0x6e]).unwrap();
    let done = port(&mut machine.cpu, &machine.memory, &mut machine.device, &access);
    assert_eq!((done, &machine.device.log[..]), (Ok(Progress::Done), &[Out(0x60, Byte, 0x42)][..]));
    assert_eq!(machine.get(Rsi), 0xffff_0001, "16 bits of address move 16 bits of the register");
    machine.memory.write(GuestPhys::new(CODE), &[0x6c]).unwrap();
    let access = PortAccess { write: false, ..access };
    let done = port(&mut machine.cpu, &machine.memory, &mut machine.device, &access);
    assert_eq!((done, machine.get(Rdi)), (Ok(Progress::Done), 0x5_0000));
    assert_eq!(machine.memory.read_u8(GuestPhys::new(0x1_7fff)), Ok(1));
}
