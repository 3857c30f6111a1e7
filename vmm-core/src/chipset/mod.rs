//! The guest's board: a q35-like set of devices, each a pure model of what its ports and registers say.
//!
//! No device waits, calls the host or knows a CPU backend. Time comes in with each access; bytes and
//! interrupts go out through [`Console`] and [`ApicBus`]. [`Chipset`] is the whole board but for the local
//! APICs, which belong to the vCPUs: [`LocalApics`].

mod apic_message;
mod apic_timer;
mod calendar;
mod interrupts;
mod io_apic;
pub mod layout;
mod local_apic;
mod local_apics;
mod msix;
mod oscillator;
mod pci;
mod pci_config;
mod pic;
mod pit;
mod pm;
mod reset;
mod rtc;
mod uart;
mod vector_set;
mod wakers;
mod watchdog;

pub use apic_message::{ApicBus, ApicMessage, DeliveryMode, Destination, Trigger};
pub use local_apic::{
    ApicEffect, BUS_HZ, GeneralProtection, LocalApic, MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC,
};
pub use local_apics::LocalApics;
pub use msix::Msix;
pub use pci::{AddressTaken, PciFunction};
pub use pci_config::{BarLayout, ConfigSpace, PciAddress, PciConfigError, PciIdentity};

use crate::cpu::Width;
use crate::memory::{GuestMemory, GuestPhys};
use crate::time::Instant;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::task::Waker;
use interrupts::Interrupts;
use layout::{
    DEBUG_PORT, DELAY_PORT, ECAM_BASE, ECAM_BYTES, IO_APIC_BASE, IO_APIC_BYTES, LOW_MEMORY_LIMIT,
    PCI_ADDRESS_PORT, PCI_DATA_PORT, PIT_IRQ, PM_BASE, PM_PORTS, POST_PORT, RTC_IRQ, SCI_IRQ, UART_IRQ,
    UART_PORT, WATCHDOG_PORT, WATCHDOG_PORTS,
};
use pci::PciBus;
use pit::Pit;
use pm::PowerManagement;
use reset::ResetControl;
use rtc::Rtc;
use uart::Uart;
use watchdog::Watchdog;

/// Where a guest's output goes.
pub trait Console {
    /// The guest sent `byte` through its first serial port; whether there is room for another.
    fn transmit(&mut self, byte: u8) -> bool;
    /// Whether there is room for a byte.
    fn has_room(&mut self) -> bool;
    /// The next byte for the guest's first serial port, if one waits.
    fn receive(&mut self) -> Option<u8>;
    /// The guest sent `byte` through the debug port.
    fn debug(&mut self, byte: u8);
}

/// What a device may ask for while it answers one access.
pub struct Context<'a> {
    /// The time.
    pub now: Instant,
    /// The guest's console.
    pub console: &'a mut dyn Console,
    /// The guest's local APICs, none of which the caller holds locked.
    pub apics: &'a dyn ApicBus,
    /// The guest's memory. A device has it for the access that it answers, and for its requests' buffers.
    pub memory: &'a Arc<GuestMemory>,
    /// What a device has to say about the guest's driver: see [`Self::complain`].
    pub complaint: Option<Complaint>,
}

impl Context<'_> {
    /// Says for the log what the guest's driver of `device` did wrong. The first one counts.
    pub fn complain(&mut self, device: &'static str, what: String) {
        self.complaint.get_or_insert(Complaint { device, what });
    }
}

/// What a driver did that none may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Whose driver: what kind of device.
    pub device: &'static str,
    /// What.
    pub what: String,
}

/// What a board is made with.
#[derive(Clone, Copy, Debug)]
pub struct ChipsetConfig {
    /// The moment of power-on.
    pub start: Instant,
    /// What the real-time clock shows then, in seconds since 1970.
    pub unix_time: u64,
    /// Guest memory in bytes: up to [`layout::LOW_MEMORY_LIMIT`] from zero on, the rest from 4 GiB on.
    pub memory_bytes: u64,
    /// Whether the debug port answers: for test guests.
    pub debug_port: bool,
    /// Whether there is a watchdog timer.
    pub watchdog: bool,
}

/// Something the guest did to the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// It switched itself off.
    PowerOff,
    /// It reset itself: the caller builds a new board.
    Reset,
    /// It did not feed its watchdog in time.
    Watchdog,
}

/// The board.
pub struct Chipset {
    interrupts: Interrupts,
    uart: Uart,
    pit: Pit,
    rtc: Rtc,
    pm: PowerManagement,
    pci: PciBus,
    reset: ResetControl,
    watchdog: Option<Watchdog>,
    debug_port: bool,
    /// What was last written to the POST port.
    post: u8,
}

impl Chipset {
    /// A board after power-on. `news` is woken when [`Self::poll`] has something to do.
    pub fn new(config: &ChipsetConfig, news: Waker) -> Self {
        let mut rtc = Rtc::new(config.unix_time, config.start);
        let low_memory = config.memory_bytes.min(LOW_MEMORY_LIMIT.get());
        rtc.describe_memory(low_memory, config.memory_bytes.saturating_sub(low_memory));
        Self {
            interrupts: Interrupts::new(),
            uart: Uart::new(),
            pit: Pit::new(),
            rtc,
            pm: PowerManagement::new(config.start),
            pci: PciBus::new(news),
            reset: ResetControl::default(),
            watchdog: config.watchdog.then(Watchdog::new),
            debug_port: config.debug_port,
            post: 0,
        }
    }

    /// Puts a function onto the PCI bus.
    ///
    /// # Errors
    /// When there is one at that address already.
    pub fn add_pci_function(
        &mut self,
        address: PciAddress,
        function: Box<dyn PciFunction>,
    ) -> Result<(), AddressTaken> {
        self.pci.add(address, function)
    }

    /// Has the devices look at what has come for them from outside.
    pub fn poll(&mut self, ctx: &mut Context) {
        self.pci.poll(ctx);
        self.drive_intx(ctx);
        self.check_console_room(ctx);
    }

    /// The guest's life is over: the devices take no more requests. Whether none is under way any more.
    pub fn wind_down(&mut self, ctx: &mut Context) -> bool {
        self.pci.wind_down(ctx)
    }

    /// IN: `None` when no device decodes any of the ports, which then read all ones.
    pub fn port_read(&mut self, port: u16, width: Width, ctx: &mut Context) -> Option<u32> {
        if let Some(access) = WideAccess::decode(port, width) {
            return Some(match access {
                WideAccess::PowerManagement(offset) => {
                    let value = self.pm.read(offset, width, ctx.now);
                    self.drive_sci(ctx);
                    value
                }
                WideAccess::PciConfiguration => self.pci.port_read(port, width, ctx),
                WideAccess::Watchdog(offset) => self.watchdog.as_ref()?.read(offset, width, ctx.now),
            });
        }
        if width == Width::Byte {
            return self.read_byte(port, ctx).map(u32::from);
        }
        // ISA devices are eight bits wide: the bus takes a wider access apart.
        let mut value = None;
        for n in 0..width.bytes() as u16 {
            let byte = port.checked_add(n).and_then(|port| self.port_read(port, Width::Byte, ctx));
            if let Some(byte) = byte {
                let shift = u32::from(n) << 3;
                let rest = value.unwrap_or(width.mask() as u32) & !(0xff << shift);
                value = Some(rest | byte << shift);
            }
        }
        value
    }

    /// OUT: `None` when no device decodes any of the ports.
    pub fn port_write(&mut self, port: u16, width: Width, value: u32, ctx: &mut Context) -> Option<()> {
        match WideAccess::decode(port, width) {
            Some(WideAccess::PowerManagement(offset)) => {
                self.pm.write(offset, width, value, ctx.now);
                self.drive_sci(ctx);
                return Some(());
            }
            Some(WideAccess::PciConfiguration) => {
                self.pci.port_write(port, width, value, ctx);
                self.drive_intx(ctx);
                return Some(());
            }
            Some(WideAccess::Watchdog(offset)) => {
                self.watchdog.as_mut()?.write(offset, width, value, ctx.now);
                return Some(());
            }
            None => {}
        }
        if width == Width::Byte {
            return self.write_byte(port, value as u8, ctx);
        }
        let mut claimed = None;
        for (byte, n) in value.to_le_bytes().into_iter().zip(0..width.bytes() as u16) {
            if let Some(port) = port.checked_add(n) {
                claimed = self.port_write(port, Width::Byte, u32::from(byte), ctx).or(claimed);
            }
        }
        claimed
    }

    /// A read of memory that no RAM backs: `None` when no device lies there, and it reads all ones.
    pub fn mmio_read(&mut self, at: GuestPhys, width: Width, ctx: &mut Context) -> Option<u64> {
        if let Some(offset) = offset_in(at, IO_APIC_BASE, IO_APIC_BYTES) {
            return Some(u64::from(self.interrupts.io_apic.read(offset)) & width.mask());
        }
        if let Some(offset) = offset_in(at, ECAM_BASE, ECAM_BYTES) {
            return Some(self.pci.ecam_read(offset, width, ctx));
        }
        let value = self.pci.memory_read(at, width, ctx);
        self.drive_intx(ctx);
        value
    }

    /// A write to memory that no RAM backs: `None` when no device lies there.
    pub fn mmio_write(&mut self, at: GuestPhys, width: Width, value: u64, ctx: &mut Context) -> Option<()> {
        if let Some(offset) = offset_in(at, IO_APIC_BASE, IO_APIC_BYTES) {
            self.advance_clocks(ctx);
            self.interrupts.io_apic.write(offset, value as u32, ctx.apics);
            return Some(());
        }
        if let Some(offset) = offset_in(at, ECAM_BASE, ECAM_BYTES) {
            self.pci.ecam_write(offset, width, value, ctx);
            self.drive_intx(ctx);
            return Some(());
        }
        let done = self.pci.memory_write(at, width, value, ctx);
        self.drive_intx(ctx);
        self.check_console_room(ctx);
        done
    }

    /// Whether an access to this port can change [`Self::next_deadline`]. The ports that a busy console uses
    /// cannot.
    pub const fn moves_deadline(port: u16, write: bool) -> bool {
        const TRANSMIT: u16 = UART_PORT;
        const LINE_STATUS: u16 = UART_PORT + 5;
        !matches!(
            (port, write),
            (TRANSMIT, true) | (LINE_STATUS, false) | (POST_PORT | DELAY_PORT | DEBUG_PORT, _)
        )
    }

    /// When some device next wants [`Self::advance`]; `None` while nothing can happen by itself. A device
    /// whose interrupt nobody can receive waits for no moment: it catches up when it is next asked.
    pub fn next_deadline(&self) -> Option<Instant> {
        let heard = |irq, deadline: Option<Instant>| deadline.filter(|_| self.interrupts.listens(irq));
        [
            heard(PIT_IRQ, self.pit.next_deadline()),
            heard(UART_IRQ, self.uart.next_deadline()),
            heard(RTC_IRQ, self.rtc.next_deadline()),
            heard(SCI_IRQ, self.pm.next_deadline()),
            self.watchdog.as_ref().and_then(Watchdog::next_deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due at `ctx.now`.
    pub fn advance(&mut self, ctx: &mut Context) {
        self.advance_clocks(ctx);
        self.uart.advance(ctx.now);
        self.drive_uart(ctx);
        self.pm.advance(ctx.now);
        self.drive_sci(ctx);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.advance(ctx.now);
        }
    }

    /// Takes what waits at the console, as far as the serial port has room, or whatever else takes it.
    pub fn take_console_input(&mut self, ctx: &mut Context) {
        if self.pci.hear_terminal(ctx) {
            self.drive_intx(ctx);
        } else {
            while self.uart.room() != 0 {
                let Some(byte) = ctx.console.receive() else { break };
                self.uart.input(byte, ctx.now);
            }
        }
        self.drive_uart(ctx);
    }

    /// Lets the serial port send again, where the console had no room and now has.
    pub fn check_console_room(&mut self, ctx: &mut Context) {
        if self.uart.line_busy() && ctx.console.has_room() {
            self.uart.set_line_busy(false);
            self.drive_uart(ctx);
            self.share_room(ctx);
        }
    }

    /// Whether the 8259 pair requests an interrupt. [`LocalApic::external_pending`] tells whether a vCPU
    /// listens, without this board's lock.
    pub fn external_interrupt(&self) -> bool {
        self.interrupts.pic.intr()
    }

    /// Asks the 8259 pair for the vector of the interrupt that a vCPU takes now.
    pub fn acknowledge_external(&mut self, ctx: &mut Context) -> u8 {
        let vector = self.interrupts.pic.acknowledge();
        self.interrupts.drive_intr(ctx.apics);
        vector
    }

    /// A vCPU finished with the level-triggered `vector`: [`ApicEffect::EndOfInterrupt`].
    pub fn end_of_interrupt(&mut self, vector: u8, ctx: &mut Context) {
        self.interrupts.io_apic.end_of_interrupt(vector, ctx.apics);
    }

    /// Presses the power button: the guest's ACPI driver hears of it.
    pub fn press_power_button(&mut self, ctx: &mut Context) {
        self.pm.press_power_button();
        self.drive_sci(ctx);
    }

    /// What the guest did to the machine since this was last asked.
    pub fn take_event(&mut self) -> Option<PlatformEvent> {
        if self.pm.take_power_off() {
            return Some(PlatformEvent::PowerOff);
        }
        if self.watchdog.as_mut().is_some_and(Watchdog::take_expired) {
            return Some(PlatformEvent::Watchdog);
        }
        self.reset.take_reset().then_some(PlatformEvent::Reset)
    }

    fn read_byte(&mut self, port: u16, ctx: &mut Context) -> Option<u8> {
        if let Some(offset) = uart_offset(port) {
            self.check_console_room(ctx);
            let room = self.uart.room();
            let value = self.uart.read(offset, ctx.now);
            self.follow_uart(room, ctx);
            return Some(value);
        }
        self.advance_clocks(ctx);
        if let Some(value) = self.interrupts.pic.read(port) {
            self.interrupts.drive_intr(ctx.apics);
            return Some(value);
        }
        if let Some(value) = self.rtc.read(port, ctx.now) {
            self.drive_rtc(ctx);
            return Some(value);
        }
        let value = self.pit.read(port, ctx.now).or_else(|| self.reset.read(port));
        value.or(match port {
            POST_PORT | DELAY_PORT => Some(self.post),
            DEBUG_PORT if self.debug_port => Some(DEBUG_PORT as u8),
            _ => None,
        })
    }

    fn write_byte(&mut self, port: u16, value: u8, ctx: &mut Context) -> Option<()> {
        if let Some(offset) = uart_offset(port) {
            let room = self.uart.room();
            if let Some(byte) = self.uart.write(offset, value, ctx.now) {
                let room = ctx.console.transmit(byte);
                self.uart.set_line_busy(!room);
                if room {
                    self.share_room(ctx);
                }
            }
            self.follow_uart(room, ctx);
            return Some(());
        }
        match port {
            POST_PORT => self.post = value,
            DELAY_PORT => {}
            DEBUG_PORT if self.debug_port => ctx.console.debug(value),
            _ => return self.write_clocked_byte(port, value, ctx),
        }
        Some(())
    }

    /// A write to one of the devices that must first have seen the time pass.
    fn write_clocked_byte(&mut self, port: u16, value: u8, ctx: &mut Context) -> Option<()> {
        self.advance_clocks(ctx);
        if self.interrupts.pic.write(port, value).is_some() {
            self.interrupts.drive_intr(ctx.apics);
            return Some(());
        }
        if self.rtc.write(port, value, ctx.now).is_some() {
            self.drive_rtc(ctx);
            return Some(());
        }
        if self.pit.write(port, value, ctx.now).is_some() {
            self.interrupts.set(PIT_IRQ, self.pit.irq(), ctx.apics);
            return Some(());
        }
        self.reset.write(port, value)
    }

    /// Lets the timer and the clock catch up, so that what happened while an interrupt was masked counts as
    /// having happened then.
    fn advance_clocks(&mut self, ctx: &mut Context) {
        if self.pit.advance(ctx.now) {
            self.interrupts.pulse(PIT_IRQ, ctx.apics);
        }
        self.rtc.advance(ctx.now);
        self.drive_rtc(ctx);
    }

    /// After an access to the serial port, which had `room` before: where it now has more, what waits at the
    /// console comes in. Nobody else would bring it before the user types on.
    fn follow_uart(&mut self, room: usize, ctx: &mut Context) {
        if self.uart.room() > room {
            self.take_console_input(ctx);
        } else {
            self.drive_uart(ctx);
        }
    }

    fn drive_uart(&mut self, ctx: &mut Context) {
        self.interrupts.set(UART_IRQ, self.uart.irq(), ctx.apics);
    }

    /// The serial port found room at the terminal. Nobody tells of it twice, so it is for all who wait there.
    fn share_room(&mut self, ctx: &mut Context) {
        self.pci.hear_room(ctx);
        self.drive_intx(ctx);
    }

    fn drive_intx(&mut self, ctx: &mut Context) {
        self.interrupts.set_pci(self.pci.interrupts(), ctx.apics);
    }

    fn drive_rtc(&mut self, ctx: &mut Context) {
        self.interrupts.set(RTC_IRQ, self.rtc.irq(), ctx.apics);
    }

    fn drive_sci(&mut self, ctx: &mut Context) {
        self.interrupts.set(SCI_IRQ, self.pm.sci(), ctx.apics);
    }
}

/// A port access that reaches its device in one piece.
enum WideAccess {
    /// At this offset of the power-management ports.
    PowerManagement(u16),
    PciConfiguration,
    /// At this offset of the watchdog timer's ports.
    Watchdog(u16),
}

impl WideAccess {
    fn decode(port: u16, width: Width) -> Option<Self> {
        let bytes = width.bytes() as u16;
        let fits = |base: u16, ports: u16| {
            let offset = port.checked_sub(base)?;
            (offset.checked_add(bytes)? <= ports).then_some(offset)
        };
        if let Some(offset) = fits(PM_BASE, PM_PORTS) {
            return Some(Self::PowerManagement(offset));
        }
        if let Some(offset) = fits(WATCHDOG_PORT, WATCHDOG_PORTS) {
            return Some(Self::Watchdog(offset));
        }
        // Of the address register's ports, a byte access at the second one is the reset register's.
        let address =
            fits(PCI_ADDRESS_PORT, 4).is_some() && (width != Width::Byte || port != layout::RESET_PORT);
        (address || fits(PCI_DATA_PORT, 4).is_some()).then_some(Self::PciConfiguration)
    }
}

fn uart_offset(port: u16) -> Option<u16> {
    port.checked_sub(UART_PORT).filter(|&offset| offset < 8)
}

fn offset_in(at: GuestPhys, base: GuestPhys, bytes: u64) -> Option<u64> {
    at.offset_from(base).filter(|&offset| offset < bytes)
}

#[cfg(test)]
pub(crate) mod tests;
