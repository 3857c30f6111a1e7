//! Interrupts on their way into a virtual CPU, and the timers that raise them.

use super::Vcpu;
use crate::chipset::ApicEffect;
use crate::cpu::{CpuState, Event, rflags};
use crate::eoi_word::EoiWord;
use crate::guest::End;
use crate::time::{Instant, earlier};

/// How long a guest may go without an exit where the CPU can end that by itself, in nanoseconds.
const LONGEST_STAY: u64 = 100_000_000;

impl Vcpu {
    /// Whether anything changed that could make an interrupt deliverable.
    pub(super) fn needs_attention(&mut self) -> bool {
        // Taken even when there is attention already: a CPU that halts with a kick left over is not let sleep.
        self.attention |= self.guest.apics.take_kick(self.index as usize);
        self.attention || self.window
    }

    /// Whether another CPU of the guest sent this one back to its beginning.
    pub(super) fn starts_over(&self) -> bool {
        self.guest.apics.lock(self.index as usize).is_some_and(|apic| apic.init_pending())
    }

    /// Follows INIT and start-up messages (SDM 9.4.4): the first puts the CPU into its reset state, where it
    /// waits, the second has it begin in real mode. The bootstrap CPU would begin at the reset vector, where
    /// firmware is: its INIT is the guest's reset.
    pub(super) fn follow_start_messages(&mut self) {
        let Some(mut apic) = self.guest.apics.lock(self.index as usize) else { return };
        let (init, startup) = (apic.take_init(), apic.take_startup());
        drop(apic);
        if init && self.index == 0 {
            self.guest.end(End::Reset);
            return;
        }
        if init {
            self.eoi_word = EoiWord::default();
            self.cpu.load(&CpuState::reset());
            self.halted = true;
        }
        if let Some(page) = startup {
            self.cpu.load(&CpuState::startup(page));
            self.halted = false;
        }
    }

    /// Tells the guest of time that others had its core.
    pub(super) fn tell_steal_time(&mut self, waited: u64) {
        self.steal_time.add(waited, self.guest.memory());
    }

    /// Injects the most urgent thing the CPU can take now, and asks for a window where something must wait.
    pub(super) fn deliver_interrupts(&mut self) {
        self.settle_end_of_interrupt();
        self.attention = false;
        let mut waiting = None;
        let Some(mut apic) = self.guest.apics.lock(self.index as usize) else { return };
        apic.take_back();
        apic.set_task_priority_class(self.cpu.task_priority_class());

        if apic.nmi_pending() {
            if self.cpu.accepts_nmi() {
                apic.take_nmi();
                self.cpu.inject(Event::Nmi);
            } else {
                self.cpu.request_nmi_window();
                self.attention = true;
            }
        }
        if let Some(vector) = apic.pending_vector() {
            if self.cpu.accepts_interrupt() {
                apic.acknowledge(vector);
                self.cpu.inject(Event::Interrupt(vector));
            }
        } else if apic.external_pending() && self.cpu.accepts_interrupt() {
            apic.acknowledge_external();
            drop(apic);
            let vector = self.guest.acknowledge_external(self.index);
            self.cpu.inject(Event::Interrupt(vector));
            let Some(relocked) = self.guest.apics.lock(self.index as usize) else { return };
            apic = relocked;
        }
        // What waits for RFLAGS.IF waits for a window even where the CPU delivers interrupts by itself: Bochs 2.7
        // would deliver it with IF clear when an interrupt of the host's comes meanwhile.
        let deliverable = apic.pending_vector();
        let request = apic.highest_request();
        let loan = apic.lend();
        if let Some(vector) = if loan.is_some() { deliverable } else { request } {
            waiting = Some(vector >> 4);
        }
        if apic.external_pending() {
            // The 8259 pair has no priority among the local APIC's: it is taken whenever interrupts are.
            waiting = Some(16);
        }
        if apic.ends_quietly() {
            self.eoi_word.offer(self.guest.memory());
        }
        drop(apic);
        self.cpu.lend_apic(loan);
        if waiting.is_some() || self.window {
            self.window = waiting.is_some();
            self.cpu.request_interrupt_window(waiting);
        }
    }

    /// Brings the local APIC up to date where the guest may have ended its interrupt by clearing a word: before
    /// anything looks at what is in service.
    pub(super) fn settle_end_of_interrupt(&mut self) {
        if !self.eoi_word.is_offered() {
            return;
        }
        self.attention = true;
        if self.eoi_word.withdraw(self.guest.memory())
            && let Some(mut apic) = self.guest.apics.lock(self.index as usize)
        {
            // It was an edge: nobody else wants to be told.
            let _ = apic.end_of_interrupt();
        }
    }

    /// Whether a halted CPU has a reason to go on.
    pub(super) fn has_interrupt(&mut self) -> bool {
        self.settle_end_of_interrupt();
        let interrupts_on = self.cpu.registers().rflags & rflags::IF != 0;
        let Some(mut apic) = self.guest.apics.lock(self.index as usize) else { return false };
        let lent = apic.take_back();
        apic.set_task_priority_class(self.cpu.task_priority_class());
        let wakes = apic.has_event(interrupts_on);
        self.attention |= lent || wakes;
        wakes
    }

    /// CR8 and the task-priority register are one: shows the local APIC what was written to CR8.
    pub(super) fn note_task_priority(&mut self) {
        if let Some(mut apic) = self.guest.apics.lock(self.index as usize)
            && !apic.is_lent()
        {
            apic.set_task_priority_class(self.cpu.task_priority_class());
        }
    }

    /// The other way round: shows the CPU what was written to the local APIC. Says whether interrupts may be
    /// deliverable that were not.
    pub(super) fn show_task_priority(&mut self) -> bool {
        let Some(apic) = self.guest.apics.lock(self.index as usize) else { return false };
        if !apic.is_lent() {
            self.cpu.set_task_priority_class(apic.task_priority() >> 4);
        }
        !apic.is_lent() || apic.highest_request().is_some() || apic.nmi_pending() || apic.external_pending()
    }

    /// Does what a write to a register asks for whose value the CPU has kept.
    pub(super) fn complete_apic_write(&mut self, offset: u32) {
        let now = self.guest.host().now();
        if let Some(mut apic) = self.guest.apics.lock(self.index as usize) {
            let effect = apic.complete_write(offset, now);
            drop(apic);
            self.guest.follow(effect, now, self.index);
        }
        self.show_task_priority();
        (self.attention, self.deadline_moved) = (true, true);
    }

    /// Tells the board of the end of an interrupt that the CPU has taken out of service.
    pub(super) fn follow_end_of_interrupt(&mut self, vector: u8) {
        let now = self.guest.host().now();
        self.guest.follow(ApicEffect::EndOfInterrupt { vector }, now, self.index);
        self.attention = true;
    }

    /// Raises what is due at `now`.
    pub(super) fn serve_timers(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        if let Some(mut apic) = self.guest.apics.lock(self.index as usize) {
            apic.advance(now);
        }
        if self.index == 0 {
            self.guest.with_chipset(now, Some(self.index), |chipset, context| chipset.advance(context));
        }
        self.attention = true;
        self.find_deadline();
    }

    /// Finds out when something falls due next.
    pub(super) fn find_deadline(&mut self) {
        let apic = self.guest.apics.lock(self.index as usize).and_then(|apic| apic.next_deadline());
        // The board's timers are the first CPU's to serve.
        let board = if self.index == 0 { self.guest.board_deadline() } else { None };
        self.deadline = earlier(apic, board);
    }

    /// Has the host interrupt the guest when something is due or the slice ends.
    pub(super) fn arm(&mut self, slice_end: Option<Instant>) {
        let (host, deadline) = (self.guest.host(), earlier(self.deadline, slice_end));
        host.arm_timer(deadline);
        if self.cpu.has_preemption_timer() {
            let now = host.now();
            let nanos = deadline.map_or(u64::MAX, |deadline| deadline.nanos_since(now)).min(LONGEST_STAY);
            self.cpu.set_preemption_timer(nanos.saturating_mul(host.tsc_khz()) / 1_000_000);
        }
    }
}
