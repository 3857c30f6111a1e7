//! The pair of 8259A interrupt controllers, and the ELCR beside them that makes inputs level-triggered.

use super::layout::{ELCR_PORT, PIC_MASTER_PORT, PIC_SLAVE_PORT};

/// The master's input that the slave's output drives.
const CASCADE: u8 = 2;
/// What a controller answers when the request has gone before it was asked for the vector.
const SPURIOUS: u8 = 7;
/// Inputs that the ELCR can make level-triggered: not timer, keyboard, cascade; not RTC, coprocessor.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

/// Which initialization command word a controller expects next at its data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initialization {
    Done,
    VectorBase,
    Cascade,
    Mode,
}

/// One 8259A.
#[derive(Debug)]
struct Controller {
    /// Inputs that are high.
    lines: u8,
    /// Rising edges that nobody has acknowledged.
    edges: u8,
    /// Inputs that request for as long as they are high.
    level: u8,
    in_service: u8,
    mask: u8,
    vector_base: u8,
    /// The input of lowest priority; the next one up has the highest.
    lowest: u8,
    initialization: Initialization,
    single: bool,
    expects_mode: bool,
    auto_end: bool,
    rotate_on_auto_end: bool,
    special_mask: bool,
    /// A master in special fully nested mode lets the slave interrupt its own service.
    special_nested: bool,
    read_in_service: bool,
    poll: bool,
}

impl Controller {
    /// As PC firmware leaves one: initialized, everything masked but what `open` says.
    const fn new(vector_base: u8, open: u8) -> Self {
        Self {
            lines: 0,
            edges: 0,
            level: 0,
            in_service: 0,
            mask: !open,
            vector_base,
            lowest: 7,
            initialization: Initialization::Done,
            single: false,
            expects_mode: false,
            auto_end: false,
            rotate_on_auto_end: false,
            special_mask: false,
            special_nested: false,
            read_in_service: false,
            poll: false,
        }
    }

    const fn requests(&self) -> u8 {
        self.edges & !self.level | self.lines & self.level
    }

    /// The set bit of highest priority, as how far it lies behind the input of highest priority.
    const fn rank(&self, bits: u8) -> Option<u8> {
        match bits.rotate_right(self.lowest.wrapping_add(1) as u32 & 7).trailing_zeros() {
            8 => None,
            rank => Some(rank as u8),
        }
    }

    const fn input_of_rank(&self, rank: u8) -> u8 {
        rank.wrapping_add(self.lowest).wrapping_add(1) & 7
    }

    /// The input to serve next.
    fn pending(&self) -> Option<u8> {
        let request = self.rank(self.requests() & !self.mask)?;
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.special_nested {
            blocking &= !(1 << CASCADE);
        }
        let blocked = self.rank(blocking).is_some_and(|serving| serving <= request);
        (!blocked).then(|| self.input_of_rank(request))
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.edges &= !bit;
        if !self.auto_end {
            self.in_service |= bit;
        } else if self.rotate_on_auto_end {
            self.lowest = input;
        }
    }

    const fn vector(&self, input: u8) -> u8 {
        self.vector_base | input
    }

    fn read_command(&mut self) -> u8 {
        if core::mem::take(&mut self.poll) {
            return self.pending().map_or(0, |input| {
                self.acknowledge(input);
                0x80 | input
            });
        }
        if self.read_in_service { self.in_service } else { self.requests() }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.begin_initialization(value);
        } else if value & 0x08 != 0 {
            self.poll = value & 0x04 != 0;
            if value & 0x02 != 0 {
                self.read_in_service = value & 0x01 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.operate(value >> 5, value & 7);
        }
    }

    /// ICW1: the rest follows at the data port.
    fn begin_initialization(&mut self, word: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            mask: 0,
            vector_base: self.vector_base,
            initialization: Initialization::VectorBase,
            single: word & 0x02 != 0,
            expects_mode: word & 0x01 != 0,
            ..Self::new(0, 0)
        };
    }

    /// OCW2: ends of interrupt and rotation.
    fn operate(&mut self, operation: u8, input: u8) {
        match operation {
            0 => self.rotate_on_auto_end = false,
            4 => self.rotate_on_auto_end = true,
            1 | 5 => {
                let candidates =
                    if self.special_mask { self.in_service & !self.mask } else { self.in_service };
                if let Some(rank) = self.rank(candidates) {
                    let served = self.input_of_rank(rank);
                    self.end(served, operation == 5);
                }
            }
            3 | 7 => self.end(input, operation == 7),
            6 => self.lowest = input,
            _ => {}
        }
    }

    fn end(&mut self, input: u8, rotate: bool) {
        self.in_service &= !(1 << (input & 7));
        if rotate {
            self.lowest = input;
        }
    }

    fn write_data(&mut self, value: u8) {
        let mode_or_done = if self.expects_mode { Initialization::Mode } else { Initialization::Done };
        match self.initialization {
            Initialization::Done => self.mask = value,
            Initialization::VectorBase => {
                self.vector_base = value & 0xf8;
                self.initialization = if self.single { mode_or_done } else { Initialization::Cascade };
            }
            Initialization::Cascade => self.initialization = mode_or_done,
            Initialization::Mode => {
                self.special_nested = value & 0x10 != 0;
                self.auto_end = value & 0x02 != 0;
                self.initialization = Initialization::Done;
            }
        }
    }
}

/// Master and slave, wired as in every PC.
#[derive(Debug)]
pub(super) struct PicPair {
    master: Controller,
    slave: Controller,
}

impl PicPair {
    /// As firmware leaves them: vectors 0x08 and 0x70, all masked but the cascade.
    pub(super) const fn new() -> Self {
        let mut master = Controller::new(0x08, 1 << CASCADE);
        // The slave's output is a level: it stays high while the slave has something to serve.
        master.level = 1 << CASCADE;
        Self { master, slave: Controller::new(0x70, 0) }
    }

    /// Sets input `irq`, 0 to 15. Input 2 is the cascade and has no wire.
    pub(super) fn set_irq(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, high),
            _ => self.slave.set_line(irq & 7, high),
        }
        self.cascade();
    }

    /// Whether a change of input `irq` could now lead to an interrupt: nobody masked it.
    pub(super) const fn listens(&self, irq: u8) -> bool {
        let masked = match irq {
            0..=7 => self.master.mask & (1 << irq) != 0,
            _ => self.slave.mask & (1 << (irq & 7)) != 0 || self.master.mask & (1 << CASCADE) != 0,
        };
        !masked
    }

    /// The INTR wire.
    pub(super) fn intr(&self) -> bool {
        self.master.pending().is_some()
    }

    /// INTA: the vector of the interrupt to serve, in service from now on.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.pending() {
            None => self.master.vector(SPURIOUS),
            Some(CASCADE) => {
                self.master.acknowledge(CASCADE);
                match self.slave.pending() {
                    None => self.slave.vector(SPURIOUS),
                    Some(input) => {
                        self.slave.acknowledge(input);
                        self.slave.vector(input)
                    }
                }
            }
            Some(input) => {
                self.master.acknowledge(input);
                self.master.vector(input)
            }
        };
        self.cascade();
        vector
    }

    /// Reads a port of the pair or of the ELCR; `None` when it is neither's.
    pub(super) fn read(&mut self, port: u16) -> Option<u8> {
        let value = match port {
            PIC_MASTER_PORT => self.master.read_command(),
            PIC_SLAVE_PORT => self.slave.read_command(),
            _ if port == PIC_MASTER_PORT | 1 => self.master.mask,
            _ if port == PIC_SLAVE_PORT | 1 => self.slave.mask,
            ELCR_PORT => self.master.level & ELCR_WRITABLE[0],
            _ if port == ELCR_PORT | 1 => self.slave.level,
            _ => return None,
        };
        self.cascade();
        Some(value)
    }

    /// Writes a port of the pair or of the ELCR; `None` when it is neither's.
    pub(super) fn write(&mut self, port: u16, value: u8) -> Option<()> {
        match port {
            PIC_MASTER_PORT => self.master.write_command(value),
            PIC_SLAVE_PORT => self.slave.write_command(value),
            _ if port == PIC_MASTER_PORT | 1 => self.master.write_data(value),
            _ if port == PIC_SLAVE_PORT | 1 => self.slave.write_data(value),
            ELCR_PORT => self.master.level = value & ELCR_WRITABLE[0] | 1 << CASCADE,
            _ if port == ELCR_PORT | 1 => self.slave.level = value & ELCR_WRITABLE[1],
            _ => return None,
        }
        self.cascade();
        Some(())
    }

    fn cascade(&mut self) {
        let high = self.slave.pending().is_some();
        self.master.set_line(CASCADE, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Initialized as Linux does it: vectors 0x30 and 0x38, everything open.
    fn pair() -> PicPair {
        let mut pair = PicPair::new();
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, 0x00),
            (0xa1, 0x00),
        ] {
            pair.write(port, value).unwrap();
        }
        pair
    }

    fn pulse(pair: &mut PicPair, irq: u8) {
        pair.set_irq(irq, true);
        pair.set_irq(irq, false);
    }

    #[test]
    fn an_edge_waits_until_it_is_acknowledged() {
        let mut pair = pair();
        pulse(&mut pair, 4);
        assert!(pair.intr());
        assert_eq!(pair.read(0x20), Some(0x10), "IRR");
        assert_eq!(pair.acknowledge(), 0x34);
        assert!(!pair.intr());
        pair.write(0x20, 0x0b).unwrap();
        assert_eq!(pair.read(0x20), Some(0x10), "ISR");
        pulse(&mut pair, 5);
        assert!(!pair.intr(), "lower priority waits");
        pulse(&mut pair, 0);
        assert_eq!(pair.acknowledge(), 0x30, "higher does not");
        pair.write(0x20, 0x20).unwrap();
        pair.write(0x20, 0x64).unwrap();
        assert_eq!(pair.acknowledge(), 0x35);
    }

    #[test]
    fn the_slave_interrupts_through_the_cascade() {
        let mut pair = pair();
        pulse(&mut pair, 8);
        pulse(&mut pair, 14);
        assert_eq!(pair.acknowledge(), 0x38);
        assert!(!pair.intr());
        pair.write(0xa0, 0x20).unwrap();
        assert!(!pair.intr(), "the master still serves the cascade");
        pair.write(0x20, 0x20).unwrap();
        assert_eq!(pair.acknowledge(), 0x3e);
        pair.write(0xa0, 0x66).unwrap();
        pair.write(0x20, 0x62).unwrap();
        assert!(!pair.intr());
        assert_eq!(pair.acknowledge(), 0x37, "spurious");
        assert_eq!(pair.read(0x20), Some(0), "and not in service");
    }

    #[test]
    fn a_masked_edge_is_remembered() {
        let mut pair = pair();
        pair.write(0x21, 0xff).unwrap();
        pulse(&mut pair, 0);
        assert!(!pair.intr() && !pair.listens(0) && !pair.listens(8));
        assert_eq!(pair.read(0x21), Some(0xff));
        pair.write(0x21, 0xfe).unwrap();
        assert!(pair.intr() && pair.listens(0));
    }

    #[test]
    fn a_level_input_requests_while_it_is_high() {
        let mut pair = pair();
        pair.write(0x4d0, 0xff).unwrap();
        pair.write(0x4d1, 0xff).unwrap();
        assert_eq!((pair.read(0x4d0), pair.read(0x4d1)), (Some(0xf8), Some(0xde)));
        pair.set_irq(9, true);
        assert_eq!(pair.acknowledge(), 0x39);
        pair.write(0xa0, 0x20).unwrap();
        pair.write(0x20, 0x20).unwrap();
        assert!(pair.intr(), "still high");
        pair.set_irq(9, false);
        assert!(!pair.intr());
    }

    #[test]
    fn auto_end_and_rotation() {
        let mut pair = pair();
        for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 3), (0x20, 0x80)] {
            pair.write(port, value).unwrap();
        }
        for irq in [3, 4] {
            pulse(&mut pair, irq);
        }
        assert_eq!(pair.acknowledge(), 0x33);
        pulse(&mut pair, 3);
        assert_eq!(pair.acknowledge(), 0x34, "input 3 went to the end of the row");
        assert_eq!(pair.acknowledge(), 0x33);
        pair.write(0x20, 0xc3).unwrap();
        for irq in [3, 4] {
            pulse(&mut pair, irq);
        }
        assert_eq!(pair.acknowledge(), 0x34);
    }

    #[test]
    fn special_mask_lets_lower_ones_in() {
        let mut pair = pair();
        pulse(&mut pair, 1);
        assert_eq!(pair.acknowledge(), 0x31);
        pulse(&mut pair, 6);
        pair.write(0x21, 0x02).unwrap();
        pair.write(0x20, 0x68).unwrap();
        assert_eq!(pair.acknowledge(), 0x36);
        pair.write(0x20, 0x20).unwrap();
        pair.write(0x20, 0x0b).unwrap();
        assert_eq!(pair.read(0x20), Some(0x02), "the masked one in service stays");
    }

    #[test]
    fn polling_acknowledges() {
        let mut pair = pair();
        pair.write(0x20, 0x0c).unwrap();
        assert_eq!(pair.read(0x20), Some(0));
        pulse(&mut pair, 5);
        pair.write(0x20, 0x0c).unwrap();
        assert_eq!(pair.read(0x20), Some(0x85));
        assert!(!pair.intr());
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(steps in prop::collection::vec((0u8..12, any::<u8>()), 0..300)) {
            let mut pair = PicPair::new();
            for (action, value) in steps {
                let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
                match action {
                    0..=5 => pair.write(ports[usize::from(action)], value).unwrap(),
                    6 | 7 => { pair.read(ports[usize::from(value % 6)]).unwrap(); }
                    8..=10 => pair.set_irq(value & 15, value & 16 != 0),
                    _ => {
                        let pending = pair.intr();
                        let spurious = pair.master.vector(SPURIOUS);
                        let vector = pair.acknowledge();
                        prop_assert!(pending || vector == spurious);
                    }
                }
            }
        }
    }
}
