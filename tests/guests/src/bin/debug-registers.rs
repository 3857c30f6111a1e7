//! Debug registers: breakpoints on code, data and nothing else, single steps over what the CPU does and what
//! the monitor does, and the guard of the registers themselves.
#![no_std]
#![no_main]
// Unsafe because the order of single instructions is the point.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::interrupts::{Frame, count, flag, handle};
use runtime::{cpu, memory, println};

runtime::guest!(main);

const DEBUG: u8 = 1;
/// DR6: what it was, beside breakpoints 0 to 3 in the low bits.
const ACCESS: u64 = 1 << 13;
const STEP: u64 = 1 << 14;
const NO_CAUSE: u64 = 0xffff_0ff0;
/// DR7: bits always one; local enables; length and kind of the first breakpoint.
const DR7_FIXED: u64 = 1 << 10;
const ENABLE_0: u64 = 1 << 0;
const GUARD: u64 = 1 << 13;
const WRITES: u64 = 0b01 << 16;
const ACCESSES: u64 = 0b11 << 16;
const FOUR_BYTES: u64 = 0b11 << 18;

static CAUSES: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
/// Where the last instructions of a stepped run were.
static TRAIL: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

fn main(_: &runtime::Machine) {
    handle(DEBUG, on_debug);
    values();
    code_breakpoint();
    data_breakpoints();
    steps();
    if cpu::is_tcg() {
        println!("debug-registers: QEMU's CPUs have no guard");
    } else {
        guard();
    }
}

fn on_debug(frame: &mut Frame) {
    CAUSES.fetch_or(cpu::dr6(), Relaxed);
    RIP.store(frame.rip, Relaxed);
    let step = STEPS.fetch_add(1, Relaxed);
    if let Some(slot) = TRAIL.get(step as usize) {
        slot.store(frame.rip, Relaxed);
    }
    // The breakpoint on the instruction itself would come again.
    frame.rflags |= flag::RF;
    cpu::set_dr6(NO_CAUSE);
}

/// Runs `work` and gives how many debug exceptions came, and their causes.
fn during(work: impl FnOnce()) -> (u64, u64) {
    CAUSES.store(0, Relaxed);
    STEPS.store(0, Relaxed);
    let before = count(DEBUG);
    work();
    (count(DEBUG) - before, CAUSES.load(Relaxed) & !NO_CAUSE)
}

/// They keep what is written, whatever exits come between.
fn values() {
    let addresses = [0x1234, 0x5678_9abc, 0xffff_8000_0000_0000, 0x7fff_ffff_ffff];
    cpu::set_dr0(addresses[0]);
    cpu::set_dr1(addresses[1]);
    cpu::set_dr2(addresses[2]);
    cpu::set_dr3(addresses[3]);
    for _ in 0..100 {
        cpu::cpuid(0, 0);
        cpu::write_port_u8(0x80, 0);
    }
    assert_eq!([cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3()], addresses, "DR0 to DR3");
    assert_eq!(cpu::dr7(), DR7_FIXED, "DR7");
    cpu::set_dr6(NO_CAUSE | 0xf);
    cpu::cpuid(0, 0);
    assert_eq!(cpu::dr6(), NO_CAUSE | 0xf, "DR6");
    cpu::set_dr6(NO_CAUSE);
}

fn code_breakpoint() {
    #[inline(never)]
    fn target() {
        core::hint::black_box(1);
    }
    let address = target as *const () as u64;
    cpu::set_dr0(address);
    cpu::set_dr7(DR7_FIXED | ENABLE_0);
    let (came, causes) = during(|| core::hint::black_box(target)());
    cpu::set_dr7(DR7_FIXED);
    assert_eq!((came, causes), (1, 1), "debug exceptions and causes at a breakpoint on code");
    assert_eq!(RIP.load(Relaxed), address, "where it came: before the instruction");
    assert_eq!(during(|| core::hint::black_box(target)()), (0, 0), "with the breakpoint off");
}

fn data_breakpoints() {
    let word = 7_u32;
    let address = &raw const word as u64;
    cpu::set_dr0(address);
    cpu::set_dr7(DR7_FIXED | ENABLE_0 | WRITES | FOUR_BYTES);
    let (came, causes) = during(|| memory::write(address, 8_u32));
    let (reads, _) = during(|| {
        memory::read::<u32>(address);
    });
    cpu::set_dr7(DR7_FIXED | ENABLE_0 | ACCESSES | FOUR_BYTES);
    let (accesses, _) = during(|| {
        memory::read::<u8>(address + 3);
    });
    cpu::set_dr7(DR7_FIXED);
    assert_eq!((came, causes), (1, 1), "debug exceptions and causes of a write");
    assert_eq!(reads, 0, "debug exceptions of a read, with a breakpoint on writes");
    assert_eq!(accesses, 1, "debug exceptions of a read of the last byte, with a breakpoint on accesses");
}

/// Steps through instructions with the trap flag; gives how many traps came, and their causes.
macro_rules! step {
    ($($code:literal),*) => {{
        let (came, causes) = during(|| {
            let end: u64;
            // SAFETY: the code changes what it names.
            unsafe {
                asm!(
                    "lea r8, [rip + 3f]",
                    "pushfq",
                    "or qword ptr [rsp], 0x100",
                    "popfq",
                    $($code,)*
                    "3: pushfq",
                    "and qword ptr [rsp], -257",
                    "popfq",
                    out("r8") end, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
                    out("r10") _, out("r11") _,
                );
            }
            END.store(end, Relaxed);
        });
        (came, causes)
    }};
}

/// Where the stepped code ended.
static END: AtomicU64 = AtomicU64::new(0);

/// The traps in the code of each kind: one an instruction, with RIP behind it, and three for the way out.
fn steps() {
    let check = |what: &str, (came, causes): (u64, u64), instructions: u64| {
        assert_eq!(causes, STEP, "{what}: causes");
        assert_eq!(came, instructions + 3, "{what}: traps");
        let last = TRAIL[instructions as usize - 1].load(Relaxed);
        assert_eq!(last, END.load(Relaxed), "{what}: where the trap after it came");
    };
    check("NOP", step!("nop", "nop"), 2);
    check("CPUID", step!("push rbx", "xor eax, eax", "cpuid", "pop rbx"), 4);
    check("RDMSR", step!("mov ecx, 0x1b", "rdmsr"), 2);
    check("WRMSR", step!("mov ecx, 0x1b", "rdmsr", "wrmsr"), 3);
    check("IN", step!("in al, 0x21"), 1);
    check("OUT", step!("out 0x80, al"), 1);
    check("MOV from a device", step!("mov r10, 0xfee00030", "mov r11d, [r10]"), 2);
    check("MOV to a device", step!("mov r10, 0xfec00000", "mov [r10], r11d"), 2);
    check("RDTSC", step!("rdtsc"), 1);
    check("WBINVD", step!("wbinvd"), 1);
    // A repeated instruction traps after each round.
    if !cpu::is_bare_tcg() {
        check("REP OUTS", step!("lea rsi, [rsp]", "mov ecx, 3", "mov edx, 0x80", "rep outsb"), 6);
        check(
            "REP MOVS from a device",
            step!("mov rsi, 0xfec00000", "lea rdi, [rsp - 64]", "mov ecx, 3", "cld", "rep movsd"),
            7,
        );
    }
}

/// DR7.GD has any access to a debug register fault, and is off in the handler.
fn guard() {
    cpu::set_dr7(DR7_FIXED | GUARD);
    handle(DEBUG, |frame| {
        CAUSES.store(cpu::dr6(), Relaxed);
        RIP.store(cpu::dr7(), Relaxed);
        // MOV from DR0 to a register: three bytes.
        frame.rip += 3;
        cpu::set_dr6(NO_CAUSE);
    });
    let before = count(DEBUG);
    // SAFETY: it faults.
    unsafe { asm!("mov rax, dr0", out("rax") _) }
    assert_eq!(count(DEBUG), before + 1, "debug exceptions at a guarded register");
    assert_eq!(CAUSES.load(Relaxed) & !NO_CAUSE, ACCESS, "their cause");
    assert_eq!(RIP.load(Relaxed), DR7_FIXED, "DR7 in the handler");
}
