//! A pair of queues: commands to the controller, and their completions.

use super::registers::Registers;
use crate::dma::Dma;
use crate::driver::Error;
use crate::platform::Platform;

/// The size of a submission queue's entry.
const COMMAND: usize = 64;
/// The size of a completion queue's entry.
const COMPLETION: usize = 16;

/// A command: sixteen double words (NVMe Base Specification 2.0, 3.3.3.1). Dword 0 has the opcode only; the
/// identifier is added when it is sent.
pub type Entry = [u32; 16];

/// A command without data.
pub const fn command(opcode: u8, namespace: u32) -> Entry {
    [opcode as u32, namespace, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The identifier that the command had.
    pub id: u16,
    /// Its status field, 15 bits; 0 is success.
    pub status: u16,
    /// Its dword 0.
    pub result: u32,
}

/// A pair of queues.
pub struct Ring {
    registers: Registers,
    submissions: Dma,
    completions: Dma,
    entries: u16,
    doorbells: (usize, usize),
    tail: u16,
    head: u16,
    phase: bool,
}

impl Ring {
    /// Queues of so many entries, at most 64, at the doorbells of queue `number`.
    ///
    /// # Errors
    /// No memory, or no such doorbells.
    pub fn new(
        platform: &dyn Platform,
        registers: &Registers,
        number: u16,
        entries: u16,
    ) -> Result<Self, Error> {
        let doorbells =
            registers.doorbells(number).ok_or(Error::Unusable("it has no doorbells for a queue"))?;
        Ok(Self {
            registers: registers.clone(),
            submissions: Dma::allocate(platform, usize::from(entries).saturating_mul(COMMAND))?,
            completions: Dma::allocate(platform, usize::from(entries).saturating_mul(COMPLETION))?,
            entries,
            doorbells,
            tail: 0,
            head: 0,
            phase: true,
        })
    }

    /// How many entries each has.
    pub const fn entries(&self) -> u16 {
        self.entries
    }

    /// Where the commands and where the completions are.
    pub const fn addresses(&self) -> (u64, u64) {
        (self.submissions.address(), self.completions.address())
    }

    /// Begins anew, as the controller does when it makes the queues.
    pub fn reset(&mut self) {
        self.submissions.write(0, &alloc::vec![0; self.submissions.size()]);
        self.completions.write(0, &alloc::vec![0; self.completions.size()]);
        (self.tail, self.head, self.phase) = (0, 0, true);
    }

    /// Writes a command at the tail. There must be room: no more may be under way than there are entries but one.
    pub fn write(&mut self, id: u16, entry: &Entry) {
        let at = usize::from(self.tail).saturating_mul(COMMAND);
        for (n, value) in entry.iter().enumerate() {
            let value = if n == 0 { value & 0xffff | u32::from(id) << 16 } else { *value };
            self.submissions.write_u32(at.saturating_add(n.saturating_mul(4)), value);
        }
        self.tail = self.after(self.tail);
    }

    /// Tells the controller of the commands that were written.
    pub fn submit(&self) {
        self.registers.ring(self.doorbells.0, self.tail);
    }

    /// Takes the next completion, if there is one.
    pub fn take(&mut self) -> Option<Completion> {
        let at = usize::from(self.head).saturating_mul(COMPLETION);
        let word = |n: usize| self.completions.read_u32(at.saturating_add(n.saturating_mul(4)));
        // The phase is in the last dword, and read first: it says that the others are there.
        let last = word(3);
        if (last >> 16 & 1 == 1) != self.phase {
            return None;
        }
        let completion = Completion { id: last as u16, status: (last >> 17) as u16, result: word(0) };
        self.head = self.after(self.head);
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Some(completion)
    }

    /// Tells the controller which completions were taken.
    pub fn release(&self) {
        self.registers.ring(self.doorbells.1, self.head);
    }

    fn after(&self, position: u16) -> u16 {
        let next = position.saturating_add(1);
        if next >= self.entries { 0 } else { next }
    }
}
