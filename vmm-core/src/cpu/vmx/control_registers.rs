//! CR0, CR4 and CR8 between a guest and the CPU: which bits are the guest's own, and what a MOV to the others
//! does (SDM 2.5, 10.8.5, 26.3).

use super::capabilities::{Capabilities, Fixed};
use crate::cpu::{ControlRegisters, Gpr};

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
/// CR0.TS: the FPU holds another task's state.
pub const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
const CR0_AM: u64 = 1 << 18;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_DEFINED: u64 = ControlRegisters::CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | ControlRegisters::CR0_ET
    | CR0_NE
    | ControlRegisters::CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | ControlRegisters::CR0_PG;
/// What a guest changes without an exit. Not PG, which decides about long mode; not NE, which VMX operation
/// fixes; not CD and NW, which would slow down the whole core.
const CR0_GUEST_OWNED: u64 =
    ControlRegisters::CR0_PE | CR0_MP | CR0_EM | CR0_TS | ControlRegisters::CR0_WP | CR0_AM;

const CR4_MCE: u64 = 1 << 6;
const CR4_PGE: u64 = 1 << 7;
const CR4_VMXE: u64 = 1 << 13;
const CR4_PCIDE: u64 = 1 << 17;
/// What a guest changes without an exit, where the CPU has it: VME, PVI, TSD, DE, PSE, PAE, PGE, PCE, OSFXSR,
/// OSXMMEXCPT, UMIP, LA57, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP, PKE. Not VMXE and MCE, which are the
/// monitor's, nor what CPUID offers to no guest.
const CR4_GUEST_OWNED: u64 = 0b1111
    | ControlRegisters::CR4_PSE
    | ControlRegisters::CR4_PAE
    | CR4_PGE
    | 0b1111 << 8
    | ControlRegisters::CR4_LA57
    | 0b11 << 16
    | 1 << 18
    | ControlRegisters::CR4_SMEP
    | ControlRegisters::CR4_SMAP
    | 1 << 22;
/// Changing one of these loads the PDPTEs anew under PAE paging (SDM 4.4.1).
const CR4_LOADS_PDPTES: u64 =
    ControlRegisters::CR4_PSE | ControlRegisters::CR4_PAE | CR4_PGE | ControlRegisters::CR4_SMEP;
const CR0_LOADS_PDPTES: u64 = CR0_NW | CR0_CD | ControlRegisters::CR0_PG;

/// A control register that a guest and the monitor share bit by bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Bits that the guest reads from and writes to the register itself.
    guest_owned: u64,
    /// What the others are in the CPU.
    host_value: u64,
}

impl Shared {
    /// CR0 on a CPU that fixes these bits. Unrestricted guest frees PE and PG.
    pub const fn cr0(fixed: Fixed) -> Self {
        let free = ControlRegisters::CR0_PE | ControlRegisters::CR0_PG;
        Self { guest_owned: CR0_GUEST_OWNED, host_value: fixed.ones & !free | ControlRegisters::CR0_ET }
    }

    /// CR4 on a CPU that fixes these bits; `host` is the monitor's own.
    pub const fn cr4(fixed: Fixed, host: u64) -> Self {
        // A machine check that struck while MCE is clear would shut the machine down.
        Self { guest_owned: CR4_GUEST_OWNED & fixed.possible, host_value: fixed.ones | host & CR4_MCE }
    }

    /// The guest/host mask: bits whose change exits, and that the guest reads from the shadow.
    pub const fn mask(self) -> u64 {
        !self.guest_owned
    }

    /// What the CPU gets where the guest is to see `value`; `passed` are bits beyond the guest's own in which
    /// the CPU follows it too.
    pub const fn in_hardware(self, value: u64, passed: u64) -> u64 {
        let followed = self.guest_owned | passed;
        value & followed | self.host_value & !followed
    }

    /// What the guest sees.
    pub const fn seen(self, in_hardware: u64, shadow: u64) -> u64 {
        in_hardware & self.guest_owned | shadow & !self.guest_owned
    }
}

/// The instruction raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// What follows a MOV to CR0 or CR4 that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The register's new value, as the guest sees it.
    pub value: u64,
    /// EFER, in which LMA may have changed.
    pub efer: u64,
    /// The PDPTEs are loaded from where CR3 points.
    pub loads_pdptes: bool,
}

/// What decides beside the registers themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// The registers before.
    pub control: ControlRegisters,
    /// Whether CS is a 64-bit code segment.
    pub long_code: bool,
}

impl Mode {
    const fn long_mode(&self) -> bool {
        self.control.efer & ControlRegisters::EFER_LMA != 0
    }

    /// MOV of `value` to CR0.
    pub const fn move_to_cr0(&self, value: u64) -> Result<Change, GeneralProtection> {
        let ControlRegisters { cr0, cr4, efer, .. } = self.control;
        let invalid = value >> 32 != 0
            || value & ControlRegisters::CR0_PG != 0 && value & ControlRegisters::CR0_PE == 0
            || value & CR0_NW != 0 && value & CR0_CD == 0;
        let value = value & CR0_DEFINED | ControlRegisters::CR0_ET;
        let turns_paging = (value ^ cr0) & ControlRegisters::CR0_PG != 0;
        let paging = value & ControlRegisters::CR0_PG != 0;
        let enables_long = turns_paging && paging && efer & ControlRegisters::EFER_LME != 0;
        let refused = turns_paging && !paging && (self.long_code && self.long_mode() || cr4 & CR4_PCIDE != 0)
            || enables_long && (cr4 & ControlRegisters::CR4_PAE == 0 || self.long_code);
        if invalid || refused {
            return Err(GeneralProtection);
        }
        let efer = if enables_long {
            efer | ControlRegisters::EFER_LMA
        } else if !paging {
            efer & !ControlRegisters::EFER_LMA
        } else {
            efer
        };
        let pae_paging =
            paging && cr4 & ControlRegisters::CR4_PAE != 0 && efer & ControlRegisters::EFER_LMA == 0;
        Ok(Change { value, efer, loads_pdptes: pae_paging && (value ^ cr0) & CR0_LOADS_PDPTES != 0 })
    }

    /// MOV of `value` to CR4, of which the guest may set the bits in `offered`.
    pub const fn move_to_cr4(&self, value: u64, offered: u64) -> Result<Change, GeneralProtection> {
        let ControlRegisters { cr0, cr3, cr4, efer, .. } = self.control;
        let changed = value ^ cr4;
        let long = self.long_mode();
        let refused = value & !offered != 0
            || long && value & ControlRegisters::CR4_PAE == 0
            || long && changed & ControlRegisters::CR4_LA57 != 0
            || changed & value & CR4_PCIDE != 0 && (!long || cr3 & 0xfff != 0);
        if refused {
            return Err(GeneralProtection);
        }
        let pae_paging =
            cr0 & ControlRegisters::CR0_PG != 0 && value & ControlRegisters::CR4_PAE != 0 && !long;
        Ok(Change { value, efer, loads_pdptes: pae_paging && changed & CR4_LOADS_PDPTES != 0 })
    }
}

/// The bits of CR4 that a guest may set.
pub const fn cr4_offered(capabilities: &Capabilities) -> u64 {
    (CR4_GUEST_OWNED | CR4_MCE) & capabilities.cr4.possible & !CR4_VMXE
}

/// The same for a PDPTE that is present, on a CPU of so many physical address bits (SDM table 4-8).
pub const fn pdpte_is_valid(entry: u64, physical_bits: u8) -> bool {
    const RESERVED: u64 = 0b1_1110_0110;
    let too_high = u64::MAX.wrapping_shl(physical_bits as u32);
    entry & 1 == 0 || entry & (RESERVED | too_high) == 0
}

/// A control-register access, from the exit qualification (SDM table 28-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// MOV from a general register to CR`number`.
    MoveTo {
        /// Which control register.
        number: u8,
        /// Where the value comes from.
        register: Gpr,
    },
    /// MOV to a general register from CR`number`.
    MoveFrom {
        /// Which control register.
        number: u8,
        /// Where the value goes.
        register: Gpr,
    },
    /// CLTS or LMSW, which touch only bits that the guest owns.
    NotAskedFor,
}

impl Access {
    /// Reads the qualification.
    pub const fn decode(qualification: u64) -> Self {
        let number = (qualification & 0xf) as u8;
        let register = Gpr::from_number((qualification >> 8) as u8);
        match (qualification >> 4) & 0b11 {
            0 => Self::MoveTo { number, register },
            1 => Self::MoveFrom { number, register },
            _ => Self::NotAskedFor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PE: u64 = ControlRegisters::CR0_PE;
    const PG: u64 = ControlRegisters::CR0_PG;
    const ET: u64 = ControlRegisters::CR0_ET;
    const PAE: u64 = ControlRegisters::CR4_PAE;
    const LME: u64 = ControlRegisters::EFER_LME;
    const LMA: u64 = ControlRegisters::EFER_LMA;

    fn mode(cr0: u64, cr4: u64, efer: u64) -> Mode {
        Mode { control: ControlRegisters { cr0, cr4, efer, ..Default::default() }, long_code: false }
    }

    #[test]
    fn hidden_bits_stay_hidden() {
        let fixed = Fixed { ones: PE | CR0_NE | PG, possible: 0xffff_ffff };
        let cr0 = Shared::cr0(fixed);
        let in_hardware = cr0.in_hardware(ET | CR0_CD | CR0_NW, PG);
        assert_eq!(in_hardware, ET | CR0_NE, "caches stay on, NE too, real mode is real mode");
        assert_eq!(cr0.seen(in_hardware | CR0_TS, ET | CR0_CD | CR0_NW), ET | CR0_CD | CR0_NW | CR0_TS);
        assert_eq!(cr0.in_hardware(PE | PG, PG), PE | PG | ET | CR0_NE);
        let cr4 = Shared::cr4(Fixed { ones: CR4_VMXE, possible: 0x77_2fff }, CR4_MCE);
        assert_eq!(cr4.in_hardware(PAE, 0), PAE | CR4_VMXE | CR4_MCE);
        assert_eq!(cr4.seen(PAE | CR4_VMXE | CR4_MCE, PAE), PAE);
        assert_ne!(cr4.mask() & CR4_VMXE, 0);
        assert_eq!(cr4.mask() & 1 << 23, 1 << 23, "CET is nobody's");
    }

    #[test]
    fn paging_turns_long_mode_on_and_off() {
        let change = mode(PE | ET, PAE, LME).move_to_cr0(PE | PG).unwrap();
        assert_eq!(change, Change { value: PE | ET | PG, efer: LME | LMA, loads_pdptes: false });
        let change = mode(PE | ET | PG, PAE, LME | LMA).move_to_cr0(PE).unwrap();
        assert_eq!(change, Change { value: PE | ET, efer: LME, loads_pdptes: false });
        assert_eq!(mode(PE, 0, LME).move_to_cr0(PE | PG), Err(GeneralProtection), "without PAE");
        let mut in_64_bit_code = mode(PE | PG, PAE, LME | LMA);
        in_64_bit_code.long_code = true;
        assert_eq!(in_64_bit_code.move_to_cr0(PE), Err(GeneralProtection));
        assert_eq!(mode(PE | PG, PAE | CR4_PCIDE, LME | LMA).move_to_cr0(PE), Err(GeneralProtection));
    }

    #[test]
    fn pae_paging_loads_its_pointers() {
        assert!(mode(PE, PAE, 0).move_to_cr0(PE | PG).unwrap().loads_pdptes);
        assert!(!mode(PE | PG | ET, PAE, 0).move_to_cr0(PE | PG | CR0_TS).unwrap().loads_pdptes);
        assert!(!mode(PE, 0, 0).move_to_cr0(PE | PG).unwrap().loads_pdptes);
        assert!(mode(PE | PG, PAE, 0).move_to_cr4(PAE | CR4_PGE, u64::MAX).unwrap().loads_pdptes);
        assert!(!mode(PE | PG, PAE, LMA).move_to_cr4(PAE | CR4_PGE, u64::MAX).unwrap().loads_pdptes);
    }

    #[test]
    fn nonsense_is_refused() {
        for value in [1 << 32, PG, CR0_NW] {
            assert_eq!(mode(0, 0, 0).move_to_cr0(value), Err(GeneralProtection), "{value:#x}");
        }
        assert!(mode(0, 0, 0).move_to_cr0(CR0_NW | CR0_CD).is_ok());
        assert_eq!(mode(PE | PG, PAE, LMA).move_to_cr4(0, u64::MAX), Err(GeneralProtection));
        assert_eq!(mode(0, 0, 0).move_to_cr4(CR4_VMXE, !CR4_VMXE), Err(GeneralProtection));
        assert_eq!(mode(PE, PAE, 0).move_to_cr4(PAE | CR4_PCIDE, u64::MAX), Err(GeneralProtection));
        assert!(mode(PE | PG, PAE, LMA).move_to_cr4(PAE | CR4_PCIDE, u64::MAX).is_ok());
    }

    #[test]
    fn pdptes_have_reserved_bits() {
        assert!(pdpte_is_valid(0x1001, 40));
        assert!(pdpte_is_valid(0b110, 40), "not present");
        assert!(!pdpte_is_valid(0x1003, 40));
        assert!(!pdpte_is_valid(1 | 1 << 40, 40));
    }

    #[test]
    fn qualifications_name_the_registers() {
        assert_eq!(Access::decode(0x300), Access::MoveTo { number: 0, register: Gpr::Rbx });
        assert_eq!(Access::decode(0xf18), Access::MoveFrom { number: 8, register: Gpr::R15 });
        assert_eq!(Access::decode(0x30), Access::NotAskedFor);
    }
}
