//! An NVMe controller for a guest, with one namespace (NVM Express 1.4).
//!
//! Commands are read out of the guest's queues when it rings a doorbell, as many as may be under way and as have room
//! for their answers; the disk behind moves bytes straight into and out of the guest's memory. Queues, doorbells and
//! commands that make no sense cost the guest that command, or the controller until it is reset.

mod admin;
mod command;
mod identify;
mod io;
mod log;
mod prp;
mod queue;
mod registers;

use crate::chipset::{BarLayout, ConfigSpace, Context, Msix, PciConfigError, PciFunction, PciIdentity};
use crate::cpu::Width;
use crate::requests::Requests;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use command::Status;
use core::task::Waker;
use io::{Ended, Work};
use log::Health;
use queue::{Completion, CompletionQueue, Shadow, SubmissionQueue};
use registers::{Register, Registers};
use storage::BlockDevice;

/// Nobody's, as on other virtual machines' boards.
const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x0010;
/// Mass storage, non-volatile memory, NVM Express.
const CLASS: u32 = 0x01_08_02;
/// Version 1.4.
const VERSION: u32 = 0x0001_0400;
/// The only namespace's number.
const NAMESPACE: u32 = 1;
/// The most queue pairs for I/O.
const MOST_QUEUES: u16 = 16;
/// How many requests may be under way at once.
const MOST_UNDER_WAY: usize = 64;
/// How many commands are read before others get their turn.
const COMMANDS_AT_ONCE: usize = 64;

/// The registers, the table of MSI-X and its pending bits lie in the first BAR, at these offsets.
const BAR_BYTES: u64 = 0x4000;
const VECTORS_AT: u32 = 0x2000;
const PENDING_AT: u32 = 0x3000;

/// What a controller says of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The serial number, of which 20 characters are shown.
    pub serial: String,
    /// Where on the bus it is: what tells it from others with the same serial number.
    pub slot: u8,
    /// Whether what was written may be lost with the power until it is flushed.
    pub write_back: bool,
}

impl Identity {
    /// An identifier of the namespace: the same in each life, and others' differ.
    fn uuid(&self) -> [u8; 16] {
        // FNV-1a with 128 bits.
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let bytes = self.serial.bytes().chain([self.slot]);
        let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
        // Version 8 (one's own way), variant 1 (RFC 9562).
        const VERSION: u128 = 0xf << 76;
        const VARIANT: u128 = 0b11 << 62;
        (hash & !VERSION & !VARIANT | 0x8 << 76 | 0b10 << 62).to_be_bytes()
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
enum About {
    /// A command of a submission queue.
    Command { queue: u16, id: u16, kind: io::Kind },
    /// The flush of a shutdown.
    Shutdown,
}

/// How far the controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Off; requests from before may still be under way.
    Disabled,
    /// Ready for commands.
    Ready,
    /// Told to prepare for the loss of power; commands are read no more.
    ShuttingDown {
        /// What was written is being flushed.
        flushing: bool,
    },
    /// Prepared for it.
    ShutDown,
    /// Something is wrong that only a reset ends.
    Failed,
}

/// The controller.
pub struct Nvme {
    config: ConfigSpace,
    msix: Msix,
    device: Arc<dyn BlockDevice>,
    identity: Identity,
    /// How many queue pairs for I/O there may be.
    most_queues: u16,
    registers: Registers,
    state: State,
    /// By number; the first of each is the administrator's.
    submissions: Vec<Option<SubmissionQueue>>,
    completions: Vec<Option<CompletionQueue>>,
    /// Where the guest leaves doorbells, in the order of the registers.
    shadows: Option<Shadow>,
    /// Whose turn it is to be read.
    turn: usize,
    requests: Requests<About, Ended>,
    waker: Waker,
    features: admin::Features,
    /// How many commands wait for an event; none happens here.
    event_requests: u16,
    health: Health,
    /// The guest's life is over.
    retired: bool,
}

impl Nvme {
    /// A controller after power-on for `device`, with up to `queues` queue pairs for I/O.
    ///
    /// # Errors
    /// Its configuration does not fit, which no caller can bring about.
    pub fn new(
        device: Arc<dyn BlockDevice>,
        identity: Identity,
        queues: u16,
    ) -> Result<Self, PciConfigError> {
        let most_queues = queues.clamp(1, MOST_QUEUES);
        let mut config = ConfigSpace::new(PciIdentity {
            vendor: VENDOR,
            device: DEVICE,
            class: CLASS,
            revision: 1,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.add_bar(0, BarLayout { bytes: BAR_BYTES, wide: true, prefetchable: false })?;
        let vectors = most_queues.saturating_add(1);
        let msix = Msix::new(&mut config, vectors, 0, (VECTORS_AT, PENDING_AT))?;
        Ok(Self {
            config,
            msix,
            device,
            features: admin::Features::new(identity.write_back),
            identity,
            most_queues,
            registers: Registers::default(),
            state: State::Disabled,
            submissions: (0..vectors).map(|_| None).collect(),
            completions: (0..vectors).map(|_| None).collect(),
            shadows: None,
            turn: 0,
            requests: Requests::new(MOST_UNDER_WAY, Waker::noop().clone()),
            waker: Waker::noop().clone(),
            event_requests: 0,
            health: Health::default(),
            retired: false,
        })
    }

    fn read(&self, offset: u64) -> u64 {
        let word = |at| u64::from(self.registers.read(at, self.status()));
        let first = offset & !3;
        let both = word(first.saturating_add(4)) << 32 | word(first);
        both >> ((offset & 3) << 3)
    }

    /// Controller status (3.1.6).
    fn status(&self) -> u32 {
        use registers::status::{FAILED, READY, SHUT_DOWN, SHUTTING_DOWN};
        match self.state {
            State::Disabled if self.requests.is_empty() => 0,
            // What a reset waits for: a guest that saw its end may use its memory for something else.
            State::Disabled | State::Ready => READY,
            State::ShuttingDown { .. } => READY | SHUTTING_DOWN,
            State::ShutDown => READY | SHUT_DOWN,
            State::Failed => FAILED,
        }
    }

    fn write(&mut self, offset: u64, width: Width, value: u64, ctx: &mut Context) {
        let words = match width {
            Width::Dword => 1,
            Width::Qword => 2,
            _ => 0,
        };
        if offset & 3 != 0 {
            return;
        }
        let values = [value as u32, (value >> 32) as u32];
        for (at, word) in [offset, offset.saturating_add(4)].into_iter().zip(values).take(words) {
            match self.registers.write(at, word) {
                Some(Register::Configuration) => self.configure(),
                Some(Register::SubmissionDoorbell(n)) => {
                    slot(&mut self.submissions, n).into_iter().for_each(|queue| queue.ring(word));
                }
                Some(Register::CompletionDoorbell(n)) => {
                    slot(&mut self.completions, n).into_iter().for_each(|queue| queue.ring(word));
                }
                None => {}
            }
        }
        self.go_on(ctx);
    }

    /// The guest wrote the controller configuration (3.1.5).
    fn configure(&mut self) {
        if !self.registers.is_enabled() {
            self.reset();
        } else if self.registers.wants_shutdown() && self.state == State::Ready {
            self.state = State::ShuttingDown { flushing: false };
        }
    }

    /// Forgets everything. What is under way ends, and nobody is told.
    fn reset(&mut self) {
        self.state = State::Disabled;
        self.submissions.iter_mut().for_each(|queue| *queue = None);
        self.completions.iter_mut().for_each(|queue| *queue = None);
        self.shadows = None;
        self.requests.forget();
        self.features = admin::Features::new(self.identity.write_back);
        self.event_requests = 0;
    }

    /// Does all that can be done now: after each access, and when requests have ended.
    fn go_on(&mut self, ctx: &mut Context) {
        if self.retired {
            return;
        }
        let rests = self.requests.is_empty();
        match self.state {
            State::Disabled if rests && self.registers.is_enabled() => self.enable(ctx),
            State::Ready => self.read_commands(ctx),
            State::ShuttingDown { flushing: false } if rests => {
                self.state = State::ShuttingDown { flushing: true };
                let flush = io::perform(Arc::clone(&self.device), Work::Flush);
                if self.requests.start(About::Shutdown, flush).is_some() {
                    self.state = State::ShutDown;
                }
            }
            _ => {}
        }
        for queue in self.completions.iter_mut().flatten() {
            if let Some(vector) = queue.take_news() {
                self.msix.signal(vector, ctx);
            }
        }
    }

    /// Makes the administrator's queues as the registers say.
    fn enable(&mut self, ctx: &mut Context) {
        let queues = self.registers.admin_queues().and_then(|[submission, completion]| {
            let answers = CompletionQueue::new(ctx.memory, completion.base, completion.entries, Some(0))?;
            Some((SubmissionQueue::new(ctx.memory, submission.base, submission.entries, 0)?, answers))
        });
        let (Some((submission, completion)), Some(submissions), Some(completions)) =
            (queues, self.submissions.first_mut(), self.completions.first_mut())
        else {
            self.state = State::Failed;
            let what = "expected queues of 2 to 1024 entries in memory and pages of 4 KiB, found others";
            return ctx.complain("NVMe", what.into());
        };
        (*submissions, *completions) = (Some(submission), Some(completion));
        self.state = State::Ready;
    }

    /// Reads commands in turn from all queues, as long as there are some that can be begun.
    fn read_commands(&mut self, ctx: &mut Context) {
        for _ in 0..COMMANDS_AT_ONCE {
            let Some(n) = self.next_queue(ctx) else { return };
            let command = slot(&mut self.submissions, n).and_then(|queue| queue.take(ctx.memory));
            let Some(command) = command else {
                self.state = State::Failed;
                return;
            };
            let answer = match (command.check(), n) {
                (Err(status), _) => Answer::Now(Err(status)),
                (Ok(()), 0) => self.administer(&command, ctx),
                (Ok(()), _) => self.begin(n, &command, ctx),
            };
            match answer {
                Answer::Now(result) => self.answer(n, command.id, result, ctx),
                Answer::Later => {}
                Answer::Never => self.let_go(n),
            }
        }
        // The others on this core want to go on too.
        self.waker.wake_by_ref();
    }

    /// The next queue with a command that can be begun, which has an answer's place promised.
    fn next_queue(&mut self, ctx: &Context) -> Option<u16> {
        let count = self.submissions.len();
        for _ in 0..count {
            let n = self.turn;
            self.turn = n.saturating_add(1).checked_rem(count)?;
            let Some(queue) = self.submissions.get_mut(n).and_then(Option::as_mut) else { continue };
            if n != 0 && self.requests.is_full() || !queue.look(ctx.memory) {
                continue;
            }
            let answers = slot(&mut self.completions, queue.answers);
            if answers.is_some_and(|answers| answers.promise(ctx.memory)) {
                return u16::try_from(n).ok();
            }
        }
        None
    }

    /// A command of queue `n` never gets an answer.
    fn let_go(&mut self, n: u16) {
        let Some(queue) = slot(&mut self.submissions, n) else { return };
        queue.under_way = queue.under_way.saturating_sub(1);
        slot(&mut self.completions, queue.answers).into_iter().for_each(CompletionQueue::release);
    }

    /// Answers a command of queue `n`.
    fn answer(&mut self, n: u16, id: u16, result: Result<u32, Status>, ctx: &mut Context) {
        let Some(queue) = slot(&mut self.submissions, n) else { return };
        queue.under_way = queue.under_way.saturating_sub(1);
        let (result, status) = result.map_or_else(|status| (0, status), |result| (result, Status::SUCCESS));
        let answer = Completion { result, queue: n, head: queue.head(), id, status };
        if let Some(answers) = slot(&mut self.completions, queue.answers) {
            answers.put(ctx.memory, &answer);
        }
        if let (Some(deleted_by), 0) = (queue.deleted_by, queue.under_way) {
            if let Some(queue) = self.submissions.get_mut(usize::from(n)) {
                *queue = None;
            }
            self.answer(0, deleted_by, Ok(0), ctx);
        }
    }

    /// Answers the commands whose requests have ended.
    fn take_ended(&mut self, ctx: &mut Context) {
        while let Some((about, ended)) = self.requests.take_ended() {
            match about {
                About::Command { queue, id, kind } => self.end(queue, id, kind, ended, ctx),
                About::Shutdown => self.state = State::ShutDown,
            }
        }
    }
}

impl PciFunction for Nvme {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn connect(&mut self, waker: Waker) {
        self.requests = Requests::new(MOST_UNDER_WAY, waker.clone());
        self.waker = waker;
    }

    fn poll(&mut self, ctx: &mut Context) {
        self.take_ended(ctx);
        self.go_on(ctx);
    }

    fn wind_down(&mut self, ctx: &mut Context) -> bool {
        if !self.retired {
            self.retired = true;
            self.reset();
        }
        self.take_ended(ctx);
        self.requests.is_empty()
    }

    fn config_written(&mut self, _offset: u8, ctx: &mut Context) {
        self.msix.config_written(&self.config, ctx);
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, width: Width, _ctx: &mut Context) -> u64 {
        self.msix.read(offset, width).unwrap_or_else(|| self.read(offset))
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, width: Width, value: u64, ctx: &mut Context) {
        if self.msix.write(offset, width, value, ctx).is_none() {
            self.write(offset, width, value, ctx);
        }
    }
}

/// When a command is answered, and how.
enum Answer {
    /// At once; a result is the answer's first dword.
    Now(Result<u32, Status>),
    /// When what it began has ended.
    Later,
    Never,
}

/// The queue of this number, if there is one.
fn slot<Q>(queues: &mut [Option<Q>], n: u16) -> Option<&mut Q> {
    queues.get_mut(usize::from(n))?.as_mut()
}

#[cfg(test)]
mod tests;
