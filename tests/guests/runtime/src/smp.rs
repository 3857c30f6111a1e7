//! The guest's other CPUs: started one by one, each with a stack of its own and a function to run.

use crate::{apic, cpu, descriptors, interrupts, memory};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

/// The page where other CPUs begin, in real mode.
const START_PAGE: u8 = 8;
const START: u64 = (START_PAGE as u64) << 12;

global_asm!(
    r#"
    .section .rodata
    .balign 16
    .code16
start_up:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl start_up_pointer - start_up
    movl $0x620, %eax           // PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $root_table, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      // EFER: LME and NXE
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x9fffffff, %eax      // caches on
    orl $0x80010001, %eax       // PG, WP, PE
    movl %eax, %cr0
    ljmpl $8, $start_up_long
    .balign 4
start_up_pointer:
    .word 3 * 8 - 1
    .long start_up_table
    .balign 8
start_up_table:
    .quad 0
    .quad 0x00af9b000000ffff    // 8: code, 64 bits
    .quad 0x00cf93000000ffff    // 16: data
start_up_end:

    .section .text
    .code64
start_up_long:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq {stack}(%rip), %rsp
    xorl %ebp, %ebp
    call {begin}
    ud2
    "#,
    stack = sym STACK_TOP,
    begin = sym begin,
    options(att_syntax)
);

unsafe extern "C" {
    static start_up: u8;
    static start_up_end: u8;
}

/// How many CPUs besides the first there can be.
const MOST: usize = 15;
const STACK_BYTES: usize = 16 << 10;

#[repr(C, align(16))]
struct Stacks([[u8; STACK_BYTES]; MOST]);

static mut STACKS: Stacks = Stacks([[0; STACK_BYTES]; MOST]);
/// For the CPU that is being started: the end of its stack, and its function.
static STACK_TOP: AtomicU64 = AtomicU64::new(0);
static FUNCTION: AtomicUsize = AtomicUsize::new(0);
/// How many were started, and how often one began to run.
static STARTED: AtomicUsize = AtomicUsize::new(0);
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Starts the CPU with this APIC number, in xAPIC mode, and waits until it runs `function`.
pub fn start(apic_id: u8, function: fn() -> !) {
    let number = STARTED.fetch_add(1, SeqCst);
    assert!(number < MOST, "no stack for another CPU");
    FUNCTION.store(function as usize, SeqCst);
    STACK_TOP.store(&raw const STACKS as u64 + ((number + 1) * STACK_BYTES) as u64, SeqCst);
    let begin = &raw const start_up as u64;
    for offset in 0..&raw const start_up_end as u64 - begin {
        memory::write(START + offset, memory::read::<u8>(begin + offset));
    }
    begin_and_wait(apic_id);
}

/// Sends the CPU that was started last, the one with this APIC number, back to its beginning, and waits until it runs
/// its function again.
pub fn start_over(apic_id: u8) {
    begin_and_wait(apic_id);
}

/// Sends the two messages one right behind the other, and waits.
fn begin_and_wait(apic_id: u8) {
    let before = RUNNING.load(SeqCst);
    apic::send(apic_id, apic::INIT);
    apic::send(apic_id, apic::START_UP | u32::from(START_PAGE));
    while RUNNING.load(SeqCst) == before {
        // Bochs 2.7 keeps even a monitor's interrupts from a guest that was entered with its own off: on a single
        // core the other CPU would have no turn.
        cpu::take_interrupts();
    }
}

extern "C" fn begin() -> ! {
    descriptors::load();
    interrupts::reload();
    apic::enable();
    // SAFETY: `start` stored a function of this type, and changes it only when this one runs.
    let function = unsafe { core::mem::transmute::<usize, fn() -> !>(FUNCTION.load(SeqCst)) };
    RUNNING.fetch_add(1, SeqCst);
    function()
}

/// Waits for interrupts, and does nothing else.
pub fn idle() -> ! {
    loop {
        cpu::wait_for_interrupt();
    }
}
