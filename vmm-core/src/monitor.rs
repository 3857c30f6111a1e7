//! All guests of one core, run in turn; and what follows when one ends.

use crate::cpu::Core;
use crate::guest::{Action, BuildError, End, Guest, GuestConfig};
use crate::host::{Detail, Host, Terminal};
use crate::time::Instant;
use crate::vcpu::{Left, Vcpu, earlier};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How long a virtual CPU runs while others wait for the core, in nanoseconds.
const SLICE: u64 = 10_000_000;

/// One guest of the manifest, living or not.
struct Place {
    config: GuestConfig,
    terminal: Arc<dyn Terminal>,
    /// Empty while the guest is off.
    vcpus: Vec<Vcpu>,
    end: Option<End>,
}

/// Runs guests on one core.
pub struct Monitor {
    core: Core,
    host: &'static dyn Host,
    places: Vec<Place>,
    /// Whose registers the hardware holds: guest and virtual CPU by number.
    attached: Option<(usize, usize)>,
}

impl Monitor {
    /// A monitor without guests.
    pub fn new(core: Core, host: &'static dyn Host) -> Self {
        Self { core, host, places: Vec::new(), attached: None }
    }

    /// Builds a guest; it runs when [`run`](Self::run) is called.
    pub fn add(&mut self, config: GuestConfig, terminal: Arc<dyn Terminal>) -> Result<(), BuildError> {
        let (_, vcpus) = Guest::build(&config, &self.core, self.host, Arc::clone(&terminal))?;
        self.places.push(Place { config, terminal, vcpus, end: None });
        Ok(())
    }

    /// Runs all guests until none is left; says how the last of each one's lives ended.
    pub fn run(&mut self) -> impl Iterator<Item = (&str, End)> {
        while let Some(ready) = self.next_ready() {
            if let Some((guest, vcpu)) = ready {
                self.run_vcpu(guest, vcpu);
            } else {
                self.idle();
            }
        }
        self.places.iter().filter_map(|place| Some((place.config.name.as_str(), place.end?)))
    }

    /// The next virtual CPU that wants to run, in turn after the last; `Some(None)` when all wait, `None` when
    /// no guest lives.
    #[expect(clippy::option_option, reason = "nobody lives, and nobody wants to run, are two things")]
    fn next_ready(&mut self) -> Option<Option<(usize, usize)>> {
        let now = self.host.now();
        let mut all: Vec<(usize, usize)> = Vec::new();
        for (guest, place) in self.places.iter().enumerate() {
            all.extend((0..place.vcpus.len()).map(|vcpu| (guest, vcpu)));
        }
        if all.is_empty() {
            return None;
        }
        let start = self
            .attached
            .and_then(|last| all.iter().position(|one| *one == last))
            .map_or(0, |at| at.wrapping_add(1));
        let in_turn = all.iter().cycle().skip(start).take(all.len());
        for &(guest, vcpu) in in_turn {
            if self.vcpu(guest, vcpu).is_some_and(|vcpu| vcpu.wants_to_run(now)) {
                return Some(Some((guest, vcpu)));
            }
        }
        Some(None)
    }

    fn vcpu(&mut self, guest: usize, vcpu: usize) -> Option<&mut Vcpu> {
        self.places.get_mut(guest)?.vcpus.get_mut(vcpu)
    }

    fn run_vcpu(&mut self, guest: usize, vcpu: usize) {
        let slice_end = self.has_others().then(|| self.host.now().plus_nanos(SLICE));
        if self.attached != Some((guest, vcpu)) {
            self.detach();
            self.attached = Some((guest, vcpu));
            let core = &mut self.core;
            if let Some(vcpu) = self.places.get_mut(guest).and_then(|place| place.vcpus.get_mut(vcpu)) {
                vcpu.attach(core);
            }
        }
        let left = self.vcpu(guest, vcpu).map(|vcpu| vcpu.run(slice_end));
        if let Some(Left::Ended(end)) = left {
            self.follow_end(guest, end);
        }
    }

    fn has_others(&self) -> bool {
        self.places.iter().map(|place| place.vcpus.len()).fold(0, usize::saturating_add) > 1
    }

    fn detach(&mut self) {
        if let Some((guest, vcpu)) = self.attached.take()
            && let Some(vcpu) = self.vcpu(guest, vcpu)
        {
            vcpu.detach();
        }
    }

    /// Waits until a timer of some guest is due, or an interrupt comes.
    fn idle(&mut self) {
        let deadlines = self.places.iter().flat_map(|place| &place.vcpus).map(Vcpu::deadline);
        let first: Option<Instant> = deadlines.fold(None, earlier);
        self.host.arm_timer(first);
        self.host.wait_for_interrupt();
    }

    /// A guest's life ended: says so, gives everything back, and starts the next life where the manifest
    /// wants one.
    fn follow_end(&mut self, guest: usize, end: End) {
        self.detach();
        let Some(place) = self.places.get_mut(guest) else { return };
        let name = place.config.name.as_str();
        self.host.log(Detail::Everyone, name, format_args!("{end}"));
        for vcpu in place.vcpus.drain(..) {
            self.host.log(Detail::Everyone, name, format_args!("exits: {}", vcpu.exits()));
        }
        place.end = Some(end);
        if place.config.action_after(&end) == Action::Restart {
            match Guest::build(&place.config, &self.core, self.host, Arc::clone(&place.terminal)) {
                Ok((_, vcpus)) => {
                    self.host.log(Detail::Everyone, name, format_args!("starts again"));
                    place.vcpus = vcpus;
                }
                Err(error) => {
                    self.host.log(Detail::Everyone, name, format_args!("cannot start again: {error}"))
                }
            }
        }
    }
}
