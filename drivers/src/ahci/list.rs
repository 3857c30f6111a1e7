//! What a port and its device have in memory: the command list, a table for each command, and what the device sends
//! (Serial ATA AHCI 1.3.1, 4.2).

use crate::acs::TaskFile;
use crate::dma::Dma;
use crate::driver::Error;
use crate::platform::Platform;
use alloc::vec;
use alloc::vec::Vec;
use storage::Piece;

/// Where what the device sends begins, and the answer to IDENTIFY; the command list is first.
const RECEIVED: usize = 0x400;
const ANSWER: usize = 0x800;
/// Where the tables begin, and the size of each.
const TABLES: usize = 0x1000;
const TABLE: usize = 0x1000;
/// In a table: where the regions of memory begin, and the size of each.
const REGIONS: usize = 0x80;
const REGION: usize = 16;
/// The size of an entry of the command list.
const HEADER: usize = 32;

/// How many regions a table has.
pub const MOST_REGIONS: usize = (TABLE - REGIONS) / REGION;

/// In a command's header: its length in double words; it writes to the device.
const MESSAGE_LENGTH: u32 = 5;
const WRITES: u32 = 1 << 6;

/// The memory of a port with so many slots.
pub struct List {
    memory: Dma,
}

impl List {
    /// Memory for so many slots.
    ///
    /// # Errors
    /// There is none.
    pub fn new(platform: &dyn Platform, slots: usize) -> Result<Self, Error> {
        let len = slots.saturating_mul(TABLE).saturating_add(TABLES);
        Ok(Self { memory: Dma::allocate(platform, len)? })
    }

    /// Where the command list is, and where what the device sends goes.
    pub const fn addresses(&self) -> (u64, u64) {
        let first = self.memory.address();
        (first, first.saturating_add(RECEIVED as u64))
    }

    /// Where IDENTIFY's answer goes.
    pub const fn answer(&self) -> Piece {
        Piece { address: self.memory.address().saturating_add(ANSWER as u64), len: 512 }
    }

    /// IDENTIFY's answer.
    pub fn answered(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.memory.read(ANSWER, &mut bytes);
        bytes
    }

    /// Puts a command into a slot.
    pub fn put(&self, slot: usize, task: &TaskFile, writes: bool, pieces: &[Piece]) {
        let table = slot.saturating_mul(TABLE).saturating_add(TABLES);
        self.memory.write(table, &message(task));
        let mut regions: Vec<u8> = vec![];
        for piece in pieces {
            regions.extend(piece.address.to_le_bytes());
            regions.extend([0; 4]);
            regions.extend((piece.len as u32).saturating_sub(1).to_le_bytes());
        }
        self.memory.write(table.saturating_add(REGIONS), &regions);

        let header = slot.saturating_mul(HEADER);
        let flags = MESSAGE_LENGTH | if writes { WRITES } else { 0 } | (pieces.len() as u32) << 16;
        let address = self.memory.address().saturating_add(table as u64);
        self.memory.write_u32(header, flags);
        // How many bytes were moved.
        self.memory.write_u32(header.saturating_add(4), 0);
        self.memory.write_u64(header.saturating_add(8), address);
    }

    /// How many bytes the slot's command has moved; it may not say for queued ones.
    pub fn moved(&self, slot: usize) -> u32 {
        self.memory.read_u32(slot.saturating_mul(HEADER).saturating_add(4))
    }
}

/// A command on its way to the device (Serial ATA 3.0, 10.5.5).
fn message(task: &TaskFile) -> [u8; 20] {
    /// The kind of message, and that it is a command.
    const REGISTERS_TO_DEVICE: u8 = 0x27;
    const IS_COMMAND: u8 = 0x80;
    let [lba0, lba1, lba2, lba3, lba4, lba5, ..] = task.lba.to_le_bytes();
    let [features, upper_features] = task.features.to_le_bytes();
    let [count, upper_count] = task.count.to_le_bytes();
    let first = [REGISTERS_TO_DEVICE, IS_COMMAND, task.command, features, lba0, lba1, lba2, task.device];
    let second = [lba3, lba4, lba5, upper_features, count, upper_count, 0, 0];
    let mut message = [0; 20];
    message.iter_mut().zip(first.into_iter().chain(second)).for_each(|(to, from)| *to = from);
    message
}
