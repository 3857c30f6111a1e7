//! The ports through which software resets a PC: 0xCF9, 0x92 and the keyboard controller's 0x64.

use super::layout::{FAST_RESET_PORT, KEYBOARD_PORT, RESET_PORT};

/// Bit 2 of port 0xCF9: its rise resets the processors.
const RESET_CPU: u8 = 1 << 2;
/// Bits 1 (system reset) and 3 (full reset) of port 0xCF9.
const RESET_KIND: u8 = 0b1010;
/// Bit 0 of port 0x92: its rise resets.
const FAST_RESET: u8 = 1 << 0;
/// Bit 1 of port 0x92: address line 20 works, as it always does here.
const A20: u8 = 1 << 1;

const KEYBOARD_COMMAND_PORT: u16 = KEYBOARD_PORT + 4;

/// The reset ports. There is no keyboard controller behind 0x60 and 0x64: they read all ones, and of its
/// commands only the reset pulse works.
#[derive(Debug, Default)]
pub(super) struct ResetControl {
    kind: u8,
    fast: u8,
    requested: bool,
}

impl ResetControl {
    /// Reads a port; `None` when it is not one of these.
    pub(super) const fn read(&self, port: u16) -> Option<u8> {
        match port {
            RESET_PORT => Some(self.kind),
            FAST_RESET_PORT => Some(self.fast | A20),
            KEYBOARD_PORT | KEYBOARD_COMMAND_PORT => Some(0xff),
            _ => None,
        }
    }

    /// Writes a port; `None` when it is not one of these.
    pub(super) const fn write(&mut self, port: u16, value: u8) -> Option<()> {
        match port {
            RESET_PORT => {
                self.kind = value & RESET_KIND;
                self.requested |= value & RESET_CPU != 0;
            }
            FAST_RESET_PORT => {
                self.requested |= value & !self.fast & FAST_RESET != 0;
                self.fast = value;
            }
            KEYBOARD_PORT => {}
            // Commands 0xF0 to 0xFF pulse the output lines whose bits are zero; line 0 is the reset.
            KEYBOARD_COMMAND_PORT => self.requested |= value & 0xf1 == 0xf0,
            _ => return None,
        }
        Some(())
    }

    /// Whether the guest asked for a reset, once.
    pub(super) const fn take_reset(&mut self) -> bool {
        core::mem::replace(&mut self.requested, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resets(writes: &[(u16, u8)]) -> bool {
        let mut control = ResetControl::default();
        for &(port, value) in writes {
            control.write(port, value).unwrap();
        }
        control.take_reset()
    }

    #[test]
    fn each_way_to_reset_works() {
        assert!(resets(&[(0xcf9, 0x0e)]));
        assert!(resets(&[(0xcf9, 0x02), (0xcf9, 0x06)]));
        assert!(resets(&[(0x92, 0x01)]));
        assert!(resets(&[(0x64, 0xfe)]));
        assert!(!resets(&[(0xcf9, 0x0a), (0x92, 0x02), (0x64, 0xaa), (0x64, 0xff), (0x60, 0xfe)]));
    }

    #[test]
    fn the_ports_read_what_a_pc_without_keyboard_says() {
        let mut control = ResetControl::default();
        assert_eq!((control.read(0x60), control.read(0x64)), (Some(0xff), Some(0xff)));
        assert_eq!(control.read(0x92), Some(0x02));
        control.write(0xcf9, 0x0f).unwrap();
        assert_eq!(control.read(0xcf9), Some(0x0a));
        assert_eq!(control.read(0x61), None);
        assert!(control.take_reset() && !control.take_reset());
    }
}
