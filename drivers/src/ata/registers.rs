//! A channel's registers: the drives' (ATA/ATAPI-7, volume 2), and the bus master's.

use crate::acs::TaskFile;
use crate::platform::Registers;
use alloc::sync::Arc;

const DATA: usize = 0;
const ERROR_OR_FEATURES: usize = 1;
const COUNT: usize = 2;
const LBA: [usize; 3] = [3, 4, 5];
const DEVICE: usize = 6;
const STATUS_OR_COMMAND: usize = 7;

/// Bits of the device control register.
const NO_INTERRUPTS: u8 = 1 << 1;
const RESET: u8 = 1 << 2;

/// In the device register: which drive, and two bits that old ones want to be set.
const SLAVE: u8 = 1 << 4;
const OBSOLETE: u8 = 0xa0;

/// The bus master (Programming Interface for Bus Master IDE Controller 1.0, 2).
pub mod bus_master {
    pub(super) const COMMAND: usize = 0;
    pub(super) const STATUS: usize = 2;
    pub(super) const TABLE: usize = 4;
    pub(super) const START: u8 = 1 << 0;
    /// It writes memory.
    pub(super) const TO_MEMORY: u8 = 1 << 3;
    /// What is done for a drive has not ended.
    pub const ACTIVE: u8 = 1 << 0;
    /// It could not reach memory.
    pub const ERROR: u8 = 1 << 1;
    /// A drive has interrupted since this was cleared.
    pub const INTERRUPT: u8 = 1 << 2;
    /// Firmware's notes on which drive can do DMA.
    pub(super) const NOTES: u8 = 3 << 5;
}

/// A register block, and where in it the registers begin.
pub type Block = (Arc<dyn Registers>, usize);

/// The registers of a channel.
#[derive(Clone)]
pub struct Ports {
    /// The eight of the drives.
    pub task: Block,
    /// Alternate status and device control.
    pub control: Block,
    /// The eight of the bus master.
    pub master: Block,
}

fn read(block: &Block, at: usize) -> u8 {
    block.0.read_u8(block.1.wrapping_add(at))
}

fn write(block: &Block, at: usize, value: u8) {
    block.0.write_u8(block.1.wrapping_add(at), value);
}

impl Ports {
    /// Whether anything drives the bus: where nobody does, it reads as ones, or as ones but for the bit that is
    /// pulled down.
    pub fn is_anybody_there(&self) -> bool {
        (0..2).any(|drive| {
            self.select(drive, 0);
            !matches!(self.other_status(), 0x7f | 0xff)
        })
    }

    /// The status; reading it ends the drive's interrupt.
    pub fn status(&self) -> u8 {
        read(&self.task, STATUS_OR_COMMAND)
    }

    /// The status, without consequences.
    pub fn other_status(&self) -> u8 {
        read(&self.control, 0)
    }

    /// Why a command has failed.
    pub fn error(&self) -> u8 {
        read(&self.task, ERROR_OR_FEATURES)
    }

    /// The next word of data.
    pub fn data(&self) -> u16 {
        self.task.0.read_u16(self.task.1.wrapping_add(DATA))
    }

    /// Speaks to drive 0 or 1 from now on.
    pub fn select(&self, drive: usize, bits: u8) {
        let which = if drive == 0 { 0 } else { SLAVE };
        write(&self.task, DEVICE, OBSOLETE | which | bits);
        self.settle();
    }

    /// Lets the status become valid, which takes 400 ns: that of a drive just selected, or of a command just given.
    pub fn settle(&self) {
        for _ in 0..4 {
            self.other_status();
        }
    }

    /// Gives a drive a command.
    pub fn write(&self, drive: usize, task: &TaskFile) {
        let lba = task.lba.to_le_bytes();
        let [features, upper_features] = task.features.to_le_bytes();
        let [count, upper_count] = task.count.to_le_bytes();
        let [low, mid, high, upper_low, upper_mid, upper_high, ..] = lba;
        let numbers = |features, count, lba: [u8; 3]| {
            write(&self.task, ERROR_OR_FEATURES, features);
            write(&self.task, COUNT, count);
            LBA.into_iter().zip(lba).for_each(|(at, byte)| write(&self.task, at, byte));
        };
        let which = if drive == 0 { 0 } else { SLAVE };
        write(&self.task, DEVICE, OBSOLETE | which | task.device);
        if task.wide {
            // The registers are two bytes deep; the upper ones go in first.
            numbers(upper_features, upper_count, [upper_low, upper_mid, upper_high]);
        }
        numbers(features, count, [low, mid, high]);
        write(&self.task, STATUS_OR_COMMAND, task.command);
    }

    /// Begins a reset of both drives.
    pub fn assert_reset(&self) {
        write(&self.control, 0, NO_INTERRUPTS | RESET);
    }

    /// Ends it.
    pub fn end_reset(&self) {
        write(&self.control, 0, NO_INTERRUPTS);
    }

    /// Lets drives interrupt.
    pub fn allow_interrupts(&self) {
        self.status();
        self.clear();
        write(&self.control, 0, 0);
    }

    /// The bus master's status.
    pub fn master_status(&self) -> u8 {
        read(&self.master, bus_master::STATUS)
    }

    /// Has the bus master forget interrupts and errors.
    pub fn clear(&self) {
        let notes = self.master_status() & bus_master::NOTES;
        write(&self.master, bus_master::STATUS, notes | bus_master::INTERRUPT | bus_master::ERROR);
    }

    /// Has the bus master ready to move what the table at `table` says.
    pub fn prepare(&self, table: u32, to_memory: bool) {
        self.master.0.write_u32(self.master.1.wrapping_add(bus_master::TABLE), table);
        write(&self.master, bus_master::COMMAND, if to_memory { bus_master::TO_MEMORY } else { 0 });
        self.clear();
    }

    /// Has it begin.
    pub fn go(&self) {
        let direction = read(&self.master, bus_master::COMMAND) & bus_master::TO_MEMORY;
        write(&self.master, bus_master::COMMAND, direction | bus_master::START);
    }

    /// Has it end: it works on no memory any more.
    pub fn stop(&self) {
        let direction = read(&self.master, bus_master::COMMAND) & bus_master::TO_MEMORY;
        write(&self.master, bus_master::COMMAND, direction);
    }
}
