//! A configuration space for tests.

use super::access::{Address, ConfigAccess};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use spin::Mutex;

/// A place on segment 0.
pub fn at(bus: u8, device: u8, function: u8) -> Address {
    Address { segment: 0, bus, device, function }
}

/// The registers of a function: what they read as, and which of their bits can be written.
#[derive(Clone)]
pub struct FakeFunction {
    words: Vec<u32>,
    writable: Vec<u32>,
}

impl FakeFunction {
    pub fn device(vendor: u16, device: u16, class: [u8; 3]) -> Self {
        let [base, sub, interface] = class;
        let mut function = Self { words: vec![0; 64], writable: vec![0; 64] };
        function.words[0] = u32::from(device) << 16 | u32::from(vendor);
        function.words[2] = u32::from_le_bytes([0, interface, sub, base]);
        function.writable[1] = 0xffff;
        function
    }

    pub fn bridge(secondary: u8, subordinate: u8) -> Self {
        let mut function = Self::device(0x1b36, 1, [0x06, 0x04, 0]);
        function.words[3] = 1 << 16;
        function.words[6] = u32::from_le_bytes([0, secondary, subordinate, 0]);
        function
    }

    /// Any registers at all, all of which can be written.
    pub fn wild(words: &[u32]) -> Self {
        Self { words: words.into(), writable: vec![u32::MAX; words.len()] }
    }

    pub fn multi(mut self) -> Self {
        self.words[3] |= 0x80 << 16;
        self
    }

    /// A port of PCI Express that a link begins at.
    pub fn root_port(self) -> Self {
        self.capability(0x40, 0x10, 0).control(0x40, 0x0042)
    }

    pub fn command(mut self, command: u16) -> Self {
        self.words[1] = self.words[1] & 0xffff_0000 | u32::from(command);
        self
    }

    pub fn bar(mut self, number: usize, value: u32, writable: u32) -> Self {
        self.words[4 + number] = value;
        self.writable[4 + number] = writable;
        self
    }

    pub fn word(mut self, offset: usize, value: u32) -> Self {
        self.words[offset / 4] = value;
        self
    }

    /// Adds a capability, whose registers can all be written but for the first half of the first.
    pub fn capability(mut self, offset: u8, id: u8, next: u8) -> Self {
        self.words[1] |= 1 << 20;
        if self.words[13] == 0 {
            self.words[13] = u32::from(offset);
        }
        let word = usize::from(offset) / 4;
        self.words[word] = u32::from(id) | u32::from(next) << 8;
        self.writable[word] = 0xffff_0000;
        self.writable[word + 1..word + 4].fill(u32::MAX);
        self
    }

    /// The upper half of a capability's first register.
    pub fn control(mut self, offset: usize, value: u16) -> Self {
        self.words[offset / 4] |= u32::from(value) << 16;
        self
    }
}

/// All functions of a machine.
pub struct Configuration {
    functions: Mutex<BTreeMap<Address, FakeFunction>>,
    sized_while_decoding: Mutex<u32>,
}

impl Configuration {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { functions: Mutex::default(), sized_while_decoding: Mutex::default() })
    }

    pub fn add(&self, at: Address, function: FakeFunction) {
        self.functions.lock().insert(at, function);
    }

    pub fn remove(&self, at: Address) {
        self.functions.lock().remove(&at);
    }

    pub fn word(&self, at: Address, offset: u16) -> u32 {
        self.functions.lock()[&at].words[usize::from(offset) / 4]
    }

    pub fn command(&self, at: Address) -> u32 {
        self.word(at, 4) & 0xffff
    }

    /// How often a base address was changed that its function was answering at.
    pub fn sized_while_decoding(&self) -> u32 {
        *self.sized_while_decoding.lock()
    }
}

impl ConfigAccess for Configuration {
    fn segment(&self) -> u16 {
        0
    }

    fn buses(&self) -> RangeInclusive<u8> {
        0..=255
    }

    fn read(&self, at: Address, offset: u16) -> u32 {
        assert_eq!(offset % 4, 0);
        let functions = self.functions.lock();
        let word = functions.get(&at).and_then(|function| function.words.get(usize::from(offset) / 4));
        word.copied().unwrap_or(u32::MAX)
    }

    fn write(&self, at: Address, offset: u16, value: u32) {
        assert_eq!(offset % 4, 0);
        let mut functions = self.functions.lock();
        let Some(function) = functions.get_mut(&at) else { return };
        if (0x10..0x28).contains(&offset) && function.words[1] & 3 != 0 && value == u32::MAX {
            *self.sized_while_decoding.lock() += 1;
        }
        let index = usize::from(offset) / 4;
        let Some(writable) = function.writable.get(index).copied() else { return };
        let word = &mut function.words[index];
        *word = *word & !writable | value & writable;
    }
}
