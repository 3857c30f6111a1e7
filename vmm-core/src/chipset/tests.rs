//! The board as a whole: what a guest's ports and memory accesses bring about at its local APICs.

use super::*;
use crate::memory::{HeapBlock, Region};
use crate::time::TscClock;
use proptest::prelude::*;
use std::collections::VecDeque;

/// What came out of the guest.
#[derive(Default)]
pub(super) struct Output {
    pub(super) transmitted: Vec<u8>,
    pub(super) debugged: Vec<u8>,
    /// Whether it takes no more for now.
    pub(super) full: bool,
    /// What the user typed and the guest's serial port has not taken yet.
    typed: VecDeque<u8>,
}

impl Console for Output {
    fn transmit(&mut self, byte: u8) -> bool {
        self.transmitted.push(byte);
        !self.full
    }
    fn has_room(&mut self) -> bool {
        !self.full
    }
    fn receive(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }
    fn debug(&mut self, byte: u8) {
        self.debugged.push(byte);
    }
}

/// A board, a console, two vCPUs' local APICs, and a time that stands until it is moved.
pub(super) struct Board {
    pub(super) chipset: Chipset,
    pub(super) console: Output,
    pub(super) apics: LocalApics,
    pub(super) memory: Arc<GuestMemory>,
    now: Instant,
}

/// 1 MiB from zero on.
pub(crate) fn memory() -> Arc<GuestMemory> {
    let block = Box::new(HeapBlock::zeroed(1 << 20, 4096).unwrap());
    Arc::new(GuestMemory::new(alloc::vec![Region::new(GuestPhys::new(0), block)]).unwrap())
}

/// Runs `work` for a device whose messages `apics` takes.
pub(super) fn with_bus<R>(apics: &dyn ApicBus, work: impl FnOnce(&mut Context) -> R) -> R {
    with_memory(apics, &memory(), work)
}

/// The same, with memory that outlives it.
pub(crate) fn with_memory<R>(
    apics: &dyn ApicBus,
    memory: &Arc<GuestMemory>,
    work: impl FnOnce(&mut Context) -> R,
) -> R {
    let mut console = Output::default();
    work(&mut Context { now: Instant::ZERO, console: &mut console, apics, memory, complaint: None })
}

impl Board {
    pub(super) fn new() -> Self {
        let config = ChipsetConfig {
            start: Instant::ZERO,
            unix_time: 1_700_000_000,
            memory_bytes: 3 << 30,
            debug_port: true,
            watchdog: true,
        };
        let board = Self {
            chipset: Chipset::new(&config, Waker::noop().clone()),
            console: Output::default(),
            apics: LocalApics::new(2, TscClock::new(1_000_000, Instant::ZERO)),
            memory: memory(),
            now: Instant::ZERO,
        };
        for vcpu in 0..2 {
            let effect = board.apics.lock(vcpu).unwrap().mmio_write(0xf0, Width::Dword, 0x1ff, board.now);
            assert_eq!(effect, ApicEffect::None);
        }
        board
    }

    pub(super) fn with<R>(&mut self, work: impl FnOnce(&mut Chipset, &mut Context) -> R) -> R {
        let (now, apics, memory) = (self.now, &self.apics, &self.memory);
        let mut ctx = Context { now, console: &mut self.console, apics, memory, complaint: None };
        work(&mut self.chipset, &mut ctx)
    }

    pub(super) fn input(&mut self, port: u16, width: Width) -> Option<u32> {
        self.with(|chipset, ctx| chipset.port_read(port, width, ctx))
    }

    pub(super) fn out(&mut self, port: u16, width: Width, value: u32) {
        self.with(|chipset, ctx| chipset.port_write(port, width, value, ctx)).unwrap();
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.out(port, Width::Byte, value.into());
    }

    pub(super) fn read(&mut self, at: u64, width: Width) -> Option<u64> {
        self.with(|chipset, ctx| chipset.mmio_read(GuestPhys::new(at), width, ctx))
    }

    pub(super) fn write(&mut self, at: u64, width: Width, value: u64) -> Option<()> {
        self.with(|chipset, ctx| chipset.mmio_write(GuestPhys::new(at), width, value, ctx))
    }

    /// Sets an IOAPIC entry for physical destination `vcpu`.
    pub(super) fn route(&mut self, pin: u8, low: u32, vcpu: u8) {
        for (register, value) in [(0x11 + 2 * pin, u32::from(vcpu) << 24), (0x10 + 2 * pin, low)] {
            self.write(0xfec0_0000, Width::Dword, register.into()).unwrap();
            self.write(0xfec0_0010, Width::Dword, value.into()).unwrap();
        }
    }

    /// Sleeps to the next deadline, as an idle guest's host would; says when that is in nanoseconds.
    fn sleep(&mut self) -> Option<u64> {
        let deadline = self.chipset.next_deadline()?;
        assert!(deadline > self.now);
        self.now = deadline;
        self.with(|chipset, ctx| chipset.advance(ctx));
        Some(deadline.as_nanos())
    }

    /// What `vcpu` takes now, with its end.
    pub(super) fn take(&mut self, vcpu: usize) -> Option<u8> {
        let mut apic = self.apics.lock(vcpu).unwrap();
        let vector = apic.pending_vector()?;
        apic.acknowledge(vector);
        let effect = apic.end_of_interrupt();
        drop(apic);
        if let ApicEffect::EndOfInterrupt { vector } = effect {
            self.with(|chipset, ctx| chipset.end_of_interrupt(vector, ctx));
        }
        Some(vector)
    }

    /// Initializes the 8259 pair as Linux does, with vector 0x30 first and `open` inputs.
    fn init_pic(&mut self, open: u16) {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, !(open as u8)),
            (0xa1, !((open >> 8) as u8)),
        ] {
            self.outb(port, value);
        }
    }
}

#[test]
fn a_watchdog_that_is_not_fed_ends_the_guest() {
    let mut board = Board::new();
    assert_eq!(board.input(WATCHDOG_PORT, Width::Dword), Some(300));
    board.out(WATCHDOG_PORT, Width::Dword, 20);
    assert_eq!(board.sleep(), None, "it is not started");
    board.out(WATCHDOG_PORT + 4, Width::Dword, 1);
    board.now = Instant::from_nanos(1_500_000_000);
    board.out(WATCHDOG_PORT + 8, Width::Dword, 1);
    assert_eq!(board.sleep(), Some(3_500_000_000));
    assert_eq!(board.chipset.take_event(), Some(PlatformEvent::Watchdog));
    assert_eq!((board.chipset.take_event(), board.sleep()), (None, None));
    board.chipset.watchdog = None;
    assert_eq!(board.input(WATCHDOG_PORT, Width::Dword), None, "not every guest has one");
}

#[test]
fn the_timer_ticks_through_the_io_apic() {
    let mut board = Board::new();
    board.init_pic(0);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        board.outb(port, value);
    }
    assert_eq!(board.sleep(), None, "nobody listens");
    board.now = Instant::from_nanos(25_000_000);
    board.route(2, 0x30, 1);
    assert_eq!(board.take(1), None, "what happened before does not come late");
    // 11932 ticks of 1193182 Hz.
    for n in 3..=12u64 {
        let due = (n * 11_932 * 1_000_000_000).div_ceil(1_193_182);
        assert_eq!(board.sleep(), Some(due));
        assert!(board.apics.take_kick(1) && !board.apics.take_kick(0));
        assert_eq!((board.take(1), board.take(1)), (Some(0x30), None));
    }
}

#[test]
fn to_start_the_timer_is_no_tick() {
    let mut board = Board::new();
    board.route(2, 0x30, 1);
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        board.outb(port, value);
    }
    assert_eq!(board.take(1), None);
    board.sleep().unwrap();
    assert_eq!(board.take(1), Some(0x30));
}

#[test]
fn the_timer_ticks_through_the_8259_pair() {
    let mut board = Board::new();
    board.init_pic(1);
    for (port, value) in [(0x43, 0x34), (0x40, 0x00), (0x40, 0x10)] {
        board.outb(port, value);
    }
    board.sleep().unwrap();
    assert!(board.chipset.external_interrupt());
    assert!(!board.apics.lock(0).unwrap().external_pending(), "LINT0 is masked");
    let _ = board.apics.lock(0).unwrap().mmio_write(0x350, Width::Dword, 0x700, Instant::ZERO);
    assert!(board.apics.lock(0).unwrap().external_pending());
    assert_eq!(board.with(|chipset, ctx| chipset.acknowledge_external(ctx)), 0x30);
    assert!(!board.apics.lock(0).unwrap().external_pending() && !board.chipset.external_interrupt());
    board.sleep().unwrap();
    assert!(!board.apics.take_kick(0), "still in service");
    board.outb(0x20, 0x20);
    assert!(board.apics.take_kick(0) && board.apics.lock(0).unwrap().external_pending());
}

#[test]
fn typed_bytes_interrupt_and_are_read() {
    let mut board = Board::new();
    board.route(4, 0x34, 0);
    for (port, value) in [(0x3fa, 0x01), (0x3fc, 0x0b), (0x3f9, 0x01)] {
        board.outb(port, value);
    }
    let long = *b"echo hello, world: a line longer than the FIFO";
    board.console.typed.extend(long);
    board.with(|chipset, ctx| chipset.take_console_input(ctx));
    assert_eq!(board.console.typed.len(), long.len() - 16);
    assert_eq!(board.take(0), Some(0x34));
    let read: Vec<u8> = std::iter::from_fn(|| {
        let ready = board.input(0x3fd, Width::Byte).unwrap() & 1 != 0;
        ready.then(|| board.input(0x3f8, Width::Byte).unwrap() as u8)
    })
    .collect();
    assert_eq!(read, long);
    assert_eq!(board.take(0), None);
    for byte in *b"ok" {
        board.outb(0x3f8, byte);
    }
    assert_eq!(board.console.transmitted, b"ok");
}

#[test]
fn the_clock_interrupts_only_who_listens() {
    let mut board = Board::new();
    board.outb(0x70, 0x0b);
    board.outb(0x71, 0x12);
    assert_eq!(board.chipset.next_deadline(), None);
    board.route(8, 0x38, 0);
    assert_eq!(board.sleep(), Some(1_000_000_000));
    assert_eq!(board.take(0), Some(0x38));
    assert_eq!(board.chipset.next_deadline(), None, "until register C is read");
    board.outb(0x70, 0x0c);
    assert_eq!(board.input(0x71, Width::Byte).unwrap() & 0x90, 0x90);
    assert_eq!(board.sleep(), Some(2_000_000_000));
    assert_eq!(board.take(0), Some(0x38));
}

#[test]
fn the_power_button_interrupts_until_it_is_acknowledged() {
    let mut board = Board::new();
    board.route(9, 0x8039, 0);
    board.out(0x602, Width::Word, 0x100);
    board.with(|chipset, ctx| chipset.press_power_button(ctx));
    assert_eq!(board.take(0), Some(0x39));
    assert_eq!(board.take(0), Some(0x39), "the level is still there");
    board.out(0x600, Width::Word, 0x100);
    assert_eq!(board.take(0), Some(0x39), "raised before it was acknowledged");
    assert_eq!(board.take(0), None);
}

#[test]
fn power_off_and_reset_are_events() {
    let mut board = Board::new();
    assert_eq!(board.chipset.take_event(), None);
    board.out(0x604, Width::Word, 0x2000);
    assert_eq!(board.chipset.take_event(), Some(PlatformEvent::PowerOff));
    for (port, value) in [(0xcf9, layout::RESET_VALUE), (0x64, 0xfe), (0x92, 0x01)] {
        board.outb(port, value);
        assert_eq!(board.chipset.take_event(), Some(PlatformEvent::Reset));
    }
    assert_eq!(board.chipset.take_event(), None);
}

#[test]
fn the_power_management_timer_keeps_time() {
    let mut board = Board::new();
    board.now = Instant::from_nanos(1_000_000_000);
    assert_eq!(board.input(0x608, Width::Dword), Some(3_579_545));
}

#[test]
fn wide_accesses_are_taken_apart() {
    let mut board = Board::new();
    board.out(0x3f8, Width::Word, u32::from(u16::from_le_bytes([b'x', 0x05])));
    assert_eq!(board.console.transmitted, b"x");
    assert_eq!(board.input(0x3f9, Width::Byte), Some(0x05));
    assert_eq!(board.input(0x3fe, Width::Dword), Some(0xffff_00b0), "two of four ports answer");
    assert_eq!(board.input(0xffff, Width::Dword), None);
    assert_eq!(board.input(0xcf6, Width::Dword), Some(0x00ff_ffff), "the last is the reset register");
    board.out(0xcf8, Width::Dword, 0x8000_0000);
    assert_eq!(board.input(0xcfe, Width::Dword), Some(0xffff_29c0), "two of the configuration data's");
}

#[test]
fn what_is_not_there_is_none() {
    let mut board = Board::new();
    for port in [0x2f8, 0x3e8, 0x278, 0x388, 0x510, 0x1f0, 0x700, 0xd00] {
        assert_eq!(board.input(port, Width::Byte), None, "{port:#x}");
        assert_eq!(board.with(|chipset, ctx| chipset.port_write(port, Width::Byte, 0, ctx)), None);
    }
    for at in [0xfed0_0000, 0xfec0_1000, 0xc000_0000, 0xfee0_0000, u64::MAX] {
        assert_eq!(board.read(at, Width::Dword), None, "{at:#x}");
        assert_eq!(board.write(at, Width::Dword, 0), None);
    }
}

#[test]
fn delay_and_debug_ports_answer() {
    let mut board = Board::new();
    board.outb(0x80, 0x55);
    board.outb(0xed, 0xaa);
    assert_eq!(board.input(0x80, Width::Byte), Some(0x55));
    assert_eq!((board.input(0x60, Width::Byte), board.input(0x64, Width::Byte)), (Some(0xff), Some(0xff)));
    board.outb(0xe9, b'!');
    assert_eq!((board.input(0xe9, Width::Byte), &board.console.debugged[..]), (Some(0xe9), &b"!"[..]));
    board.chipset.debug_port = false;
    assert_eq!(board.input(0xe9, Width::Byte), None);
}

#[derive(Debug, Clone)]
enum Step {
    In(u16, u32),
    Out(u16, u32, u32),
    Read(u64, u32),
    Write(u64, u32, u64),
    Sleep,
    Pass(u64),
    Type(u8),
    Take,
    TakeExternal,
    EndOfInterrupt(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let port = || {
        prop_oneof![
            Just(0x20u16..0x22),
            Just(0x40..0x44),
            Just(0x60..0x65),
            Just(0x70..0x74),
            Just(0x80..0x93),
            Just(0xa0..0xa2),
            Just(0x3f8..0x400),
            Just(0x4d0..0x4d2),
            Just(0x600..0x680),
            Just(0xcf8..0xd00),
            Just(0..0xffff),
        ]
        .prop_flat_map(|range| range)
    };
    let memory = || {
        prop_oneof![
            0xfec0_0000u64..0xfec0_0050,
            Just(0xfec0_0000u64),
            Just(0xfec0_0010u64),
            0xb000_0000u64..0xb010_0000,
            any::<u64>(),
        ]
    };
    prop_oneof![
        4 => (port(), 0u32..3).prop_map(|(p, w)| Step::In(p, w)),
        8 => (port(), 0u32..3, any::<u32>()).prop_map(|(p, w, v)| Step::Out(p, w, v)),
        1 => (memory(), 0u32..4).prop_map(|(a, w)| Step::Read(a, w)),
        4 => (memory(), 0u32..4, prop_oneof![any::<u64>(), 0u64..0x100])
            .prop_map(|(a, w, v)| Step::Write(a, w, v)),
        1 => Just(Step::Sleep),
        1 => (0u64..1 << 40).prop_map(Step::Pass),
        1 => any::<u8>().prop_map(Step::Type),
        1 => Just(Step::Take),
        1 => Just(Step::TakeExternal),
        1 => any::<u8>().prop_map(Step::EndOfInterrupt),
    ]
}

proptest! {
    #[test]
    fn no_guest_can_confuse_it(steps in prop::collection::vec(step(), 0..300)) {
        let mut board = Board::new();
        let width = |log: u32| Width::from_bytes(1 << log).unwrap();
        for step in steps {
            match step {
                Step::In(port, w) => {
                    let value = u64::from(board.input(port, width(w)).unwrap_or(0));
                    prop_assert_eq!(value & !width(w).mask(), 0);
                }
                Step::Out(port, w, value) => {
                    board.with(|chipset, ctx| chipset.port_write(port, width(w), value, ctx));
                }
                Step::Read(at, w) => {
                    prop_assert_eq!(board.read(at, width(w)).unwrap_or(0) & !width(w).mask(), 0);
                }
                Step::Write(at, w, value) => { board.write(at, width(w), value); }
                Step::Sleep => { board.with(|chipset, ctx| chipset.advance(ctx)); board.sleep(); }
                Step::Pass(nanos) => board.now = board.now.plus_nanos(nanos),
                Step::Type(byte) => {
                    board.console.typed.push_back(byte);
                    board.with(|chipset, ctx| chipset.take_console_input(ctx));
                }
                Step::Take => { board.take(0); }
                Step::TakeExternal => { board.with(|chipset, ctx| chipset.acknowledge_external(ctx)); }
                Step::EndOfInterrupt(vector) => {
                    board.with(|chipset, ctx| chipset.end_of_interrupt(vector, ctx));
                }
            }
            board.chipset.take_event();
        }
    }
}

#[test]
fn a_console_without_room_keeps_the_guest_from_sending() {
    let mut board = Board::new();
    board.outb(0x3f8, b'a');
    assert_eq!(board.input(0x3fd, Width::Byte), Some(0x60));
    board.console.full = true;
    board.outb(0x3f8, b'b');
    assert_eq!(board.input(0x3fd, Width::Byte), Some(0));
    board.console.full = false;
    assert_eq!(board.input(0x3fd, Width::Byte), Some(0x60), "a guest that asks");
    board.console.full = true;
    board.outb(0x3f8, b'c');
    board.console.full = false;
    board.with(|chipset, ctx| chipset.check_console_room(ctx));
    assert!(!board.chipset.uart.line_busy(), "a guest that waits for an interrupt");
    assert_eq!(board.console.transmitted, b"abc");
}
