//! As much of Linux's system-call interface for x86-64 as this program uses.

use core::arch::{asm, global_asm, x86_64::_rdtsc};
use core::ffi::CStr;
use core::fmt;

// System calls by their numbers.
const READ: u64 = 0;
const WRITE: u64 = 1;
const OPEN: u64 = 2;
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const IOCTL: u64 = 16;
const PREAD: u64 = 17;
pub const FORK: u64 = 57;
pub const SCHED_SETSCHEDULER: u64 = 144;
pub const PRCTL: u64 = 157;
pub const IO_SETUP: u64 = 206;
pub const IO_DESTROY: u64 = 207;
pub const IO_GETEVENTS: u64 = 208;
pub const IO_SUBMIT: u64 = 209;
const EXIT_GROUP: u64 = 231;

/// The scheduling class of those who want what no other wants.
pub const SCHED_IDLE: u64 = 5;
pub const PR_SET_PDEATHSIG: u64 = 1;
pub const SIGKILL: u64 = 9;
/// The error for arguments that make no sense (EINVAL).
pub const INVALID: i64 = -22;

const O_RDONLY: u64 = 0;
const O_RDWR: u64 = 2;
/// Past the page cache.
const O_DIRECT: u64 = 0o40_000;
const PROT_READ_WRITE: u64 = 1 | 2;
/// Shared with children, and no file's.
const MAP_SHARED_ANONYMOUS: u64 = 1 | 0x20;
/// Has the kernel write and forget what it keeps of a disk (BLKFLSBUF).
const FLUSH_CACHE: u64 = 0x1261;
/// A disk's size in bytes (BLKGETSIZE64).
const DISK_BYTES: u64 = 0x8008_1272;

// The stack begins with the number of arguments, and their addresses.
global_asm!(".globl _start", "_start: mov rdi, rsp", "and rsp, -16", "call {entry}", "ud2", entry = sym entry);

extern "C" fn entry(stack: *const u64) -> ! {
    crate::main(Arguments(stack));
    exit()
}

/// What the program was started with.
pub struct Arguments(*const u64);

impl Arguments {
    /// The argument with this number; the first is the program's name.
    pub fn get(&self, number: usize) -> Option<&'static CStr> {
        // SAFETY: Linux starts a program with its arguments' count, then their addresses, on its stack.
        unsafe {
            (number < *self.0 as usize)
                .then(|| CStr::from_ptr(*self.0.add(1 + number) as *const core::ffi::c_char))
        }
    }
}

/// A system call: its result, or its negative error number.
pub fn call(number: u64, arguments: [u64; 6]) -> Result<u64, i64> {
    let [a, b, c, d, e, f] = arguments;
    let result: i64;
    // SAFETY: what the kernel writes is memory that the caller named for it, and the registers named here.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if result < 0 { Err(result) } else { Ok(result.cast_unsigned()) }
}

/// Ends this process.
pub fn exit() -> ! {
    loop {
        let _ = call(EXIT_GROUP, [0; 6]);
    }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every CPU has it, and Linux lets programs read it.
    unsafe { _rdtsc() }
}

/// A line of the standard input, without its end; `None` at the input's end.
pub fn read_line(text: &mut [u8]) -> Option<&str> {
    let (address, bytes) = (text.as_mut_ptr() as u64, text.len() as u64);
    // A terminal hands over one line.
    let read = call(READ, [0, address, bytes, 0, 0, 0]).ok().filter(|read| *read > 0)?;
    core::str::from_utf8(text.get(..read as usize)?).ok().map(str::trim)
}

/// An open disk.
pub struct Descriptor(u32);

impl Descriptor {
    /// Opens it, past the page cache or through it, and to be written where it can be.
    pub fn open(path: &CStr, direct: bool) -> Result<Self, i64> {
        let cache = if direct { O_DIRECT } else { 0 };
        let open = |flags| call(OPEN, [path.as_ptr() as u64, flags | cache, 0, 0, 0, 0]);
        open(O_RDWR).or_else(|_| open(O_RDONLY)).map(|number| Self(number as u32))
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.0
    }

    /// The disk's size.
    pub fn disk_bytes(&self) -> u64 {
        let mut bytes = 0_u64;
        let _ = call(IOCTL, [self.0.into(), DISK_BYTES, (&raw mut bytes) as u64, 0, 0, 0]);
        bytes
    }

    /// Has the page cache forget the disk.
    pub fn forget(&self) -> Result<(), i64> {
        call(IOCTL, [self.0.into(), FLUSH_CACHE, 0, 0, 0, 0]).map(drop)
    }

    /// Reads all of so many bytes at an offset.
    pub fn read_at(&self, room: &Pages, bytes: usize, offset: u64) -> Result<(), i64> {
        let arguments = [self.0.into(), room.address(), bytes as u64, offset, 0, 0];
        if call(PREAD, arguments)? == bytes as u64 { Ok(()) } else { Err(INVALID) }
    }
}

/// Memory of whole pages, zeroed, which children share.
pub struct Pages {
    address: u64,
    bytes: u64,
}

impl Pages {
    /// So many bytes of it.
    pub fn map(bytes: usize) -> Result<Self, i64> {
        let bytes = bytes as u64;
        let arguments = [0, bytes, PROT_READ_WRITE, MAP_SHARED_ANONYMOUS, u64::MAX, 0];
        call(MMAP, arguments).map(|address| Self { address, bytes })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // What cannot be given back goes with the program.
        let _ = call(MUNMAP, [self.address, self.bytes, 0, 0, 0, 0]);
    }
}

/// The standard output.
pub struct Output;

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let _ = call(WRITE, [1, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]);
        Ok(())
    }
}

/// Prints a line.
macro_rules! println {
    ($($words:tt)*) => {{
        use core::fmt::Write;
        // Nobody is left to be told that it cannot be.
        let _ = writeln!($crate::linux::Output, $($words)*);
    }};
}
pub(crate) use println;
