//! Events on their way into the guest: VM-entry interruption information, and what an exit tells of an event
//! whose delivery it cut short (SDM 25.8.3, 25.9.2, 25.9.3).

use crate::cpu::Event;

const VALID: u32 = 1 << 31;
const DELIVER_ERROR_CODE: u32 = 1 << 11;
const TYPE: u32 = 0b111 << 8;
const EXTERNAL_INTERRUPT: u32 = 0 << 8;
const NMI: u32 = 2 << 8;
const HARDWARE_EXCEPTION: u32 = 3 << 8;
const SOFTWARE_INTERRUPT: u32 = 4 << 8;
const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5 << 8;
const SOFTWARE_EXCEPTION: u32 = 6 << 8;

/// #DB.
pub const DEBUG: u8 = 1;
/// #AC.
const ALIGNMENT_CHECK: u8 = 17;
/// #MC.
const MACHINE_CHECK: u8 = 18;

/// The exception bitmap. A machine check is the machine's, whoever runs when it strikes. A guest can have #DB and #AC
/// raise themselves again while they are delivered, for ever: caught, that goes on with interrupts in between.
pub const EXCEPTIONS: u32 = 1 << DEBUG | 1 << ALIGNMENT_CHECK | 1 << MACHINE_CHECK;

/// Whose an exception or NMI is that ended a guest's stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    /// The host's NMI.
    HostNmi,
    /// The machine's machine check.
    HostMachineCheck,
    /// The guest's #DB.
    Debug,
    /// The guest's #AC.
    AlignmentCheck,
    /// None that [`EXCEPTIONS`] names.
    NotAskedFor,
}

/// An event as the VM-entry fields describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// VM-entry interruption information.
    pub information: u32,
    /// VM-entry exception error code.
    pub error_code: u32,
    /// VM-entry instruction length: the CPU adds it to RIP for INT n, INT1, INT3 and INTO.
    pub instruction_length: u32,
    /// RFLAGS.RF is set in what the handler will return to: it is a fault, and the instruction runs again.
    pub fault: bool,
}

impl Injection {
    /// `event`, for a guest whose CR0.PE is `protected`: in real mode no error code is pushed, elsewhere the
    /// vector decides whether there is one (SDM 27.2.1.3).
    pub const fn new(event: Event, protected: bool) -> Self {
        match event {
            Event::Interrupt(vector) => Self::plain(EXTERNAL_INTERRUPT | vector as u32),
            Event::Nmi => Self::plain(NMI | 2),
            Event::Exception { vector, error_code } => {
                let vector = vector & 31;
                let error_code = match error_code {
                    Some(code) => code,
                    None => 0,
                };
                let mut injection = Self::plain(HARDWARE_EXCEPTION | vector as u32);
                if protected && matches!(vector, 8 | 10..=14 | 17) {
                    injection.information |= DELIVER_ERROR_CODE;
                    // The high half must be zero.
                    injection.error_code = error_code & 0xffff;
                }
                // #DB, #BP and #OF are traps, #DF and #MC aborts.
                injection.fault = !matches!(vector, 1..=4 | 8 | 18);
                injection
            }
        }
    }

    const fn plain(information: u32) -> Self {
        Self { information: VALID | information, error_code: 0, instruction_length: 0, fault: false }
    }

    /// The event that an exit's IDT-vectoring or interruption information tells of, if it does: to be
    /// delivered again as it was.
    pub const fn interrupted(information: u32, error_code: u32, instruction_length: u32) -> Option<Self> {
        if information & VALID == 0 {
            return None;
        }
        // Bit 12 is about NMIs, or undefined.
        let kept = information & (VALID | DELIVER_ERROR_CODE | TYPE | 0xff);
        let software = matches!(
            information & TYPE,
            SOFTWARE_INTERRUPT | PRIVILEGED_SOFTWARE_EXCEPTION | SOFTWARE_EXCEPTION
        );
        Some(Self {
            information: kept,
            error_code: if information & DELIVER_ERROR_CODE != 0 { error_code } else { 0 },
            instruction_length: if software { instruction_length } else { 0 },
            fault: false,
        })
    }

    /// Whether it is an NMI.
    pub const fn is_nmi(&self) -> bool {
        self.information & TYPE == NMI
    }

    /// Whose it is, where it is what the exit was for.
    pub const fn caught(&self) -> Caught {
        match self.vector() {
            _ if self.is_nmi() => Caught::HostNmi,
            _ if self.information & TYPE != HARDWARE_EXCEPTION
                && self.information & TYPE != PRIVILEGED_SOFTWARE_EXCEPTION =>
            {
                Caught::NotAskedFor
            }
            MACHINE_CHECK => Caught::HostMachineCheck,
            DEBUG => Caught::Debug,
            ALIGNMENT_CHECK => Caught::AlignmentCheck,
            _ => Caught::NotAskedFor,
        }
    }

    /// Whether it is an external interrupt.
    pub const fn is_external_interrupt(&self) -> bool {
        self.information & TYPE == EXTERNAL_INTERRUPT
    }

    /// Whether it is an exception, or INT n, INT1, INT3 or INTO: the work of an instruction.
    pub const fn is_exception(&self) -> bool {
        !self.is_nmi() && !self.is_external_interrupt()
    }

    /// Whether it is INT n, INT1, INT3 or INTO, which end before the handler's return address.
    pub const fn is_software(&self) -> bool {
        self.is_exception() && self.information & TYPE != HARDWARE_EXCEPTION
    }

    /// The error code, where one is pushed.
    pub const fn pushed_error_code(&self) -> Option<u32> {
        if self.information & DELIVER_ERROR_CODE != 0 { Some(self.error_code) } else { None }
    }

    /// The vector.
    pub const fn vector(&self) -> u8 {
        self.information as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_encoded_as_the_manual_says() {
        let interrupt = Injection::new(Event::Interrupt(0x31), true);
        assert_eq!(interrupt.information, 0x8000_0031);
        assert_eq!(Injection::new(Event::Nmi, true).information, 0x8000_0202);
        let fault = Injection::new(Event::GENERAL_PROTECTION, true);
        assert_eq!((fault.information, fault.error_code, fault.fault), (0x8000_0b0d, 0, true));
        let fault = Injection::new(Event::page_fault(0x15), true);
        assert_eq!((fault.information, fault.error_code), (0x8000_0b0e, 0x15));
        assert_eq!(Injection::new(Event::INVALID_OPCODE, true).information, 0x8000_0306);
    }

    #[test]
    fn each_exception_that_is_caught_has_an_owner() {
        let caught = |information| Injection::interrupted(information, 0, 0).unwrap().caught();
        for vector in 0..32 {
            let owner = match vector {
                1 => Caught::Debug,
                17 => Caught::AlignmentCheck,
                18 => Caught::HostMachineCheck,
                _ => Caught::NotAskedFor,
            };
            assert_eq!(caught(0x8000_0300 | vector), owner, "vector {vector}");
            assert_eq!(EXCEPTIONS >> vector & 1 == 1, owner != Caught::NotAskedFor, "vector {vector}");
        }
        assert_eq!(caught(0x8000_0202), Caught::HostNmi);
        assert_eq!(caught(0x8000_0501), Caught::Debug, "INT1");
        assert_eq!(caught(0x8000_0412), Caught::NotAskedFor, "INT 18 is an interrupt like any other");
    }

    #[test]
    fn real_mode_pushes_no_error_code() {
        let fault = Injection::new(Event::GENERAL_PROTECTION, false);
        assert_eq!((fault.information, fault.error_code), (0x8000_030d, 0));
    }

    #[test]
    fn an_error_code_goes_with_its_vector() {
        let missing = Injection::new(Event::Exception { vector: 13, error_code: None }, true);
        assert_eq!(missing.pushed_error_code(), Some(0), "entry would fail without");
        let odd = Injection::new(Event::Exception { vector: 6, error_code: Some(7) }, true);
        assert_eq!(odd.pushed_error_code(), None, "entry would fail with");
    }

    #[test]
    fn an_interrupted_event_goes_in_again_as_it_was() {
        assert_eq!(Injection::interrupted(0x0000_030d, 0, 0), None);
        let page_fault = Injection::interrupted(0x8000_1b0e, 6, 3).unwrap();
        assert_eq!(page_fault.information, 0x8000_0b0e, "bit 12 is not part of it");
        assert_eq!((page_fault.error_code, page_fault.instruction_length), (6, 0));
        let int3 = Injection::interrupted(0x8000_0603, 9, 1).unwrap();
        assert_eq!((int3.error_code, int3.instruction_length, int3.is_software()), (0, 1, true));
        let interrupt = Injection::interrupted(0x8000_0020, 0, 2).unwrap();
        assert!(interrupt.is_external_interrupt() && !interrupt.is_exception());
        assert_eq!(interrupt.instruction_length, 0);
    }
}
