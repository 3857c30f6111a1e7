//! Why a guest stopped running, in terms shared by VT-x and AMD-V.

use crate::memory::GuestPhys;
use core::fmt;

/// How many bytes one port or memory access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    Byte = 1,
    /// Two bytes.
    Word = 2,
    /// Four bytes.
    Dword = 4,
    /// Eight bytes; memory only.
    Qword = 8,
}

impl Width {
    /// The width of `bytes` bytes, when it is one.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// The width in bytes.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// The width in bits.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Byte => 8,
            Self::Word => 16,
            Self::Dword => 32,
            Self::Qword => 64,
        }
    }

    /// All ones in this width: also what nothing answers to a read.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
            Self::Qword => u64::MAX,
        }
    }
}

/// An IN, OUT, INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The first port.
    pub port: u16,
    /// One, two or four bytes.
    pub width: Width,
    /// Whether the guest writes.
    pub write: bool,
    /// INS or OUTS. The memory side is in the instruction: not all hardware tells of it.
    pub string: bool,
}

/// An access to a guest-physical address that no memory backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// The address.
    pub address: GuestPhys,
    /// Whether the guest writes.
    pub write: bool,
    /// Whether it was to fetch an instruction.
    pub fetch: bool,
}

/// Something to deliver through the guest's interrupt table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// A fault or trap with its vector, and an error code where that vector has one.
    Exception {
        /// 0 to 31.
        vector: u8,
        /// The error code.
        error_code: Option<u32>,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt(vector) => write!(f, "interrupt {vector:#x}"),
            Self::Nmi => f.write_str("an NMI"),
            Self::Exception { vector, error_code: None } => write!(f, "exception {vector}"),
            Self::Exception { vector, error_code: Some(code) } => {
                write!(f, "exception {vector} with error code {code:#x}")
            }
        }
    }
}

impl Event {
    /// #DB, debug; the caller sets DR6.
    pub const DEBUG: Self = Self::Exception { vector: 1, error_code: None };
    /// #UD, invalid opcode.
    pub const INVALID_OPCODE: Self = Self::Exception { vector: 6, error_code: None };
    /// #SS(0), stack fault.
    pub const STACK_FAULT: Self = Self::Exception { vector: 12, error_code: Some(0) };
    /// #GP(0), general protection.
    pub const GENERAL_PROTECTION: Self = Self::Exception { vector: 13, error_code: Some(0) };
    /// #PF with `error_code`; the caller sets CR2.
    pub const fn page_fault(error_code: u32) -> Self {
        Self::Exception { vector: 14, error_code: Some(error_code) }
    }
}

/// Why the guest stopped. RIP still points at the instruction, except where a variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// CPUID.
    Cpuid,
    /// RDMSR of the index in ECX.
    ReadMsr,
    /// WRMSR of EDX:EAX to the index in ECX.
    WriteMsr,
    /// A port instruction.
    Port(PortAccess),
    /// An access that needs a device, or that nothing answers.
    Memory(MemoryAccess),
    /// HLT.
    Halt,
    /// PAUSE, where the CPU counts them.
    Pause,
    /// The guest wrote a register of a local APIC that is lent to the CPU, and the CPU kept the value in its page;
    /// RIP is behind the instruction.
    ApicWrite {
        /// The register's offset in the page.
        offset: u32,
    },
    /// The guest ended an interrupt of which that is to be told, and the CPU has taken it out of service; RIP is
    /// behind the instruction.
    EndOfInterrupt {
        /// The interrupt's vector.
        vector: u8,
    },
    /// MOV to CR8, where the backend must catch it.
    WriteTaskPriority,
    /// XSETBV of EDX:EAX to the register in ECX.
    Xsetbv,
    /// WBINVD or INVD.
    CacheFlush,
    /// VMCALL or VMMCALL.
    Hypercall,
    /// MONITOR, MWAIT or another instruction the guest's CPUID does not offer: #UD.
    Undefined,
    /// The host has an interrupt to serve; the guest did nothing.
    HostInterrupt,
    /// The host got a non-maskable interrupt.
    HostNmi,
    /// The machine reported a machine check while the guest ran.
    HostMachineCheck,
    /// The guest can now take the interrupt a window was requested for, or the backend has dealt with the exit and has
    /// an event to deliver.
    InterruptWindow,
    /// A fault while delivering a double fault.
    TripleFault,
    /// The hardware refused the guest's state or reported what we never asked for; the code is the backend's.
    Failed(EntryFailure),
}

/// A failed guest entry or an exit that the backend does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFailure {
    /// The hardware's exit or error code.
    pub code: u64,
    /// What it means, in the manual's words.
    pub reason: &'static str,
}
