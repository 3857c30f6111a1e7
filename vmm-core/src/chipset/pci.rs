//! The PCI bus: configuration through ports and through ECAM, and the memory windows of functions' BARs.

use super::Context;
use super::layout::{
    ECAM_BASE, ECAM_LAST_BUS, PCI_ADDRESS_PORT, PCI_DATA_PORT, PCI_WINDOW_BASE, PCI_WINDOW_BYTES, PM_BASE,
    intx_pin,
};
use super::pci_config::{BarLayout, ConfigSpace, PciAddress, PciIdentity, register};
use super::wakers::FunctionNews;
use crate::cpu::Width;
use crate::memory::GuestPhys;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;

/// A device's function on the PCI bus.
///
/// Its configuration space answers by itself; the function hears of writes to it, and answers where its BARs
/// lie. It raises interrupts as messages through the [`Context`].
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space, to change.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// It is on a bus now. Waking `waker`, from wherever, has [`Self::poll`] called soon.
    fn connect(&mut self, waker: Waker) {
        let _ = waker;
    }

    /// What it waits for outside may have come.
    fn poll(&mut self, ctx: &mut Context) {
        let _ = ctx;
    }

    /// The guest's life is over: it takes no more requests from the guest. Whether none is under way any more;
    /// where one is, this is asked again after the function was woken.
    fn wind_down(&mut self, ctx: &mut Context) -> bool {
        let _ = ctx;
        true
    }

    /// Whether what is typed at the guest's terminal is for it now. It is polled when something was, or when the
    /// terminal has room again.
    fn takes_typed(&self) -> bool {
        false
    }

    /// Whether it waits for room at the guest's terminal. It is polled when there is some.
    fn awaits_room(&self) -> bool {
        false
    }

    /// Whether it asserts its interrupt pin, if it has one.
    fn interrupt(&self) -> bool {
        false
    }

    /// The guest is about to read its configuration space from `offset` on.
    fn config_reading(&mut self, offset: u8, ctx: &mut Context) {
        let _ = (offset, ctx);
    }

    /// The guest wrote its configuration space from `offset` on.
    fn config_written(&mut self, offset: u8, ctx: &mut Context) {
        let _ = (offset, ctx);
    }

    /// The guest reads `offset` bytes into BAR `bar`.
    fn bar_read(&mut self, bar: u8, offset: u64, width: Width, ctx: &mut Context) -> u64 {
        let _ = (bar, offset, ctx);
        width.mask()
    }

    /// The guest writes `offset` bytes into BAR `bar`.
    fn bar_write(&mut self, bar: u8, offset: u64, width: Width, value: u64, ctx: &mut Context) {
        let _ = (bar, offset, width, value, ctx);
    }
}

/// A function that is nothing but its configuration space.
struct Bridge(ConfigSpace);

impl PciFunction for Bridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

/// There is a function at this address already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressTaken(pub PciAddress);

impl core::fmt::Display for AddressTaken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "PCI {}: expected a free address, found another function", self.0)
    }
}

impl core::error::Error for AddressTaken {}

/// Where a BAR answers now.
struct Window {
    base: u64,
    bytes: u64,
    /// The function's place in the list.
    function: usize,
    bar: u8,
}

/// The bus with its functions.
pub(super) struct PciBus {
    /// The configuration address register.
    address: u32,
    functions: Vec<(PciAddress, Box<dyn PciFunction>)>,
    windows: Vec<Window>,
    news: Arc<FunctionNews>,
    /// Where the next BAR may go, as if firmware had placed them.
    next_bar: u64,
}

const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_BITS: u32 = 0x80ff_fffc;
/// The command register's bit that keeps a function from asserting its interrupt pin.
const COMMAND_NO_INTX: u16 = 1 << 10;

impl PciBus {
    /// A q35's bus with its two bridges. `news` is woken when [`Self::poll`] has something to do.
    pub(super) fn new(news: Waker) -> Self {
        let functions: Vec<(PciAddress, Box<dyn PciFunction>)> = alloc::vec![
            (PciAddress::new(0, 0, 0), Box::new(Bridge(host_bridge())) as _),
            (PciAddress::new(0, 0x1f, 0), Box::new(Bridge(lpc_bridge())) as _),
        ];
        let (news, next_bar) = (FunctionNews::new(news), PCI_WINDOW_BASE.get());
        Self { address: 0, functions, windows: Vec::new(), news, next_bar }
    }

    /// Adds a function, and gives it places in memory.
    pub(super) fn add(
        &mut self,
        address: PciAddress,
        mut function: Box<dyn PciFunction>,
    ) -> Result<(), AddressTaken> {
        if self.functions.iter().any(|(taken, _)| *taken == address) {
            return Err(AddressTaken(address));
        }
        self.place_bars(function.config_mut());
        function.connect(self.news.waker(self.functions.len()));
        self.functions.push((address, function));
        self.place_windows();
        Ok(())
    }

    /// Puts BARs where firmware would. One for which there is no room stays where it cannot answer.
    fn place_bars(&mut self, config: &mut ConfigSpace) {
        let window_end = PCI_WINDOW_BASE.get().saturating_add(PCI_WINDOW_BYTES);
        for bar in 0..6 {
            let Some(BarLayout { bytes, .. }) = config.bar_layout(bar) else { continue };
            let base = self.next_bar.checked_next_multiple_of(bytes);
            let end = base.and_then(|base| base.checked_add(bytes)).filter(|end| *end <= window_end);
            if let (Some(base), Some(end)) = (base, end) {
                config.place_bar(bar, base as u32);
                self.next_bar = end;
            }
        }
    }

    /// Has the function look at the terminal that takes what is typed there; false where none does.
    pub(super) fn hear_terminal(&mut self, ctx: &mut Context) -> bool {
        let listener = self.functions.iter_mut().find(|(_, function)| function.takes_typed());
        listener.map(|(_, function)| function.poll(ctx)).is_some()
    }

    /// The guest's terminal has room: has the function look that waits for it.
    pub(super) fn hear_room(&mut self, ctx: &mut Context) {
        if let Some((_, function)) = self.functions.iter_mut().find(|(_, function)| function.awaits_room()) {
            function.poll(ctx);
        }
    }

    /// The interrupt pins that are asserted: a bit for each of the IOAPIC's pins for them.
    pub(super) fn interrupts(&self) -> u8 {
        self.functions.iter().filter(|(_, function)| function.interrupt()).fold(
            0,
            |pins, (address, function)| {
                let [pin] = function.config().get(register::INTERRUPT_PIN);
                let disabled =
                    u16::from_le_bytes(function.config().get(register::COMMAND)) & COMMAND_NO_INTX != 0;
                match pin.checked_sub(1) {
                    Some(pin) if !disabled => pins | 1 << (intx_pin(address.device(), pin) & 7),
                    _ => pins,
                }
            },
        )
    }

    /// Has those functions that were woken look at what has come for them.
    pub(super) fn poll(&mut self, ctx: &mut Context) {
        let woken = self.news.take();
        for (n, (_, function)) in self.functions.iter_mut().enumerate() {
            if woken.has(n) {
                function.poll(ctx);
            }
        }
    }

    /// Has all functions take no more requests. Whether none is under way any more.
    pub(super) fn wind_down(&mut self, ctx: &mut Context) -> bool {
        self.news.take();
        self.functions.iter_mut().fold(true, |quiet, (_, function)| function.wind_down(ctx) && quiet)
    }

    /// Reads the configuration ports, of which a data access lies within the four data ports.
    pub(super) fn port_read(&mut self, port: u16, width: Width, ctx: &mut Context) -> u32 {
        if port < PCI_DATA_PORT {
            // Only a dword reaches the address register.
            return if width == Width::Dword { self.address } else { width.mask() as u32 };
        }
        match self.selected(port) {
            Some((address, offset)) => self.config_read(address, offset, width, ctx),
            None => width.mask() as u32,
        }
    }

    /// Writes the configuration ports.
    pub(super) fn port_write(&mut self, port: u16, width: Width, value: u32, ctx: &mut Context) {
        if port < PCI_DATA_PORT {
            if port == PCI_ADDRESS_PORT && width == Width::Dword {
                self.address = value & ADDRESS_BITS;
            }
        } else if let Some((address, offset)) = self.selected(port) {
            self.config_write(address, offset, width, value, ctx);
        }
    }

    /// Reads configuration space through the ECAM window.
    pub(super) fn ecam_read(&mut self, offset: u64, width: Width, ctx: &mut Context) -> u64 {
        let (address, register) = (PciAddress::from_ecam(offset), offset as u16 & 0xfff);
        if width == Width::Qword {
            let low = self.config_read(address, register, Width::Dword, ctx);
            let high = self.config_read(address, register.wrapping_add(4), Width::Dword, ctx);
            return u64::from(high) << 32 | u64::from(low);
        }
        u64::from(self.config_read(address, register, width, ctx))
    }

    /// Writes configuration space through the ECAM window.
    pub(super) fn ecam_write(&mut self, offset: u64, width: Width, value: u64, ctx: &mut Context) {
        let (address, register) = (PciAddress::from_ecam(offset), offset as u16 & 0xfff);
        self.config_write(address, register, width.min(Width::Dword), value as u32, ctx);
        if width == Width::Qword {
            let high = (value >> 32) as u32;
            self.config_write(address, register.wrapping_add(4), Width::Dword, high, ctx);
        }
    }

    /// Reads where a BAR may lie; `None` when none does.
    pub(super) fn memory_read(&mut self, at: GuestPhys, width: Width, ctx: &mut Context) -> Option<u64> {
        let (function, bar, offset) = self.window(at, width)?;
        Some(function.bar_read(bar, offset, width, ctx) & width.mask())
    }

    /// Writes where a BAR may lie; `None` when none does.
    pub(super) fn memory_write(
        &mut self,
        at: GuestPhys,
        width: Width,
        value: u64,
        ctx: &mut Context,
    ) -> Option<()> {
        let (function, bar, offset) = self.window(at, width)?;
        function.bar_write(bar, offset, width, value & width.mask(), ctx);
        Some(())
    }

    /// The function and register that the address register and a data port name.
    fn selected(&self, port: u16) -> Option<(PciAddress, u16)> {
        let register = self.address as u16 & 0xfc | port & 3;
        (self.address & ADDRESS_ENABLE != 0).then(|| (PciAddress::from_register(self.address), register))
    }

    fn config_read(&mut self, address: PciAddress, offset: u16, width: Width, ctx: &mut Context) -> u32 {
        let function = self.functions.iter_mut().find(|(own, _)| *own == address);
        let Some((_, function)) = function else { return width.mask() as u32 };
        if let Ok(at) = u8::try_from(offset) {
            function.config_reading(at, ctx);
        }
        function.config().read(offset, width)
    }

    fn config_write(
        &mut self,
        address: PciAddress,
        offset: u16,
        width: Width,
        value: u32,
        ctx: &mut Context,
    ) {
        let Some((_, function)) = self.functions.iter_mut().find(|(own, _)| *own == address) else { return };
        // Extended configuration space holds nothing.
        let Ok(at) = u8::try_from(offset) else { return };
        function.config_mut().write(offset, width, value);
        function.config_written(at, ctx);
        if ConfigSpace::moves_bars(offset, width) {
            self.place_windows();
        }
    }

    fn place_windows(&mut self) {
        self.windows.clear();
        for (n, (_, function)) in self.functions.iter().enumerate() {
            for bar in 0..6 {
                if let Some((base, BarLayout { bytes, .. })) = function.config().bar(bar) {
                    self.windows.push(Window { base, bytes, function: n, bar });
                }
            }
        }
    }

    fn window(&mut self, at: GuestPhys, width: Width) -> Option<(&mut dyn PciFunction, u8, u64)> {
        let (window, offset) = self.windows.iter().find_map(|window| {
            let offset = at.get().checked_sub(window.base)?;
            let room = window.bytes.checked_sub(width.bytes())?;
            (offset <= room).then_some((window, offset))
        })?;
        let (_, function) = self.functions.get_mut(window.function)?;
        Some((function.as_mut(), window.bar, offset))
    }
}

/// The q35's host bridge (82G33 MCH), which says where the ECAM window is.
fn host_bridge() -> ConfigSpace {
    const COMMAND: u8 = 0b110;
    /// Its bit 0 enables the window; zero in bits 1 and 2 makes it 256 buses long.
    const PCIEXBAR: u8 = 0x60;
    const _: () = assert!(ECAM_LAST_BUS == 255);
    let mut space = ConfigSpace::new(PciIdentity {
        vendor: 0x8086,
        device: 0x29c0,
        class: 0x06_00_00,
        revision: 2,
        subsystem_vendor: 0,
        subsystem: 0,
    });
    space.set(register::COMMAND, &[COMMAND]);
    space.allow(register::COMMAND, &[0, 0]);
    space.set(PCIEXBAR, &(ECAM_BASE.get() | 1).to_le_bytes());
    space
}

/// The ICH9's bridge to the ISA devices, which says where the power-management ports are.
fn lpc_bridge() -> ConfigSpace {
    const COMMAND: u8 = 0b111;
    const PMBASE: u8 = 0x40;
    const ACPI_CONTROL: u8 = 0x44;
    /// The port range answers; the SCI selector's zero in bits 0 to 2 means interrupt 9.
    const ACPI_ENABLE: u8 = 1 << 7;
    /// PIRQA to PIRQD, and PIRQE to PIRQH: which ISA interrupt each reaches; bit 7 for none.
    const PIRQ_ROUTES: [u8; 2] = [0x60, 0x68];
    let mut space = ConfigSpace::new(PciIdentity {
        vendor: 0x8086,
        device: 0x2918,
        class: 0x06_01_00,
        revision: 2,
        subsystem_vendor: 0,
        subsystem: 0,
    });
    space.set(register::COMMAND, &[COMMAND]);
    space.allow(register::COMMAND, &[0, 0]);
    space.set(PMBASE, &(u32::from(PM_BASE) | 1).to_le_bytes());
    space.set(ACPI_CONTROL, &[ACPI_ENABLE]);
    for routes in PIRQ_ROUTES {
        space.set(routes, &[0x80; 4]);
        space.allow(routes, &[0x8f; 4]);
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::tests::Board;
    use crate::requests::Requests;
    use crate::requests::testing::Promise;
    use proptest::prelude::*;
    use storage::testing::Bell;

    /// A function with two BARs that shows where it was reached, and its command register's last write.
    struct Echo {
        config: ConfigSpace,
        told: Option<u8>,
    }

    impl Echo {
        fn new() -> Box<Self> {
            let mut config = ConfigSpace::new(PciIdentity {
                vendor: 0x1af4,
                device: 0x1042,
                class: 0x01_00_00,
                revision: 1,
                subsystem_vendor: 0,
                subsystem: 0,
            });
            config.add_bar(0, BarLayout { bytes: 0x1000, wide: false, prefetchable: false }).unwrap();
            config.add_bar(2, BarLayout { bytes: 0x4000, wide: true, prefetchable: true }).unwrap();
            Box::new(Self { config: config.with_interrupt_pin(1), told: None })
        }
    }

    impl PciFunction for Echo {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn config_written(&mut self, offset: u8, _ctx: &mut Context) {
            self.told = Some(offset);
        }
        fn bar_read(&mut self, bar: u8, offset: u64, _width: Width, _ctx: &mut Context) -> u64 {
            if offset == 0x10 { u64::from(self.told.unwrap_or(0xff)) } else { u64::from(bar) << 16 | offset }
        }
        fn interrupt(&self) -> bool {
            self.told == Some(0x0c)
        }
        fn awaits_room(&self) -> bool {
            self.told == Some(0x3c)
        }
        fn poll(&mut self, ctx: &mut Context) {
            ctx.console.debug(0x77);
        }
        fn bar_write(&mut self, bar: u8, offset: u64, width: Width, value: u64, ctx: &mut Context) {
            ctx.console.debug(bar);
            ctx.console.debug(offset as u8);
            ctx.console.debug(width as u8);
            ctx.console.debug(value as u8);
        }
    }

    fn port_config(board: &mut Board, address: u32, width: Width) -> u32 {
        board.out(0xcf8, Width::Dword, 0x8000_0000 | address & !3);
        board.input(0xcfc | address as u16 & 3, width).unwrap()
    }

    #[test]
    fn both_ways_find_the_q35s_bridges() {
        let mut board = Board::new();
        for (address, identity, class) in [(0x0000, 0x29c0_8086, 0x0600), (0xf800, 0x2918_8086, 0x0601)] {
            assert_eq!(port_config(&mut board, address, Width::Dword), identity);
            assert_eq!(port_config(&mut board, address | 0x0a, Width::Word), class);
            assert_eq!(
                board.read(0xb000_0000 + u64::from(address) * 16, Width::Dword),
                Some(identity.into())
            );
        }
        assert_eq!(port_config(&mut board, 0x60, Width::Dword), 0xb000_0001);
        assert_eq!(board.read(0xb000_0060, Width::Qword), Some(0xb000_0001));
        assert_eq!(port_config(&mut board, 0xf840, Width::Dword), 0x601);
        for empty in [0x0100, 0x0800, 0xf900, 0x1_0000, 0xff_ff00] {
            assert_eq!(port_config(&mut board, empty, Width::Dword), u32::MAX, "{empty:#x}");
            assert_eq!(board.read(0xb000_0000 + u64::from(empty) * 16, Width::Word), Some(0xffff));
        }
        assert_eq!(board.read(0xb000_0100, Width::Dword), Some(0xffff_ffff), "no extended space");
    }

    /// How Linux finds out that there is configuration mechanism 1.
    #[test]
    fn the_address_register_is_a_dword() {
        let mut board = Board::new();
        board.out(0xcfb, Width::Byte, 0x01);
        let before = board.input(0xcf8, Width::Dword).unwrap();
        board.out(0xcf8, Width::Dword, 0x8000_0000);
        assert_eq!(board.input(0xcf8, Width::Dword), Some(0x8000_0000));
        board.out(0xcf8, Width::Dword, before);
        assert_eq!(board.input(0xcfc, Width::Dword), Some(u32::MAX), "not enabled");
        assert_eq!(board.input(0xcf8, Width::Byte), Some(0xff));
    }

    #[test]
    fn the_bridges_own_registers_hold() {
        let mut board = Board::new();
        board.out(0xcf8, Width::Dword, 0x8000_f860);
        board.out(0xcfd, Width::Byte, 0x7b);
        assert_eq!(board.input(0xcfc, Width::Dword), Some(0x8080_0b80), "PIRQB is routed to 11");
        board.out(0xcf8, Width::Dword, 0x8000_f804);
        board.out(0xcfc, Width::Dword, 0);
        assert_eq!(board.input(0xcfc, Width::Word), Some(0b111));
    }

    #[test]
    fn bars_answer_where_the_guest_put_them() {
        let mut board = Board::new();
        let address = PciAddress::new(0, 3, 0);
        board.chipset.add_pci_function(address, Echo::new()).unwrap();
        assert_eq!(board.chipset.add_pci_function(address, Echo::new()), Err(AddressTaken(address)));
        assert_eq!(
            AddressTaken(address).to_string(),
            "PCI 00:03.0: expected a free address, found another function"
        );

        let config = 0xb000_0000 + (3 << 15);
        assert_eq!(board.read(config + 0x10, Width::Dword), Some(0xc000_0000), "placed as by firmware");
        assert_eq!(board.read(config + 0x18, Width::Qword), Some(0xc000_400c));
        assert_eq!(board.read(0xc000_4020, Width::Dword), Some(0x2_0020));
        board.write(config + 4, Width::Word, 0).unwrap();
        board.write(config + 0x18, Width::Qword, 0x10_0000_0000).unwrap();
        assert_eq!(board.read(0xc000_0000, Width::Dword), None, "memory is off");
        board.write(config + 4, Width::Word, 2).unwrap();
        assert_eq!(board.read(0xc000_0020, Width::Dword), Some(0x20));
        assert_eq!(board.read(0xc000_0010, Width::Byte), Some(4), "it heard of the write");
        assert_eq!(board.read(0x10_0000_3ffc, Width::Dword), Some(0x2_3ffc));
        assert_eq!(board.read(0x10_0000_3ffc, Width::Qword), None, "half outside");
        assert_eq!(board.read(0xc000_1000, Width::Byte), None);
        board.write(0x10_0000_0008, Width::Word, 0x1234_5678).unwrap();
        assert_eq!(board.console.debugged, [2, 8, 2, 0x78]);

        board.write(config + 0x10, Width::Dword, 0xc001_0000).unwrap();
        assert_eq!(board.read(0xc000_0000, Width::Dword), None);
        assert_eq!(board.read(0xc001_0000, Width::Dword), Some(0));
    }

    /// A function that waits for one request and says so at port 0xE9.
    struct Waiting {
        config: ConfigSpace,
        promise: Promise<u8>,
        requests: Option<Requests<(), u8>>,
    }

    impl PciFunction for Waiting {
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn connect(&mut self, waker: Waker) {
            let requests = self.requests.insert(Requests::new(1, waker));
            requests.start((), self.promise.kept(()));
        }
        fn poll(&mut self, ctx: &mut Context) {
            ctx.console.debug(b'?');
            while let Some(((), byte)) = self.requests.as_mut().unwrap().take_ended() {
                ctx.console.debug(byte);
            }
        }
        fn wind_down(&mut self, ctx: &mut Context) -> bool {
            self.requests.as_mut().unwrap().forget();
            self.poll(ctx);
            self.requests.as_ref().unwrap().is_empty()
        }
    }

    #[test]
    fn only_functions_with_news_are_asked() {
        let bell = Arc::new(Bell::default());
        let mut bus = PciBus::new(Waker::from(Arc::clone(&bell)));
        let promises: Vec<Promise<u8>> = (0..3).map(|_| Promise::new()).collect();
        for (n, promise) in (0..).zip(&promises) {
            let waiting = Waiting { config: lpc_bridge(), promise: promise.clone(), requests: None };
            bus.add(PciAddress::new(0, 2 + n, 0), Box::new(waiting)).unwrap();
        }
        let mut board = Board::new();
        board.with(|_, ctx| bus.poll(ctx));
        assert_eq!((bell.rings(), board.console.debugged.as_slice()), (0, [].as_slice()));
        promises[1].end(b'1');
        promises[0].end(b'0');
        assert_eq!(bell.rings(), 1, "the guest is told once");
        board.with(|_, ctx| bus.poll(ctx));
        board.with(|_, ctx| bus.poll(ctx));
        assert_eq!(board.console.debugged, b"?0?1");
        assert!(!board.with(|_, ctx| bus.wind_down(ctx)), "one is under way");
        promises[2].end(b'2');
        assert_eq!(bell.rings(), 2);
        board.console.debugged.clear();
        assert!(board.with(|_, ctx| bus.wind_down(ctx)));
        assert_eq!(board.console.debugged, b"???", "nobody waits for it any more");
    }

    #[test]
    fn a_pin_ends_at_the_io_apic() {
        const LEVEL: u32 = 1 << 15;
        let mut board = Board::new();
        board.chipset.add_pci_function(PciAddress::new(0, 3, 0), Echo::new()).unwrap();
        board.route(intx_pin(3, 0), LEVEL | 0x51, 1);
        let config = 0xb000_0000 + (3 << 15);
        board.write(config + 4, Width::Word, 1 << 10).unwrap();
        board.write(config + 0x0c, Width::Byte, 0).unwrap();
        assert_eq!(board.take(1), None, "the guest wants none");
        board.write(config + 4, Width::Word, 0).unwrap();
        board.write(config + 0x0c, Width::Byte, 0).unwrap();
        assert_eq!(
            (board.take(0), board.take(1), board.take(1)),
            (None, Some(0x51), Some(0x51)),
            "for as long as it is"
        );
        board.write(config + 0x0d, Width::Byte, 0).unwrap();
        board.take(1);
        assert_eq!(board.take(1), None);
    }

    #[test]
    fn room_at_the_terminal_is_shared() {
        let mut board = Board::new();
        board.chipset.add_pci_function(PciAddress::new(0, 3, 0), Echo::new()).unwrap();
        board.out(0x3f8, Width::Byte, 0x41);
        assert_eq!(board.console.debugged, [0; 0], "it does not wait");
        board.write(0xb000_0000 + (3 << 15) + 0x3c, Width::Byte, 5).unwrap();
        board.out(0x3f8, Width::Byte, 0x42);
        assert_eq!(board.console.debugged, [0x77]);
        board.console.full = true;
        board.out(0x3f8, Width::Byte, 0x43);
        assert_eq!(board.console.debugged, [0x77], "there is none");
        board.console.full = false;
        board.with(|chipset, ctx| chipset.poll(ctx));
        assert_eq!(board.console.debugged, [0x77, 0x77], "the serial port hears of it too");
        assert_eq!(board.input(0x3fd, Width::Byte), Some(0x60));
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            steps in prop::collection::vec((0u8..4, 0u64..0x140, 0u32..4, any::<u64>()), 0..200),
        ) {
            let mut board = Board::new();
            board.chipset.add_pci_function(PciAddress::new(0, 3, 0), Echo::new()).unwrap();
            for (action, offset, width, value) in steps {
                let width = Width::from_bytes(1 << width).unwrap();
                let at = 0xb000_0000 + (3 << 15) + offset;
                match action {
                    0 => { board.write(at, width, value).unwrap(); }
                    1 => prop_assert_eq!(board.read(at, width).unwrap() & !width.mask(), 0),
                    2 => { board.read(value, width); }
                    _ => { board.write(value, width, offset); }
                }
            }
        }
    }
}
