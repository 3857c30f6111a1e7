//! The interrupt descriptor table, and the two places where interrupts may come in.
//!
//! Interrupts are off everywhere but in [`service_interrupts`] and [`idle`]. So a handler never finds a lock
//! held by what it interrupted; only exceptions, which end in a report, and NMIs can come anywhere.
// Unsafe because the CPU enters here, not the compiler's calls.
#![allow(unsafe_code)]

use super::descriptors::ist;
use super::{apic, exceptions};
use core::arch::{asm, global_asm};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;

/// The vectors that we give out.
pub mod vector {
    /// The LAPIC's timer.
    pub const TIMER: u8 = 0x40;
    /// The serial console's interrupt.
    pub const SERIAL: u8 = 0x41;
    /// Another core wants this one to look for work.
    pub const WAKE: u8 = 0x42;
    /// The first and the last of those that devices are given.
    pub const FIRST_OF_DEVICES: u8 = 0x50;
    pub const LAST_OF_DEVICES: u8 = 0xef;
    /// The LAPIC's spurious interrupt; the low four bits are ones, as old LAPICs want.
    pub const SPURIOUS: u8 = 0xff;
}

/// The registers of what was interrupted, as the stubs push them.
#[repr(C)]
#[derive(Debug)]
pub struct Interrupted {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

global_asm!(
    r#"
    .balign 16
interrupt_stubs:
    .set number, 0
    .rept 256
    .balign 16
    .if (number == 8) || ((number >= 10) && (number <= 14)) || (number == 17) || (number == 21) || (number == 29) || (number == 30)
    .else
    pushq $0                        # these vectors push no error code
    .endif
    pushq $number
    jmp interrupt_entry
    .set number, number + 1
    .endr

interrupt_entry:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    andq $-16, %rsp
    call {dispatch}
    movq %rbx, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq
"#,
    dispatch = sym dispatch,
    options(att_syntax)
);

unsafe extern "C" {
    /// 256 entry points, 16 bytes apart.
    safe static interrupt_stubs: u8;
}

/// An interrupt gate (SDM 3, figure 6-8).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate(u64, u64);

impl Gate {
    fn new(handler: u64, code_selector: u16, ist: u8) -> Self {
        /// Present, ring 0, 64-bit interrupt gate.
        const KIND: u64 = 0x8e;
        let low = (handler & 0xffff)
            | (u64::from(code_selector) << 16)
            | (u64::from(ist) << 32)
            | (KIND << 40)
            | ((handler >> 16 & 0xffff) << 48);
        Self(low, handler >> 32)
    }
}

static GATES: Once<[Gate; 256]> = Once::new();

/// What the serial console wants done when its interrupt comes.
static SERIAL_HANDLER: Once<fn()> = Once::new();
/// What devices want done when one of their vectors comes.
static DEVICE_HANDLER: Once<fn(u8)> = Once::new();

/// Makes this CPU report its exceptions and serve its interrupts.
pub fn load() {
    let stubs = core::ptr::from_ref(&interrupt_stubs) as u64;
    let gates = GATES.call_once(|| {
        core::array::from_fn(|number| {
            let stack = match number {
                2 => ist::NMI,
                8 => ist::DOUBLE_FAULT,
                18 => ist::MACHINE_CHECK,
                _ => 0,
            };
            Gate::new(stubs + number as u64 * 16, 8, stack)
        })
    });
    let pointer = DescriptorTablePointer {
        limit: (size_of_val(gates) - 1) as u16,
        base: VirtAddr::from_ptr(gates.as_ptr()),
    };
    // SAFETY: every gate leads to a stub that saves all registers; selector 8 is our GDT's code segment.
    unsafe { x86_64::instructions::tables::lidt(&pointer) }
}

/// From now on `handler` runs on the serial console's interrupt.
pub fn on_serial(handler: fn()) {
    SERIAL_HANDLER.call_once(|| handler);
}

/// From now on `handler` runs on devices' interrupts, with the vector.
#[cfg(feature = "pci")]
pub fn on_device(handler: fn(u8)) {
    DEVICE_HANDLER.call_once(|| handler);
}

/// Where every interrupt and exception arrives.
extern "sysv64" fn dispatch(interrupted: &mut Interrupted) {
    match interrupted.vector as u8 {
        number @ 0..=31 => exceptions::report(number, interrupted),
        vector::TIMER => {
            apic::local::timer_fired();
            apic::local::end_of_interrupt();
        }
        vector::SERIAL => {
            if let Some(handler) = SERIAL_HANDLER.get() {
                handler();
            }
            apic::local::end_of_interrupt();
        }
        number @ vector::FIRST_OF_DEVICES..=vector::LAST_OF_DEVICES => {
            if let Some(handler) = DEVICE_HANDLER.get() {
                handler(number);
            }
            apic::local::end_of_interrupt();
        }
        // Having come is all it is for.
        vector::WAKE => apic::local::end_of_interrupt(),
        // No end of interrupt: a spurious one is in no service register.
        vector::SPURIOUS => {}
        unknown => {
            crate::warn!("an interrupt came on vector {unknown:#x}, which nobody was given");
            apic::local::end_of_interrupt();
        }
    }
}

/// Serves the interrupts that are pending, if any.
pub fn service_interrupts() {
    // SAFETY: the handlers keep all registers. STI holds interrupts off for one instruction, so the NOP is
    // what gives them their chance.
    unsafe { asm!("sti", "nop", "cli", options(nostack)) }
}

/// Sleeps until an interrupt comes, and serves it.
///
/// Interrupts are off when this is called, so one that came after the caller looked for work still ends the
/// sleep: STI lets it in only once HLT has begun.
pub fn idle() {
    // SAFETY: as for `service_interrupts`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) }
}
