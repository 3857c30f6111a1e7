//! The controller's registers (NVMe 1.4, 3.1), but for its status, which is what it does.

use super::VERSION;
use super::queue::MOST_ENTRIES;

const CAPABILITIES: u64 = 0x00;
const CAPABILITIES_HIGH: u64 = 0x04;
const VERSION_AT: u64 = 0x08;
const CONFIGURATION: u64 = 0x14;
const STATUS: u64 = 0x1c;
const ADMIN_QUEUE_ATTRIBUTES: u64 = 0x24;
const ADMIN_SUBMISSION: u64 = 0x28;
const ADMIN_SUBMISSION_HIGH: u64 = 0x2c;
const ADMIN_COMPLETION: u64 = 0x30;
const ADMIN_COMPLETION_HIGH: u64 = 0x34;
const DOORBELLS: u64 = 0x1000;

/// The bits of the controller's status.
pub(super) mod status {
    pub const READY: u32 = 1;
    pub const FAILED: u32 = 1 << 1;
    pub const SHUTTING_DOWN: u32 = 1 << 2;
    pub const SHUT_DOWN: u32 = 2 << 2;
}

/// Queues lie in one piece.
const CONTIGUOUS_QUEUES: u32 = 1 << 16;
/// How long the guest must wait for a reset, in units of 500 ms: two minutes, as what is under way must end.
const TIMEOUT: u32 = 240 << 24;
/// The NVM command set; pages of 4 KiB are the smallest and the largest, doorbells follow each other.
const NVM_COMMANDS: u32 = 1 << 5;

const ENABLE: u32 = 1;
/// Command set, page size and arbitration: zero is what there is.
const COMMAND_SET_PAGES_ARBITRATION: u32 = 0x3ff0;
const SHUTDOWN: u32 = 0b11 << 14;
/// The sizes of I/O queue entries as powers of two: submission and completion.
const ENTRY_SIZES: u32 = 0xff_0000;
const ENTRY_SIZES_OFFERED: u32 = 0x46_0000;

/// What the guest wrote.
#[derive(Default)]
pub(super) struct Registers {
    configuration: u32,
    admin_attributes: u32,
    admin_submission: u64,
    admin_completion: u64,
}

/// A write that something follows from.
pub(super) enum Register {
    Configuration,
    SubmissionDoorbell(u16),
    CompletionDoorbell(u16),
}

/// Where a queue is to be.
pub(super) struct QueuePlace {
    pub(super) base: u64,
    pub(super) entries: u16,
}

impl Registers {
    /// The dword at `at`, a multiple of 4.
    pub(super) fn read(&self, at: u64, status: u32) -> u32 {
        match at {
            CAPABILITIES => TIMEOUT | CONTIGUOUS_QUEUES | u32::from(MOST_ENTRIES.saturating_sub(1)),
            CAPABILITIES_HIGH => NVM_COMMANDS,
            VERSION_AT => VERSION,
            CONFIGURATION => self.configuration,
            STATUS => status,
            ADMIN_QUEUE_ATTRIBUTES => self.admin_attributes,
            ADMIN_SUBMISSION => self.admin_submission as u32,
            ADMIN_SUBMISSION_HIGH => (self.admin_submission >> 32) as u32,
            ADMIN_COMPLETION => self.admin_completion as u32,
            ADMIN_COMPLETION_HIGH => (self.admin_completion >> 32) as u32,
            // The masks of interrupts without MSI-X, which there are none of, and doorbells.
            _ => 0,
        }
    }

    /// The guest writes the dword at `at`, a multiple of 4.
    pub(super) fn write(&mut self, at: u64, value: u32) -> Option<Register> {
        const LOW: u64 = u32::MAX as u64;
        let (low, high) = (u64::from(value), u64::from(value) << 32);
        match at {
            CONFIGURATION => {
                self.configuration = value;
                return Some(Register::Configuration);
            }
            ADMIN_QUEUE_ATTRIBUTES => self.admin_attributes = value,
            ADMIN_SUBMISSION => self.admin_submission = self.admin_submission & !LOW | low,
            ADMIN_SUBMISSION_HIGH => self.admin_submission = self.admin_submission & LOW | high,
            ADMIN_COMPLETION => self.admin_completion = self.admin_completion & !LOW | low,
            ADMIN_COMPLETION_HIGH => self.admin_completion = self.admin_completion & LOW | high,
            _ => {
                let doorbell = at.checked_sub(DOORBELLS)? / 4;
                let queue = u16::try_from(doorbell / 2).ok()?;
                return Some(match doorbell & 1 {
                    0 => Register::SubmissionDoorbell(queue),
                    _ => Register::CompletionDoorbell(queue),
                });
            }
        }
        None
    }

    /// Whether the controller is to work.
    pub(super) fn is_enabled(&self) -> bool {
        self.configuration & ENABLE != 0
    }

    /// Whether it is to prepare for the loss of power.
    pub(super) fn wants_shutdown(&self) -> bool {
        self.configuration & SHUTDOWN != 0
    }

    /// Whether entries of I/O queues have the sizes that there are.
    pub(super) fn has_entry_sizes(&self) -> bool {
        self.configuration & ENTRY_SIZES == ENTRY_SIZES_OFFERED
    }

    /// Where the administrator's queues are to be, for commands and for answers; `None` where the configuration is
    /// none that there is.
    pub(super) fn admin_queues(&self) -> Option<[QueuePlace; 2]> {
        if self.configuration & COMMAND_SET_PAGES_ARBITRATION != 0 {
            return None;
        }
        let entries = |field: u32| {
            let entries = (field as u16 & 0xfff).checked_add(1)?;
            (2..=MOST_ENTRIES).contains(&entries).then_some(entries)
        };
        Some([
            QueuePlace { base: self.admin_submission, entries: entries(self.admin_attributes)? },
            QueuePlace { base: self.admin_completion, entries: entries(self.admin_attributes >> 16)? },
        ])
    }
}
