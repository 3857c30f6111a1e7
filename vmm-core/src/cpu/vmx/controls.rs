//! The VM-execution, VM-exit and VM-entry controls, computed from what the CPU can do (SDM 25.6 to 25.8).

use super::capabilities::{Allowed, Capabilities};
use crate::cpu::{ApicAccess, Unsupported};

/// Pin-based VM-execution controls (SDM table 25-5).
pub mod pin {
    pub const EXTERNAL_INTERRUPT_EXITING: u32 = 1 << 0;
    pub const NMI_EXITING: u32 = 1 << 3;
    pub const VIRTUAL_NMIS: u32 = 1 << 5;
    pub const PREEMPTION_TIMER: u32 = 1 << 6;
}

/// Primary processor-based VM-execution controls (SDM table 25-6).
pub mod primary {
    pub const INTERRUPT_WINDOW_EXITING: u32 = 1 << 2;
    pub const USE_TSC_OFFSETTING: u32 = 1 << 3;
    pub const HLT_EXITING: u32 = 1 << 7;
    pub const MWAIT_EXITING: u32 = 1 << 10;
    pub const RDPMC_EXITING: u32 = 1 << 11;
    pub const CR3_LOAD_EXITING: u32 = 1 << 15;
    pub const CR3_STORE_EXITING: u32 = 1 << 16;
    pub const CR8_LOAD_EXITING: u32 = 1 << 19;
    pub const CR8_STORE_EXITING: u32 = 1 << 20;
    pub const USE_TPR_SHADOW: u32 = 1 << 21;
    pub const NMI_WINDOW_EXITING: u32 = 1 << 22;
    pub const UNCONDITIONAL_IO_EXITING: u32 = 1 << 24;
    pub const USE_MSR_BITMAPS: u32 = 1 << 28;
    pub const MONITOR_EXITING: u32 = 1 << 29;
    pub const ACTIVATE_SECONDARY_CONTROLS: u32 = 1 << 31;
}

/// Secondary processor-based VM-execution controls (SDM table 25-7).
pub mod secondary {
    pub const VIRTUALIZE_APIC_ACCESSES: u32 = 1 << 0;
    pub const ENABLE_EPT: u32 = 1 << 1;
    pub const ENABLE_RDTSCP: u32 = 1 << 3;
    pub const VIRTUALIZE_X2APIC_MODE: u32 = 1 << 4;
    pub const ENABLE_VPID: u32 = 1 << 5;
    pub const WBINVD_EXITING: u32 = 1 << 6;
    pub const UNRESTRICTED_GUEST: u32 = 1 << 7;
    pub const APIC_REGISTER_VIRTUALIZATION: u32 = 1 << 8;
    pub const VIRTUAL_INTERRUPT_DELIVERY: u32 = 1 << 9;
    pub const PAUSE_LOOP_EXITING: u32 = 1 << 10;
    pub const ENABLE_INVPCID: u32 = 1 << 12;
}

/// Primary VM-exit controls (SDM table 25-13).
pub mod exit {
    pub const SAVE_DEBUG_CONTROLS: u32 = 1 << 2;
    pub const HOST_ADDRESS_SPACE_SIZE: u32 = 1 << 9;
    pub const LOAD_PAT: u32 = 1 << 19;
    pub const LOAD_EFER: u32 = 1 << 21;
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
}

/// VM-entry controls (SDM table 25-15).
pub mod entry {
    pub const LOAD_DEBUG_CONTROLS: u32 = 1 << 2;
    pub const IA32E_MODE_GUEST: u32 = 1 << 9;
    pub const LOAD_PAT: u32 = 1 << 14;
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// The controls that every guest of this CPU starts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controls {
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
    /// Whether local APICs may be lent to the CPU: all of [`LOCAL_APIC`] is there.
    pub lends_apics: bool,
}

/// What the CPU does with a local APIC that is lent to it, however the guest reaches it.
const LENT: u32 = secondary::APIC_REGISTER_VIRTUALIZATION | secondary::VIRTUAL_INTERRUPT_DELIVERY;
/// What it takes to lend it, in both modes.
const LOCAL_APIC: u32 = LENT | secondary::VIRTUALIZE_APIC_ACCESSES | secondary::VIRTUALIZE_X2APIC_MODE;

const PIN: &[(u32, &str)] = &[
    (pin::EXTERNAL_INTERRUPT_EXITING, "external-interrupt exiting"),
    (pin::NMI_EXITING, "NMI exiting"),
    (pin::VIRTUAL_NMIS, "virtual NMIs"),
];

const PRIMARY: &[(u32, &str)] = &[
    (primary::USE_TSC_OFFSETTING, "TSC offsetting"),
    (primary::HLT_EXITING, "HLT exiting"),
    (primary::MWAIT_EXITING, "MWAIT exiting"),
    (primary::RDPMC_EXITING, "RDPMC exiting"),
    // No port passes through, so a bitmap would be all ones.
    (primary::UNCONDITIONAL_IO_EXITING, "unconditional I/O exiting"),
    (primary::USE_MSR_BITMAPS, "MSR bitmaps"),
    (primary::MONITOR_EXITING, "MONITOR exiting"),
    (primary::ACTIVATE_SECONDARY_CONTROLS, "secondary controls"),
];

const EXIT: &[(u32, &str)] = &[
    (exit::SAVE_DEBUG_CONTROLS, "saving of debug controls"),
    (exit::HOST_ADDRESS_SPACE_SIZE, "a 64-bit host"),
    (exit::LOAD_PAT, "loading of IA32_PAT on exit"),
    (exit::LOAD_EFER, "loading of IA32_EFER on exit"),
];

const ENTRY: &[(u32, &str)] = &[
    (entry::LOAD_DEBUG_CONTROLS, "loading of debug controls"),
    (entry::LOAD_PAT, "loading of IA32_PAT on entry"),
    (entry::LOAD_EFER, "loading of IA32_EFER on entry"),
];

/// XSAVES is not offered to guests, so it stays off and is #UD, and so do all the others not named.
const SECONDARY_WHERE_POSSIBLE: u32 = secondary::ENABLE_RDTSCP
    | secondary::ENABLE_VPID
    | secondary::WBINVD_EXITING
    | secondary::PAUSE_LOOP_EXITING
    | secondary::ENABLE_INVPCID;

impl Controls {
    /// The controls for a CPU with these capabilities, or what it lacks.
    pub fn choose(capabilities: &Capabilities) -> Result<Self, Unsupported> {
        let Capabilities { primary, secondary, .. } = capabilities;
        if primary.possible & primary::ACTIVATE_SECONDARY_CONTROLS == 0
            || secondary.possible & secondary::ENABLE_EPT == 0
        {
            return Err(Unsupported::NoExtendedPageTables);
        }
        if secondary.possible & secondary::UNRESTRICTED_GUEST == 0 {
            return Err(Unsupported::NoUnrestrictedGuest);
        }
        for (there, name) in [
            (capabilities.ept_four_levels(), "EPT with four levels"),
            (capabilities.invept(), "INVEPT"),
            (
                primary.required & (primary::CR3_LOAD_EXITING | primary::CR3_STORE_EXITING) == 0,
                "CR3 accesses without an exit",
            ),
        ] {
            if !there {
                return Err(Unsupported::NoVmxFeature(name));
            }
        }
        let mut secondary_bits =
            secondary::ENABLE_EPT | secondary::UNRESTRICTED_GUEST | SECONDARY_WHERE_POSSIBLE;
        if !capabilities.invvpid() {
            // Without INVVPID a VPID's translations could not be dropped: entries and exits flush instead.
            secondary_bits &= !secondary::ENABLE_VPID;
        }
        let tpr_shadow = primary.possible & primary::USE_TPR_SHADOW != 0;
        let task_priority: &[(u32, &str)] = if tpr_shadow {
            &[(primary::USE_TPR_SHADOW, "TPR shadow")]
        } else {
            &[
                (primary::CR8_LOAD_EXITING, "CR8-load exiting"),
                (primary::CR8_STORE_EXITING, "CR8-store exiting"),
            ]
        };
        // One that starts anew at every entry would be of no use.
        let has_timer = capabilities.pin.possible & pin::PREEMPTION_TIMER != 0
            && capabilities.exit.possible & exit::SAVE_PREEMPTION_TIMER != 0;
        let (timer, saved_timer): (&[_], &[_]) = if has_timer {
            (
                &[(pin::PREEMPTION_TIMER, "preemption timer")],
                &[(exit::SAVE_PREEMPTION_TIMER, "saving of the preemption timer")],
            )
        } else {
            (&[], &[])
        };
        Ok(Self {
            lends_apics: tpr_shadow && secondary.possible & LOCAL_APIC == LOCAL_APIC,
            pin: capabilities.pin.with(PIN)? | capabilities.pin.with(timer)?,
            primary: primary.with(PRIMARY)? | primary.with(task_priority)?,
            secondary: secondary_bits & secondary.possible | secondary.required,
            exit: capabilities.exit.with(EXIT)? | capabilities.exit.with(saved_timer)?,
            entry: capabilities.entry.with(ENTRY)?,
        })
    }

    /// The secondary controls for a guest whose local APIC is lent to the CPU, or not, and whose loops of PAUSE end its
    /// stay, where they can, or not.
    pub const fn secondary_with(&self, lent: Option<ApicAccess>, pause_exits: bool) -> u32 {
        let left_out = if pause_exits { 0 } else { secondary::PAUSE_LOOP_EXITING };
        self.secondary & !left_out
            | match lent {
                None => 0,
                Some(ApicAccess::Memory) => LENT | secondary::VIRTUALIZE_APIC_ACCESSES,
                Some(ApicAccess::Msrs) => LENT | secondary::VIRTUALIZE_X2APIC_MODE,
            }
    }

    /// Whether the guest's stay ends when the preemption timer says so.
    pub const fn preemption_timer(&self) -> bool {
        self.pin & pin::PREEMPTION_TIMER != 0
    }

    /// Whether CR8 lives in the virtual-APIC page.
    pub const fn tpr_shadow(&self) -> bool {
        self.primary & primary::USE_TPR_SHADOW != 0
    }

    /// Whether translations are tagged.
    pub const fn vpid(&self) -> bool {
        self.secondary & secondary::ENABLE_VPID != 0
    }

    /// Whether RDTSCP and RDPID work in the guest.
    pub const fn rdtscp(&self) -> bool {
        self.secondary & secondary::ENABLE_RDTSCP != 0
    }

    /// Whether loops of PAUSE end in an exit.
    pub const fn pause_loop_exiting(&self) -> bool {
        self.secondary & secondary::PAUSE_LOOP_EXITING != 0
    }
}

impl Allowed {
    /// The wanted bits with those that must be one; or the first one the CPU does not have.
    fn with(self, wanted: &[(u32, &'static str)]) -> Result<u32, Unsupported> {
        wanted.iter().try_fold(self.required, |bits, (bit, name)| {
            if self.possible & bit != 0 { Ok(bits | bit) } else { Err(Unsupported::NoVmxFeature(name)) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU that has everything and forces only the default1 class (SDM A.2).
    pub fn generous() -> Capabilities {
        let all = |required| Allowed { required, possible: u32::MAX };
        Capabilities {
            basic: 1 << 55,
            pin: all(0x16),
            primary: all(0x0400_6172),
            secondary: all(0),
            exit: all(0x3_6dfb),
            entry: all(0x11fb),
            ept_vpid: 1 << 6 | 1 << 14 | 1 << 16 | 1 << 20 | 1 << 25 | 1 << 26 | 1 << 32 | 1 << 41 | 1 << 42,
            ..Default::default()
        }
    }

    #[test]
    fn what_must_be_one_is_and_what_we_want_too() {
        let controls = Controls::choose(&generous()).unwrap();
        assert_eq!(controls.pin, 0x16 | 0b110_1001);
        assert_eq!(controls.primary & 0x0400_6172, 0x0400_6172);
        assert!(controls.tpr_shadow() && controls.vpid() && controls.rdtscp());
        assert_eq!(controls.primary & (primary::CR8_LOAD_EXITING | primary::CR8_STORE_EXITING), 0);
        assert_eq!(controls.primary & primary::INTERRUPT_WINDOW_EXITING, 0);
        assert_eq!(controls.secondary & 1 << 20, 0, "XSAVES is not offered");
        assert_eq!(controls.exit & 1 << 15, 0, "an interrupt stays pending for the host");
        assert_ne!(controls.exit & exit::HOST_ADDRESS_SPACE_SIZE, 0);
        assert_eq!(controls.entry & entry::IA32E_MODE_GUEST, 0, "the guest's mode decides");
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut penryn = generous();
        penryn.secondary.possible = 1;
        assert_eq!(Controls::choose(&penryn), Err(Unsupported::NoExtendedPageTables));
        let mut without_secondary = generous();
        without_secondary.primary.possible &= !primary::ACTIVATE_SECONDARY_CONTROLS;
        assert_eq!(Controls::choose(&without_secondary), Err(Unsupported::NoExtendedPageTables));
        let mut nehalem = generous();
        nehalem.secondary.possible &= !secondary::UNRESTRICTED_GUEST;
        assert_eq!(Controls::choose(&nehalem), Err(Unsupported::NoUnrestrictedGuest));
        let mut no_bitmaps = generous();
        no_bitmaps.primary.possible &= !primary::USE_MSR_BITMAPS;
        assert_eq!(Controls::choose(&no_bitmaps), Err(Unsupported::NoVmxFeature("MSR bitmaps")));
        let mut forced_cr3 = generous();
        forced_cr3.primary.required |= primary::CR3_LOAD_EXITING;
        let error = Controls::choose(&forced_cr3).unwrap_err();
        assert_eq!(error, Unsupported::NoVmxFeature("CR3 accesses without an exit"));
    }

    #[test]
    fn what_can_be_done_without_is() {
        let mut old = generous();
        old.primary.possible &= !primary::USE_TPR_SHADOW;
        old.secondary.possible = secondary::ENABLE_EPT | secondary::UNRESTRICTED_GUEST;
        let controls = Controls::choose(&old).unwrap();
        assert_eq!(controls.secondary, old.secondary.possible);
        assert!(!controls.tpr_shadow() && !controls.vpid());
        assert_ne!(controls.primary & primary::CR8_LOAD_EXITING, 0);
        let mut no_invvpid = generous();
        no_invvpid.ept_vpid &= !(1 << 32);
        assert!(!Controls::choose(&no_invvpid).unwrap().vpid());
    }

    #[test]
    fn the_preemption_timer_is_used_where_exits_save_it() {
        assert!(Controls::choose(&generous()).unwrap().preemption_timer());
        let mut not_saved = generous();
        not_saved.exit.possible &= !exit::SAVE_PREEMPTION_TIMER;
        assert!(!Controls::choose(&not_saved).unwrap().preemption_timer());
        let mut none = generous();
        none.pin.possible &= !pin::PREEMPTION_TIMER;
        let controls = Controls::choose(&none).unwrap();
        assert!(!controls.preemption_timer() && controls.exit & exit::SAVE_PREEMPTION_TIMER == 0);
    }

    #[test]
    fn a_local_apic_is_lent_whole_or_not_at_all() {
        let controls = Controls::choose(&generous()).unwrap();
        assert!(controls.lends_apics);
        assert_eq!(controls.secondary & LOCAL_APIC, 0, "the guest's own mode decides");
        assert_eq!(controls.secondary_with(None, true), controls.secondary);
        assert_eq!(controls.secondary_with(None, false), controls.secondary & !(1 << 10));
        assert_eq!(controls.secondary_with(Some(ApicAccess::Memory), true) & LOCAL_APIC, 0x301);
        assert_eq!(controls.secondary_with(Some(ApicAccess::Msrs), true) & LOCAL_APIC, 0x310);
        for missing in [1, 1 << 4, 1 << 8, 1 << 9] {
            let mut less = generous();
            less.secondary.possible &= !missing;
            assert!(!Controls::choose(&less).unwrap().lends_apics);
        }
        let mut no_shadow = generous();
        no_shadow.primary.possible &= !primary::USE_TPR_SHADOW;
        assert!(!Controls::choose(&no_shadow).unwrap().lends_apics);
    }
}
