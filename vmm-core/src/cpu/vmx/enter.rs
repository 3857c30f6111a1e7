//! The world switch: VMLAUNCH or VMRESUME, and back.

use super::vmcs::field;
use crate::cpu::{Gpr, RETURN_PREDICTOR, Registers};
use core::arch::{asm, naked_asm};
use core::mem::offset_of;

#[expect(clippy::arithmetic_side_effects, reason = "constants: the offsets of a small structure")]
const fn at(register: Gpr) -> usize {
    offset_of!(Registers, gpr) + register as usize * 8
}

/// What the switch needs beside the registers.
#[repr(C)]
pub struct Switch {
    /// What the VMCS has as the host's RSP; zero when it has nothing yet.
    host_rsp: u64,
    /// Whether the VMCS was launched since it was last cleared.
    pub launched: bool,
    /// Whether VERW clears the CPU's buffers before the guest runs.
    pub clear_buffers: bool,
}

impl Switch {
    /// For a VMCS just filled, which knows nothing of the host's stack and was not launched.
    pub const fn new(clear_buffers: bool) -> Self {
        Self { host_rsp: 0, launched: false, clear_buffers }
    }
}

/// Enters the guest of the current VMCS until it exits. RSP, RIP and RFLAGS travel in the VMCS, the other
/// general registers in `registers`.
///
/// Gives 0 after an exit, and where the entry was refused bit 0 for VMfailInvalid, bit 1 for VMfailValid. On
/// return RFLAGS.IF is clear, and a physical interrupt that ended the guest's run still waits for the host's
/// window.
///
/// # Safety
///
/// A VMCS is current on this core whose host-state area describes it, and whose MSR bitmap, virtual-APIC page
/// and nested tables outlive the call.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: &mut Registers, switch: &mut Switch) -> u64 {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "push rdi",
        "cli",
        "cmp rsp, [rsi + {host_rsp}]",
        "je 2f",
        "mov [rsi + {host_rsp}], rsp",
        "mov eax, {HOST_RSP}",
        "vmwrite rax, rsp",
        "lea rcx, [rip + 5f]",
        "mov eax, {HOST_RIP}",
        "vmwrite rax, rcx",
        "2:",
        "cmp byte ptr [rsi + {clear_buffers}], 0",
        "je 3f",
        // VERW clears the buffers whatever it finds about the selector; a valid one is the fastest.
        "push 0",
        "mov word ptr [rsp], ss",
        "verw word ptr [rsp]",
        "add rsp, 8",
        "3:",
        "cmp byte ptr [rsi + {launched}], 0",
        "mov rax, [rdi + {rax}]", "mov rcx, [rdi + {rcx}]", "mov rdx, [rdi + {rdx}]",
        "mov rbx, [rdi + {rbx}]", "mov rbp, [rdi + {rbp}]", "mov rsi, [rdi + {rsi}]",
        "mov r8, [rdi + {r8}]", "mov r9, [rdi + {r9}]", "mov r10, [rdi + {r10}]", "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]", "mov r13, [rdi + {r13}]", "mov r14, [rdi + {r14}]", "mov r15, [rdi + {r15}]",
        "mov rdi, [rdi + {rdi}]",
        "je 4f",
        "vmresume",
        "jmp 6f",
        "4:",
        "vmlaunch",
        "jmp 6f",

        // An exit comes here, with RSP as it was.
        "5:",
        "xchg rdi, [rsp]",
        "mov [rdi + {rax}], rax", "mov [rdi + {rcx}], rcx", "mov [rdi + {rdx}], rdx",
        "mov [rdi + {rbx}], rbx", "mov [rdi + {rbp}], rbp", "mov [rdi + {rsi}], rsi",
        "mov [rdi + {r8}], r8", "mov [rdi + {r9}], r9", "mov [rdi + {r10}], r10", "mov [rdi + {r11}], r11",
        "mov [rdi + {r12}], r12", "mov [rdi + {r13}], r13", "mov [rdi + {r14}], r14", "mov [rdi + {r15}], r15",
        "pop rax",
        "mov [rdi + {rdi}], rax",
        // No return of ours is predicted by what the guest left: the places behind these calls are predicted
        // in its stead, where speculation ends at once.
        ".rept {calls}",
        "call 7f",
        "int3",
        "7:",
        ".endr",
        "add rsp, {calls} * 8",
        // Nothing of ours runs on the guest's values, not even speculatively.
        "xor eax, eax", "xor ecx, ecx", "xor edx, edx", "xor esi, esi", "xor edi, edi",
        "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",

        // The entry was refused; the registers in memory are untouched.
        "6:",
        "setc al",
        "setz cl",
        "movzx eax, al",
        "movzx ecx, cl",
        "lea eax, [rax + rcx * 2]",
        "pop rdi",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        host_rsp = const offset_of!(Switch, host_rsp),
        launched = const offset_of!(Switch, launched),
        clear_buffers = const offset_of!(Switch, clear_buffers),
        HOST_RSP = const field::HOST_RSP.encoding(),
        HOST_RIP = const field::HOST_RIP.encoding(),
        calls = const RETURN_PREDICTOR,
        rax = const at(Gpr::Rax), rcx = const at(Gpr::Rcx), rdx = const at(Gpr::Rdx), rbx = const at(Gpr::Rbx),
        rbp = const at(Gpr::Rbp), rsi = const at(Gpr::Rsi), rdi = const at(Gpr::Rdi),
        r8 = const at(Gpr::R8), r9 = const at(Gpr::R9), r10 = const at(Gpr::R10), r11 = const at(Gpr::R11),
        r12 = const at(Gpr::R12), r13 = const at(Gpr::R13), r14 = const at(Gpr::R14), r15 = const at(Gpr::R15),
    )
}

/// Runs the host's handler for the NMI that ended the guest's run: the exit took it off the CPU, and blocks
/// further ones until the handler's IRET.
pub fn deliver_host_nmi() {
    // SAFETY: vector 2 has a handler that returns (the contract of `Core::enable`).
    unsafe { asm!("int 2") }
}
