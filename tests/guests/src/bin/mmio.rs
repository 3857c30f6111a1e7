//! Devices in memory answer every instruction that compilers and people use on them: all widths, arithmetic,
//! exchanges, strings, and what lies half in memory.
#![no_std]
#![no_main]
// Unsafe because single instructions are the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::interrupts::catch;
use runtime::memory::{image_end, map, read, write};
use runtime::{apic, cpu, io_apic};

runtime::guest!(main);

/// Memory-mapped PCI configuration space: the host bridge's comes first.
const CONFIGURATION: u64 = 0xb000_0000;
/// The IOAPIC's index, a register of 8 bits that keeps what is written.
const INDEX: u64 = io_apic::BASE;
/// A page of memory that nothing else uses.
const PAGE: u64 = 0x80_0000;
/// Arithmetic flags: CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;
const CARRY: u64 = 1 << 0;
const ZERO: u64 = 1 << 6;

fn main(machine: &runtime::Machine) {
    reads();
    addresses();
    arithmetic();
    exchanges();
    bits();
    strings();
    half_in_memory(machine);
}

/// An instruction that reads the device at RSI into RAX, which held all ones but in one byte.
macro_rules! load {
    ($instruction:literal, $address:expr) => {{
        let mut value = 0xfedc_ba98_7654_3210_u64;
        // SAFETY: reads a device.
        unsafe { asm!($instruction, in("rsi") $address, inout("rax") value, out("rcx") _, out("rdx") _) }
        value
    }};
}

/// An instruction on the device at RDI with RAX and RCX; gives RAX and the arithmetic flags.
macro_rules! change {
    ($instruction:literal, $address:expr, $accumulator:expr, $count:expr) => {{
        let (mut value, flags): (u64, u64) = ($accumulator, 0);
        let mut flags = flags;
        // SAFETY: changes a device's register that changes nothing else.
        unsafe {
            asm!("push {flags}", "popfq", $instruction, "pushfq", "pop {flags}", flags = inout(reg) flags,
                in("rdi") $address, inout("rax") value, inout("rcx") $count => _, out("rdx") _, out("r8") _);
        }
        (value, flags & STATUS)
    }};
}

fn reads() {
    cpu::write_port_u32(0xcf8, 0x8000_0000);
    let low = u64::from(cpu::read_port_u32(0xcfc));
    cpu::write_port_u32(0xcf8, 0x8000_0004);
    let all = u64::from(cpu::read_port_u32(0xcfc)) << 32 | low;
    const OLD: u64 = 0xfedc_ba98_7654_3210;
    let at = CONFIGURATION;
    assert_eq!(load!("mov al, [rsi]", at), OLD & !0xff | all & 0xff, "MOV AL");
    assert_eq!(load!("mov ah, [rsi]", at), OLD & !0xff00 | (all & 0xff) << 8, "MOV AH");
    assert_eq!(load!("mov ax, [rsi]", at), OLD & !0xffff | all & 0xffff, "MOV AX");
    assert_eq!(load!("mov eax, [rsi]", at), low, "MOV EAX");
    assert_eq!(load!("mov rax, [rsi]", at), all, "MOV RAX");
    assert_eq!(load!("movzx eax, byte ptr [rsi + 1]", at), all >> 8 & 0xff, "MOVZX from a byte");
    assert_eq!(load!("movzx rax, word ptr [rsi + 2]", at), all >> 16 & 0xffff, "MOVZX from a word");
    assert_eq!(load!("movsx rax, byte ptr [rsi]", at), all as i8 as u64, "MOVSX from a byte");
    assert_eq!(load!("movsx eax, word ptr [rsi]", at), u64::from(all as i16 as u32), "MOVSX from a word");
    assert_eq!(load!("movsxd rax, dword ptr [rsi]", at), all as i32 as u64, "MOVSXD");
    assert_eq!(load!("mov eax, [rsi + 3]", at), all >> 24 & 0xffff_ffff, "an unaligned MOV");
    assert_eq!(load!("movabs eax, [0xb0000000]", at), low, "MOV from an absolute address");
    assert_eq!(load!("xor eax, eax; add rax, [rsi]", at), all, "ADD from a device");
    assert_eq!(load!("mov rax, -1; and eax, [rsi]", at), low, "AND from a device");
    assert_eq!(load!("xor eax, eax; or ax, [rsi]", at), low & 0xffff, "OR from a device");
    assert_eq!(load!("mov eax, [rsi]; sub eax, [rsi]", at), 0, "SUB of itself");
    assert_eq!(load!("mov eax, [rsi]; xor eax, [rsi]", at), 0, "XOR of itself");
    assert_eq!(load!("mov eax, [rsi]; cmp eax, [rsi]; sete al; movzx eax, al", at), 1, "CMP with itself");
    assert_eq!(load!("cmp dword ptr [rsi], 0; setne al; movzx eax, al", at), 1, "CMP with a constant");
    assert_eq!(load!("test byte ptr [rsi], 0; sete al; movzx eax, al", at), 1, "TEST with zero");
    assert_eq!(
        load!("mov eax, 1; test [rsi], eax; setnz al; movzx eax, al", at),
        all & 1,
        "TEST with a register"
    );
    assert_eq!(load!("clc; sbb eax, eax; adc eax, [rsi]", at), low, "ADC");
    // Bare TCG answers with zeros.
    if !cpu::is_bare_tcg() {
        assert_eq!(load!("mov rax, [rsi]", 0xa000_0000_u64), u64::MAX, "what nobody answers");
    }
}

/// Every way to say where.
fn addresses() {
    let version = io_apic::read(1).into();
    let local: u64 = apic::read(apic::register::VERSION).into();
    let at = apic::BASE;
    assert_eq!(load!("mov eax, [rsi + 0x30]", at), local, "a short displacement");
    assert_eq!(load!("mov eax, [rsi - 0x100]", at + 0x130), local, "a long displacement");
    assert_eq!(load!("mov ecx, 6; mov eax, [rsi + rcx * 8]", at), local, "a scaled index");
    assert_eq!(
        load!("mov rcx, rsi; mov eax, [rcx + rcx - 0x1000]", (at + 0x1030) / 2),
        local,
        "twice a base"
    );
    assert_eq!(load!("mov ecx, 0x3fb8000c; mov eax, [rcx * 4]", at), local, "an index without base");
    assert_eq!(load!("mov eax, [esi + 0x30]", at | 1 << 40), local, "a 32-bit address");
    cpu::write_msr(0xc000_0101, at);
    assert_eq!(load!("mov eax, gs:[0x30]", at), local, "GS");
    assert_eq!(load!("push rbp; mov rbp, rsi; mov eax, [rbp + 0x10]; pop rbp", INDEX), version, "RBP");
    assert_eq!(load!("push r13; mov r13, rsi; mov eax, [r13 + 0x10]; pop r13", INDEX), version, "R13");
    assert_eq!(load!("push r12; mov r12, rsi; mov eax, [r12 + 0x10]; pop r12", INDEX), version, "R12");
}

fn index() -> u64 {
    read::<u32>(INDEX).into()
}

fn arithmetic() {
    write(INDEX, 0_u32);
    assert_eq!(change!("mov dword ptr [rdi], 0x21", INDEX, 0, 0).0, 0, "MOV of a constant");
    assert_eq!(index(), 0x21, "MOV of a constant");
    // AF is left out: after AND, OR and XOR it may be either.
    const PARITY: u64 = 1 << 2;
    const SIGN: u64 = 1 << 7;
    for (what, (_, flags), found, value, expected) in [
        ("ADD", change!("add dword ptr [rdi], 0x11", INDEX, 0, 0), index(), 0x32, 0),
        ("ADD of a register", change!("add [rdi], eax", INDEX, 0x0c, 0), index(), 0x3e, 0),
        ("SUB", change!("sub dword ptr [rdi], 0x3e", INDEX, 0, 0), index(), 0, ZERO | PARITY),
        ("OR", change!("or dword ptr [rdi], 0x55", INDEX, 0, 0), index(), 0x55, PARITY),
        ("AND", change!("and dword ptr [rdi], 0x0f", INDEX, 0, 0), index(), 5, PARITY),
        ("XOR", change!("xor dword ptr [rdi], 0x05", INDEX, 0, 0), index(), 0, ZERO | PARITY),
        ("INC", change!("inc dword ptr [rdi]", INDEX, 0, 0), index(), 1, 0),
        ("DEC", change!("dec dword ptr [rdi]", INDEX, 0, 0), index(), 0, ZERO | PARITY),
        ("ADC", change!("stc; adc dword ptr [rdi], 0x10", INDEX, 0, 0), index(), 0x11, PARITY),
        ("SBB", change!("stc; sbb dword ptr [rdi], 1", INDEX, 0, 0), index(), 0x0f, PARITY),
        ("LOCK ADD", change!("lock add dword ptr [rdi], 1", INDEX, 0, 0), index(), 0x10, 0),
        ("LOCK AND", change!("lock and dword ptr [rdi], eax", INDEX, 0xf0, 0), index(), 0x10, 0),
        ("CMP", change!("cmp dword ptr [rdi], 0x11", INDEX, 0, 0), index(), 0x10, CARRY | PARITY | SIGN),
        ("NEG", change!("neg dword ptr [rdi]", INDEX, 0, 0), index(), 0xf0, CARRY | PARITY | SIGN),
        ("NOT", change!("not dword ptr [rdi]", INDEX, 0, 0), index(), 0x0f, 0),
        ("SUB of a register", change!("sub [rdi], ecx", INDEX, 0, 0x0f_u64), index(), 0, ZERO | PARITY),
    ] {
        assert_eq!((found, flags & !0x10), (value, expected), "{what}: value and flags");
    }
}

fn exchanges() {
    write(INDEX, 0x12_u32);
    assert_eq!(change!("xchg [rdi], eax", INDEX, 0x34, 0).0, 0x12, "XCHG: the old value");
    assert_eq!(index(), 0x34, "XCHG: the new value");
    assert_eq!(change!("lock xadd [rdi], eax", INDEX, 3, 0).0, 0x34, "XADD: the old value");
    assert_eq!(index(), 0x37, "XADD: the sum");
    let (found, flags) = change!("lock cmpxchg [rdi], ecx", INDEX, 0x11, 0x22_u64);
    assert_eq!((found, flags & ZERO, index()), (0x37, 0, 0x37), "CMPXCHG of another value");
    let (_, flags) = change!("lock cmpxchg [rdi], ecx", INDEX, 0x37, 0x22_u64);
    assert_eq!((flags & ZERO, index()), (ZERO, 0x22), "CMPXCHG of the value");
}

fn bits() {
    write(INDEX, 0x22_u32);
    let carry = |(_, flags): (u64, u64)| flags & CARRY;
    assert_eq!(carry(change!("bt dword ptr [rdi], 5", INDEX, 0, 0)), 1, "BT");
    assert_eq!(carry(change!("bts dword ptr [rdi], 6", INDEX, 0, 0)), 0, "BTS");
    assert_eq!(index(), 0x62, "after BTS");
    assert_eq!(carry(change!("lock btr dword ptr [rdi], 1", INDEX, 0, 0)), 1, "BTR");
    assert_eq!(index(), 0x60, "after BTR");
    assert_eq!(carry(change!("btc dword ptr [rdi], ecx", INDEX, 0, 5_u64)), 1, "BTC");
    assert_eq!(index(), 0x40, "after BTC");
}

fn strings() {
    let all: u64 = read(CONFIGURATION);
    let (low, word) = (all as u32, all as u16);
    let run = |(count, source, destination): (u64, u64, u64), code: fn(&mut [u64; 4])| {
        let mut registers = [count, source, destination, 0x5a5a_5a5a];
        code(&mut registers);
        registers
    };
    macro_rules! code {
        ($instruction:literal) => {
            |registers: &mut [u64; 4]| {
                let [count, source, destination, accumulator] = registers;
                // SAFETY: between a device that does not mind and memory of the test's.
                unsafe {
                    asm!(
                        $instruction,
                        inout("rcx") * count,
                        inout("rsi") * source,
                        inout("rdi") * destination,
                        inout("rax") * accumulator
                    );
                }
            }
        };
    }
    write(PAGE, 0_u64);
    write(PAGE + 8, 0_u64);
    let moved = run((2, CONFIGURATION, PAGE + 2), code!("rep movsd"));
    assert_eq!(moved[..3], [0, CONFIGURATION + 8, PAGE + 10], "REP MOVSD from a device");
    assert_eq!(read::<u64>(PAGE + 2), all, "what it copied");
    let moved = run((1, CONFIGURATION + 1, PAGE), code!("movsb"));
    assert_eq!(moved[..3], [1, CONFIGURATION + 2, PAGE + 1], "MOVSB from a device");
    assert_eq!(read::<u8>(PAGE), (all >> 8) as u8, "what it copied");
    let moved = run((1, CONFIGURATION, PAGE), code!("std; movsq; cld"));
    assert_eq!(moved[1..3], [CONFIGURATION - 8, PAGE - 8], "MOVSQ down from a device");
    assert_eq!(read::<u64>(PAGE), all, "what it copied");
    write(PAGE, 0x44_u32);
    run((1, PAGE, INDEX), code!("movsd"));
    assert_eq!(index(), 0x44, "MOVSD to a device");
    run((1, 0, INDEX), code!("rep stosd"));
    assert_eq!(index(), 0x5a, "REP STOSD to a device");
    assert_eq!(run((1, CONFIGURATION, 0), code!("lodsd"))[3], low.into(), "LODSD from a device");
    let loaded = run((1, CONFIGURATION, 0), code!("lodsw"))[3];
    assert_eq!(loaded, 0x5a5a_0000 | u64::from(word), "LODSW from a device");
    let scanned = run((8, 0, CONFIGURATION), code!("repne scasb"));
    let found = all.to_le_bytes().iter().position(|byte| *byte == 0x5a).map_or(8, |at| at as u64 + 1);
    assert_eq!((8 - scanned[0], scanned[2]), (found, CONFIGURATION + found), "REPNE SCASB of a device");
    write(PAGE, all ^ 1 << 40);
    let compared = run((8, CONFIGURATION, PAGE), code!("repe cmpsb"));
    assert_eq!(compared[..3], [2, CONFIGURATION + 6, PAGE + 6], "REPE CMPSB of a device and memory");
    // From one device to another.
    run((1, io_apic::BASE, INDEX), code!("movsd"));
    // A long copy is done in portions.
    let moved = run((1024, CONFIGURATION, PAGE), code!("rep movsq"));
    assert_eq!(moved[..3], [0, CONFIGURATION + 0x2000, PAGE + 0x2000], "a long REP MOVSQ from a device");
    assert_eq!(read::<u64>(PAGE), all, "its first");
    // A fault in the middle counts what was done.
    runtime::memory::unmap(PAGE + runtime::memory::LARGE_PAGE);
    let end = PAGE + runtime::memory::LARGE_PAGE;
    let fault = catch(|| _ = run((4, CONFIGURATION, end - 8), code!("rep movsd")));
    let fault = fault.expect("a page fault");
    assert_eq!((fault.vector, fault.error_code, fault.cr2), (14, 0b10, end), "REP MOVSD into an absent page");
    assert_eq!(fault.string, [2, CONFIGURATION + 8, end], "RCX, RSI and RDI");
    map(end);
}

/// Across the end of memory: each half is where it belongs.
fn half_in_memory(machine: &runtime::Machine) {
    let end = machine.memory().map(|range| range.end).filter(|end| *end <= CONFIGURATION).max();
    let end = end.unwrap_or(0).max(image_end());
    map(end);
    write(end - 4, 0x1122_3344_u32);
    let nothing = u64::from(read::<u32>(end));
    assert_eq!(read::<u64>(end - 4), nothing << 32 | 0x1122_3344, "a read across the end of memory");
    write(end - 4, 0x5566_7788_99aa_bbcc_u64);
    assert_eq!(read::<u32>(end - 4), 0x99aa_bbcc, "a write across the end of memory");
    assert_eq!(u64::from(read::<u32>(end)), nothing, "behind it");
}
