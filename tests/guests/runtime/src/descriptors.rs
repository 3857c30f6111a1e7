//! The guest's own segments: the kernel's, the user's, 16 and 32 bits wide, and a task-state segment.

use core::arch::asm;

/// Selectors. The user's come in the order that SYSRET wants.
#[expect(missing_docs, reason = "the names say it")]
pub mod selector {
    pub const CODE: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_CODE_32: u16 = 0x18 | 3;
    pub const USER_DATA: u16 = 0x20 | 3;
    pub const USER_CODE: u16 = 0x28 | 3;
    pub const TASK: u16 = 0x30;
    pub const CODE_32: u16 = 0x40;
    pub const CODE_16: u16 = 0x48;
    pub const DATA_16: u16 = 0x50;
    /// A data segment that is not present.
    pub const ABSENT: u16 = 0x58;
    /// Read-only data: no stack.
    pub const READ_ONLY: u16 = 0x60;
    /// The first that the table does not hold.
    pub const PAST_THE_END: u16 = 0x68;
}

const STACK_SIZE: usize = 16384;
const PORTS: usize = 1 << 16;

/// A stack of the task-state segment.
#[repr(C, align(16))]
struct Stack([u8; STACK_SIZE]);

/// The 64-bit task-state segment with its I/O permission bitmap (SDM 8.7).
#[repr(C, packed(4))]
struct TaskState {
    reserved: u32,
    stacks: [u64; 3],
    reserved_2: u64,
    interrupt_stacks: [u64; 7],
    reserved_3: [u16; 5],
    bitmap_offset: u16,
    bitmap: [u8; PORTS / 8],
    /// The CPU reads one byte more than it needs.
    end: u8,
}

const TASK_LIMIT: u64 = size_of::<TaskState>() as u64 - 1;
const BITMAP_OFFSET: u16 = 104;

static mut STACKS: [Stack; 2] = [const { Stack([0; STACK_SIZE]) }; 2];
static mut TASK: TaskState = TaskState {
    reserved: 0,
    stacks: [0; 3],
    reserved_2: 0,
    interrupt_stacks: [0; 7],
    reserved_3: [0; 5],
    bitmap_offset: BITMAP_OFFSET,
    bitmap: [0xff; PORTS / 8],
    end: 0xff,
};

static mut TABLE: [u64; 13] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
    0x00cf_9b00_0000_ffff,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
    0x00cf_1300_0000_ffff,
    0x00cf_9100_0000_ffff,
];

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Loads the table and the task register, again after others. Exceptions of the user come in on one stack of the task's, those
/// whose gate says so on another.
pub fn install() {
    let task = &raw const TASK as u64;
    let stacks = &raw const STACKS as u64;
    // SAFETY: one CPU, and none of this is in use now.
    unsafe {
        TASK.stacks[0] = stacks + STACK_SIZE as u64;
        TASK.interrupt_stacks[0] = stacks + 2 * STACK_SIZE as u64;
        TABLE[usize::from(selector::TASK) / 8] = TASK_LIMIT & 0xffff
            | (task & 0xff_ffff) << 16
            | 0x89 << 40
            | (TASK_LIMIT >> 16) << 48
            | (task >> 24 & 0xff) << 56;
        TABLE[usize::from(selector::TASK) / 8 + 1] = task >> 32;
    }
    load();
    // SAFETY: the descriptor was just made.
    unsafe { asm!("ltr {:x}", in(reg) selector::TASK, options(nostack)) }
}

/// Loads the table again, after another one.
pub fn load() {
    let pointer = Pointer { limit: selector::PAST_THE_END - 1, base: &raw const TABLE as u64 };
    // SAFETY: code and data have the selectors in this table that they had before.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer, options(nostack, preserves_flags)) }
}

/// Sets the stack that exceptions of the user come in on.
pub fn set_kernel_stack(top: u64) {
    // SAFETY: one CPU; the hardware reads it only from privilege level 3.
    unsafe { TASK.stacks[0] = top }
}

/// Sets the stack of gates with their own stack.
pub fn set_interrupt_stack(top: u64) {
    // SAFETY: one CPU; the hardware reads it only at such a gate.
    unsafe { TASK.interrupt_stacks[0] = top }
}

/// Lets privilege level 3 use `port`, or not.
pub fn allow_port(port: u16, allowed: bool) {
    let (byte, bit) = (usize::from(port / 8), 1 << (port % 8));
    // SAFETY: one CPU; the hardware reads it only from privilege level 3.
    unsafe {
        if allowed {
            TASK.bitmap[byte] &= !bit;
        } else {
            TASK.bitmap[byte] |= bit;
        }
    }
}
