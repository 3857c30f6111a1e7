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
/// Interrupt identification: there is none.
const NO_CALL: u8 = 1 << 0;
/// A UART that calls more often than this in one go calls for what nobody can do: the next interrupt goes on.
const CALLS_AT_MOST: usize = 64;
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
/// After so many looks in a row that find the UART calling, and no interrupt between them, none is waited for any more.
const LOOKS: u8 = 3;
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
    #[cfg(test)]
    Model(core::cell::RefCell<tests::Model>),
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
    /// How many looks have found it calling since its last interrupt.
    missed: u8,
}

impl Uart {
    fn read(&self, register: u16) -> u8 {
        match &self.registers {
            Registers::Ports(ports) => ports.read_u8(register),
            Registers::Memory { window, stride: 4 } => window.read_u32(u64::from(register) * 4) as u8,
            Registers::Memory { window, stride } => window.read_u8(u64::from(register) * stride),
            #[cfg(test)]
            Registers::Model(model) => model.borrow_mut().read(register),
        }
    }

    fn write(&self, register: u16, value: u8) {
        match &self.registers {
            Registers::Ports(ports) => ports.write_u8(register, value),
            Registers::Memory { window, stride: 4 } => {
                window.write_u32(u64::from(register) * 4, u32::from(value));
            }
            Registers::Memory { window, stride } => window.write_u8(u64::from(register) * stride, value),
            #[cfg(test)]
            Registers::Model(model) => model.borrow_mut().write(register, value),
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

    /// Takes in what was received; bytes beyond the queue are lost, as on the line. None is left in the UART:
    /// its interrupt line would stay high, and never have an edge again.
    fn receive(&mut self) {
        while self.read(register::LINE_STATUS) & DATA_READY != 0 {
            let byte = self.read(register::DATA);
            self.input.push(byte);
        }
    }

    /// Does what the UART calls for, until it calls for nothing: only then is its line low, and the next call an
    /// edge that interrupts. Whether it called.
    fn serve(&mut self) -> bool {
        let mut called = false;
        for _ in 0..CALLS_AT_MOST {
            // Reading the identification is what withdraws a transmitter-empty interrupt.
            let calls = self.read(register::INTERRUPT_ID) & NO_CALL == 0;
            self.receive();
            self.send();
            if !calls {
                break;
            }
            called = true;
        }
        called
    }

    /// Its interrupt came.
    fn interrupted(&mut self) {
        self.missed = 0;
        self.serve();
    }

    /// Does what an interrupt that was lost called for: the line would never have an edge again. Whether interrupts
    /// are lost again and again.
    fn look(&mut self) -> bool {
        // One may be on its way just now.
        self.missed = if self.serve() { self.missed.saturating_add(1) } else { 0 };
        self.missed >= LOOKS
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
        let uart = Uart { registers, output, input, interrupts: false, enabled: 0, missed: 0 };
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
    uart.serve();
    POLLED.store(false, Ordering::Relaxed);
}

/// Whether the UART must be asked with [`poll`] from time to time, having no interrupt.
pub fn needs_polling() -> bool {
    POLLED.load(Ordering::Relaxed)
}

/// Serves the UART, whose interrupt came.
pub fn interrupted() {
    if let Some(mut uart) = uart() {
        uart.interrupted();
    }
}

/// Serves the UART, which has no interrupt: sends and receives what there is.
pub fn poll() {
    if let Some(mut uart) = uart() {
        uart.serve();
    }
}

/// To be called from time to time: makes good what a lost interrupt left undone. True when interrupts turn out not
/// to come at all; from then on the UART [needs polling](needs_polling).
pub fn look() -> bool {
    let lost = !needs_polling() && uart().is_some_and(|mut uart| uart.look());
    if lost {
        POLLED.store(true, Ordering::Relaxed);
    }
    lost
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

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::RefCell;
    use std::collections::VecDeque;

    /// A 16550 whose interrupt line is told by its edges.
    #[derive(Default)]
    pub struct Model {
        enabled: u8,
        received: VecDeque<u8>,
        /// What comes in as soon as the data register has been read so often.
        typed_late: VecDeque<(usize, u8)>,
        reads: usize,
        sent: Vec<u8>,
        transmitter_news: bool,
        line: bool,
        edges: usize,
    }

    impl Model {
        pub fn read(&mut self, register: u16) -> u8 {
            let value = match register {
                register::DATA => {
                    self.reads += 1;
                    let byte = self.received.pop_front().unwrap_or(0);
                    while let Some((_, late)) =
                        self.typed_late.pop_front_if(|(reads, _)| *reads == self.reads)
                    {
                        self.received.push_back(late);
                    }
                    byte
                }
                register::INTERRUPT_ID if self.enabled & RECEIVED != 0 && !self.received.is_empty() => 0xc4,
                register::INTERRUPT_ID if core::mem::take(&mut self.transmitter_news) => 0xc2,
                register::INTERRUPT_ID => 0xc1,
                register::LINE_STATUS => {
                    QUEUE_EMPTY | ALL_SENT | if self.received.is_empty() { 0 } else { DATA_READY }
                }
                _ => 0,
            };
            self.drive();
            value
        }

        pub fn write(&mut self, register: u16, value: u8) {
            match register {
                register::DATA => {
                    self.sent.push(value);
                    // The line takes it at once.
                    self.transmitter_news = self.enabled & TRANSMITTER_EMPTY != 0;
                }
                register::INTERRUPT_ENABLE => {
                    self.transmitter_news = value & TRANSMITTER_EMPTY != 0;
                    self.enabled = value;
                }
                _ => {}
            }
            self.drive();
        }

        fn type_bytes(&mut self, bytes: &[u8]) {
            self.received.extend(bytes);
            self.drive();
        }

        fn drive(&mut self) {
            let calls = self.enabled & RECEIVED != 0 && !self.received.is_empty() || self.transmitter_news;
            self.edges += usize::from(calls && !self.line);
            self.line = calls;
        }
    }

    fn uart() -> Uart {
        let registers = Registers::Model(RefCell::new(Model::default()));
        let (output, input) = (Ring::new(), Ring::new());
        let mut uart = Uart { registers, output, input, interrupts: true, enabled: 0, missed: 0 };
        uart.serve();
        uart
    }

    fn model(uart: &Uart) -> core::cell::RefMut<'_, Model> {
        let Registers::Model(model) = &uart.registers else { unreachable!("the tests' own") };
        model.borrow_mut()
    }

    /// Serves the interrupt that is to come for what was just done.
    fn interrupted(uart: &mut Uart, edges: usize) {
        assert_eq!(model(uart).edges, edges, "the interrupt comes by an edge");
        uart.serve();
        assert!(!model(uart).line, "the next one can only come when the line is low");
    }

    #[test]
    fn more_than_the_queue_holds_does_not_silence_the_interrupt() {
        let mut uart = uart();
        model(&uart).type_bytes(&[b'x'; 0x500]);
        interrupted(&mut uart, 1);
        assert_eq!(uart.input.room(), 0);
        while uart.input.pop().is_some() {}
        model(&uart).type_bytes(b"y");
        interrupted(&mut uart, 2);
        assert_eq!(uart.input.pop(), Some(b'y'));
    }

    #[test]
    fn what_comes_while_the_interrupt_is_served_is_taken_too() {
        let mut uart = uart();
        model(&uart).typed_late.extend([(1, b'b'), (3, b'd')]);
        model(&uart).type_bytes(b"a");
        interrupted(&mut uart, 1);
        model(&uart).type_bytes(b"c");
        interrupted(&mut uart, 2);
        let taken: Vec<u8> = core::iter::from_fn(|| uart.input.pop()).collect();
        assert_eq!(taken, b"abcd");
    }

    #[test]
    fn what_a_lost_interrupt_called_for_is_done_at_the_next_look() {
        let mut uart = uart();
        model(&uart).type_bytes(b"a");
        assert!(!uart.look() && uart.input.pop() == Some(b'a'));
        model(&uart).type_bytes(b"b");
        interrupted(&mut uart, 2);
    }

    #[test]
    fn interrupts_that_never_come_are_given_up() {
        let mut uart = uart();
        let typed_and_lost = |uart: &mut Uart| {
            model(uart).type_bytes(b"a");
            uart.look()
        };
        assert!(!typed_and_lost(&mut uart) && !typed_and_lost(&mut uart));
        uart.interrupted();
        assert!(!typed_and_lost(&mut uart), "one came after all");
        assert!(!typed_and_lost(&mut uart) && typed_and_lost(&mut uart));
        assert!(!uart.look(), "nobody typed");
    }

    #[test]
    fn everything_written_is_sent_with_its_interrupts() {
        let mut uart = uart();
        b"some text".iter().for_each(|byte| uart.queue(*byte));
        uart.send();
        assert_eq!(model(&uart).sent, b"some text");
        uart.serve();
        assert!(!model(&uart).line && uart.enabled == RECEIVED);
    }
}
