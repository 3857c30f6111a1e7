//! Port access of every width, and of strings: what changes in registers and memory, across pages and faults.
#![no_std]
#![no_main]
// Unsafe because single instructions are the point.
#![allow(unsafe_code)]

use core::arch::asm;
use runtime::cpu::{self, read_port_u8, read_port_u16, read_port_u32, write_port_u8, write_port_u32};
use runtime::interrupts::catch;
use runtime::memory::{LARGE_PAGE, map, map_to, read, unmap, write};

runtime::guest!(main);

const PAGE_FAULT: u8 = 14;
/// PCI configuration: the address register, and the data of what it names.
const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// The master 8259's mask, a register of a byte.
const MASK: u16 = 0x21;
/// Where no device is.
const NOWHERE: u16 = 0x0a00;

/// Pages of memory that nothing else uses, and where they are mapped a second time.
const PAGE: u64 = 0x80_0000;
const OTHER_PAGE: u64 = PAGE + LARGE_PAGE;
const WINDOW: u64 = 0x4000_0000;

fn main(_: &runtime::Machine) {
    nothing_there();
    widths();
    let identity = identity();
    strings(identity);
    across_pages(identity);
    faults(identity);
    long_string(identity);
    out_strings();
}

fn nothing_there() {
    let found = (read_port_u8(NOWHERE), read_port_u16(NOWHERE), read_port_u32(NOWHERE));
    assert_eq!(found, (0xff, 0xffff, 0xffff_ffff), "what no device answers");
    write_port_u8(NOWHERE, 0);
    write_port_u32(NOWHERE, 0);
    assert_eq!(read_port_u8(NOWHERE), 0xff, "after a write");
}

/// The host bridge's vendor and device: a dword at the data port that stays the same.
fn identity() -> u32 {
    write_port_u32(ADDRESS, 0x8000_0000);
    assert_eq!(read_port_u32(ADDRESS), 0x8000_0000, "PCI configuration address");
    let identity = read_port_u32(DATA);
    assert_ne!(identity, u32::MAX, "PCI identity of the host bridge");
    identity
}

fn widths() {
    let identity = identity();
    for offset in 0..4_u16 {
        assert_eq!(read_port_u8(DATA + offset), (identity >> (8 * offset)) as u8, "byte {offset}");
    }
    for offset in [0, 2] {
        let found = read_port_u16(DATA + offset);
        assert_eq!(found, (identity >> (8 * offset)) as u16, "word at {offset}");
    }
    // A byte and a word leave the rest of RAX alone, a dword clears its upper half.
    let before = 0x1122_3344_5566_7788_u64;
    let (mut byte, mut word, mut dword) = (before, before, before);
    // SAFETY: reads PCI configuration.
    unsafe {
        asm!("in al, dx", in("dx") DATA, inout("rax") byte);
        asm!("in ax, dx", in("dx") DATA, inout("rax") word);
        asm!("in eax, dx", in("dx") DATA, inout("rax") dword);
    }
    assert_eq!(byte, before & !0xff | u64::from(identity as u8), "RAX after IN AL");
    assert_eq!(word, before & !0xffff | u64::from(identity as u16), "RAX after IN AX");
    assert_eq!(dword, identity.into(), "RAX after IN EAX");
    // The port as an immediate; 66 and REX prefixes.
    let (immediate, prefixed): (u64, u64);
    write_port_u8(MASK, 0xa5);
    // SAFETY: reads the mask, twice; then as before.
    unsafe {
        asm!("in al, 0x21", inout("rax") 0_u64 => immediate);
        asm!(".byte 0x66, 0x48, 0xed", in("dx") DATA, inout("rax") 0_u64 => prefixed);
        asm!("out 0x21, al", in("al") 0xff_u8);
    }
    assert_eq!(immediate, 0xa5, "IN AL, 21h");
    assert_eq!(prefixed, identity.into(), "IN with a REX.W prefix, which counts over 66: 32 bits");
    assert_eq!(read_port_u8(MASK), 0xff, "OUT 21h, AL");
}

/// Runs a string instruction on (RCX, RSI, RDI, RDX = port), and gives RCX, RSI and RDI after it.
macro_rules! string {
    ($instruction:literal, $count:expr, $pointer:expr, $port:expr) => {{
        let (mut count, mut source, mut destination) = ($count as u64, $pointer as u64, $pointer as u64);
        // SAFETY: the pointer is to memory of the test's; faults are caught.
        unsafe {
            asm!($instruction, inout("rcx") count, inout("rsi") source, inout("rdi") destination,
                in("edx") u32::from($port));
        }
        (count, source, destination)
    }};
}

fn strings(identity: u32) {
    let clear = || (0..8).for_each(|word| write(PAGE + word * 8, 0x7777_7777_7777_7777_u64));
    let bytes = identity.to_le_bytes();
    clear();
    assert_eq!(string!("insb", 9, PAGE, DATA), (9, PAGE, PAGE + 1), "INSB");
    assert_eq!(read::<[u8; 2]>(PAGE), [bytes[0], 0x77], "INSB");
    assert_eq!(string!("rep insw", 3, PAGE + 1, DATA), (0, PAGE + 1, PAGE + 7), "REP INSW");
    let [low, high, ..] = bytes;
    assert_eq!(read::<[u8; 8]>(PAGE), [low, low, high, low, high, low, high, 0x77], "REP INSW");
    clear();
    assert_eq!(string!("rep insd", 2, PAGE, DATA), (0, PAGE, PAGE + 8), "REP INSD");
    assert_eq!(read::<[u32; 3]>(PAGE), [identity, identity, 0x7777_7777], "REP INSD");
    clear();
    let down = string!("std; rep insw; cld", 2, PAGE + 8, DATA);
    assert_eq!(down, (0, PAGE + 8, PAGE + 4), "REP INSW with the direction flag");
    let word = identity as u16;
    assert_eq!(read::<[u16; 6]>(PAGE), [0x7777, 0x7777, 0x7777, word, word, 0x7777], "and what it stored");
    clear();
    let none = string!("rep insb", 0, PAGE, DATA);
    assert_eq!((none, read::<u8>(PAGE)), ((0, PAGE, PAGE), 0x77), "REP INSB of nothing");
    // With 32-bit addresses the upper halves count for nothing, and end as zero.
    let garbage = 0xdead_beef_0000_0000_u64;
    let narrow = string!("addr32 rep insb", garbage | 2, garbage | PAGE, DATA);
    assert_eq!((narrow.0, narrow.2), (0, PAGE + 2), "REP INSB with 32-bit addresses");
    assert_eq!(read::<[u8; 3]>(PAGE), [bytes[0], bytes[0], 0x77], "and what it stored");
    clear();
}

/// Neighbours in linear memory that are none in physical memory.
fn across_pages(identity: u32) {
    map_to(WINDOW, OTHER_PAGE);
    map_to(WINDOW + LARGE_PAGE, PAGE);
    let middle = WINDOW + LARGE_PAGE;
    write(OTHER_PAGE + LARGE_PAGE - 8, 0_u64);
    write(PAGE, 0_u64);
    // The second dword lies half on each page.
    assert_eq!(
        string!("rep insd", 3, middle - 6, DATA),
        (0, middle - 6, middle + 6),
        "REP INSD across pages"
    );
    let all: [u8; 16] = read(middle - 8);
    let id = identity.to_le_bytes();
    assert_eq!(all[..2], [0; 2], "before");
    assert_eq!([&all[2..6], &all[6..10], &all[10..14]], [id, id, id], "what it stored");
    assert_eq!(all[14..], [0; 2], "behind");
    assert_eq!(read::<u64>(OTHER_PAGE + LARGE_PAGE - 8).to_le_bytes(), all[..8], "the first page");
    assert_eq!(read::<u64>(PAGE).to_le_bytes(), all[8..], "the second page");
    map(WINDOW);
    map(WINDOW + LARGE_PAGE);
}

/// A fault on the way leaves registers that say how far it came, and nothing is read from the port for nothing.
fn faults(identity: u32) {
    unmap(OTHER_PAGE);
    write(OTHER_PAGE - 8, 0_u64);
    let fault = catch(|| _ = string!("rep insd", 5, OTHER_PAGE - 8, DATA)).expect("a page fault");
    assert_eq!((fault.vector, fault.error_code, fault.cr2), (PAGE_FAULT, 0b10, OTHER_PAGE), "REP INSD");
    assert_eq!([fault.string[0], fault.string[2]], [3, OTHER_PAGE], "RCX and RDI");
    assert_eq!(read::<[u32; 2]>(OTHER_PAGE - 8), [identity; 2], "what it stored before");
    let fault = catch(|| _ = string!("rep outsb", 5, OTHER_PAGE - 2, 0x80_u16)).expect("a page fault");
    assert_eq!((fault.vector, fault.error_code, fault.cr2), (PAGE_FAULT, 0, OTHER_PAGE), "REP OUTSB");
    assert_eq!(fault.string[..2], [3, OTHER_PAGE], "RCX and RSI");
    map(OTHER_PAGE);
}

/// Longer than the monitor does at once.
fn long_string(identity: u32) {
    const COUNT: u64 = 0x3000;
    assert_eq!(string!("rep insd", COUNT, PAGE + 2, DATA).0, 0, "RCX after a long REP INSD");
    for at in (0..COUNT).map(|index| PAGE + 2 + index * 4) {
        assert_eq!(read::<u32>(at), identity, "what a long REP INSD stored at {at:#x}");
    }
    assert_eq!(read::<u16>(PAGE + 2 + COUNT * 4), 0, "behind it");
}

fn out_strings() {
    write(PAGE, 0x0403_0201_u32);
    assert_eq!(string!("rep outsb", 3, PAGE, MASK), (0, PAGE + 3, PAGE), "REP OUTSB");
    assert_eq!(read_port_u8(MASK), 3, "the last byte of REP OUTSB");
    assert_eq!(string!("std; rep outsb; cld", 2, PAGE + 3, MASK), (0, PAGE + 1, PAGE + 3), "down");
    assert_eq!(read_port_u8(MASK), 3, "the last byte of REP OUTSB, down");
    // OUTS reads where a segment prefix says.
    const FS_BASE: u32 = 0xc000_0100;
    cpu::write_msr(FS_BASE, PAGE);
    let moved = string!("rep outs dx, byte ptr fs:[rsi]", 2, 0, MASK);
    assert_eq!((moved.1, read_port_u8(MASK)), (2, 2), "REP OUTSB from FS");
    write(PAGE, 0x8000_0000_u32);
    write_port_u32(ADDRESS, 0);
    assert_eq!(string!("outsd", 1, PAGE, ADDRESS), (1, PAGE + 4, PAGE), "OUTSD");
    assert_eq!(read_port_u32(ADDRESS), 0x8000_0000, "what OUTSD wrote");
    write_port_u8(MASK, 0xff);
}
