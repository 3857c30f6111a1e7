//! The administrator's commands (NVMe 1.4, 5).

use super::command::{Command, Status};
use super::identify::{self, EVENT_REQUESTS};
use super::queue::{CompletionQueue, MOST_ENTRIES, Shadow, SubmissionQueue, whole_pages};
use super::{Answer, Nvme, prp, slot};
use crate::chipset::Context;

const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
const GET_LOG_PAGE: u8 = 0x02;
const DELETE_COMPLETION_QUEUE: u8 = 0x04;
const CREATE_COMPLETION_QUEUE: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const ASYNCHRONOUS_EVENT_REQUEST: u8 = 0x0c;
const DOORBELL_BUFFER: u8 = 0x7c;

/// Dword 11 of what creates a queue: it lies in one piece.
const CONTIGUOUS: u32 = 1;
/// Of what creates a completion queue: it has interrupts.
const INTERRUPTS: u32 = 1 << 1;
/// What an abort answers: the command goes on.
const NOT_ABORTED: u32 = 1;

impl Nvme {
    /// Does a command of the administrator's.
    pub(super) fn administer(&mut self, command: &Command, ctx: &mut Context) -> Answer {
        let done = match command.opcode {
            DELETE_SUBMISSION_QUEUE => return self.delete_submission_queue(command),
            ASYNCHRONOUS_EVENT_REQUEST if self.event_requests < EVENT_REQUESTS => {
                self.event_requests = self.event_requests.saturating_add(1);
                return Answer::Never;
            }
            ASYNCHRONOUS_EVENT_REQUEST => Err(Status::TOO_MANY_EVENT_REQUESTS),
            CREATE_SUBMISSION_QUEUE => self.create_submission_queue(command, ctx),
            DELETE_COMPLETION_QUEUE => self.delete_completion_queue(command),
            CREATE_COMPLETION_QUEUE => self.create_completion_queue(command, ctx),
            IDENTIFY => self.identify(command, ctx),
            GET_LOG_PAGE => self.log_page(command, ctx),
            ABORT => Ok(NOT_ABORTED),
            SET_FEATURES => self.set_features(command),
            DOORBELL_BUFFER => self.shadow_doorbells(command, ctx),
            GET_FEATURES => self.features.get(command, self.most_queues),
            _ => Err(Status::INVALID_OPCODE),
        };
        Answer::Now(done)
    }

    /// The number and the entries of a queue to be made.
    fn new_queue(&self, command: &Command, taken: impl Fn(usize) -> bool) -> Result<(u16, u16), Status> {
        let [what, how, ..] = command.words;
        let (number, last) = (what as u16, (what >> 16) as u16);
        if number == 0 || number > self.most_queues || taken(usize::from(number)) {
            return Err(Status::INVALID_QUEUE);
        }
        if last == 0 || last >= MOST_ENTRIES || !self.registers.has_entry_sizes() {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if how & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok((number, last.saturating_add(1)))
    }

    fn create_completion_queue(&mut self, command: &Command, ctx: &Context) -> Result<u32, Status> {
        let taken = |n| self.completions.get(n).is_none_or(Option::is_some);
        let (number, entries) = self.new_queue(command, taken)?;
        let ([_, how, ..], [base, _]) = (command.words, command.prp);
        let vector = (how >> 16) as u16;
        let interrupts = how & INTERRUPTS != 0;
        if interrupts && vector >= self.msix.vectors() {
            return Err(Status::INVALID_VECTOR);
        }
        let queue = CompletionQueue::new(ctx.memory, base, entries, interrupts.then_some(vector));
        let place = self.completions.get_mut(usize::from(number)).ok_or(Status::INVALID_QUEUE)?;
        *place = Some(queue.ok_or(Status::INVALID_PRP_OFFSET)?);
        self.place_shadows();
        Ok(0)
    }

    fn create_submission_queue(&mut self, command: &Command, ctx: &Context) -> Result<u32, Status> {
        let taken = |n| self.submissions.get(n).is_none_or(Option::is_some);
        let (number, entries) = self.new_queue(command, taken)?;
        let ([_, how, ..], [base, _]) = (command.words, command.prp);
        let answers = (how >> 16) as u16;
        if answers == 0 || slot(&mut self.completions, answers).is_none() {
            return Err(Status::INVALID_COMPLETION_QUEUE);
        }
        let queue = SubmissionQueue::new(ctx.memory, base, entries, answers);
        let place = self.submissions.get_mut(usize::from(number)).ok_or(Status::INVALID_QUEUE)?;
        *place = Some(queue.ok_or(Status::INVALID_PRP_OFFSET)?);
        self.place_shadows();
        Ok(0)
    }

    /// From now on the guest leaves the doorbells of I/O queues in one page, and reads in another when it has to ring.
    fn shadow_doorbells(&mut self, command: &Command, ctx: &Context) -> Result<u32, Status> {
        let page = |at| whole_pages(ctx.memory, at, prp::PAGE).ok_or(Status::INVALID_PRP_OFFSET);
        let [doorbell, event] = command.prp;
        self.shadows = Some(Shadow { doorbell: page(doorbell)?, event: page(event)? });
        self.place_shadows();
        Ok(0)
    }

    /// Gives each I/O queue its doorbell in the guest's pages: in the registers' order, four bytes each.
    fn place_shadows(&mut self) {
        let Some(Shadow { doorbell, event }) = self.shadows else { return };
        let at = |bytes: u64| {
            Some(Shadow { doorbell: doorbell.checked_add(bytes)?, event: event.checked_add(bytes)? })
        };
        for (queue, n) in self.submissions.iter_mut().zip(0_u64..).skip(1) {
            queue.iter_mut().for_each(|queue| queue.shadow = at(n.saturating_mul(8)));
        }
        for (queue, n) in self.completions.iter_mut().zip(0_u64..).skip(1) {
            queue.iter_mut().for_each(|queue| queue.shadow = at(n.saturating_mul(8).saturating_add(4)));
        }
    }

    /// Answered when the queue's last command is.
    fn delete_submission_queue(&mut self, command: &Command) -> Answer {
        let [what, ..] = command.words;
        let number = what as u16;
        let queue = slot(&mut self.submissions, number).filter(|queue| queue.deleted_by.is_none());
        match queue {
            Some(queue) if number != 0 && queue.under_way > 0 => {
                queue.deleted_by = Some(command.id);
                Answer::Later
            }
            Some(_) if number != 0 => {
                self.submissions.get_mut(usize::from(number)).into_iter().for_each(|queue| *queue = None);
                Answer::Now(Ok(0))
            }
            _ => Answer::Now(Err(Status::INVALID_QUEUE)),
        }
    }

    fn delete_completion_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let [what, ..] = command.words;
        let number = what as u16;
        if self.submissions.iter().flatten().any(|queue| queue.answers == number) {
            return Err(if number == 0 { Status::INVALID_QUEUE } else { Status::INVALID_QUEUE_DELETION });
        }
        let queue = self.completions.get_mut(usize::from(number)).filter(|queue| queue.is_some());
        *queue.ok_or(Status::INVALID_QUEUE)? = None;
        Ok(0)
    }

    fn identify(&self, command: &Command, ctx: &Context) -> Result<u32, Status> {
        let [what, ..] = command.words;
        let asked = (what as u8, command.namespace);
        let bytes = identify::structure(&self.identity, &self.device.geometry(), asked)?;
        prp::buffer(ctx.memory, command, bytes.len() as u64)?.write(0, &bytes);
        Ok(0)
    }

    fn log_page(&self, command: &Command, ctx: &Context) -> Result<u32, Status> {
        let [what, more, offset, offset_high] = command.words;
        let page = self.health.page(what as u8)?;
        let offset = usize::try_from(u64::from(offset_high) << 32 | u64::from(offset));
        let page = offset.ok().filter(|offset| offset & 3 == 0).and_then(|offset| page.get(offset..));
        let page = page.ok_or(Status::INVALID_FIELD)?;
        let dwords = (u64::from(more & 0xffff) << 16 | u64::from(what >> 16)).saturating_add(1);
        let len = dwords.saturating_mul(4);
        // What lies behind a page is not said, and left as it is.
        let wanted = usize::try_from(len).ok().and_then(|len| page.get(..len)).unwrap_or(page);
        prp::buffer(ctx.memory, command, len)?.write(0, wanted);
        Ok(0)
    }

    fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        const SAVE: u32 = 1 << 31;
        let [what, value, ..] = command.words;
        if what & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        self.features.set(what as u8, value, self.most_queues)
    }
}

/// Features (5.21.1).
mod feature {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    pub const EVENTS: u8 = 0x0b;
}

/// One more than the last feature.
const FEATURES: usize = 0x0c;

/// What the guest set.
#[derive(Clone, Debug)]
pub(super) struct Features {
    /// By the feature's number.
    values: [u32; FEATURES],
    write_back: bool,
}

impl Features {
    /// As after a reset, for a disk that caches writes or does not.
    pub(super) fn new(write_back: bool) -> Self {
        let mut values = [0; FEATURES];
        if let Some(value) = values.get_mut(usize::from(feature::WRITE_CACHE)) {
            *value = u32::from(write_back);
        }
        Self { values, write_back }
    }

    /// Whether writes may be lost with the power until a flush; where the guest does not want that though the disk has
    /// a cache, each write is flushed.
    pub(super) fn caches_writes(&self) -> bool {
        !self.write_back || self.value(feature::WRITE_CACHE) & 1 != 0
    }

    fn value(&self, feature: u8) -> u32 {
        self.values.get(usize::from(feature)).copied().unwrap_or(0)
    }

    fn get(&self, command: &Command, queues: u16) -> Result<u32, Status> {
        /// Dword 10: not the value it has now, but its default or what may be done with it.
        const SELECT: u32 = 0b111 << 8;
        /// Dword 11 of the temperature threshold: which sensor, and whether over or under.
        const SENSOR: u32 = 0x3f_0000;
        let [what, how, ..] = command.words;
        if what & SELECT != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match what as u8 {
            feature::NUMBER_OF_QUEUES => Ok(pairs(queues)),
            feature::INTERRUPT_VECTOR => Ok(how & 0xffff),
            feature::TEMPERATURE_THRESHOLD if how & SENSOR != 0 => Ok(0),
            feature::WRITE_CACHE if !self.write_back => Err(Status::INVALID_FIELD),
            feature if changeable(feature).is_some() => Ok(self.value(feature)),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn set(&mut self, feature: u8, value: u32, queues: u16) -> Result<u32, Status> {
        match feature {
            feature::NUMBER_OF_QUEUES if value as u16 == u16::MAX || value >> 16 == 0xffff => {
                return Err(Status::INVALID_FIELD);
            }
            // As many as there are, whatever is asked for.
            feature::NUMBER_OF_QUEUES => return Ok(pairs(queues)),
            feature::INTERRUPT_VECTOR => return Ok(0),
            feature::WRITE_CACHE if !self.write_back => return Err(Status::INVALID_FIELD),
            _ => {}
        }
        let changeable = changeable(feature).ok_or(Status::INVALID_FIELD)?;
        if value & !changeable != 0 {
            return Err(Status::FEATURE_NOT_CHANGEABLE);
        }
        self.values.get_mut(usize::from(feature)).into_iter().for_each(|stored| *stored = value);
        Ok(0)
    }
}

/// The numbers of queues of each kind, less one.
fn pairs(queues: u16) -> u32 {
    let last = u32::from(queues.saturating_sub(1));
    last << 16 | last
}

/// Which bits of a feature may be set; `None` where there is no such feature.
fn changeable(feature: u8) -> Option<u32> {
    match feature {
        feature::ARBITRATION | feature::TEMPERATURE_THRESHOLD | feature::ERROR_RECOVERY => Some(u32::MAX),
        feature::INTERRUPT_COALESCING | feature::EVENTS => Some(u32::MAX),
        feature::WRITE_CACHE | feature::WRITE_ATOMICITY => Some(1),
        // There is but one power state.
        feature::POWER_MANAGEMENT => Some(0),
        _ => None,
    }
}
