//! The world switch: VMLOAD, VMRUN, VMSAVE, and back.

use super::vmcb::Vmcb;
use crate::cpu::{Gpr, RETURN_PREDICTOR, Registers};
use crate::memory::HostPhys;
use core::arch::naked_asm;
use core::mem::offset_of;

#[expect(clippy::arithmetic_side_effects, reason = "constants: the offsets of a small structure")]
const fn at(register: Gpr) -> usize {
    offset_of!(Registers, gpr) + register as usize * 8
}

/// Enters the guest of `guest` until it exits. RAX, RSP, RIP and RFLAGS travel in the VMCB, the other general
/// registers in `registers`.
///
/// The global interrupt flag is clear around VMRUN, so that nothing of the host runs on the guest's FS, GS
/// and task register; RFLAGS.IF is set there, so that a physical interrupt ends the guest's run (APM 15.21).
/// On return RFLAGS.IF is clear and a physical interrupt still waits for the host's window.
///
/// # Safety
///
/// EFER.SVME and VM_HSAVE_PA are set up on this core; `guest` is a valid VMCB, mapped at its own address, whose permission maps and
/// nested tables outlive the call; `host` holds what VMSAVE stored on this core.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn enter(registers: &mut Registers, guest: HostPhys, host: HostPhys) {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "push rdx",
        "push rdi",
        "clgi",
        "sti",
        "mov rax, rsi",
        "vmload rax",
        // VMRUN loads it too (APM 15.5.1), but not in Bochs 2.7.
        "mov rcx, [rax + {cr2}]",
        "mov cr2, rcx",
        "mov rcx, [rdi + {rcx}]", "mov rdx, [rdi + {rdx}]", "mov rbx, [rdi + {rbx}]",
        "mov rbp, [rdi + {rbp}]", "mov rsi, [rdi + {rsi}]",
        "mov r8, [rdi + {r8}]", "mov r9, [rdi + {r9}]", "mov r10, [rdi + {r10}]", "mov r11, [rdi + {r11}]",
        "mov r12, [rdi + {r12}]", "mov r13, [rdi + {r13}]", "mov r14, [rdi + {r14}]", "mov r15, [rdi + {r15}]",
        "mov rdi, [rdi + {rdi}]",
        "vmrun rax",
        "vmsave rax",
        // The guest's RDI takes the place of the pointer to `registers` on the stack.
        "xchg rdi, [rsp]",
        "mov [rdi + {rcx}], rcx", "mov [rdi + {rdx}], rdx", "mov [rdi + {rbx}], rbx",
        "mov [rdi + {rbp}], rbp", "mov [rdi + {rsi}], rsi",
        "mov [rdi + {r8}], r8", "mov [rdi + {r9}], r9", "mov [rdi + {r10}], r10", "mov [rdi + {r11}], r11",
        "mov [rdi + {r12}], r12", "mov [rdi + {r13}], r13", "mov [rdi + {r14}], r14", "mov [rdi + {r15}], r15",
        "pop rcx",
        "mov [rdi + {rdi}], rcx",
        "pop rax",
        "vmload rax",
        "cli",
        "stgi",
        // No return of ours is predicted by what the guest left: the places behind these calls are predicted in its
        // stead, where speculation ends at once.
        ".rept {calls}",
        "call 2f",
        "int3",
        "2:",
        ".endr",
        "add rsp, {calls} * 8",
        // Nothing of ours runs on the guest's values, not even speculatively.
        "xor eax, eax", "xor ecx, ecx", "xor edx, edx", "xor esi, esi", "xor edi, edi",
        "xor r8d, r8d", "xor r9d, r9d", "xor r10d, r10d", "xor r11d, r11d",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "cld",
        "ret",
        calls = const RETURN_PREDICTOR,
        cr2 = const offset_of!(Vmcb, cr2),
        rcx = const at(Gpr::Rcx), rdx = const at(Gpr::Rdx), rbx = const at(Gpr::Rbx),
        rbp = const at(Gpr::Rbp), rsi = const at(Gpr::Rsi), rdi = const at(Gpr::Rdi),
        r8 = const at(Gpr::R8), r9 = const at(Gpr::R9), r10 = const at(Gpr::R10), r11 = const at(Gpr::R11),
        r12 = const at(Gpr::R12), r13 = const at(Gpr::R13), r14 = const at(Gpr::R14), r15 = const at(Gpr::R15),
    )
}
