//! Stacks, each above a guard page that the page tables leave out.
// Unsafe because a stack is memory that the CPU writes behind the language's back.
#![allow(unsafe_code)]

use super::memory::Range;
use core::cell::UnsafeCell;

/// A page, and the size of a guard.
const PAGE: usize = 0x1000;

/// A stack of `BYTES` bytes, a multiple of a page, with a guard page below it.
#[repr(C, align(4096))]
pub struct Stack<const BYTES: usize> {
    guard: UnsafeCell<[u8; PAGE]>,
    stack: UnsafeCell<[u8; BYTES]>,
}

// SAFETY: only addresses are ever taken of a stack; the CPU that runs on it alone touches its bytes.
unsafe impl<const BYTES: usize> Sync for Stack<BYTES> {}

impl<const BYTES: usize> Stack<BYTES> {
    /// An empty stack.
    pub const fn new() -> Self {
        assert!(BYTES.is_multiple_of(PAGE));
        Self { guard: UnsafeCell::new([0; PAGE]), stack: UnsafeCell::new([0; BYTES]) }
    }

    /// Guard and stack together, in bytes: the distance from the start to the first push.
    pub const SIZE: usize = PAGE + BYTES;

    /// The address that the first push goes below.
    pub fn top(&self) -> u64 {
        self.stack.get() as u64 + BYTES as u64
    }

    /// The page that must not be mapped.
    pub fn guard(&self) -> Range {
        let start = self.guard.get() as u64;
        Range::new(start, start + PAGE as u64)
    }

    /// The bytes above the guard.
    pub fn bytes(&self) -> Range {
        Range::new(self.top() - BYTES as u64, self.top())
    }
}

/// The type of the boot CPU's stack.
pub type BootStack = Stack<0x1_0000>;

/// The boot CPU's stack, from the first instruction on.
pub static BOOT_STACK: BootStack = Stack::new();

/// The stacks that the CPU switches to by itself, whatever state the interrupted one is in.
pub struct InterruptStacks {
    /// For non-maskable interrupts.
    pub nmi: Stack<0x4000>,
    /// For double faults.
    pub double_fault: Stack<0x4000>,
    /// For machine checks.
    pub machine_check: Stack<0x4000>,
}

/// The boot CPU's interrupt stacks.
pub static BOOT_INTERRUPT_STACKS: InterruptStacks =
    InterruptStacks { nmi: Stack::new(), double_fault: Stack::new(), machine_check: Stack::new() };

/// The guard page and the bytes of each stack, with whose it is.
fn all() -> [(&'static str, Range, Range); 4] {
    let stacks = &BOOT_INTERRUPT_STACKS;
    let (nmi, double_fault, machine_check) = (&stacks.nmi, &stacks.double_fault, &stacks.machine_check);
    [
        ("the boot CPU's stack", BOOT_STACK.guard(), BOOT_STACK.bytes()),
        ("the NMI stack", nmi.guard(), nmi.bytes()),
        ("the double-fault stack", double_fault.guard(), double_fault.bytes()),
        ("the machine-check stack", machine_check.guard(), machine_check.bytes()),
    ]
}

/// The guard pages of all stacks.
pub fn guards() -> [Range; 4] {
    all().map(|(_, guard, _)| guard)
}

/// Whose stack's guard page `address` lies in.
pub fn hit_guard(address: u64) -> Option<&'static str> {
    all().into_iter().find(|(_, guard, _)| guard.contains(address)).map(|(name, _, _)| name)
}

/// The stack that `address` lies on, for backtraces.
pub fn containing(address: u64) -> Option<Range> {
    all().into_iter().map(|(_, _, bytes)| bytes).find(|bytes| bytes.contains(address))
}
