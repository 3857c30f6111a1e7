//! Privilege level 3: what it may not do, what a bitmap allows it, and its ways in and out.
#![no_std]
#![no_main]
// Unsafe because instructions that fault are the point.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use runtime::descriptors::{allow_port, selector};
use runtime::interrupts::{Fault, count, flag, gate_error, handle, run_user};
use runtime::memory::{self, LARGE_PAGE};
use runtime::{apic, cpu};

runtime::guest!(main);

const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const ALIGNMENT_CHECK: u8 = 17;
/// Page-fault error code bits (SDM figure 4-12).
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;

/// A page of memory that only the kernel may use.
const KERNEL_PAGE: u64 = 0x80_0000;
/// A port with a value that does not change: the master 8259's mask.
const MASK_PORT: u16 = 0x21;
/// IA32_STAR, IA32_LSTAR, IA32_FMASK, IA32_EFER.
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const EFER: u32 = 0xc000_0080;
const EFER_SCE: u64 = 1 << 0;

/// What user code saw.
static SEEN: AtomicU64 = AtomicU64::new(0);

fn main(_: &runtime::Machine) {
    privileged_instructions();
    ports();
    pages();
    interrupted();
    system_calls();
}

fn expect(what: &str, fault: Option<Fault>, vector: u8, error_code: u64) -> Fault {
    let Some(fault) = fault else { panic!("{what}: no fault") };
    assert_eq!((fault.vector, fault.error_code), (vector, error_code), "{what}");
    fault
}

/// A function of one instruction for privilege level 3.
macro_rules! user {
    ($($code:tt)*) => {{
        extern "C" fn code() {
            // SAFETY: privilege level 3 can hurt nobody.
            unsafe { asm!($($code)*) }
        }
        run_user(0, code)
    }};
}

fn privileged_instructions() {
    assert_eq!(user!("nop"), None, "NOP");
    assert_eq!(
        user!("xor eax, eax", "push rbx", "cpuid", "pop rbx", out("eax") _, out("ecx") _, out("edx") _),
        None
    );
    for (what, fault) in [
        ("HLT", user!("hlt")),
        ("CLI", user!("cli")),
        ("RDMSR", user!("rdmsr", in("ecx") apic::APIC_BASE_MSR, out("eax") _, out("edx") _)),
        ("WRMSR", user!("wrmsr", in("ecx") 0x10, in("eax") 0, in("edx") 0)),
        ("MOV from CR0", user!("mov {}, cr0", out(reg) _)),
        ("MOV to CR8", user!("mov cr8, {}", in(reg) 0_u64)),
        ("MOV from DR7", user!("mov {}, dr7", out(reg) _)),
        ("LGDT", user!("lgdt [{}]", in(reg) KERNEL_PAGE)),
        ("INVLPG", user!("invlpg [{}]", in(reg) KERNEL_PAGE)),
        ("WBINVD", user!("wbinvd")),
        ("IN", user!("in al, dx", in("edx") 0x21, out("eax") _)),
        ("CLTS", user!("clts")),
    ] {
        expect(what, fault, GENERAL_PROTECTION, 0);
    }
    let fault = user!("int 0x81").expect("a fault at a gate of the kernel's");
    assert_eq!(fault.vector, GENERAL_PROTECTION, "a gate of the kernel's");
    assert!(gate_error(0x81).contains(&fault.error_code), "a gate of the kernel's: {:#x}", fault.error_code);
    let fault = user!("vmmcall", out("eax") _).or_else(|| user!("vmcall", out("eax") _));
    assert!(fault.is_none_or(|fault| fault.vector == INVALID_OPCODE), "VMCALL or VMMCALL: {fault:?}");
}

/// By the I/O permission bitmap, and by RFLAGS.IOPL.
fn ports() {
    cpu::write_port_u8(MASK_PORT, 0x5a);
    extern "C" fn read_mask() {
        SEEN.store(cpu::read_port_u8(MASK_PORT).into(), Relaxed);
    }
    extern "C" fn read_both() {
        SEEN.store(cpu::read_port_u16(MASK_PORT - 1).into(), Relaxed);
    }
    extern "C" fn read_string() {
        let mut bytes = [0_u8; 4];
        // SAFETY: four bytes of the stack.
        unsafe {
            asm!("rep insb", inout("rdi") bytes.as_mut_ptr() => _, inout("ecx") 4 => _, in("edx") 0x21);
        }
        SEEN.store(u32::from_le_bytes(bytes).into(), Relaxed);
    }
    allow_port(MASK_PORT, true);
    assert_eq!(run_user(0, read_mask), None, "IN from a port that the bitmap allows");
    assert_eq!(SEEN.load(Relaxed), 0x5a, "what it read");
    assert_eq!(run_user(0, read_string), None, "INS from it");
    assert_eq!(SEEN.load(Relaxed), 0x5a5a_5a5a, "what it read");
    expect("IN from it and its neighbour", run_user(0, read_both), GENERAL_PROTECTION, 0);
    allow_port(MASK_PORT, false);
    expect("IN again", run_user(0, read_mask), GENERAL_PROTECTION, 0);
    expect("INS again", run_user(0, read_string), GENERAL_PROTECTION, 0);
    assert_eq!(run_user(flag::IOPL, read_mask), None, "IN at I/O privilege level 3");
}

fn pages() {
    let fault = user!("mov rax, [{}]", in(reg) KERNEL_PAGE, out("rax") _);
    let fault = expect("a read of the kernel's page", fault, PAGE_FAULT, USER | PRESENT);
    assert_eq!(fault.cr2, KERNEL_PAGE, "CR2");
    memory::unmap(KERNEL_PAGE + LARGE_PAGE);
    let fault = user!("mov [{}], rax", in(reg) KERNEL_PAGE + LARGE_PAGE);
    expect("a write to an absent page", fault, PAGE_FAULT, USER | WRITE);
    memory::map(KERNEL_PAGE + LARGE_PAGE);
    // A device that the user may use is the monitor's to reach: the access is still the user's.
    memory::map(runtime::io_apic::BASE);
    let fault = user!("mov eax, [{}]", in(reg) runtime::io_apic::BASE, out("eax") _);
    expect("a read of the IOAPIC", fault, PAGE_FAULT, USER | PRESENT);
    memory::allow_user(runtime::io_apic::BASE);
    extern "C" fn read_device() {
        SEEN.store(runtime::io_apic::read(1).into(), Relaxed);
    }
    assert_eq!(run_user(0, read_device), None, "a read of the IOAPIC that is allowed");
    assert_eq!(SEEN.load(Relaxed), runtime::io_apic::read(1).into(), "its version");
    // The string's other side is the kernel's: of what the monitor does, that is its to see.
    extern "C" fn copy_to_kernel() {
        // SAFETY: it faults.
        unsafe { asm!("movsd", in("rsi") runtime::io_apic::BASE, in("rdi") KERNEL_PAGE) }
    }
    let fault =
        expect("MOVS to the kernel's page", run_user(0, copy_to_kernel), PAGE_FAULT, USER | PRESENT | WRITE);
    assert_eq!(fault.cr2, KERNEL_PAGE, "CR2");

    const CR0_AM: u64 = 1 << 18;
    extern "C" fn misalign() {
        let word = 0_u64;
        // SAFETY: reads a byte past the start of a word on the stack, four of them.
        unsafe { asm!("mov eax, [{}]", in(reg) (&raw const word as u64) + 1, out("eax") _) }
    }
    cpu::set_cr0(cpu::cr0() | CR0_AM);
    assert_eq!(run_user(0, misalign), None, "an unaligned read");
    let fault = run_user(flag::AC, misalign);
    cpu::set_cr0(cpu::cr0() & !CR0_AM);
    // QEMU checks no alignment.
    if let Some(fault) = fault {
        assert_eq!(
            (fault.vector, fault.error_code),
            (ALIGNMENT_CHECK, 0),
            "an unaligned read with RFLAGS.AC"
        );
    }
}

/// An interrupt comes in on the kernel's stack, and goes back.
fn interrupted() {
    const VECTOR: u8 = 0x50;
    static FROM: AtomicU64 = AtomicU64::new(0);
    apic::enable();
    handle(VECTOR, |frame| {
        FROM.store(frame.cs << 16 | frame.ss, Relaxed);
        apic::end_of_interrupt();
    });
    extern "C" fn work() {
        cpu::work();
        SEEN.store(1, Relaxed);
    }
    SEEN.store(0, Relaxed);
    apic::send_self(VECTOR);
    assert_eq!(run_user(flag::IF, work), None, "work with interrupts on");
    assert_eq!((count(VECTOR), SEEN.load(Relaxed)), (1, 1), "interrupts, and work done");
    let (code, stack) = (u64::from(selector::USER_CODE), u64::from(selector::USER_DATA));
    assert_eq!(FROM.load(Relaxed), code << 16 | stack, "the segments that were interrupted");
}

/// SYSCALL comes to IA32_LSTAR with flags masked, SYSRET goes back.
fn system_calls() {
    #[unsafe(naked)]
    unsafe extern "C" fn entry() {
        naked_asm!("mov rax, cs", "shl rax, 32", "pushfq", "or rax, [rsp]", "add rsp, 8", "sysretq");
    }
    cpu::write_msr(EFER, cpu::read_msr(EFER) | EFER_SCE);
    cpu::write_msr(STAR, u64::from(selector::USER_CODE_32) << 48 | u64::from(selector::CODE) << 32);
    cpu::write_msr(LSTAR, entry as *const () as u64);
    cpu::write_msr(FMASK, flag::IF | flag::TF | 1);
    extern "C" fn call() {
        let (kernel, user): (u64, u64);
        // SAFETY: the entry keeps all but RAX, RCX and R11; the stack is the user's for that moment.
        unsafe {
            asm!("stc", "syscall", "mov {user:e}, cs", user = out(reg) user, out("rax") kernel, out("rcx") _,
                out("r11") _);
        }
        SEEN.store(kernel << 16 | user, Relaxed);
    }
    assert_eq!(run_user(flag::IF, call), None, "SYSCALL");
    let seen = SEEN.load(Relaxed);
    assert_eq!(seen & 0xffff, selector::USER_CODE.into(), "CS after SYSRET");
    assert_eq!(seen >> 48, selector::CODE.into(), "CS after SYSCALL");
    assert_eq!(seen >> 16 & (flag::IF | 1), 0, "flags that IA32_FMASK clears");
    cpu::write_msr(EFER, cpu::read_msr(EFER) & !EFER_SCE);
    expect("SYSCALL without EFER.SCE", run_user(0, call), INVALID_OPCODE, 0);
}
