//! Exceptions and interrupts: one table, every vector counted, and faults that can be caught.

use crate::descriptors::selector;
use crate::memory::{self, LARGE_PAGE};
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
static FAULT: [AtomicU64; 7] = [const { AtomicU64::new(0) }; 7];

/// What was interrupted, as the stubs leave it on the stack. What a handler changes becomes true on return.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// R15 first, down to RAX.
    pub registers: [u64; 15],
    /// The exception or interrupt.
    pub vector: u64,
    /// Zero where the vector has none.
    pub error_code: u64,
    /// Where it goes on.
    pub rip: u64,
    /// In which code segment.
    pub cs: u64,
    /// With which flags.
    pub rflags: u64,
    /// On which stack.
    pub rsp: u64,
    /// In which stack segment.
    pub ss: u64,
}

/// What a vector does instead of being counted and acknowledged.
pub type Handler = fn(&mut Frame);

static mut HANDLERS: [Option<Handler>; 256] = [None; 256];

/// Has `handler` serve `vector` from now on; an interrupt's handler ends it at its controller itself.
pub fn handle(vector: u8, handler: Handler) {
    // SAFETY: one CPU, and no reference to the table is ever held.
    unsafe { HANDLERS[usize::from(vector)] = Some(handler) }
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
    /// How far a string instruction came: RCX, RSI, RDI.
    pub string: [u64; 3],
}

extern "C" fn dispatch(frame: &mut Frame) {
    let vector = frame.vector as u8;
    COUNTS[usize::from(vector)].fetch_add(1, Relaxed);
    // SAFETY: one CPU; the entry is copied.
    if let Some(handler) = unsafe { HANDLERS[usize::from(vector)] } {
        return handler(frame);
    }
    if vector >= 32 && vector != USER_RETURN {
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
    let Frame { registers: [.., rdi, rsi, _, _, _, rcx, _], vector, error_code, rip, .. } = *frame;
    for (slot, value) in FAULT.iter().zip([vector, error_code, rip, cr2, rcx, rsi, rdi]) {
        slot.store(value, Relaxed);
    }
    // Whoever it was, `catch` goes on as the kernel, without its single steps.
    (frame.rip, frame.rsp) = (&raw const recover as u64, recovery);
    (frame.cs, frame.ss) = (selector::CODE.into(), selector::DATA.into());
    frame.rflags &= !(flag::TF | flag::NT | flag::RF | flag::AC | flag::IOPL);
}

/// RFLAGS bits that guests play with (SDM 3.4.3).
#[expect(missing_docs, reason = "the names are the flags'")]
pub mod flag {
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const AC: u64 = 1 << 18;
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
    let [vector, error_code, rip, cr2, string @ ..] = FAULT.each_ref().map(|slot| slot.load(Relaxed));
    (faulted != 0).then_some(Fault { vector: vector as u8, error_code, rip, cr2, string })
}

/// By this software interrupt user code says that it is done.
const USER_RETURN: u8 = 0x80;

global_asm!(
    r#"
    .section .text
    // enter_user(function, stack, flags)
enter_user:
    pushq ${data}
    pushq %rsi
    orq $2, %rdx
    pushq %rdx
    pushq ${code}
    leaq 2f(%rip), %rax
    pushq %rax
    iretq
2:  call *%rdi
    int ${done}
    ud2
    "#,
    data = const selector::USER_DATA,
    code = const selector::USER_CODE,
    done = const USER_RETURN,
    options(att_syntax)
);

unsafe extern "C" {
    fn enter_user(function: extern "C" fn(), stack: u64, flags: u64);
}

#[repr(C, align(16))]
struct UserStack([u8; 16384]);

static mut USER_STACK: UserStack = UserStack([0; 16384]);

/// Runs `function` at privilege level 3 with these flags beside the fixed one, and gives the exception that
/// ended it, if one did. All of the first 4 MiB becomes the user's for good.
pub fn run_user(flags: u64, function: extern "C" fn()) -> Option<Fault> {
    for page in [0, LARGE_PAGE] {
        memory::allow_user(page);
    }
    let fault = catch(move || {
        let top = &raw const USER_STACK as u64 + size_of::<UserStack>() as u64;
        // SAFETY: the stack is the user's alone; it comes back through `catch`.
        unsafe { enter_user(function, top, flags) }
    });
    fault.filter(|fault| fault.vector != USER_RETURN)
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

/// What kind of gate leads to a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// Interrupts are off in the handler.
    Interrupt,
    /// Interrupts stay as they are.
    Trap,
    /// Interrupts are off, and INT n of privilege level 3 may use it.
    User,
    /// Interrupts are off, and the handler runs on the second stack of the task-state segment.
    OwnStack,
    /// Not present: #NP.
    Absent,
}

/// Changes the gate of `vector`.
pub fn set_gate(vector: u8, kind: GateKind) {
    let bits: u64 = match kind {
        GateKind::Interrupt => 0x8e00,
        GateKind::Trap => 0x8f00,
        GateKind::User => 0xee00,
        GateKind::OwnStack => 0x8e01,
        GateKind::Absent => 0x0e00,
    };
    let stub = &raw const vector_stubs as u64 + u64::from(vector) * 16;
    let low = stub & 0xffff | bits << 32 | u64::from(selector::CODE) << 16 | (stub & 0xffff_0000) << 32;
    // SAFETY: one CPU, and the table is only the hardware's to read.
    unsafe { TABLE[usize::from(vector)] = Gate { low, high: stub >> 32 } };
}

/// The error codes for the gate of `vector`: the manual's, and QEMU 7.2's in long mode.
pub const fn gate_error(vector: u8) -> [u64; 2] {
    const GATE: u64 = 1 << 1;
    [(vector as u64) << 3 | GATE, (vector as u64) << 4 | GATE]
}

/// Loads the interrupt table.
pub(crate) fn install() {
    (0..=255).for_each(|vector| set_gate(vector, GateKind::Interrupt));
    set_gate(USER_RETURN, GateKind::User);
    reload();
}

/// Loads the runtime's interrupt table again, after another one.
pub fn reload() {
    load(&raw const TABLE as u64, 0xfff);
}

/// Loads an interrupt table that lies at `base`.
pub fn load(base: u64, limit: u16) {
    let pointer = Pointer { limit, base };
    // SAFETY: what is wrong with the table is the guest's own wish.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) }
}
