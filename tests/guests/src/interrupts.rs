//! Exceptions and interrupts: one table, every vector counted, and faults that can be caught.

use crate::{apic, cpu};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

global_asm!(
    r#"
    .section .text
    .balign 16
vector_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    // Vectors 8, 10 to 14, 17, 21, 29 and 30 bring an error code.
    .if (0x60227d00 >> (vector & 31)) & (vector < 32) & 1
    .else
    pushq $0
    .endif
    pushq $vector
    jmp save_registers
    .set vector, vector + 1
    .endr

save_registers:
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
    call {dispatch}
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

    // try_call(function, argument): 0 when it returned, 1 when it faulted.
try_call:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rsp, {recovery}(%rip)
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    xorl %eax, %eax
    jmp 3f
recover:
    movl $1, %eax
3:  movq $0, {recovery}(%rip)
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    "#,
    dispatch = sym dispatch,
    recovery = sym RECOVERY,
    options(att_syntax)
);

unsafe extern "C" {
    static vector_stubs: u8;
    static recover: u8;
    fn try_call(function: extern "C" fn(*mut u8), argument: *mut u8) -> u64;
}

/// Where `recover` finds its stack; zero while nothing is being caught.
static RECOVERY: AtomicU64 = AtomicU64::new(0);
static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
static FAULT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// What the stubs leave on the stack.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// An exception that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// 0 to 31.
    pub vector: u8,
    /// Zero where the vector has none.
    pub error_code: u64,
    /// The instruction it points to.
    pub rip: u64,
    /// What CR2 held.
    pub cr2: u64,
}

extern "C" fn dispatch(frame: &mut Frame) {
    let vector = frame.vector as u8;
    COUNTS[usize::from(vector)].fetch_add(1, Relaxed);
    if vector >= 32 {
        if vector != apic::SPURIOUS_VECTOR {
            apic::end_of_interrupt();
        }
        return;
    }
    let recovery = RECOVERY.load(Relaxed);
    let cr2 = cpu::cr2();
    if recovery == 0 {
        let Frame { error_code, rip, .. } = frame;
        panic!("unexpected exception {vector}, error code {error_code:#x}, RIP {rip:#x}, CR2 {cr2:#x}");
    }
    for (slot, value) in FAULT.iter().zip([frame.vector, frame.error_code, frame.rip, cr2]) {
        slot.store(value, Relaxed);
    }
    frame.rip = &raw const recover as u64;
    frame.rsp = recovery;
}

/// Runs `function` and gives the exception that ended it, if one did. What it holds is then never dropped.
pub fn catch<F: FnOnce()>(function: F) -> Option<Fault> {
    extern "C" fn call<F: FnOnce()>(function: *mut u8) {
        // SAFETY: `catch` passes its own `Option<F>`, which lives until it returns.
        if let Some(function) = unsafe { (*function.cast::<Option<F>>()).take() } {
            function();
        }
    }
    let mut function = Some(function);
    // SAFETY: `call` gets what it expects; on a fault `try_call` restores what the ABI keeps.
    let faulted = unsafe { try_call(call::<F>, (&raw mut function).cast()) };
    let [vector, error_code, rip, cr2] = FAULT.each_ref().map(|slot| slot.load(Relaxed));
    (faulted != 0).then_some(Fault { vector: vector as u8, error_code, rip, cr2 })
}

/// How often `vector` was delivered.
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Relaxed)
}

/// A gate of the interrupt table (SDM 6.14.1).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

static mut TABLE: [Gate; 256] = [Gate { low: 0, high: 0 }; 256];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads the interrupt table.
pub(crate) fn install() {
    /// Present, 64-bit interrupt gate, the code segment.
    const KIND: u64 = 0x8e00 << 32 | 8 << 16;
    let table = core::array::from_fn(|vector| {
        let stub = &raw const vector_stubs as u64 + vector as u64 * 16;
        Gate { low: stub & 0xffff | KIND | (stub & 0xffff_0000) << 32, high: stub >> 32 }
    });
    // SAFETY: one CPU, and the table is not in use yet.
    unsafe { TABLE = table };
    let pointer = Pointer { limit: 0xfff, base: &raw const TABLE as u64 };
    // SAFETY: the table is complete and stays.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) }
}
