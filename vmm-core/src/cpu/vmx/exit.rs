//! Exit reasons (SDM volume 3, appendix C) and exit qualifications (SDM 28.2.1).

use crate::cpu::{APIC_BASE, MemoryAccess, PortAccess, Width};
use crate::memory::GuestPhys;

/// Bit 31 of the exit reason: the guest was not entered at all.
pub const ENTRY_FAILURE: u32 = 1 << 31;

/// Basic exit reasons.
pub mod reason {
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT_SIGNAL: u16 = 3;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const RDPMC: u16 = 15;
    pub const VMCALL: u16 = 18;
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const IO_INSTRUCTION: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const INVALID_GUEST_STATE: u16 = 33;
    pub const MSR_LOADING: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const MACHINE_CHECK_DURING_ENTRY: u16 = 41;
    pub const TPR_BELOW_THRESHOLD: u16 = 43;
    pub const APIC_ACCESS: u16 = 44;
    pub const VIRTUALIZED_EOI: u16 = 45;
    pub const EPT_VIOLATION: u16 = 48;
    pub const EPT_MISCONFIGURATION: u16 = 49;
    pub const INVEPT: u16 = 50;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const APIC_WRITE: u16 = 56;
}

/// Whether the exit was caused by an instruction whose length the CPU tells (SDM 28.2.5), and that ends here.
pub const fn tells_instruction_length(reason: u16) -> bool {
    matches!(
        reason,
        reason::TASK_SWITCH..=reason::INVD
            | reason::RDPMC
            | reason::VMCALL..=reason::CONTROL_REGISTER
            | reason::IO_INSTRUCTION..=reason::WRMSR
            | reason::MWAIT
            | reason::MONITOR
            | reason::PAUSE
            | reason::INVEPT
            | reason::INVVPID..=reason::XSETBV
    )
}

/// An I/O instruction's qualification (SDM table 28-5).
pub const fn port_access(qualification: u64) -> PortAccess {
    let width = match qualification & 0b111 {
        0 => Width::Byte,
        1 => Width::Word,
        _ => Width::Dword,
    };
    PortAccess {
        port: (qualification >> 16) as u16,
        width,
        write: qualification & (1 << 3) == 0,
        string: qualification & (1 << 4) != 0,
    }
}

/// An EPT violation's qualification (SDM table 28-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation(pub u64);

impl EptViolation {
    /// The access, which was to `address`.
    pub const fn access(self, address: u64) -> MemoryAccess {
        MemoryAccess {
            address: GuestPhys::new(address),
            write: self.0 & 0b10 != 0,
            fetch: self.0 & 0b100 != 0,
        }
    }

    /// An IRET that was to end the blocking of NMIs caused it, and will run again.
    pub const fn unblocked_nmi(self) -> bool {
        self.0 & (1 << 12) != 0
    }
}

/// An APIC access's qualification (SDM table 28-6): one that the CPU does not answer by itself.
pub const fn apic_access(qualification: u64) -> MemoryAccess {
    MemoryAccess {
        address: GuestPhys::new(APIC_BASE.get() | qualification & 0xfff),
        write: qualification >> 12 & 0xf == 1,
        fetch: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_qualifications_are_read() {
        let out = port_access(0x03f8_0040);
        assert_eq!(out, PortAccess { port: 0x3f8, width: Width::Byte, write: true, string: false });
        let input = port_access(0x0cfc_004b);
        assert_eq!((input.port, input.width, input.write), (0xcfc, Width::Dword, false));
        let ins = port_access(0x01f0_0039);
        assert_eq!((ins.width, ins.write, ins.string), (Width::Word, false, true));
    }

    #[test]
    fn violations_tell_the_access() {
        let write = EptViolation(0x1b2).access(0xfee0_0000);
        assert!(write.write && !write.fetch);
        assert_eq!(write.address, GuestPhys::new(0xfee0_0000));
        assert!(EptViolation(0b100).access(0).fetch);
        assert!(EptViolation(1 << 12).unblocked_nmi());
    }

    #[test]
    fn apic_accesses_are_told_by_offset() {
        assert_eq!(apic_access(0x0390).address, GuestPhys::new(0xfee0_0390));
        assert!(apic_access(0x1300).write && !apic_access(0x0300).write);
    }

    #[test]
    fn faults_and_interrupts_tell_no_length() {
        for reason in [reason::CPUID, reason::WRMSR, reason::XSETBV, reason::VMXON, reason::HLT] {
            assert!(tells_instruction_length(reason), "{reason}");
        }
        for reason in [reason::EPT_VIOLATION, reason::EXTERNAL_INTERRUPT, reason::TPR_BELOW_THRESHOLD] {
            assert!(!tells_instruction_length(reason), "{reason}");
        }
    }
}
