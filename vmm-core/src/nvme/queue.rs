//! Submission and completion queues in guest memory (NVMe 1.4, 4.1).

use super::command::{Command, ENTRY_BYTES, Status};
use crate::memory::{GuestMemory, GuestPhys};
use core::sync::atomic::{Ordering, fence};

/// The most entries of a queue.
pub(super) const MOST_ENTRIES: u16 = 1024;
/// The size of a completion queue entry in bytes.
const COMPLETION_BYTES: u64 = 16;

/// Where the guest leaves a doorbell's value, which spares it the ringing, and where it reads from which value on it has
/// to ring all the same (5.7).
#[derive(Clone, Copy, Debug)]
pub(super) struct Shadow {
    pub(super) doorbell: GuestPhys,
    pub(super) event: GuestPhys,
}

impl Shadow {
    fn read(self, memory: &GuestMemory) -> Option<u32> {
        memory.read_u32(self.doorbell).ok()
    }

    /// Has the guest ring when it moves on from `value`, and reads what it left before it could know.
    fn arm(self, memory: &GuestMemory, value: u16) -> Option<u32> {
        memory.write_u32(self.event, u32::from(value)).ok()?;
        // It writes the one and then reads the other, as we do crosswise: one of us must see the other's.
        fence(Ordering::SeqCst);
        self.read(memory)
    }
}

/// Where the guest puts commands.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    base: GuestPhys,
    entries: u16,
    /// The next entry to read.
    head: u16,
    /// Behind the last entry that is there.
    tail: u16,
    /// The completion queue that its commands are answered in.
    pub(super) answers: u16,
    /// How many of its commands were read and are not answered yet.
    pub(super) under_way: u16,
    /// The identifier of the command that deletes it, once there was one.
    pub(super) deleted_by: Option<u16>,
    /// What spares the guest its ringing, where it offered that.
    pub(super) shadow: Option<Shadow>,
    /// From which entry on the guest was told to ring.
    armed: Option<u16>,
}

impl SubmissionQueue {
    /// A queue of `entries` (2 to [`MOST_ENTRIES`]) at `base`; `None` where that is not all memory.
    pub(super) fn new(memory: &GuestMemory, base: u64, entries: u16, answers: u16) -> Option<Self> {
        let base = whole_pages(memory, base, u64::from(entries).checked_mul(ENTRY_BYTES as u64)?)?;
        Some(Self {
            base,
            entries,
            head: 0,
            tail: 0,
            answers,
            under_way: 0,
            deleted_by: None,
            shadow: None,
            armed: None,
        })
    }

    /// The guest says where the last entry ends. What lies outside the queue is nonsense, and ignored.
    pub(super) fn ring(&mut self, tail: u32) {
        self.tail = within(tail, self.entries).unwrap_or(self.tail);
    }

    /// Whether there is a command to read, be it one for which the guest did not ring. Where there is none, it will.
    pub(super) fn look(&mut self, memory: &GuestMemory) -> bool {
        if let Some(shadow) = self.shadow
            && self.head == self.tail
        {
            shadow.read(memory).into_iter().for_each(|tail| self.ring(tail));
            if self.head == self.tail && self.armed != Some(self.tail) {
                self.armed = Some(self.tail);
                shadow.arm(memory, self.tail).into_iter().for_each(|tail| self.ring(tail));
            }
        }
        // The commands were written before the doorbell was left.
        fence(Ordering::Acquire);
        self.has_command()
    }

    fn has_command(&self) -> bool {
        self.head != self.tail && self.deleted_by.is_none()
    }

    /// Reads the next command, if there is one.
    pub(super) fn take(&mut self, memory: &GuestMemory) -> Option<Command> {
        if !self.has_command() {
            return None;
        }
        let at = self.base.checked_add(u64::from(self.head).saturating_mul(ENTRY_BYTES as u64))?;
        self.head = after(self.head, self.entries);
        self.under_way = self.under_way.saturating_add(1);
        let mut bytes = [0; ENTRY_BYTES];
        memory.read(at, &mut bytes).ok()?;
        Some(Command::read(&bytes))
    }

    /// How far it was read, for the answers.
    pub(super) fn head(&self) -> u16 {
        self.head
    }
}

/// Where the guest finds answers.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    base: GuestPhys,
    entries: u16,
    /// The first entry that the guest has not seen.
    head: u16,
    /// Where the next answer goes.
    tail: u16,
    /// What tells new entries from old ones.
    phase: bool,
    /// The interrupt vector that says there are some.
    vector: Option<u16>,
    /// Entries that commands under way will need.
    promised: u16,
    /// The guest has not been told of the last ones.
    news: bool,
    /// What spares the guest its ringing, where it offered that.
    pub(super) shadow: Option<Shadow>,
}

/// An answer to a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    /// What the command says its first dword is.
    pub(super) result: u32,
    /// The submission queue and how far that was read.
    pub(super) queue: u16,
    pub(super) head: u16,
    /// The command's identifier.
    pub(super) id: u16,
    pub(super) status: Status,
}

impl CompletionQueue {
    /// A queue of `entries` (2 to [`MOST_ENTRIES`]) at `base`; `None` where that is not all memory.
    pub(super) fn new(memory: &GuestMemory, base: u64, entries: u16, vector: Option<u16>) -> Option<Self> {
        let base = whole_pages(memory, base, u64::from(entries).checked_mul(COMPLETION_BYTES)?)?;
        Some(Self {
            base,
            entries,
            head: 0,
            tail: 0,
            phase: true,
            vector,
            promised: 0,
            news: false,
            shadow: None,
        })
    }

    /// The guest says how far it has seen the answers. What is nonsense is ignored.
    pub(super) fn ring(&mut self, head: u32) {
        let Some(head) = within(head, self.entries) else { return };
        if distance(self.head, head, self.entries) <= distance(self.head, self.tail, self.entries) {
            self.head = head;
        }
    }

    /// Promises an entry for a command; false where there is none left until the guest rings.
    pub(super) fn promise(&mut self, memory: &GuestMemory) -> bool {
        if let Some(shadow) = self.shadow {
            if !self.has_room() {
                shadow.read(memory).into_iter().for_each(|head| self.ring(head));
            }
            if !self.has_room() {
                shadow.arm(memory, self.head).into_iter().for_each(|head| self.ring(head));
            }
        }
        let has_room = self.has_room();
        self.promised = self.promised.saturating_add(u16::from(has_room));
        has_room
    }

    fn has_room(&self) -> bool {
        // One entry stays free, to tell a full queue from an empty one.
        let used = distance(self.head, self.tail, self.entries).saturating_add(self.promised);
        used.saturating_add(1) < self.entries
    }

    /// Takes a promise back: no answer will come.
    pub(super) fn release(&mut self) {
        self.promised = self.promised.saturating_sub(1);
    }

    /// Puts the answer to a command to which an entry was promised.
    pub(super) fn put(&mut self, memory: &GuestMemory, answer: &Completion) {
        self.release();
        let Some(at) = self.base.checked_add(u64::from(self.tail).saturating_mul(COMPLETION_BYTES)) else {
            return;
        };
        let Some(behind) = at.checked_add(COMPLETION_BYTES / 2) else { return };
        let status = answer.status.bits() << 1 | u16::from(self.phase);
        let [low, high] = [answer.queue, answer.id].map(u64::from);
        let rest = u64::from(status) << 48 | high << 32 | low << 16 | u64::from(answer.head);
        // The phase comes last. All of it was memory when the queue was made, and still is.
        let _ = memory.write_u64(at, u64::from(answer.result));
        fence(Ordering::Release);
        let _ = memory.write_u64(behind, rest);
        self.tail = after(self.tail, self.entries);
        self.phase ^= self.tail == 0;
        self.news = true;
    }

    /// The vector to signal, if there are answers that the guest was not told of.
    pub(super) fn take_news(&mut self) -> Option<u16> {
        core::mem::take(&mut self.news).then_some(self.vector).flatten()
    }
}

/// `base`, where it begins a page and `len` bytes from there on are memory.
pub(super) fn whole_pages(memory: &GuestMemory, base: u64, len: u64) -> Option<GuestPhys> {
    let base = GuestPhys::new(base);
    (base.is_aligned(super::prp::PAGE) && memory.contains(base, len)).then_some(base)
}

fn within(entry: u32, entries: u16) -> Option<u16> {
    u16::try_from(entry).ok().filter(|entry| *entry < entries)
}

fn after(entry: u16, entries: u16) -> u16 {
    within(u32::from(entry).saturating_add(1), entries).unwrap_or(0)
}

/// How many entries there are from `from` up to `to`.
fn distance(from: u16, to: u16, entries: u16) -> u16 {
    if to >= from { to.saturating_sub(from) } else { entries.saturating_sub(from).saturating_add(to) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::tests::memory;

    #[test]
    fn commands_are_read_in_order_and_around() {
        let memory = memory();
        let mut queue = SubmissionQueue::new(&memory, 0x1000, 3, 1).unwrap();
        assert!(queue.take(&memory).is_none());
        for round in 0..5_u16 {
            let (at, next) = (u64::from(round % 3), (u32::from(round) + 1) % 3);
            memory.write_u32(GuestPhys::new(0x1000 + at * 64), u32::from(round) << 16 | 2).unwrap();
            queue.ring(next);
            queue.ring(3);
            queue.ring(u32::MAX);
            assert_eq!(queue.take(&memory).map(|command| command.id), Some(round));
            assert!(queue.take(&memory).is_none());
            assert_eq!(u32::from(queue.head()), next);
        }
        assert_eq!(queue.under_way, 5);
        queue.ring(0);
        queue.deleted_by = Some(7);
        assert!(queue.take(&memory).is_none(), "a queue that is deleted is not read");
        assert!(SubmissionQueue::new(&memory, 0x1040, 3, 1).is_none());
        assert!(SubmissionQueue::new(&memory, 0xf_f000, 65, 1).is_none());
    }

    #[test]
    fn answers_are_put_only_where_the_guest_has_seen_the_last() {
        let memory = memory();
        let mut queue = CompletionQueue::new(&memory, 0x2000, 3, Some(9)).unwrap();
        let answer = |id| Completion { result: 5, queue: 4, head: 3, id, status: Status::INVALID_FIELD };
        assert!(queue.promise(&memory) && queue.promise(&memory) && !queue.promise(&memory));
        queue.release();
        assert!(queue.promise(&memory));
        queue.put(&memory, &answer(0x1234));
        assert!(!queue.promise(&memory));
        assert_eq!((queue.take_news(), queue.take_news()), (Some(9), None));
        assert_eq!(memory.read_u64(GuestPhys::new(0x2000)), Ok(5));
        assert_eq!(memory.read_u64(GuestPhys::new(0x2008)), Ok(0x8005_1234_0004_0003));
        for nonsense in [2, 3, u32::MAX] {
            queue.ring(nonsense);
            assert!(!queue.promise(&memory), "{nonsense}");
        }
        queue.ring(1);
        assert!(queue.promise(&memory) && !queue.promise(&memory));
        queue.put(&memory, &answer(1));
        queue.put(&memory, &answer(2));
        queue.ring(0);
        assert!(queue.promise(&memory));
        queue.put(&memory, &answer(3));
        assert_eq!(memory.read_u64(GuestPhys::new(0x2008)), Ok(0x8004_0003_0004_0003), "the phase changed");
    }

    const DOORBELL: GuestPhys = GuestPhys::new(0x3000);
    const EVENT: GuestPhys = GuestPhys::new(0x4000);

    /// Whether a driver that moves its doorbell from `old` to `new` has to ring.
    fn rings(memory: &GuestMemory, old: u16, new: u16) -> bool {
        let event = memory.read_u32(EVENT).unwrap() as u16;
        memory.write_u32(DOORBELL, u32::from(new)).unwrap();
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    #[test]
    fn a_guest_rings_only_for_a_queue_that_was_empty() {
        let memory = memory();
        let mut queue = SubmissionQueue::new(&memory, 0x1000, 8, 1).unwrap();
        queue.shadow = Some(Shadow { doorbell: DOORBELL, event: EVENT });
        assert!(!queue.look(&memory));
        for tail in 0..20 {
            let [first, second, third] = [tail * 3, tail * 3 + 1, tail * 3 + 2].map(|tail| tail % 8);
            let last = (third + 1) % 8;
            assert!(rings(&memory, first, second));
            assert!(queue.look(&memory));
            assert!(!rings(&memory, second, third), "it is being read");
            assert!(queue.take(&memory).is_some() && queue.look(&memory));
            assert!(!rings(&memory, third, last));
            assert!(queue.take(&memory).is_some() && queue.look(&memory));
            assert!(queue.take(&memory).is_some() && !queue.look(&memory));
        }
        memory.write_u32(DOORBELL, 99).unwrap();
        assert!(!queue.look(&memory), "nonsense");
    }

    #[test]
    fn a_guest_rings_for_answers_only_where_they_had_no_room() {
        let memory = memory();
        let mut queue = CompletionQueue::new(&memory, 0x2000, 4, Some(9)).unwrap();
        queue.shadow = Some(Shadow { doorbell: DOORBELL, event: EVENT });
        let answer = Completion { result: 0, queue: 1, head: 0, id: 0, status: Status::SUCCESS };
        rings(&memory, 0, 1);
        assert!(!rings(&memory, 1, 2) && !rings(&memory, 2, 3) && !rings(&memory, 3, 0));
        memory.write_u32(DOORBELL, 0).unwrap();
        for _ in 0..3 {
            assert!(queue.promise(&memory));
            queue.put(&memory, &answer);
        }
        assert!(!queue.promise(&memory));
        assert!(rings(&memory, 0, 2));
        assert!(queue.promise(&memory), "seen without ringing, too");
    }
}
