//! All local APICs of a guest, and the way messages find theirs.

use super::apic_message::{ApicBus, ApicMessage, DeliveryMode, Destination};
use super::local_apic::LocalApic;
use crate::time::TscClock;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use spin::{Mutex, MutexGuard};

/// One local APIC and whether something came in for it; apart from its neighbours in the cache.
#[repr(align(64))]
struct Slot {
    apic: Mutex<LocalApic>,
    kicked: AtomicBool,
}

/// A guest's local APICs, one for each vCPU, each behind a lock of its own.
///
/// Nobody may hold one of these locks while calling into the chipset or [`ApicBus::deliver`]: both lock the
/// destinations.
pub struct LocalApics {
    slots: Box<[Slot]>,
    /// Where the next search for a lowest-priority destination starts, so that equals take turns.
    turn: AtomicUsize,
}

impl LocalApics {
    /// Local APICs for vCPUs 0 to `count` - 1, whose numbers are their IDs. `clock` is the guest's TSC.
    pub fn new(count: u32, clock: TscClock) -> Self {
        let slot = |id| Slot { apic: Mutex::new(LocalApic::new(id, clock)), kicked: AtomicBool::new(false) };
        Self { slots: (0..count).map(slot).collect(), turn: AtomicUsize::new(0) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Locks the local APIC of `vcpu`; `None` where there is no such vCPU.
    pub fn lock(&self, vcpu: usize) -> Option<MutexGuard<'_, LocalApic>> {
        Some(self.slots.get(vcpu)?.apic.lock())
    }

    /// Whether a message came in for `vcpu` since this was last asked: it must leave the guest, or wake, and
    /// look at its local APIC.
    pub fn take_kick(&self, vcpu: usize) -> bool {
        // A plain load first: nearly always there is nothing, and a swap would cost the cache line.
        self.slots.get(vcpu).is_some_and(|slot| {
            slot.kicked.load(Ordering::Relaxed) && slot.kicked.swap(false, Ordering::Acquire)
        })
    }

    /// Has `vcpu` look at its local APIC and at its timers.
    pub fn kick(&self, vcpu: usize) {
        if let Some(slot) = self.slots.get(vcpu) {
            slot.kicked.store(true, Ordering::Release);
        }
    }

    /// Whether `vcpu` has a kick to take.
    pub fn is_kicked(&self, vcpu: usize) -> bool {
        self.slots.get(vcpu).is_some_and(|slot| slot.kicked.load(Ordering::Acquire))
    }

    /// The vCPUs that have a kick to take: those whose cores the host should interrupt.
    pub fn kicked(&self) -> impl Iterator<Item = usize> {
        (0..self.slots.len()).filter(|&vcpu| self.is_kicked(vcpu))
    }

    /// Pulses LINT1 of every local APIC: the NMI button.
    pub fn pulse_nmi(&self) {
        for slot in &self.slots {
            slot.apic.lock().pulse_lint1();
            slot.kicked.store(true, Ordering::Release);
        }
    }

    fn deliver_to(slot: &Slot, message: &ApicMessage) -> bool {
        let mut apic = slot.apic.lock();
        let taken = apic.matches(message.destination) && apic.accept(message);
        drop(apic);
        if taken {
            slot.kicked.store(true, Ordering::Release);
        }
        taken
    }

    /// Offers `message` to the matching local APIC that runs at the lowest priority.
    fn deliver_lowest(&self, message: &ApicMessage) -> bool {
        let count = self.slots.len();
        let start = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(count).unwrap_or(0);
        let mut best: Option<(u8, &Slot)> = None;
        for slot in self.slots.iter().cycle().skip(start).take(count) {
            let apic = slot.apic.lock();
            if let Some(priority) = apic.arbitration_priority()
                && apic.matches(message.destination)
                && best.is_none_or(|(lowest, _)| priority < lowest)
            {
                best = Some((priority, slot));
            }
        }
        best.is_some_and(|(_, slot)| Self::deliver_to(slot, message))
    }
}

impl ApicBus for LocalApics {
    fn deliver(&self, message: ApicMessage) -> bool {
        match (message.destination, message.delivery) {
            (Destination::Physical(id), _) if id != Destination::BROADCAST => usize::try_from(id)
                .ok()
                .and_then(|vcpu| self.slots.get(vcpu))
                .is_some_and(|slot| Self::deliver_to(slot, &message)),
            (_, DeliveryMode::LowestPriority) => self.deliver_lowest(&message),
            _ => self.slots.iter().filter(|slot| Self::deliver_to(slot, &message)).count() != 0,
        }
    }

    fn set_intr(&self, high: bool) {
        for slot in &self.slots {
            let mut apic = slot.apic.lock();
            apic.set_intr(high);
            if high && apic.has_event(true) {
                slot.kicked.store(true, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chipset::apic_message::Trigger;
    use crate::chipset::local_apic::{ApicEffect, MSR_APIC_BASE};
    use crate::cpu::Width;
    use crate::time::Instant;

    fn four() -> LocalApics {
        let apics = LocalApics::new(4, TscClock::new(1_000_000, Instant::ZERO));
        for vcpu in 0..4 {
            let logical = 0x0100_0000u64 << vcpu;
            let mut apic = apics.lock(vcpu).unwrap();
            for (offset, value) in [(0xf0, 0x1ff), (0xd0, logical)] {
                let effect = apic.mmio_write(offset, Width::Dword, value, Instant::ZERO);
                assert_eq!(effect, ApicEffect::None);
            }
        }
        apics
    }

    fn fixed(destination: Destination) -> ApicMessage {
        ApicMessage { destination, delivery: DeliveryMode::Fixed, vector: 0x41, trigger: Trigger::Edge }
    }

    /// Which vCPUs were kicked, and that exactly those have the vector.
    fn reached(apics: &LocalApics) -> Vec<usize> {
        let kicked: Vec<usize> = apics.kicked().collect();
        for vcpu in 0..4 {
            let pending = apics.lock(vcpu).unwrap().pending_vector();
            assert_eq!(pending == Some(0x41), kicked.contains(&vcpu));
            assert_eq!(apics.take_kick(vcpu), kicked.contains(&vcpu));
            assert!(!apics.take_kick(vcpu));
        }
        kicked
    }

    #[test]
    fn every_destination_reaches_its_own() {
        let cases = [
            (Destination::Physical(2), vec![2]),
            (Destination::Physical(4), vec![]),
            (Destination::Physical(Destination::BROADCAST), vec![0, 1, 2, 3]),
            (Destination::from_xapic(0xff, false), vec![0, 1, 2, 3]),
            (Destination::Logical(0b1010), vec![1, 3]),
            (Destination::All, vec![0, 1, 2, 3]),
            (Destination::AllExcept(1), vec![0, 2, 3]),
        ];
        for (destination, expected) in cases {
            let apics = four();
            assert_eq!(apics.deliver(fixed(destination)), !expected.is_empty());
            assert_eq!(reached(&apics), expected, "{destination:?}");
        }
    }

    #[test]
    fn x2apic_clusters_reach_their_members() {
        let apics = LocalApics::new(20, TscClock::new(1_000_000, Instant::ZERO));
        for vcpu in 0..20 {
            let mut apic = apics.lock(vcpu).unwrap();
            let _ = apic.write_msr(MSR_APIC_BASE, 0xfee0_0c00, Instant::ZERO).unwrap();
            let _ = apic.write_msr(0x80f, 0x1ff, Instant::ZERO).unwrap();
        }
        assert!(apics.deliver(fixed(Destination::Logical(0x1_0005))));
        assert_eq!(apics.kicked().collect::<Vec<_>>(), [16, 18]);
    }

    #[test]
    fn the_lowest_priority_takes_it_and_equals_take_turns() {
        let apics = four();
        for (vcpu, priority) in [(0, 0x30), (1, 0x20), (2, 0x20), (3, 0x30)] {
            apics.lock(vcpu).unwrap().set_task_priority(priority);
        }
        let mut counts = [0; 4];
        for _ in 0..8 {
            let message =
                ApicMessage { delivery: DeliveryMode::LowestPriority, ..fixed(Destination::Logical(0xff)) };
            assert!(apics.deliver(message));
            let taken: Vec<usize> = apics.kicked().collect();
            assert_eq!(taken.len(), 1);
            assert!(apics.take_kick(taken[0]));
            counts[taken[0]] += 1;
        }
        assert_eq!((counts[0], counts[3]), (0, 0));
        assert!(counts[1] > 0 && counts[2] > 0);
    }

    #[test]
    fn intr_kicks_the_one_that_listens() {
        let apics = four();
        let _ = apics.lock(0).unwrap().mmio_write(0x350, Width::Dword, 0x700, Instant::ZERO);
        apics.set_intr(true);
        assert_eq!(apics.kicked().collect::<Vec<_>>(), [0]);
        assert!(apics.lock(0).unwrap().external_pending());
        apics.set_intr(false);
        assert!(!apics.lock(0).unwrap().external_pending());
    }

    #[test]
    fn the_nmi_button_reaches_whoever_listens_at_lint1() {
        let apics = four();
        let _ = apics.lock(1).unwrap().mmio_write(0x360, Width::Dword, 0x400, Instant::ZERO);
        apics.pulse_nmi();
        let taken: Vec<bool> = (0..4).map(|vcpu| apics.lock(vcpu).unwrap().take_nmi()).collect();
        assert_eq!(taken, [false, true, false, false]);
    }
}
