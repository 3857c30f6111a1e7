//! Where the board's devices answer: what the guest's ACPI tables, its E820 map and the devices must agree on.
//!
//! The addresses are those of a q35 (ICH9) board, so that firmware made for one finds what it expects.

use crate::memory::GuestPhys;
use core::ops::Range;

/// Where the guest's ACPI tables lie: where one that is told nothing scans for the RSDP (ACPI 5.2.5.1).
pub const ACPI_TABLES: Range<u64> = 0xe_0000..BIOS_SERVICES.start;
/// Where BIOS services lie, for guests that are given some: a PC's reset vector is at the end.
pub const BIOS_SERVICES: Range<u64> = 0xf_f000..0x10_0000;

/// Memory-mapped PCI configuration space (ECAM); the E820 map reserves it and the MCFG names it.
pub const ECAM_BASE: GuestPhys = GuestPhys::new(0xb000_0000);
/// 1 MiB a bus, buses 0 to 255.
pub const ECAM_BYTES: u64 = 256 << 20;
/// The last bus that [`ECAM_BASE`] covers.
pub const ECAM_LAST_BUS: u8 = 255;
/// Where 32-bit BARs may lie: from the end of the ECAM window to the IOAPIC.
pub const PCI_WINDOW_BASE: GuestPhys = GuestPhys::new(0xc000_0000);
/// The length of the 32-bit BAR window.
pub const PCI_WINDOW_BYTES: u64 = 0xfec0_0000 - 0xc000_0000;
/// Guest memory below 4 GiB ends here at the latest, below the ECAM window and where 1 GiB pages can map all
/// of it; the rest continues at 4 GiB.
pub const LOW_MEMORY_LIMIT: GuestPhys = GuestPhys::new(0x8000_0000);

/// The first device number on bus 0 for disks; the last is [`LAST_SLOT`].
pub const FIRST_SLOT: u8 = 2;
/// The last one for disks.
pub const LAST_SLOT: u8 = 0x1c;
/// The device number of the virtio console.
pub const CONSOLE_SLOT: u8 = 0x1d;
/// The device number of the source of random numbers.
pub const ENTROPY_SLOT: u8 = 0x1e;

/// The IOAPIC's registers.
pub const IO_APIC_BASE: GuestPhys = GuestPhys::new(0xfec0_0000);
/// One page, of which the first 0x50 bytes answer.
pub const IO_APIC_BYTES: u64 = 0x1000;
/// The IOAPIC's identity in the MADT: not a local APIC's, as vCPUs count from zero.
pub const IO_APIC_ID: u8 = 0;
/// Its pins: global system interrupts 0 to 23.
pub const IO_APIC_PINS: u8 = 24;
/// Every local APIC's registers in xAPIC mode, unless the guest moves them (SDM 11.4.1).
pub const LOCAL_APIC_BASE: GuestPhys = GuestPhys::new(0xfee0_0000);
/// One page.
pub const LOCAL_APIC_BYTES: u64 = 0x1000;

/// ISA interrupt of the PIT's channel 0.
pub const PIT_IRQ: u8 = 0;
/// The IOAPIC pin that [`PIT_IRQ`] reaches: the MADT's override 0 → 2. Every other ISA interrupt reaches the
/// pin of its own number.
pub const PIT_PIN: u8 = 2;
/// ISA interrupt of the first serial port.
pub const UART_IRQ: u8 = 4;
/// ISA interrupt of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// The ACPI system control interrupt: level, active high by a MADT override.
pub const SCI_IRQ: u8 = 9;

/// The first of the eight IOAPIC pins that PCI interrupts reach.
pub const FIRST_PCI_PIN: u8 = 16;
/// The IOAPIC pin that interrupt INTA to INTD (`pin` 0 to 3) of a PCI device on bus 0 reaches: 16 to 23, level,
/// active low. What `_PRT` in the DSDT says.
pub const fn intx_pin(device: u8, pin: u8) -> u8 {
    FIRST_PCI_PIN | (device.wrapping_add(pin) & 7)
}

/// The master 8259's command port; its data port follows.
pub const PIC_MASTER_PORT: u16 = 0x20;
/// The slave 8259's command port; its data port follows.
pub const PIC_SLAVE_PORT: u16 = 0xa0;
/// Edge or level for interrupts 0 to 7; those for 8 to 15 follow.
pub const ELCR_PORT: u16 = 0x4d0;
/// The PIT's channel 0; channels 1, 2 and the control word follow.
pub const PIT_PORT: u16 = 0x40;
/// Speaker, PIT channel 2's gate and output, the refresh toggle.
pub const SPEAKER_PORT: u16 = 0x61;
/// The keyboard controller's data port; its command port is 4 further on.
pub const KEYBOARD_PORT: u16 = 0x60;
/// The CMOS index; data and the upper bank's pair follow.
pub const CMOS_PORT: u16 = 0x70;
/// CMOS byte that holds the century, for the FADT.
pub const CMOS_CENTURY: u8 = 0x32;
/// Where firmware writes progress codes.
pub const POST_PORT: u16 = 0x80;
/// The second port that software writes for its delay.
pub const DELAY_PORT: u16 = 0xed;
/// Fast A20 and reset.
pub const FAST_RESET_PORT: u16 = 0x92;
/// One byte out to the monitor's log, for test guests.
pub const DEBUG_PORT: u16 = 0xe9;
/// The first serial port, eight ports.
pub const UART_PORT: u16 = 0x3f8;
/// The reset control register, which the FADT names.
pub const RESET_PORT: u16 = 0xcf9;
/// What the FADT has the guest write to [`RESET_PORT`]: a full reset.
pub const RESET_VALUE: u8 = 0x0e;
/// PCI configuration address, a dword.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// PCI configuration data, four bytes.
pub const PCI_DATA_PORT: u16 = 0xcfc;

/// The ACPI power-management ports' first.
pub const PM_BASE: u16 = 0x600;
/// How many ports power management decodes.
pub const PM_PORTS: u16 = 0x80;
/// PM1a event block: status word, enable word.
pub const PM1_EVENT_PORT: u16 = PM_BASE;
/// PM1a event block's length in bytes.
pub const PM1_EVENT_BYTES: u8 = 4;
/// PM1a control word.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// PM1a control block's length in bytes.
pub const PM1_CONTROL_BYTES: u8 = 2;
/// The power-management timer.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Its length in bytes.
pub const PM_TIMER_BYTES: u8 = 4;
/// How wide it counts: the FADT's TMR_VAL_EXT flag stays clear.
pub const PM_TIMER_BITS: u32 = 24;
/// General-purpose events: status bytes, then enable bytes.
pub const GPE0_PORT: u16 = 0x620;
/// GPE0 block's length in bytes, both halves.
pub const GPE0_BYTES: u8 = 16;
/// The watchdog timer's first port.
pub const WATCHDOG_PORT: u16 = 0x680;
/// How many ports it decodes: dword registers, at these offsets.
pub const WATCHDOG_PORTS: u16 = 12;
/// What it counts down from when written; how far it is when read.
pub const WATCHDOG_COUNT: u16 = 0;
/// Bit 0: it runs.
pub const WATCHDOG_CONTROL: u16 = 4;
/// Writing anything starts the count anew.
pub const WATCHDOG_FEED: u16 = 8;
/// One count in milliseconds.
pub const WATCHDOG_PERIOD: u32 = 100;
/// The most counts.
pub const WATCHDOG_LONGEST: u32 = 0xffff;
/// SLP_TYP of S5, soft off: what `\_S5` in the DSDT says. There is no other sleep state.
pub const S5_SLEEP_TYPE: u8 = 0;
