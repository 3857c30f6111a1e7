//! What is said when the CPU finds fault with us: registers, and who called whom.
//!
//! `scripts/symbolize` turns the addresses into functions and lines.
// Unsafe because a backtrace reads the stack as raw memory.
#![allow(unsafe_code)]

use super::apic;
use super::cpu::{self, Features};
use super::interrupts::Interrupted;
use crate::{error, log};
use core::arch::asm;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many callers a backtrace names.
const DEPTH: usize = 32;
/// Vectors that are no fault of the code they interrupt.
const DEBUG: u8 = 1;
const NMI: u8 = 2;
const MACHINE_CHECK: u8 = 18;
/// IA32_MCG_CAP, IA32_MCG_STATUS, and the first bank's IA32_MC0_STATUS (SDM 3B, 16.3).
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MC0_STATUS: u32 = 0x401;

/// The exceptions' names (SDM 3, table 6-1).
const NAMES: [&str; 32] = [
    "#DE divide error",
    "#DB debug",
    "NMI",
    "#BP breakpoint",
    "#OF overflow",
    "#BR bound range",
    "#UD invalid opcode",
    "#NM device not available",
    "#DF double fault",
    "coprocessor overrun",
    "#TS invalid TSS",
    "#NP segment not present",
    "#SS stack fault",
    "#GP general protection",
    "#PF page fault",
    "reserved",
    "#MF x87 error",
    "#AC alignment",
    "#MC machine check",
    "#XM vector arithmetic",
    "#VE virtualization",
    "#CP control protection",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "reserved",
    "#HV hypervisor injection",
    "#VC VMM communication",
    "#SX security",
    "reserved",
];

/// How long the other CPUs are given to stop, in ticks of the TSC.
const PATIENCE: u64 = 1 << 29;

/// The [`cpu::identity`] of the CPU that failed; zero while all is well.
static FAILED: AtomicUsize = AtomicUsize::new(0);
/// Set once no other CPU runs any more.
static ALONE: AtomicBool = AtomicBool::new(false);
/// How many CPUs have stopped.
static STOPPED: AtomicUsize = AtomicUsize::new(0);

/// Whether this CPU failed and the others have stopped for good: nobody is left to wait for.
pub fn alone() -> bool {
    ALONE.load(Ordering::Relaxed) && FAILED.load(Ordering::Relaxed) == cpu::identity()
}

/// Makes this CPU the one that reports its failure, and stops the others. False where it is at that already;
/// does not return where another is.
fn fail() -> bool {
    let me = cpu::identity();
    match FAILED.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            let others = cpu::running().iter().filter(|cpu| cpu.number() != cpu::this().number());
            let count = others.map(|cpu| apic::local::interrupt_unmaskably(cpu.apic_id())).count();
            let start = cpu::tsc();
            while STOPPED.load(Ordering::Relaxed) < count && cpu::tsc() - start < PATIENCE {
                core::hint::spin_loop();
            }
            ALONE.store(true, Ordering::Relaxed);
            true
        }
        Err(first) if first == me => false,
        Err(_) => stop(),
    }
}

/// Stops this CPU for ever, since another failed.
fn stop() -> ! {
    STOPPED.fetch_add(1, Ordering::Relaxed);
    cpu::halt()
}

/// Reports exception `vector`. Returns from an NMI and from a guest's trap only: nothing else of ours can go on.
pub fn report(vector: u8, at: &Interrupted) {
    // First, since this CPU may still hold the guest's GS.
    if vector == DEBUG && take_guests_trap() {
        return;
    }
    let name = NAMES[usize::from(vector) % NAMES.len()];
    if vector == NMI {
        return report_nmi(at);
    }
    if vector == MACHINE_CHECK {
        report_machine_check("");
    }
    if !fail() {
        error!("{name} at {:#x} while reporting a failure", at.rip);
        cpu::halt();
    }
    error!("{name} (vector {vector}), error code {:#x}, on CPU {}", at.error_code, cpu::this().number());
    error!("rip {:#018x}  rflags {:#x}  cs {:#x}  ss {:#x}", at.rip, at.rflags, at.cs, at.ss);
    error!("rax {:#018x}  rbx {:#018x}  rcx {:#018x}  rdx {:#018x}", at.rax, at.rbx, at.rcx, at.rdx);
    error!("rsi {:#018x}  rdi {:#018x}  rbp {:#018x}  rsp {:#018x}", at.rsi, at.rdi, at.rbp, at.rsp);
    error!("r8  {:#018x}  r9  {:#018x}  r10 {:#018x}  r11 {:#018x}", at.r8, at.r9, at.r10, at.r11);
    error!("r12 {:#018x}  r13 {:#018x}  r14 {:#018x}  r15 {:#018x}", at.r12, at.r13, at.r14, at.r15);
    let (cr2, cr3, cr4) = control_registers();
    error!("cr2 {cr2:#018x}  cr3 {cr3:#x}  cr4 {cr4:#x}");
    if let Some(stack) = cpu::this().stacks.hit_guard(cr2).filter(|_| vector == 14 || vector == 8) {
        error!("{cr2:#x} is the guard page below {stack}: that stack is full");
    }
    error!("at {:#x}", at.rip);
    backtrace(at.rbp);
    log::flush();
    cpu::halt()
}

/// Whether this was a single-step trap, which is not ours: no code here sets the trap flag. Bochs 2.7 carries a
/// guest's beyond the end of its run.
fn take_guests_trap() -> bool {
    const SINGLE_STEP: u64 = 1 << 14;
    let causes: u64;
    // SAFETY: ring 0; DR6 is a guest's only while that runs.
    unsafe { asm!("mov {}, dr6", out(reg) causes, options(nomem, nostack, preserves_flags)) }
    if causes & SINGLE_STEP == 0 {
        return false;
    }
    // SAFETY: as above.
    unsafe { asm!("mov dr6, {}", in(reg) causes & !SINGLE_STEP, options(nomem, nostack, preserves_flags)) }
    true
}

/// Tells an NMI, unless it is another CPU's way to stop this one.
fn report_nmi(at: &Interrupted) {
    let cpu = cpu::this();
    match FAILED.load(Ordering::Relaxed) {
        0 => error!("a non-maskable interrupt came on CPU {} while at {:#x}", cpu.number(), at.rip),
        failed if failed == cpu::identity() => {}
        // It stops by itself when it has said why.
        _ if cpu.tells_machine_check.load(Ordering::Relaxed) => {}
        _ => stop(),
    }
}

/// Tells a machine check that struck while a guest ran, and stops: nobody knows what it damaged.
pub fn machine_check_in_guest() -> ! {
    report_machine_check(" while a guest ran");
    fail();
    log::flush();
    cpu::halt()
}

/// Tells a panic and stops the machine.
pub fn panic(info: &PanicInfo) -> ! {
    if !fail() {
        cpu::halt();
    }
    error!("on CPU {}: {info}", cpu::this().number());
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) }
    backtrace(frame);
    log::flush();
    cpu::halt()
}

/// Names the callers that the chain of frame pointers from `frame` on leads to, as far as it lies on a stack
/// of ours.
fn backtrace(mut frame: u64) {
    let Some(stack) = cpu::this().stacks.containing(frame) else { return };
    for _ in 0..DEPTH {
        if !frame.is_multiple_of(8) || frame < stack.start || frame + 16 > stack.end {
            return;
        }
        // SAFETY: both words lie on a mapped stack, whatever they hold.
        let (next, caller) =
            unsafe { ((frame as *const u64).read_volatile(), (frame as *const u64).add(1).read_volatile()) };
        if caller == 0 {
            return;
        }
        error!("called from {caller:#x}");
        // Stacks grow down, so a caller's frame lies higher; anything else is damage.
        if next <= frame {
            return;
        }
        frame = next;
    }
}

/// CR2, CR3 and CR4.
fn control_registers() -> (u64, u64, u64) {
    let (cr2, cr3, cr4);
    // SAFETY: reads registers.
    unsafe {
        asm!("mov {}, cr2", "mov {}, cr3", "mov {}, cr4", out(reg) cr2, out(reg) cr3, out(reg) cr4,
            options(nomem, nostack, preserves_flags));
    }
    (cr2, cr3, cr4)
}

/// Tells that a machine check came on this CPU, and which banks hold an error. It comes on all CPUs, and the one
/// whose banks say why need not be the first, so each tells its own.
fn report_machine_check(when: &str) {
    let cpu = cpu::this();
    cpu.tells_machine_check.store(true, Ordering::Relaxed);
    error!("machine check on CPU {}{when}", cpu.number());
    if Features::read().machine_check {
        let banks = cpu::read_msr(MCG_CAP) as u32 & 0xff;
        error!("machine check status {:#x}", cpu::read_msr(MCG_STATUS));
        for bank in 0..banks {
            let status = cpu::read_msr(MC0_STATUS + 4 * bank);
            // VAL: the bank holds an error; ADDRV: it knows where.
            if status >> 63 == 1 {
                let address =
                    if status >> 58 & 1 == 1 { cpu::read_msr(MC0_STATUS + 4 * bank + 1) } else { 0 };
                error!("CPU {}, bank {bank}: status {status:#018x}, address {address:#x}", cpu.number());
            }
        }
    }
    cpu.tells_machine_check.store(false, Ordering::Relaxed);
}

/// A mistake made on purpose, so that the report, W^X and the guard pages can be tried on the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A panic.
    Panic,
    /// A write to code.
    WriteCode,
    /// A jump into data.
    ExecuteData,
    /// A recursion without end.
    ExhaustStack,
    /// A read through a null pointer.
    ReadNull,
}

impl Mistake {
    /// All of them, by the names the prompt has for them.
    pub const ALL: [(&str, Self); 5] = [
        ("panic", Self::Panic),
        ("code", Self::WriteCode),
        ("data", Self::ExecuteData),
        ("stack", Self::ExhaustStack),
        ("null", Self::ReadNull),
    ];

    /// Makes the mistake; the machine stops with a report.
    pub fn make(self) -> ! {
        static NOT_CODE: [u8; 1] = [RET];
        /// The instruction RET.
        const RET: u8 = 0xc3;
        match self {
            Self::Panic => panic!("as asked for"),
            // SAFETY: none: each of these must end in an exception, and if the page tables were wrong and let
            // it pass, in the halt below.
            Self::WriteCode => unsafe { (halt_on_purpose as *const () as *mut u8).write_volatile(RET) },
            // SAFETY: as above.
            Self::ExecuteData => unsafe {
                let data = core::hint::black_box(NOT_CODE.as_ptr());
                core::mem::transmute::<*const u8, extern "C" fn()>(data)();
            },
            Self::ExhaustStack => {
                recurse(1);
            }
            // SAFETY: as above; assembly, since the language has no such read.
            Self::ReadNull => unsafe { asm!("mov {0}, [{0}]", inout(reg) 0_u64 => _, options(readonly)) },
        }
        halt_on_purpose()
    }
}

/// Says that the mistake went unnoticed.
fn halt_on_purpose() -> ! {
    error!("nothing noticed it");
    log::flush();
    cpu::halt()
}

/// Calls itself until the stack is full.
#[expect(unconditional_recursion, reason = "the point")]
fn recurse(depth: u64) -> u64 {
    core::hint::black_box(recurse(core::hint::black_box(depth) + 1)) + depth
}
