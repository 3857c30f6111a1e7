//! Model-specific registers: those a guest may know, and #GP for the rest.

use super::Vcpu;
use crate::chipset::{MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC};
use crate::cpu::{ControlRegisters, Event, Gpr, SystemMsr};
use crate::emulate::Kind;
use crate::eoi_word;
use crate::guest::Unknown;
use crate::kvm_clock;
use crate::time::TscClock;

const IA32_TSC: u32 = 0x10;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_BIOS_UPDATE_TRIGGER: u32 = 0x79;
const IA32_BIOS_SIGNATURE: u32 = 0x8b;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_DEBUGCTL: u32 = 0x1d9;
const IA32_MCG_CAP: u32 = 0x179;
const IA32_MCG_STATUS: u32 = 0x17a;
/// Hardware configuration of AMD's CPUs.
const HWCR: u32 = 0xc001_0015;
/// The time-stamp counter runs at the frequency of P-state 0: Linux warns where it does not say so.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// AMD's system configuration, where Linux looks for memory encryption.
const SYSCFG: u32 = 0xc001_0010;
/// AMD's northbridge configuration, where Linux opens extended configuration space by ports; there is none.
const NB_CFG: u32 = 0xc001_001f;
/// AMD's decode configuration; bit 1 makes LFENCE serialising, which it always is for a guest.
const DE_CFG: u32 = 0xc001_1029;
const DE_CFG_LFENCE_SERIALIZE: u64 = 1 << 1;
/// Pending messages and C1E on interrupt (AMD); nothing of it is virtualised.
const INTERRUPT_PENDING: u32 = 0xc001_0055;
/// Where AMD's CPUs find their memory-mapped configuration space: switched off.
const MMIO_CONFIGURATION: u32 = 0xc001_0058;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;

/// EFER bits a guest may set: SCE, LME, NXE. CPUID offers none of AMD's others (SVM, LMSLE, FFXSR, TCE).
const EFER_WRITABLE: u64 = 1 | ControlRegisters::EFER_LME | ControlRegisters::EFER_NXE;

/// The guest gets #GP(0).
struct GeneralProtection;

impl Vcpu {
    pub(super) fn read_msr(&mut self) {
        let index = self.cpu.registers().get(Gpr::Rcx) as u32;
        let Some(next_rip) = self.next_rip(Kind::Rdmsr) else { return };
        match self.msr(index) {
            Ok(value) => {
                self.cpu.registers_mut().set_edx_eax(value);
                self.cpu.complete_instruction(next_rip);
            }
            Err(GeneralProtection) => {
                self.guest.report(Unknown::ReadMsr(index), format_args!("read unknown MSR {index:#x}: #GP"));
                self.cpu.inject(Event::GENERAL_PROTECTION);
            }
        }
    }

    pub(super) fn write_msr(&mut self) {
        let registers = self.cpu.registers();
        let (index, value) = (registers.get(Gpr::Rcx) as u32, registers.edx_eax());
        let Some(next_rip) = self.next_rip(Kind::Wrmsr) else { return };
        match self.set_msr(index, value) {
            Ok(()) => self.cpu.complete_instruction(next_rip),
            Err(GeneralProtection) => {
                self.guest.report(
                    Unknown::WriteMsr(index),
                    format_args!("wrote {value:#x} to MSR {index:#x}, which it may not: #GP"),
                );
                self.cpu.inject(Event::GENERAL_PROTECTION);
            }
        }
    }

    fn msr(&mut self, index: u32) -> Result<u64, GeneralProtection> {
        Ok(match index {
            MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..0x900 => {
                let now = self.guest.host().now();
                self.settle_end_of_interrupt();
                let mut apic = self.guest.apics.lock(self.index as usize).ok_or(GeneralProtection)?;
                if index >= MSR_X2APIC {
                    self.attention |= apic.take_back();
                    apic.set_task_priority_class(self.cpu.task_priority_class());
                }
                return apic.read_msr(index, now).map_err(|_| GeneralProtection);
            }
            IA32_TSC => self.tsc.ticks_at(self.guest.host().now()),
            kvm_clock::SYSTEM_TIME => self.system_time,
            kvm_clock::WALL_CLOCK => self.wall_clock,
            kvm_clock::STEAL_TIME => self.steal_time.msr(),
            eoi_word::MSR => self.eoi_word.msr(),
            IA32_BIOS_SIGNATURE => 0,
            IA32_MISC_ENABLE => self.misc_enable,
            IA32_DEBUGCTL | IA32_MCG_CAP | IA32_MCG_STATUS => 0,
            HWCR if self.cpuid.is_amd() => HWCR_TSC_FREQ_SEL,
            DE_CFG if self.cpuid.is_amd() => DE_CFG_LFENCE_SERIALIZE,
            SYSCFG | NB_CFG | INTERRUPT_PENDING | MMIO_CONFIGURATION if self.cpuid.is_amd() => 0,
            _ => match SystemMsr::from_index(index) {
                Some(msr) if self.offers(msr) => self.cpu.system_msr(msr),
                _ => self.mtrrs.read(index).ok_or(GeneralProtection)?,
            },
        })
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), GeneralProtection> {
        match index {
            MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..0x900 => {
                let now = self.guest.host().now();
                if index != MSR_TSC_DEADLINE {
                    self.settle_end_of_interrupt();
                }
                let mut apic = self.guest.apics.lock(self.index as usize).ok_or(GeneralProtection)?;
                // The timer is not the CPU's, whoever has the rest.
                if index != MSR_TSC_DEADLINE {
                    self.attention |= apic.take_back();
                    apic.set_task_priority_class(self.cpu.task_priority_class());
                }
                let effect = apic.write_msr(index, value, now).map_err(|_| GeneralProtection)?;
                self.attention |= !apic.is_lent() || apic.highest_request().is_some();
                self.apic_enabled = apic.is_enabled();
                if index != MSR_TSC_DEADLINE {
                    self.cpu.set_task_priority_class(apic.task_priority() >> 4);
                }
                drop(apic);
                self.guest.follow(effect, now, self.index);
                self.deadline_moved = moves_deadline(index);
                Ok(())
            }
            IA32_TSC => {
                self.set_tsc(value);
                Ok(())
            }
            kvm_clock::SYSTEM_TIME => {
                self.system_time = value;
                kvm_clock::write_system_time(self.guest.memory(), value, self.guest.clock.khz())
                    .map_err(|_| GeneralProtection)
            }
            kvm_clock::STEAL_TIME => {
                self.steal_time.set_msr(value, self.guest.memory()).ok_or(GeneralProtection)
            }
            eoi_word::MSR => {
                self.settle_end_of_interrupt();
                self.eoi_word.set_msr(value, self.guest.memory()).ok_or(GeneralProtection)
            }
            kvm_clock::WALL_CLOCK => {
                self.wall_clock = value;
                let start = self.guest.unix_time.saturating_mul(1_000_000_000);
                kvm_clock::write_wall_clock(self.guest.memory(), value, start).map_err(|_| GeneralProtection)
            }
            // No microcode is loaded on a guest's word, and a predictor barrier passes where there is one.
            IA32_BIOS_UPDATE_TRIGGER | IA32_BIOS_SIGNATURE => Ok(()),
            IA32_PRED_CMD if self.cpuid.offers_ibpb() => Ok(()),
            IA32_MISC_ENABLE => {
                self.misc_enable = value & MISC_ENABLE_FAST_STRINGS;
                Ok(())
            }
            IA32_DEBUGCTL | IA32_MCG_STATUS if value == 0 => Ok(()),
            HWCR | NB_CFG | DE_CFG if self.cpuid.is_amd() => Ok(()),
            _ => match SystemMsr::from_index(index) {
                Some(msr) if self.offers(msr) => self.set_system_msr(msr, value),
                _ => self.mtrrs.write(index, value).ok_or(GeneralProtection),
            },
        }
    }

    fn offers(&self, msr: SystemMsr) -> bool {
        match msr {
            SystemMsr::SpecCtrl => self.cpuid.offers_spec_ctrl(),
            SystemMsr::TscAux => self.cpuid.offers_rdtscp(),
            _ => true,
        }
    }

    fn set_system_msr(&mut self, msr: SystemMsr, value: u64) -> Result<(), GeneralProtection> {
        let mut value = value;
        let allowed = match msr {
            SystemMsr::Efer => {
                let (control, old) = (self.cpu.control(), self.cpu.system_msr(SystemMsr::Efer));
                let changes_mode = (value ^ old) & ControlRegisters::EFER_LME != 0;
                let paging = control.cr0 & ControlRegisters::CR0_PG != 0;
                let known = value & !(EFER_WRITABLE | ControlRegisters::EFER_LMA) == 0;
                // LMA follows LME and paging; software's own value for it counts for nothing.
                value = value & EFER_WRITABLE | old & ControlRegisters::EFER_LMA;
                known && !(changes_mode && paging)
            }
            SystemMsr::Pat => value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4 | 5 | 6 | 7)),
            // IBRS, STIBP, SSBD; more is not offered.
            SystemMsr::SpecCtrl => value & !0b111 == 0,
            SystemMsr::TscAux => value >> 32 == 0,
            msr if msr.holds_linear_address() => is_canonical(value),
            _ => true,
        };
        if !allowed {
            return Err(GeneralProtection);
        }
        self.cpu.set_system_msr(msr, value);
        Ok(())
    }

    /// Moves this guest's counter to `value` now, and with it what a TSC deadline means.
    fn set_tsc(&mut self, value: u64) {
        let host = self.guest.host();
        let (now, tsc) = host.now_and_tsc();
        self.cpu.set_tsc_offset(value.wrapping_sub(tsc));
        self.tsc = TscClock::reading(self.tsc.khz(), value, now);
        self.deadline_moved = true;
        if let Some(mut apic) = self.guest.apics.lock(self.index as usize) {
            apic.set_tsc_clock(self.tsc);
        }
    }
}

/// Whether a write to this register of the local APIC can move its timer.
const fn moves_deadline(index: u32) -> bool {
    const LVT_TIMER: u32 = MSR_X2APIC + 0x32;
    const INITIAL_COUNT: u32 = MSR_X2APIC + 0x38;
    const DIVIDE: u32 = MSR_X2APIC + 0x3e;
    const SPURIOUS: u32 = MSR_X2APIC + 0xf;
    matches!(index, MSR_APIC_BASE | MSR_TSC_DEADLINE | LVT_TIMER | INITIAL_COUNT | DIVIDE | SPURIOUS)
}

/// Whether bits 48 to 63 repeat bit 47.
const fn is_canonical(address: u64) -> bool {
    let high = address.cast_signed() >> 47;
    high == 0 || high == -1
}
