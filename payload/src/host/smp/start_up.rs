//! A CPU's first instructions: from the real mode that a start-up interrupt leaves it in to Rust in long mode.
//!
//! Only a few bytes must lie below 1 MiB, and only until protected mode: the rest is part of our code, so that no
//! page is ever both written and executed by our tables.
// Unsafe because this is where the machine's state becomes what Rust expects.
#![allow(unsafe_code)]

use crate::host::apic::local::{self, Target};
use crate::host::paging;
use crate::host::stacks::CpuStacks;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use x86_64::registers::control::{Cr0, Efer, EferFlags};

/// What a starting CPU is told.
#[repr(C)]
struct HandOff {
    /// How many CPUs have come: the next one's ticket.
    tickets: AtomicU32,
    /// Tickets from this on are not served: their CPUs halt.
    limit: AtomicU32,
    /// The boot CPU's CR3, CR0, and as much of its EFER as paging needs.
    root: AtomicU32,
    cr0: AtomicU32,
    efer: AtomicU32,
    /// Where the [`CpuStacks`] of ticket 0 are; the others' follow.
    stacks: AtomicU64,
}

static HAND_OFF: HandOff = HandOff {
    tickets: AtomicU32::new(0),
    limit: AtomicU32::new(0),
    root: AtomicU32::new(0),
    cr0: AtomicU32::new(0),
    efer: AtomicU32::new(0),
    stacks: AtomicU64::new(0),
};

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .section .rodata.start_up, "a"
    .code16
start_up_code:
    cli
    lgdtl %cs:(start_up_gdt_pointer - start_up_code)
    movl %cr0, %eax
    orb $1, %al                     # PE
    movl %eax, %cr0
    ljmpl $24, $start_up_protected
start_up_gdt_pointer:
    .word start_up_gdt_end - start_up_gdt - 1
    .long start_up_gdt
start_up_code_end:

    .balign 8
start_up_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 64-bit code
    .quad 0x00cf93000000ffff        # data
    .quad 0x00cf9b000000ffff        # 32-bit code
start_up_gdt_end:

    .text
    .code32
start_up_protected:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x20, %eax                # PAE
    movl %eax, %cr4
    movl {hand_off} + {root}, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER
    movl {hand_off} + {efer}, %eax
    xorl %edx, %edx
    wrmsr
    movl {hand_off} + {cr0}, %eax
    movl %eax, %cr0
    ljmpl $8, $start_up_long

    .code64
start_up_long:
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $1, %edi
    lock xaddl %edi, {hand_off} + {tickets}
    cmpl {hand_off} + {limit}, %edi
    jae 9f
    imulq ${size}, %rdi, %rax
    addq {hand_off} + {stacks}, %rax
    leaq {top}(%rax), %rsp
    xorl %ebp, %ebp                 # the end of every backtrace
    call {start}
9:  hlt                             # interrupts are off
    jmp 9b
"#,
    hand_off = sym HAND_OFF,
    tickets = const core::mem::offset_of!(HandOff, tickets),
    limit = const core::mem::offset_of!(HandOff, limit),
    root = const core::mem::offset_of!(HandOff, root),
    cr0 = const core::mem::offset_of!(HandOff, cr0),
    efer = const core::mem::offset_of!(HandOff, efer),
    stacks = const core::mem::offset_of!(HandOff, stacks),
    size = const size_of::<CpuStacks>(),
    top = const CpuStacks::MAIN_TOP,
    start = sym start,
    options(att_syntax)
);

unsafe extern "C" {
    safe static start_up_code: u8;
    safe static start_up_code_end: u8;
}

/// The first Rust function of a CPU that is not the boot CPU.
extern "sysv64" fn start(ticket: u32) -> ! {
    super::join(ticket as usize)
}

/// The page below 1 MiB where CPUs start, made ready.
pub struct StartUpPage {
    page: u64,
}

impl StartUpPage {
    /// Copies the code to `page`, which is RAM that is mapped and used by nobody.
    pub fn new(page: u64) -> Self {
        let (from, end) = (&raw const start_up_code, &raw const start_up_code_end);
        // SAFETY: both symbols are of one piece of constants; `page` is as promised, and has room for it.
        unsafe { core::ptr::copy_nonoverlapping(from, page as *mut u8, end as usize - from as usize) }
        // Both lie below 4 GiB, as the page tables and the upper half of each register do.
        let needed = EferFlags::LONG_MODE_ENABLE | EferFlags::NO_EXECUTE_ENABLE;
        HAND_OFF.efer.store((Efer::read() & needed).bits() as u32, Ordering::Relaxed);
        HAND_OFF.cr0.store(Cr0::read_raw() as u32, Ordering::Relaxed);
        HAND_OFF.root.store(paging::root() as u32, Ordering::Relaxed);
        Self { page }
    }

    /// Resets `targets` and has them start: as many as there are `stacks`; all others halt at once. `wait` is
    /// called with the times that pass between the interrupts.
    pub fn start(&self, targets: &[Target], stacks: &'static [CpuStacks], wait: impl Fn(Duration)) {
        HAND_OFF.tickets.store(0, Ordering::Relaxed);
        HAND_OFF.stacks.store(stacks.as_ptr().expose_provenance() as u64, Ordering::Relaxed);
        HAND_OFF.limit.store(stacks.len() as u32, Ordering::Relaxed);
        // The 10 ms after INIT are for the external APICs of CPUs that had no nested paging by far.
        let steps = [Duration::from_micros(200), Duration::from_micros(200), Duration::ZERO];
        for (step, pause) in steps.into_iter().enumerate() {
            for target in targets {
                // SAFETY: firmware has parked these CPUs for good, or they halt for want of a stack; the page
                // holds the code that is made for them.
                unsafe {
                    match step {
                        0 => local::init(*target),
                        _ => local::start_up(*target, self.page),
                    }
                }
            }
            wait(pause);
        }
    }

    /// How many CPUs have come since [`start`](Self::start).
    pub fn come(&self) -> usize {
        HAND_OFF.tickets.load(Ordering::Acquire) as usize
    }

    /// From now on every CPU that comes halts.
    pub fn close(&self) {
        HAND_OFF.limit.store(0, Ordering::Relaxed);
    }
}
