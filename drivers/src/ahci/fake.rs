//! A controller with a disk at a port that misbehaves when told to.

use super::registers::Register;
use crate::acs::Identity;
use crate::acs::tests::answer;
use crate::platform::Registers;
use crate::testing::FakePlatform;
use crate::trial::Device;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use spin::Mutex;

/// The port that has the disk; port 3 has none, and others are not implemented.
pub const PORT: usize = 1;
const BASE: usize = 0x100 + 0x80 * PORT;
const EMPTY: usize = 0x100 + 0x80 * 3;

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and the port stops.
    Error,
    /// It is never done.
    Silence,
    /// It moves fewer bytes, and is done.
    Short,
    /// It is done, and interrupts once more for nothing.
    Again,
    /// The link breaks meanwhile, and comes up again.
    Link,
}

pub struct State {
    pub identity: Identity,
    pub bytes: Vec<u8>,
    /// It has these capabilities.
    pub capabilities: u32,
    control: u32,
    list: [u32; 4],
    interrupts: u32,
    enabled: u32,
    command: u32,
    task: u32,
    pub signature: u32,
    link: u32,
    link_control: u32,
    active: u32,
    issued: u32,
    pub faults: VecDeque<Fault>,
    /// The controller has vanished.
    pub gone: bool,
    /// The disk has been pulled.
    pub pulled: bool,
    /// The port does not stop.
    pub stuck: bool,
    /// But a reset of the controller stops it.
    pub obeys_reset: bool,
    /// IDENTIFY fails.
    pub refuses: bool,
    /// Firmware owns it, and lets go when asked.
    pub owned: Option<bool>,
    /// Where in memory it is at work for as long as it is not kept from it.
    pub at_work: Option<u64>,
    /// Commands done.
    pub done: Vec<u8>,
    pub resets: usize,
}

pub struct Fake {
    platform: Arc<FakePlatform>,
    pub state: Mutex<State>,
}

const READY: u32 = 0x50;

impl Fake {
    pub fn new(platform: &Arc<FakePlatform>, identity: Identity) -> Arc<Self> {
        let len = identity.blocks as usize * identity.block_size as usize;
        let state = State {
            identity,
            bytes: (0..len).map(|n| (n / 5) as u8).collect(),
            // 64-bit addresses, queued commands, 32 slots.
            capabilities: 1 << 31 | 1 << 30 | 31 << 8,
            control: 0,
            list: [0; 4],
            interrupts: 0,
            enabled: 0,
            command: 0xc017,
            task: READY,
            signature: 0x101,
            link: 0x123,
            link_control: 0,
            active: 0,
            issued: 0,
            faults: VecDeque::new(),
            gone: false,
            pulled: false,
            stuck: false,
            obeys_reset: true,
            refuses: false,
            owned: None,
            at_work: None,
            done: Vec::new(),
            resets: 0,
        };
        Arc::new(Self { platform: Arc::clone(platform), state: Mutex::new(state) })
    }

    fn address(state: &State, at: usize) -> u64 {
        u64::from(state.list[at]) | u64::from(state.list[at + 1]) << 32
    }

    /// Does the command in a slot; how many bytes it moved, or nothing if it fails.
    fn perform(&self, state: &mut State, slot: usize, short: bool) -> Option<usize> {
        let header = self.platform.read(Self::address(state, 0) + slot as u64 * 32, 32);
        let flags = u32::from_le_bytes(header[..4].try_into().unwrap());
        let table = u64::from_le_bytes(header[8..16].try_into().unwrap());
        assert!(flags & 0x1f == 5 && table % 128 == 0);
        let message = self.platform.read(table, 20);
        assert_eq!(message[..2], [0x27, 0x80]);
        let mut regions = Vec::new();
        for n in 0..u64::from(flags >> 16) {
            let region = self.platform.read(table + 0x80 + n * 16, 16);
            let address = u64::from_le_bytes(region[..8].try_into().unwrap());
            let len = u32::from_le_bytes(region[12..].try_into().unwrap()) + 1;
            assert!(address % 2 == 0 && len % 2 == 0 && len <= 4 << 20);
            assert!(state.capabilities >> 31 == 1 || address + u64::from(len) <= 1 << 32);
            regions.push((address, len as usize));
        }
        let command = message[2];
        let [features, count] =
            [[message[3], message[11]], [message[12], message[13]]].map(u16::from_le_bytes);
        let lba = u64::from_le_bytes([
            message[4],
            message[5],
            message[6],
            message[8],
            message[9],
            message[10],
            0,
            0,
        ]);
        let size = state.identity.block_size as usize;
        let queued = matches!(command, 0x60 | 0x61);
        assert_eq!(queued, state.active >> slot & 1 == 1, "queued commands are active");
        assert!(queued || state.active == 0 && state.issued == 1 << slot, "the others are alone");
        state.done.push(command);
        let writes = flags >> 6 & 1 == 1;
        let mut moved = 0;
        match command {
            0xec => {
                if state.refuses {
                    return None;
                }
                self.platform.write(regions[0].0, &answer(&state.identity));
                moved = 512;
            }
            0x60 | 0x61 | 0x25 | 0x35 | 0xc8 | 0xca => {
                if queued {
                    assert_eq!(usize::from(count >> 3), slot, "the tag is the slot");
                    assert!(slot < usize::from(state.identity.queue));
                }
                let (blocks, most) = match command {
                    0x60 | 0x61 => (usize::from(features), 0x1_0000),
                    0x25 | 0x35 => (usize::from(count), 0x1_0000),
                    _ => (usize::from(count & 0xff), 0x100),
                };
                let lba = if most == 0x100 { lba | u64::from(message[7] & 0xf) << 24 } else { lba };
                let len = if blocks == 0 { most } else { blocks } * size;
                assert_eq!(len, regions.iter().map(|(_, len)| len).sum::<usize>(), "as many bytes as blocks");
                assert_eq!(writes, matches!(command, 0x61 | 0x35 | 0xca));
                let at = lba as usize * size;
                let all = state.bytes.get_mut(at..at + len)?;
                for (address, len) in regions {
                    if short && moved > 0 {
                        break;
                    }
                    let bytes = &mut all[moved..moved + len];
                    if writes {
                        bytes.copy_from_slice(&self.platform.read(address, len));
                    } else {
                        self.platform.write(address, bytes);
                    }
                    moved += len;
                }
                if short {
                    moved -= 512;
                }
            }
            0xe7 | 0xea => (),
            0x06 => {
                assert!(writes && features == 1 && count == 1 && regions[0].1 == 512);
                for range in self.platform.read(regions[0].0, 512).chunks(8) {
                    let range = u64::from_le_bytes(range.try_into().unwrap());
                    let (at, len) =
                        ((range & 0xffff_ffff_ffff) as usize * size, (range >> 48) as usize * size);
                    state.bytes[at..at + len].fill(0xdd);
                }
                moved = 512;
            }
            _ => return None,
        }
        // Queued commands need not say it.
        let said = if queued { 0 } else { moved as u32 };
        self.platform.write(Self::address(state, 0) + slot as u64 * 32 + 4, &said.to_le_bytes());
        Some(moved)
    }

    /// Goes on with one of the commands, if the port does.
    fn proceed(&self, state: &mut State, choice: usize) {
        let given = state.issued | state.active;
        if state.gone || state.pulled || given == 0 || state.command & 1 == 0 || state.task & 1 != 0 {
            return;
        }
        let slots: Vec<usize> = (0..32).filter(|slot| given >> slot & 1 == 1).collect();
        let slot = slots[choice % slots.len()];
        let fault = state.faults.front().copied();
        if fault == Some(Fault::Silence) {
            return;
        }
        state.faults.pop_front();
        match fault {
            Some(Fault::Error) => return self.fail(state),
            Some(Fault::Link) => {
                state.interrupts |= 1 << 22;
                return;
            }
            _ => (),
        }
        if self.perform(state, slot, fault == Some(Fault::Short)).is_none() {
            return self.fail(state);
        }
        state.issued &= !(1 << slot);
        state.active &= !(1 << slot);
        state.interrupts |= if fault == Some(Fault::Again) { 0xf } else { 1 << 3 };
    }

    /// A device that was plugged in says so, and the port puts that where it was told to.
    pub fn plug(&self) {
        let state = &mut *self.state.lock();
        state.pulled = false;
        if state.command >> 14 & 1 == 1 {
            self.platform.write(Self::address(state, 2) + 0x40, &[0x34; 20]);
        }
    }

    /// The last thing that it does in memory before it is kept from it.
    pub fn finish(&self) {
        let at_work = self.state.lock().at_work;
        at_work.into_iter().for_each(|address| self.platform.write(address, &[0xee; 16]));
    }

    fn fail(&self, state: &mut State) {
        state.task = 0x0451;
        state.interrupts |= 1 << 30;
    }
}

impl State {
    fn read(&self, offset: usize) -> u32 {
        if self.gone {
            return u32::MAX;
        }
        let port = |register: Register| BASE + register as usize;
        match offset {
            0x00 => self.capabilities,
            0x04 => self.control,
            0x08 => u32::from(self.interrupts & self.enabled != 0) << PORT,
            0x0c => 1 << PORT | 1 << 3,
            0x24 => u32::from(self.owned.is_some()),
            0x28 => u32::from(self.owned == Some(true)),
            EMPTY..0x300 => 0,
            _ if offset == port(Register::Interrupts) => self.interrupts,
            _ if offset == port(Register::Command) => self.command,
            _ if offset == port(Register::TaskFile) => self.task,
            _ if offset == port(Register::Signature) => self.signature,
            _ if offset == port(Register::Link) => {
                if self.pulled {
                    0
                } else {
                    self.link
                }
            }
            _ if offset == port(Register::Active) => self.active,
            _ if offset == port(Register::Issued) => self.issued,
            _ => panic!("read at {offset:#x}"),
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        let port = |register: Register| BASE + register as usize;
        match offset {
            _ if self.gone => (),
            0x04 => {
                self.control = value;
                if value & 1 == 1 && self.obeys_reset {
                    (self.control, self.stuck, self.command) = (0, false, 0);
                }
            }
            0x08 => {
                // What a port still says would be said again, and again.
                assert!(self.interrupts & self.enabled == 0, "a port's interrupt was not taken");
            }
            EMPTY..0x300 => (),
            0x28 => self.owned = Some(false),
            BASE..0x190 => self.list[(offset - BASE) / 4] = value,
            _ if offset == port(Register::Interrupts) => self.interrupts &= !value,
            _ if offset == port(Register::InterruptEnable) => self.enabled = value,
            _ if offset == port(Register::Command) => {
                let stopped = self.command & !value & 1 == 1;
                if stopped && !self.stuck {
                    (self.issued, self.active) = (0, 0);
                }
                // It runs and receives as it is told to.
                let shown = (value & 1) << 15 | (value >> 4 & 1) << 14;
                let kept = if self.stuck { self.command & 0xc000 } else { 0 };
                assert!(value & 1 == 0 || self.task & 0x88 == 0, "started though the device is busy");
                self.command = value & !0xc000 | shown | kept;
            }
            _ if offset == port(Register::LinkControl) => {
                if self.link_control & 1 == 1 && value & 1 == 0 {
                    assert_eq!(self.command & 1, 0, "a reset while the port runs");
                    (self.task, self.resets) = (READY, self.resets + 1);
                    self.interrupts |= 1 << 22;
                }
                self.link_control = value;
            }
            _ if offset == port(Register::LinkErrors) => (),
            _ if offset == port(Register::Active) => {
                assert!(self.command & 1 == 1);
                self.active |= value;
            }
            _ if offset == port(Register::Issued) => {
                assert!(
                    self.command & 1 == 1 && self.task & 0x89 == 0,
                    "a command though the port has stopped"
                );
                self.issued |= value;
            }
            _ => panic!("write at {offset:#x}"),
        }
    }
}

impl Device for Fake {
    fn step(&self, choice: usize) {
        self.proceed(&mut self.state.lock(), choice);
    }

    fn image(&self) -> Vec<u8> {
        self.state.lock().bytes.clone()
    }
}

impl Registers for Fake {
    fn len(&self) -> usize {
        0x300
    }
    fn read_u8(&self, _offset: usize) -> u8 {
        panic!("registers have 32 bits")
    }
    fn read_u16(&self, _offset: usize) -> u16 {
        panic!("registers have 32 bits")
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.state.lock().read(offset)
    }
    fn read_u64(&self, _offset: usize) -> u64 {
        panic!("registers have 32 bits")
    }
    fn write_u8(&self, _offset: usize, _value: u8) {
        panic!("registers have 32 bits")
    }
    fn write_u16(&self, _offset: usize, _value: u16) {
        panic!("registers have 32 bits")
    }
    fn write_u32(&self, offset: usize, value: u32) {
        let state = &mut *self.state.lock();
        state.write(offset, value);
        // IDENTIFY is done at once: the driver waits for it without a step of the test.
        if offset == BASE + Register::Issued as usize && !state.gone {
            let header = self.platform.read(Self::address(state, 0), 16);
            let table = u64::from_le_bytes(header[8..16].try_into().unwrap());
            if value == 1 && self.platform.read(table + 2, 1) == [0xec] {
                let faults = core::mem::take(&mut state.faults);
                self.proceed(state, 0);
                state.faults = faults;
            }
        }
    }
    fn write_u64(&self, _offset: usize, _value: u64) {
        panic!("registers have 32 bits")
    }
}
