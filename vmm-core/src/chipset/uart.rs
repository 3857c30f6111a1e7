//! The 16550A serial port.
//!
//! What the guest sends goes out at once, so the transmitter is always empty. What comes in waits for the
//! receive FIFO to have room.

use crate::time::Instant;

/// Register numbers by offset from the first port.
mod register {
    /// RBR and THR, or the divisor's low byte.
    pub const DATA: u16 = 0;
    /// Interrupt enable, or the divisor's high byte.
    pub const IER: u16 = 1;
    /// IIR and FCR.
    pub const IIR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const MSR: u16 = 6;
    pub const SCRATCH: u16 = 7;
}

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER: u8 = 1 << 1;
const IER_LINE: u8 = 1 << 2;
const IER_MODEM: u8 = 1 << 3;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_TRANSMITTER: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIME_OUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const LCR_DIVISOR: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOPBACK: u8 = 1 << 4;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

/// Clear to send, data set ready, carrier: somebody listens.
const MSR_CONNECTED: u8 = 0xb0;
const MSR_RING: u8 = 1 << 6;

const FIFO_BYTES: usize = 16;

/// Up to sixteen bytes in the order they came.
#[derive(Debug)]
struct Fifo {
    bytes: [u8; FIFO_BYTES],
    first: usize,
    len: usize,
}

impl Fifo {
    fn push(&mut self, byte: u8) -> bool {
        let at = self.first.wrapping_add(self.len) & FIFO_BYTES.wrapping_sub(1);
        match self.bytes.get_mut(at) {
            Some(slot) if self.len < FIFO_BYTES => {
                *slot = byte;
                self.len = self.len.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    fn pop(&mut self) -> Option<u8> {
        let len = self.len.checked_sub(1)?;
        let byte = *self.bytes.get(self.first)?;
        self.first = self.first.wrapping_add(1) & FIFO_BYTES.wrapping_sub(1);
        self.len = len;
        Some(byte)
    }
}

/// A 16550A.
#[derive(Debug)]
pub(super) struct Uart {
    received: Fifo,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    overrun: bool,
    /// MSR's lower half: what changed since it was read.
    modem_changes: u8,
    scratch: u8,
    divisor: u16,
    /// "Transmitter empty" has not been reported since it last became true.
    transmitter_news: bool,
    /// The line takes no more for now: the byte sent last is still on its way.
    line_busy: bool,
    /// When bytes below the trigger level count as all there is.
    time_out: Option<Instant>,
    timed_out: bool,
}

impl Uart {
    pub(super) const fn new() -> Self {
        Self {
            received: Fifo { bytes: [0; FIFO_BYTES], first: 0, len: 0 },
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            overrun: false,
            modem_changes: 0,
            scratch: 0,
            // 9600 baud.
            divisor: 12,
            transmitter_news: false,
            line_busy: false,
            time_out: None,
            timed_out: false,
        }
    }

    /// Reads the register at `offset`, 0 to 7.
    pub(super) fn read(&mut self, offset: u16, now: Instant) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            register::DATA if self.divisor_access() => divisor_low,
            register::DATA => self.receive(now),
            register::IER if self.divisor_access() => divisor_high,
            register::IER => self.interrupt_enable,
            register::IIR => {
                let cause = self.cause();
                if cause == IIR_TRANSMITTER {
                    self.transmitter_news = false;
                }
                cause | if self.fifos() { IIR_FIFOS } else { 0 }
            }
            register::LCR => self.line_control,
            register::MCR => self.modem_control,
            register::LSR => {
                let overrun = if core::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
                let ready = if self.received.len != 0 { LSR_DATA_READY } else { 0 };
                let empty = if self.line_busy { 0 } else { LSR_TRANSMITTER_EMPTY };
                empty | overrun | ready
            }
            register::MSR => self.modem_status() | core::mem::take(&mut self.modem_changes),
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset`, 0 to 7. Returns a byte to put on the line.
    pub(super) fn write(&mut self, offset: u16, value: u8, now: Instant) -> Option<u8> {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset {
            register::DATA if self.divisor_access() => {
                self.divisor = u16::from_le_bytes([value, divisor_high]);
            }
            register::DATA => {
                self.transmitter_news = true;
                if self.loopback() {
                    self.accept(value, now);
                } else {
                    return Some(value);
                }
            }
            register::IER if self.divisor_access() => {
                self.divisor = u16::from_le_bytes([divisor_low, value]);
            }
            register::IER => {
                // Enabling the transmitter's interrupt reports an empty transmitter afresh.
                self.transmitter_news |= value & !self.interrupt_enable & IER_TRANSMITTER != 0;
                self.interrupt_enable = value & 0x0f;
            }
            register::IIR => self.control_fifos(value),
            register::LCR => self.line_control = value,
            register::MCR => self.control_modem(value),
            register::SCRATCH => self.scratch = value,
            // Line and modem status are not for writing.
            _ => {}
        }
        None
    }

    /// The interrupt wire: OUT2 connects it on every PC.
    pub(super) fn irq(&self) -> bool {
        self.modem_control & (MCR_OUT2 | MCR_LOOPBACK) == MCR_OUT2 && self.cause() != IIR_NONE
    }

    /// Whether the transmitter waits for the line.
    pub(super) const fn line_busy(&self) -> bool {
        self.line_busy
    }

    /// Says whether the line takes a byte. The guest may send all the same: then it is the guest's loss.
    pub(super) const fn set_line_busy(&mut self, busy: bool) {
        self.line_busy = busy;
    }

    /// How many more bytes [`Self::input`] takes.
    pub(super) fn room(&self) -> usize {
        let capacity = if self.fifos() { FIFO_BYTES } else { 1 };
        if self.loopback() { 0 } else { capacity.saturating_sub(self.received.len) }
    }

    /// A byte from the line. The caller asks [`Self::room`] first; too many are an overrun.
    pub(super) fn input(&mut self, byte: u8, now: Instant) {
        if !self.loopback() {
            self.accept(byte, now);
        }
    }

    /// When bytes below the trigger level interrupt nevertheless.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.time_out.filter(|_| self.interrupt_enable & IER_RECEIVED != 0)
    }

    /// Notes a time-out that is due.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.time_out.is_some_and(|due| due <= now) {
            self.time_out = None;
            self.timed_out = true;
        }
    }

    const fn divisor_access(&self) -> bool {
        self.line_control & LCR_DIVISOR != 0
    }

    const fn fifos(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    const fn loopback(&self) -> bool {
        self.modem_control & MCR_LOOPBACK != 0
    }

    /// How many bytes interrupt without a time-out.
    const fn trigger(&self) -> usize {
        match (self.fifos(), self.fifo_control >> 6) {
            (false, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// The interrupt of highest priority, as the IIR names it.
    fn cause(&self) -> u8 {
        let enabled = |source| self.interrupt_enable & source != 0;
        if enabled(IER_LINE) && self.overrun {
            IIR_LINE
        } else if enabled(IER_RECEIVED) && self.received.len >= self.trigger() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && self.timed_out {
            IIR_TIME_OUT
        } else if enabled(IER_TRANSMITTER) && self.transmitter_news && !self.line_busy {
            IIR_TRANSMITTER
        } else if enabled(IER_MODEM) && self.modem_changes != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn receive(&mut self, now: Instant) -> u8 {
        let byte = self.received.pop().unwrap_or(0);
        self.watch(now);
        byte
    }

    fn accept(&mut self, byte: u8, now: Instant) {
        let full = !self.fifos() && self.received.len != 0;
        if full {
            // Without FIFOs the new byte replaces the old one.
            self.received.pop();
        }
        self.overrun |= !self.received.push(byte) || full;
        self.watch(now);
    }

    /// Starts the time-out over: four characters without a read or a new byte.
    fn watch(&mut self, now: Instant) {
        self.timed_out = false;
        let waits = self.fifos() && self.received.len != 0 && self.received.len < self.trigger();
        self.time_out = waits.then(|| now.plus_nanos(self.character_nanos().saturating_mul(4)));
    }

    /// How long one character takes: a bit lasts 16 periods of 1.8432 MHz times the divisor.
    fn character_nanos(&self) -> u64 {
        let data = 5u64.saturating_add(u64::from(self.line_control & 3));
        let stop = 1u64.saturating_add(u64::from(self.line_control >> 2 & 1));
        let parity = u64::from(self.line_control >> 3 & 1);
        let bits = data.saturating_add(stop).saturating_add(parity).saturating_add(1);
        bits.saturating_mul(u64::from(self.divisor.max(1))).saturating_mul(78_125).wrapping_div(9)
    }

    fn control_fifos(&mut self, value: u8) {
        let toggled = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        // The other bits count only together with the enable bit.
        self.fifo_control = if value & FCR_ENABLE != 0 { value & 0xc1 } else { 0 };
        if toggled || value & (FCR_ENABLE | FCR_CLEAR_RECEIVER) == FCR_ENABLE | FCR_CLEAR_RECEIVER {
            self.received.len = 0;
            self.time_out = None;
            self.timed_out = false;
        }
        if toggled {
            self.overrun = false;
        }
    }

    fn control_modem(&mut self, value: u8) {
        let before = self.modem_status();
        self.modem_control = value & 0x1f;
        let now = self.modem_status();
        let changed = (before ^ now) & MSR_CONNECTED;
        let ring_ended = before & !now & MSR_RING;
        self.modem_changes |= (changed | ring_ended) >> 4;
    }

    /// MSR's upper half: the far end's lines, or this end's own in loopback.
    const fn modem_status(&self) -> u8 {
        if !self.loopback() {
            return MSR_CONNECTED;
        }
        let control = self.modem_control;
        // RTS → CTS, DTR → DSR, OUT1 → RI, OUT2 → DCD.
        (control & 2) << 3 | (control & 1) << 5 | (control & 0xc) << 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Instant = Instant::ZERO;

    fn uart_with(settings: &[(u16, u8)]) -> Uart {
        let mut uart = Uart::new();
        for &(offset, value) in settings {
            assert_eq!(uart.write(offset, value, NOW), None);
        }
        uart
    }

    #[test]
    fn an_idle_port_is_ready_to_send() {
        let mut uart = Uart::new();
        assert_eq!(uart.read(5, NOW), 0x60);
        assert_eq!(uart.read(2, NOW), 0x01);
        assert_eq!(uart.write(0, b'x', NOW), Some(b'x'));
        assert_eq!(uart.read(5, NOW), 0x60);
        assert_eq!(uart.read(6, NOW), 0xb0);
    }

    /// What Linux's 8250 driver asks before it believes in a 16550A.
    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::new();
        uart.write(1, 0, NOW);
        assert_eq!(uart.read(1, NOW), 0);
        uart.write(1, 0x0f, NOW);
        assert_eq!(uart.read(1, NOW), 0x0f);
        uart.write(1, 0, NOW);
        uart.write(4, 0x1a, NOW);
        assert_eq!(uart.read(6, NOW) & 0xf0, 0x90, "loopback");
        uart.write(4, 0, NOW);
        uart.write(2, 0, NOW);
        uart.write(3, 0, NOW);
        uart.write(2, 0x01, NOW);
        assert_eq!(uart.read(2, NOW) >> 6, 3, "FIFOs work");
        for lcr in [0x80, 0xbf] {
            uart.write(3, lcr, NOW);
            assert_ne!(uart.read(2, NOW), 0, "no EFR: not a 16650");
        }
        uart.write(3, 0, NOW);
        uart.write(2, 0x21, NOW);
        assert_eq!(uart.read(2, NOW) >> 5, 6);
        uart.write(3, 0x80, NOW);
        uart.write(2, 0x21, NOW);
        assert_eq!(uart.read(2, NOW) >> 5, 6, "not a 16750");
        uart.write(3, 0, NOW);
        uart.write(1, 0x40, NOW);
        assert_eq!(uart.read(1, NOW), 0, "not an XScale");
        uart.write(7, 0xa5, NOW);
        assert_eq!(uart.read(7, NOW), 0xa5);
    }

    #[test]
    fn the_transmitter_interrupts_once_for_each_reason() {
        let mut uart = uart_with(&[(4, 0x08), (1, 0x02)]);
        assert!(uart.irq());
        assert_eq!(uart.read(2, NOW), 0x02);
        assert!(!uart.irq(), "reading the IIR is enough");
        assert_eq!(uart.read(2, NOW), 0x01);
        uart.write(1, 0, NOW);
        uart.write(1, 0x02, NOW);
        assert_eq!(uart.read(2, NOW), 0x02, "enabling reports it again: no THRE bug");
        uart.write(0, b'x', NOW);
        assert!(uart.irq());
        uart.write(4, 0, NOW);
        assert!(!uart.irq(), "OUT2 cuts the wire");
    }

    #[test]
    fn a_busy_line_holds_the_transmitter_back() {
        let mut uart = uart_with(&[(4, 0x08), (1, 0x02)]);
        assert_eq!(uart.write(0, b'x', NOW), Some(b'x'));
        uart.set_line_busy(true);
        assert_eq!((uart.read(5, NOW), uart.irq(), uart.read(2, NOW)), (0, false, 0x01));
        uart.set_line_busy(false);
        assert_eq!((uart.read(5, NOW), uart.irq(), uart.read(2, NOW)), (0x60, true, 0x02));
    }

    #[test]
    fn bytes_below_the_trigger_level_time_out() {
        let mut uart = uart_with(&[(3, 0x83), (0, 1), (1, 0), (3, 0x03), (2, 0xc1), (4, 0x08), (1, 0x01)]);
        assert_eq!(uart.room(), 16);
        uart.input(b'a', NOW);
        assert!(!uart.irq());
        assert_eq!(uart.next_deadline(), Some(Instant::from_nanos(86_805 * 4)), "4 × 10 bits at 115200");
        uart.advance(Instant::from_nanos(100_000));
        assert!(!uart.irq());
        uart.advance(Instant::from_nanos(400_000));
        assert_eq!(uart.read(2, NOW), 0xcc);
        assert!(uart.irq());
        assert_eq!(uart.read(5, NOW), 0x61);
        assert_eq!(uart.read(0, NOW), b'a');
        assert!(!uart.irq() && uart.next_deadline().is_none());
        for byte in 0..14 {
            uart.input(byte, NOW);
        }
        assert_eq!(uart.read(2, NOW), 0xc4);
        assert_eq!(uart.next_deadline(), None);
        assert_eq!((uart.room(), uart.read(0, NOW)), (2, 0));
        assert!(!uart.irq() && uart.next_deadline().is_some(), "below the level again");
        uart.write(2, 0xc3, NOW);
        assert_eq!(uart.read(5, NOW), 0x60, "cleared");
    }

    #[test]
    fn too_many_bytes_are_an_overrun() {
        let mut uart = uart_with(&[(4, 0x08), (1, 0x05)]);
        uart.input(b'a', NOW);
        assert_eq!((uart.room(), uart.read(2, NOW)), (0, 0x04));
        uart.input(b'b', NOW);
        assert_eq!(uart.read(2, NOW), 0x06);
        assert_eq!(uart.read(5, NOW), 0x63);
        assert_eq!(uart.read(5, NOW), 0x61);
        assert_eq!(uart.read(0, NOW), b'b');
        let mut uart = uart_with(&[(2, 0x01)]);
        for byte in 0..17 {
            uart.input(byte, NOW);
        }
        assert_eq!(uart.read(5, NOW), 0x63);
        assert_eq!((0..17).map(|_| uart.read(0, NOW)).sum::<u8>(), 120, "the first sixteen stay");
    }

    #[test]
    fn loopback_stays_inside() {
        let mut uart = uart_with(&[(2, 0x01), (4, 0x10)]);
        assert_eq!(uart.write(0, b'x', NOW), None);
        uart.input(b'y', NOW);
        assert_eq!((uart.room(), uart.read(0, NOW), uart.read(5, NOW)), (0, b'x', 0x60));
        uart.read(6, NOW);
        uart.write(4, 0x1f, NOW);
        assert_eq!(uart.read(6, NOW), 0xfb, "all lines, and what changed; a ring counts when it ends");
        uart.write(4, 0x1b, NOW);
        assert_eq!(uart.read(6, NOW), 0xb4);
        assert!(!uart.irq());
    }

    #[test]
    fn modem_changes_interrupt() {
        let mut uart = uart_with(&[(4, 0x10), (4, 0x08), (1, 0x08)]);
        assert!(uart.irq());
        assert_eq!(uart.read(2, NOW), 0x00);
        assert_ne!(uart.read(6, NOW) & 0x0f, 0);
        assert!(!uart.irq());
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            steps in prop::collection::vec((0u16..8, 0u8..4, any::<u8>(), any::<u32>()), 0..300),
        ) {
            let mut uart = Uart::new();
            let mut now = 0;
            for (offset, action, value, time) in steps {
                now += u64::from(time >> 8);
                let at = Instant::from_nanos(now);
                match action {
                    0 => { uart.write(offset, value, at); }
                    1 => { uart.read(offset, at); }
                    2 => uart.input(value, at),
                    _ => {
                        uart.advance(at);
                        prop_assert!(uart.next_deadline().is_none_or(|deadline| deadline > at));
                    }
                }
                prop_assert!(uart.received.len <= FIFO_BYTES);
                prop_assert_eq!(uart.irq(), uart.irq());
                prop_assert_eq!(uart.read(register::LSR, at) & 0x60, 0x60);
            }
        }
    }
}
