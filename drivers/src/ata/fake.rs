//! A controller with two drives that misbehaves when told to: one channel of it.

use super::registers::Ports;
use crate::acs::Identity;
use crate::acs::tests::answer;
use crate::platform::Registers;
use crate::testing::FakePlatform;
use crate::trial::Device;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use spin::Mutex;

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails.
    Error,
    /// Data was damaged on its way.
    Crc,
    /// The bus master could not reach memory.
    Master,
    /// The drive never ends it.
    Silence,
    /// An interrupt comes though the drive is still at it.
    Early,
    /// An interrupt comes once more after it was done.
    Again,
    /// The drive moves fewer bytes, and says that it is done.
    Short,
    /// The drive wants to move more bytes.
    Long,
}

pub struct Drive {
    pub identity: Identity,
    pub bytes: Vec<u8>,
    /// It ends IDENTIFY with an error and the signature of ATAPI.
    pub packets: bool,
}

#[derive(Default)]
pub struct State {
    pub drives: [Option<Drive>; 2],
    features: [u8; 2],
    count: [u8; 2],
    lba: [[u8; 3]; 2],
    device: u8,
    status: u8,
    error: u8,
    control: u8,
    data: VecDeque<u16>,
    /// A command that is not done.
    pub pending: Option<u8>,
    again: bool,
    master: (u8, u8, u32),
    pub faults: VecDeque<Fault>,
    pub gone: bool,
    /// It takes no reset.
    pub stuck: bool,
    pub resets: usize,
    /// Commands done.
    pub done: Vec<u8>,
}

pub struct Fake {
    platform: Arc<FakePlatform>,
    pub state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Task,
    Control,
    Master,
}

struct Window(Arc<Fake>, Which);

impl Fake {
    pub fn new(platform: &Arc<FakePlatform>, drives: [Option<Drive>; 2]) -> Arc<Self> {
        let state = State { drives, status: 0x50, ..State::default() };
        Arc::new(Self { platform: Arc::clone(platform), state: Mutex::new(state) })
    }

    pub fn ports(self: &Arc<Self>) -> Ports {
        let window = |which| (Arc::new(Window(Arc::clone(self), which)) as Arc<dyn Registers>, 0);
        Ports { task: window(Which::Task), control: window(Which::Control), master: window(Which::Master) }
    }

    /// The regions of the bus master's table.
    fn regions(&self, state: &State) -> Vec<(u64, usize)> {
        let mut regions = Vec::new();
        for n in 0..512 {
            let entry = self.platform.read(u64::from(state.master.2) + n * 8, 8);
            let address = u32::from_le_bytes(entry[..4].try_into().unwrap());
            let len = match u16::from_le_bytes(entry[4..6].try_into().unwrap()) {
                0 => 0x1_0000,
                len => u32::from(len),
            };
            assert!(address % 2 == 0 && len % 2 == 0, "words");
            assert_eq!(address >> 16, (address + len - 1) >> 16, "no region crosses 64 KiB");
            regions.push((u64::from(address), len as usize));
            if entry[7] & 0x80 != 0 {
                return regions;
            }
        }
        panic!("the table has no end");
    }

    fn perform(&self, state: &mut State, command: u8, short: bool) -> Result<(), u8> {
        let regions = if matches!(command, 0xe7 | 0xea) { Vec::new() } else { self.regions(state) };
        let drive = state.drives[usize::from(state.device >> 4 & 1)].as_mut().expect("a drive");
        let size = drive.identity.block_size as usize;
        let wide = matches!(command, 0x25 | 0x35 | 0xea | 0x06);
        assert!(!wide || drive.identity.lba48);
        let [low, upper] = state.lba.map(|lba| u64::from_le_bytes([lba[0], lba[1], lba[2], 0, 0, 0, 0, 0]));
        let (lba, count) = if wide {
            let count = usize::from(u16::from_le_bytes([state.count[0], state.count[1]]));
            (low | upper << 24, if count == 0 { 0x1_0000 } else { count })
        } else {
            let count = usize::from(state.count[0]);
            (low | u64::from(state.device & 0xf) << 24, if count == 0 { 0x100 } else { count })
        };
        let at = lba as usize * size;
        state.done.push(command);
        match command {
            0xc8 | 0x25 | 0xca | 0x35 => {
                assert!(state.device & 0x40 != 0, "blocks are numbered");
                let moved: usize = regions.iter().map(|(_, len)| len).sum();
                assert_eq!(moved, count * size, "the table has as many bytes as the command");
                assert_eq!(state.master.0 & 8 != 0, matches!(command, 0xc8 | 0x25), "the direction");
                let Some(all) = drive.bytes.get_mut(at..at + moved) else { return Err(0x10) };
                let mut at = 0;
                for (address, len) in regions {
                    if short && at > 0 {
                        break;
                    }
                    let bytes = &mut all[at..at + len];
                    if matches!(command, 0xc8 | 0x25) {
                        self.platform.write(address, bytes);
                    } else {
                        bytes.copy_from_slice(&self.platform.read(address, len));
                    }
                    at += len;
                }
            }
            0xe7 | 0xea => (),
            0x06 => {
                assert!(drive.identity.trims && state.features == [1, 0] && count == 1);
                let [(address, 512)] = regions[..] else { panic!("a block of ranges") };
                for range in self.platform.read(address, 512).chunks(8) {
                    let range = u64::from_le_bytes(range.try_into().unwrap());
                    let (at, len) =
                        ((range & 0xffff_ffff_ffff) as usize * size, (range >> 48) as usize * size);
                    drive.bytes[at..at + len].fill(0xdd);
                }
            }
            _ => return Err(4),
        }
        Ok(())
    }
}

impl State {
    fn interrupt(&mut self) {
        if self.control & 2 == 0 {
            self.master.1 |= 4;
        }
    }

    fn command(&mut self, command: u8) {
        assert!(self.pending.is_none() && self.status & 0x88 == 0, "a command though one is under way");
        let Some(drive) = &self.drives[usize::from(self.device >> 4 & 1)] else { return };
        if command != 0xec {
            self.status = 0xd0;
            self.pending = Some(command);
        } else if drive.packets {
            (self.status, self.error, self.lba[0]) = (0x51, 4, [1, 0x14, 0xeb]);
        } else {
            self.data = answer(&drive.identity)
                .chunks(2)
                .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                .collect();
            self.status = 0x58;
        }
    }

    fn read(&mut self, which: Which, at: usize) -> u8 {
        if self.gone {
            return 0xff;
        }
        let there = self.drives[usize::from(self.device >> 4 & 1)].is_some();
        match (which, at) {
            _ if which != Which::Master && self.drives.iter().all(Option::is_none) => 0xff,
            (Which::Control, 0) | (Which::Task, 7) => {
                if there {
                    self.status
                } else {
                    0
                }
            }
            (Which::Task, 1) => self.error,
            (Which::Master, 0) => self.master.0,
            (Which::Master, 2) => self.master.1,
            _ => panic!("read at {at}"),
        }
    }

    fn write(&mut self, which: Which, at: usize, value: u8) {
        let push = |pair: &mut [u8; 2]| *pair = [value, pair[0]];
        match (which, at) {
            _ if self.gone => (),
            (Which::Task, 1) => push(&mut self.features),
            (Which::Task, 2) => push(&mut self.count),
            (Which::Task, 3..=5) => {
                self.lba[1][at - 3] = self.lba[0][at - 3];
                self.lba[0][at - 3] = value;
            }
            (Which::Task, 6) => self.device = value,
            (Which::Task, 7) => self.command(value),
            (Which::Control, 0) => {
                if value & 4 != 0 && !self.stuck {
                    self.resets += 1;
                    (self.status, self.pending, self.again, self.device) = (0x50, None, false, 0);
                }
                self.control = value;
            }
            (Which::Master, 0) => {
                self.master.0 = value;
                // Active from the start on.
                self.master.1 = self.master.1 & !1 | value & 1;
            }
            (Which::Master, 2) => self.master.1 = self.master.1 & !(value & 6) & !0x60 | value & 0x60,
            _ => panic!("write at {at}"),
        }
    }
}

impl Device for Fake {
    fn step(&self, _choice: usize) {
        let state = &mut *self.state.lock();
        if core::mem::take(&mut state.again) {
            return state.interrupt();
        }
        let moves = |command| !matches!(command, 0xe7 | 0xea);
        let Some(command) = state.pending.filter(|command| !moves(*command) || state.master.0 & 1 != 0)
        else {
            return;
        };
        if state.gone || state.faults.front() == Some(&Fault::Silence) {
            return;
        }
        let fault = state.faults.pop_front();
        if fault == Some(Fault::Early) {
            return state.interrupt();
        }
        state.pending = None;
        (state.status, state.error) = (0x50, 0);
        match fault {
            Some(Fault::Error) => (state.status, state.error) = (0x51, 0x40),
            Some(Fault::Crc) => (state.status, state.error) = (0x51, 0x84),
            Some(Fault::Master) => state.master.1 |= 2,
            Some(fault) => {
                state.again = fault == Fault::Again;
                if self.perform(state, command, fault == Fault::Short).is_err() {
                    (state.status, state.error) = (0x51, 4);
                }
                if fault == Fault::Long {
                    state.status |= 8;
                }
            }
            None => {
                if let Err(error) = self.perform(state, command, false) {
                    (state.status, state.error) = (0x51, error);
                }
            }
        }
        if fault != Some(Fault::Short) {
            state.master.1 &= !1;
        }
        state.interrupt();
    }

    fn image(&self) -> Vec<u8> {
        self.state.lock().drives.iter().flatten().next().expect("a drive").bytes.clone()
    }
}

impl Registers for Window {
    fn len(&self) -> usize {
        8
    }
    fn read_u8(&self, offset: usize) -> u8 {
        self.0.state.lock().read(self.1, offset)
    }
    fn read_u16(&self, offset: usize) -> u16 {
        assert!(self.1 == Which::Task && offset == 0);
        let state = &mut *self.0.state.lock();
        let word = state.data.pop_front().unwrap_or(0xffff);
        if state.data.is_empty() {
            state.status &= !8;
        }
        word
    }
    fn read_u32(&self, offset: usize) -> u32 {
        panic!("read of 32 bits at {offset}")
    }
    fn read_u64(&self, offset: usize) -> u64 {
        panic!("read of 64 bits at {offset}")
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.0.state.lock().write(self.1, offset, value);
    }
    fn write_u16(&self, offset: usize, _value: u16) {
        panic!("write of 16 bits at {offset}")
    }
    fn write_u32(&self, offset: usize, value: u32) {
        assert!(self.1 == Which::Master && offset == 4 && value.is_multiple_of(4));
        self.0.state.lock().master.2 = value;
    }
    fn write_u64(&self, offset: usize, _value: u64) {
        panic!("write of 64 bits at {offset}")
    }
}
