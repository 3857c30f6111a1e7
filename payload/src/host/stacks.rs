//! Stacks, each above a guard page that the page tables leave out.
// Unsafe because a stack is memory that the CPU writes behind the language's back.
#![allow(unsafe_code)]

use super::memory::{Frames, Range};
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

    /// The page that must not be mapped, and the bytes above it.
    fn ranges(&self) -> (Range, Range) {
        let (guard, stack) = (self.guard.get() as u64, self.stack.get() as u64);
        (Range::new(guard, stack), Range::new(stack, self.top()))
    }
}

/// The type of the stack that a CPU runs on.
pub type MainStack = Stack<0x1_0000>;

/// One CPU's stacks. It switches to all but the first by itself, whatever state the interrupted one is in.
#[repr(C)]
pub struct CpuStacks {
    /// The stack it runs on, first for those who start a CPU there.
    pub main: MainStack,
    /// For non-maskable interrupts.
    pub nmi: Stack<0x4000>,
    /// For double faults.
    pub double_fault: Stack<0x4000>,
    /// For machine checks.
    pub machine_check: Stack<0x4000>,
}

/// The boot CPU's stacks, the main one in use from the first instruction on.
pub static BOOT_STACKS: CpuStacks = CpuStacks::new();

impl CpuStacks {
    /// The distance in bytes from the start to the main stack's first push.
    pub const MAIN_TOP: usize = core::mem::offset_of!(Self, main) + MainStack::SIZE;

    const fn new() -> Self {
        Self {
            main: Stack::new(),
            nmi: Stack::new(),
            double_fault: Stack::new(),
            machine_check: Stack::new(),
        }
    }

    /// As many as fit into `frames`, whose memory they take for good. Their guards are still mapped.
    pub fn in_frames(frames: Frames) -> &'static [Self] {
        let bytes = frames.into_bytes();
        // SAFETY: the bytes are nobody else's, for ever, start on a page, and hold that many stacks, of which any
        // bytes are valid.
        unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Self>()) }
    }

    /// The guard page and the bytes of each stack, with its name.
    fn all(&self) -> [(&'static str, (Range, Range)); 4] {
        [
            ("the CPU's stack", self.main.ranges()),
            ("the NMI stack", self.nmi.ranges()),
            ("the double-fault stack", self.double_fault.ranges()),
            ("the machine-check stack", self.machine_check.ranges()),
        ]
    }

    /// The guard pages.
    pub fn guards(&self) -> [Range; 4] {
        self.all().map(|(_, (guard, _))| guard)
    }

    /// Which stack's guard page `address` lies in.
    pub fn hit_guard(&self, address: u64) -> Option<&'static str> {
        self.all().into_iter().find(|(_, (guard, _))| guard.contains(address)).map(|(name, _)| name)
    }

    /// The stack that `address` lies on, for backtraces.
    pub fn containing(&self, address: u64) -> Option<Range> {
        self.all().into_iter().map(|(_, (_, bytes))| bytes).find(|bytes| bytes.contains(address))
    }
}
