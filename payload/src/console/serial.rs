//! The serial console: a 16550 at the place that the coreboot table names.
//!
//! Until its interrupt is connected every write waits for the line. After that writes go into a queue which
//! the interrupt empties, so that nobody who runs a guest waits for a UART.

use super::ring::Ring;
use crate::host::lock::{Guard, Lock};
use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, DeviceError, map_device};
use crate::host::port::Ports;
use core::sync::atomic::{AtomicBool, Ordering};
use coreboot_config::tables::{Serial, SerialKind};
use spin::Once;

/// Registers, by their number.
mod register {
    /// Receiver and transmitter; with DLAB set, the divisor's low byte.
    pub const DATA: u16 = 0;
    /// Interrupt enable; with DLAB set, the divisor's high byte.
    pub const INTERRUPT_ENABLE: u16 = 1;
    pub const FIFO_CONTROL: u16 = 2;
    /// The same register, read.
    pub const INTERRUPT_ID: u16 = 2;
    pub const LINE_CONTROL: u16 = 3;
    pub const MODEM_CONTROL: u16 = 4;
    pub const LINE_STATUS: u16 = 5;
    pub const COUNT: u16 = 8;
}

/// Interrupt enable: something was received; the transmitter is empty.
const RECEIVED: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
/// FIFO control: on, an interrupt at the first byte.
const FIFO_ON: u8 = 1 << 0;
/// Line control: 8 data bits, no parity, one stop bit; and the bit that brings the divisor up.
const EIGHT_N_ONE: u8 = 3;
const DIVISOR_ACCESS: u8 = 1 << 7;
/// Modem control: DTR, RTS, and OUT2, which lets a PC's UART interrupt.
const READY: u8 = 0b1011;
/// Line status: a byte is there; the transmitter's queue is empty; its shifter is too.
const DATA_READY: u8 = 1 << 0;
const QUEUE_EMPTY: u8 = 1 << 5;
const ALL_SENT: u8 = 1 << 6;
/// How many bytes the transmitter takes once it is empty.
const FIFO_DEPTH: usize = 16;
/// How often a transmitter that does not get ready is asked before its bytes are given up.
const PATIENCE: u32 = 1_000_000;

static UART: Once<Lock<Uart>> = Once::new();
/// Whether there is a UART whose interrupt does not reach us.
static POLLED: AtomicBool = AtomicBool::new(false);

/// How the registers are reached.
enum Registers {
    Ports(Ports),
    /// Registers lie `stride` bytes apart, and are accessed in that width.
    Memory {
        window: Mmio,
        stride: u64,
    },
}

/// The UART with its two queues.
struct Uart {
    registers: Registers,
    output: Ring<0x4000>,
    input: Ring<0x400>,
    /// Whether its interrupt reaches us.
    interrupts: bool,
    /// What the interrupt enable register holds.
    enabled: u8,
}

impl Uart {
    fn read(&self, register: u16) -> u8 {
        match &self.registers {
            Registers::Ports(ports) => ports.read_u8(register),
            Registers::Memory { window, stride: 4 } => window.read_u32(u64::from(register) * 4) as u8,
            Registers::Memory { window, stride } => window.read_u8(u64::from(register) * stride),
        }
    }

    fn write(&self, register: u16, value: u8) {
        match &self.registers {
            Registers::Ports(ports) => ports.write_u8(register, value),
            Registers::Memory { window, stride: 4 } => {
                window.write_u32(u64::from(register) * 4, u32::from(value));
            }
            Registers::Memory { window, stride } => window.write_u8(u64::from(register) * stride, value),
        }
    }

    /// Sets the line up for `baud`, from a clock of `hertz`; a divisor that firmware set is left alone where it
    /// is right, or where the clock is not known.
    fn set_up(&self, baud: u32, hertz: u32) {
        let divisor =
            hertz.checked_div(baud.saturating_mul(16)).and_then(|divisor| u16::try_from(divisor).ok());
        if let Some(divisor) = divisor.filter(|divisor| *divisor != 0) {
            self.write(register::LINE_CONTROL, EIGHT_N_ONE | DIVISOR_ACCESS);
            let [low, high] = divisor.to_le_bytes();
            if [self.read(register::DATA), self.read(register::INTERRUPT_ENABLE)] != [low, high] {
                self.write(register::LINE_CONTROL, EIGHT_N_ONE);
                self.wait_for(ALL_SENT);
                self.write(register::LINE_CONTROL, EIGHT_N_ONE | DIVISOR_ACCESS);
                self.write(register::DATA, low);
                self.write(register::INTERRUPT_ENABLE, high);
            }
        }
        self.write(register::LINE_CONTROL, EIGHT_N_ONE);
        self.write(register::INTERRUPT_ENABLE, 0);
        self.write(register::FIFO_CONTROL, FIFO_ON);
        self.write(register::MODEM_CONTROL, READY);
    }

    /// Waits for a bit of the line status; whether it came.
    fn wait_for(&self, bit: u8) -> bool {
        (0..PATIENCE).any(|_| self.read(register::LINE_STATUS) & bit != 0)
    }

    /// Sends what the transmitter takes now, and has it call for more where it can.
    fn send(&mut self) {
        while !self.output.is_empty() && self.read(register::LINE_STATUS) & QUEUE_EMPTY != 0 {
            for _ in 0..FIFO_DEPTH {
                let Some(byte) = self.output.pop() else { break };
                self.write(register::DATA, byte);
            }
        }
        if self.interrupts {
            self.enable(RECEIVED | if self.output.is_empty() { 0 } else { TRANSMITTER_EMPTY });
        }
    }

    /// Sends everything, waiting for the line. Where nothing takes the bytes they are given up: a dead line
    /// must not stop the boot.
    fn drain(&mut self) {
        while !self.output.is_empty() {
            if !self.wait_for(QUEUE_EMPTY) {
                self.output = Ring::new();
            }
            self.send();
        }
    }

    /// Takes in what was received; bytes beyond the queue are lost, as on the line.
    fn receive(&mut self) {
        while self.read(register::LINE_STATUS) & DATA_READY != 0 {
            let byte = self.read(register::DATA);
            if !self.input.push(byte) {
                return;
            }
        }
    }

    fn enable(&mut self, interrupts: u8) {
        if self.enabled != interrupts {
            self.enabled = interrupts;
            self.write(register::INTERRUPT_ENABLE, interrupts);
        }
    }

    fn queue(&mut self, byte: u8) {
        if !self.output.push(byte) {
            if !self.wait_for(QUEUE_EMPTY) {
                self.output = Ring::new();
            }
            self.send();
            self.output.push(byte);
        }
    }
}

/// The UART, unless it is held by what an NMI interrupted.
fn uart() -> Option<Guard<'static, Uart>> {
    UART.get().and_then(Lock::lock)
}

/// Opens the console that the table's record describes. A UART in memory can only be reached once paging has
/// started.
pub fn start(record: &Serial) -> Result<(), DeviceError> {
    let registers = match record.kind {
        SerialKind::Port => {
            let ports = u16::try_from(record.base).ok().and_then(|base| Ports::new(base, register::COUNT));
            let range = Range::with_len(u64::from(record.base), u64::from(register::COUNT));
            Registers::Ports(ports.ok_or(DeviceError::InUse(range))?)
        }
        SerialKind::Memory => {
            let stride = u64::from(record.register_width.max(1));
            let range = Range::with_len(u64::from(record.base), stride * u64::from(register::COUNT));
            Registers::Memory { window: map_device(range, Cache::Uncached)?, stride }
        }
    };
    UART.call_once(|| {
        let (output, input) = (Ring::new(), Ring::new());
        let uart = Uart { registers, output, input, interrupts: false, enabled: 0 };
        uart.set_up(record.baud, record.input_hertz);
        Lock::new(uart)
    });
    POLLED.store(true, Ordering::Relaxed);
    Ok(())
}

/// The ISA interrupt of the UART, by the custom of PCs; `None` where it has to be polled.
pub fn isa_interrupt(record: &Serial) -> Option<u8> {
    match (record.kind, record.base) {
        (SerialKind::Port, 0x3f8 | 0x3e8) => Some(4),
        (SerialKind::Port, 0x2f8 | 0x2e8) => Some(3),
        _ => None,
    }
}

/// From now on the UART's interrupt arrives, and writes no longer wait.
pub fn use_interrupts() {
    let Some(mut uart) = uart() else { return };
    uart.interrupts = true;
    uart.receive();
    uart.send();
    POLLED.store(false, Ordering::Relaxed);
}

/// Whether the UART must be asked with [`poll`] from time to time, having no interrupt.
pub fn needs_polling() -> bool {
    POLLED.load(Ordering::Relaxed)
}

/// Serves the UART: sends and receives what there is. The interrupt's handler, and the poll.
pub fn poll() {
    let Some(mut uart) = uart() else { return };
    // Reading the identification is what withdraws a transmitter-empty interrupt.
    uart.read(register::INTERRUPT_ID);
    uart.receive();
    uart.send();
}

/// Writes bytes as they are; never waits. How many were taken, from the first on.
pub fn write(bytes: &[u8]) -> usize {
    let Some(mut uart) = uart() else { return bytes.len() };
    let taken = bytes.len().min(uart.output.room());
    bytes.iter().take(taken).for_each(|byte| uart.queue(*byte));
    uart.send();
    taken
}

/// Writes bytes as they are, waiting for the line where there is no room.
pub fn write_all(bytes: &[u8]) {
    let Some(mut uart) = uart() else { return };
    bytes.iter().for_each(|byte| uart.queue(*byte));
    if uart.interrupts { uart.send() } else { uart.drain() }
}

/// For how many bytes there is room.
pub fn room() -> usize {
    uart().map_or(usize::MAX, |uart| uart.output.room())
}

/// Waits until all that was written is out: what is in the transmitter would be lost with the machine.
pub fn flush() {
    if let Some(mut uart) = uart() {
        uart.drain();
        uart.wait_for(ALL_SENT);
    }
}

/// Takes received bytes into `buffer`; how many there were.
pub fn read(buffer: &mut [u8]) -> usize {
    let Some(mut uart) = uart() else { return 0 };
    let received = buffer.iter_mut().map_while(|slot| uart.input.pop().map(|byte| *slot = byte));
    received.count()
}
