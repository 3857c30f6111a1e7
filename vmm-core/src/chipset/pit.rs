//! The 8254 programmable interval timer, and port 0x61, where channel 2's gate and output and the speaker are.
//!
//! Nothing ticks: counts, outputs and edges follow from when a channel was loaded.

use super::layout::{PIT_PORT, SPEAKER_PORT};
use super::oscillator::Oscillator;
use crate::time::Instant;

const CLOCK: Oscillator = Oscillator::PIT;

/// The refresh request toggles every 18 ticks, about 15 µs.
const REFRESH_TICKS: u64 = 18;

/// Which bytes of a count are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low = 1,
    High = 2,
    Both = 3,
}

/// One of the three counters. All times are in ticks.
#[derive(Debug)]
struct Channel {
    /// 0 to 5.
    mode: u8,
    access: Access,
    bcd: bool,
    gate: bool,
    /// 1 to 65536.
    reload: u64,
    /// What the running period's end loads in modes 2 and 3.
    queued: Option<u64>,
    /// When the count began at `reload`; `None` while nothing is loaded or the gate has not triggered.
    start: Option<u64>,
    /// How far it came before its gate went low in modes 0 and 4.
    held: Option<u64>,
    /// The low byte of a count whose high byte is yet to come.
    written_low: Option<u8>,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The next byte to be read of a two-byte count is the high one.
    read_high: bool,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: Access::Both,
            bcd: false,
            gate,
            reload: 0x1_0000,
            queued: None,
            start: None,
            held: None,
            written_low: None,
            latched_count: None,
            latched_status: None,
            read_high: false,
        }
    }

    const fn elapsed(&self, now: u64) -> Option<u64> {
        match (self.held, self.start) {
            (Some(held), _) => Some(held),
            (None, Some(start)) => Some(now.saturating_sub(start)),
            (None, None) => None,
        }
    }

    /// What the counter's register holds.
    fn count(&self, now: u64) -> u16 {
        let elapsed = self.elapsed(now).unwrap_or(0);
        let left = match self.mode {
            2 => self.reload.saturating_sub(elapsed.checked_rem(self.reload).unwrap_or(0)),
            // The square wave's count runs twice as fast, once for each half.
            3 => {
                self.reload.saturating_sub(elapsed.wrapping_mul(2).checked_rem(self.reload).unwrap_or(0)) & !1
            }
            // The others pass zero and go on.
            _ => self.reload.wrapping_sub(elapsed),
        };
        if self.bcd { to_bcd(left) } else { left as u16 }
    }

    fn output(&self, now: u64) -> bool {
        let elapsed = self.elapsed(now);
        match self.mode {
            0 => elapsed.is_some_and(|elapsed| elapsed >= self.reload),
            1 => elapsed.is_none_or(|elapsed| elapsed >= self.reload),
            2 => elapsed
                .is_none_or(|elapsed| elapsed.checked_rem(self.reload) != Some(self.reload.wrapping_sub(1))),
            3 => elapsed.is_none_or(|elapsed| {
                elapsed.checked_rem(self.reload).unwrap_or(0) < self.reload.div_ceil(2)
            }),
            _ => elapsed != Some(self.reload),
        }
    }

    /// The first rising edge of the output later than `after`.
    fn next_rise(&self, after: u64) -> Option<u64> {
        let start = if self.held.is_some() { None } else { self.start }?;
        let rise = match self.mode {
            0 | 1 => start.saturating_add(self.reload),
            2 | 3 => {
                let periods = after.saturating_sub(start).checked_div(self.reload)?.saturating_add(1);
                start.saturating_add(periods.saturating_mul(self.reload))
            }
            _ => start.saturating_add(self.reload).saturating_add(1),
        };
        (rise > after).then_some(rise)
    }

    /// Loads a queued count whose time has come.
    fn settle(&mut self, now: u64) {
        if let (Some(queued), Some(start)) = (self.queued, self.start) {
            let end = start.saturating_add(self.reload);
            if end <= now {
                self.start = Some(end);
                self.reload = queued;
                self.queued = None;
            }
        }
    }

    /// The control word's mode, access and BCD bits.
    fn configure(&mut self, access: Access, control: u8) {
        let mode = (control >> 1) & 7;
        *self = Self {
            // Modes 6 and 7 are 2 and 3.
            mode: if mode > 5 { mode & 3 } else { mode },
            access,
            bcd: control & 1 != 0,
            ..Self::new(self.gate)
        };
    }

    fn write(&mut self, value: u8, now: u64) {
        let value = u64::from(value);
        let count = match (self.access, self.written_low.take()) {
            (Access::Low, _) => value,
            (Access::High, _) => value << 8,
            (Access::Both, Some(low)) => value << 8 | u64::from(low),
            (Access::Both, None) => {
                self.written_low = Some(value as u8);
                if self.mode == 0 {
                    // The first byte stops the count (8254, "mode 0").
                    self.start = None;
                    self.held = None;
                }
                return;
            }
        };
        self.load(if self.bcd { from_bcd(count) } else { count }, now);
    }

    fn load(&mut self, count: u64, now: u64) {
        let count = match (count, self.mode) {
            (0, _) if self.bcd => 10_000,
            (0, _) => 0x1_0000,
            // One is not allowed: a period needs a low tick and a high one.
            (1, 2 | 3) => 2,
            (count, _) => count,
        };
        match self.mode {
            0 | 4 => {
                self.reload = count;
                self.start = Some(now);
                self.held = if self.gate { None } else { Some(0) };
            }
            2 | 3 if self.start.is_some() => self.queued = Some(count),
            2 | 3 => {
                self.reload = count;
                self.start = self.gate.then_some(now);
            }
            // The gate's next rise starts it.
            _ => self.reload = count,
        }
    }

    fn set_gate(&mut self, high: bool, now: u64) {
        if high == self.gate {
            return;
        }
        self.gate = high;
        match (self.mode, high) {
            (0 | 4, false) => self.held = self.elapsed(now),
            (0 | 4, true) => {
                if let Some(held) = self.held.take() {
                    self.start = Some(now.saturating_sub(held));
                }
            }
            (2 | 3, false) => self.start = None,
            (_, true) => {
                self.reload = self.queued.take().unwrap_or(self.reload);
                self.start = Some(now);
            }
            (_, false) => {}
        }
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(now));
            self.read_high = false;
        }
    }

    fn latch_status(&mut self, now: u64) {
        let null_count = self.start.is_none() && self.held.is_none() || self.queued.is_some();
        self.latched_status.get_or_insert(
            u8::from(self.output(now)) << 7
                | u8::from(null_count) << 6
                | (self.access as u8) << 4
                | self.mode << 1
                | u8::from(self.bcd),
        );
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(now)).to_le_bytes();
        match self.access {
            Access::Low => self.latched_count = None,
            Access::High => {
                self.latched_count = None;
                return high;
            }
            Access::Both => {
                self.read_high = !self.read_high;
                if !self.read_high {
                    self.latched_count = None;
                    return high;
                }
            }
        }
        low
    }
}

/// The timer and port 0x61.
#[derive(Debug)]
pub(super) struct Pit {
    channels: [Channel; 3],
    /// Up to when channel 0's edges were reported.
    seen: u64,
    /// Port 0x61's bits 1 to 3: speaker, parity and channel check.
    speaker: u8,
}

impl Pit {
    pub(super) const fn new() -> Self {
        Self {
            // Channel 2's gate is port 0x61's bit 0; the others' are wired high.
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            seen: 0,
            speaker: 0,
        }
    }

    /// Moves on to `now`; says whether channel 0's output rose since the last call.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        let now = CLOCK.ticks_at(now);
        let [timer, ..] = &mut self.channels;
        let rose = timer.next_rise(self.seen).is_some_and(|rise| rise <= now);
        timer.settle(now);
        self.seen = now;
        rose
    }

    /// When channel 0's output next rises.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let [timer, ..] = &self.channels;
        timer.next_rise(self.seen).map(|rise| CLOCK.instant_of(rise))
    }

    /// Whether interrupt 0's wire is high as of the last [`Self::advance`]. It falls only where a guest sets
    /// up a new countdown: the low phases before an edge are too short for anybody to tell.
    pub(super) fn irq(&self) -> bool {
        let [timer, ..] = &self.channels;
        timer.mode != 0 || timer.output(self.seen)
    }

    /// Reads one of the timer's ports or port 0x61; `None` when it is neither.
    pub(super) fn read(&mut self, port: u16, now: Instant) -> Option<u8> {
        let now = CLOCK.ticks_at(now);
        if port == SPEAKER_PORT {
            return Some(self.read_speaker(now));
        }
        match port.wrapping_sub(PIT_PORT) {
            // The control word is write-only.
            3 => Some(0xff),
            n => {
                let channel = self.channels.get_mut(usize::from(n))?;
                channel.settle(now);
                Some(channel.read(now))
            }
        }
    }

    /// Writes one of the timer's ports or port 0x61; `None` when it is neither. [`Self::advance`] comes
    /// first, so that no edge is lost.
    pub(super) fn write(&mut self, port: u16, value: u8, now: Instant) -> Option<()> {
        let now = CLOCK.ticks_at(now);
        if port == SPEAKER_PORT {
            self.speaker = value & 0b1110;
            let [.., speaker] = &mut self.channels;
            speaker.settle(now);
            speaker.set_gate(value & 1 != 0, now);
            return Some(());
        }
        match port.wrapping_sub(PIT_PORT) {
            3 => self.control(value, now),
            n => {
                let channel = self.channels.get_mut(usize::from(n))?;
                channel.settle(now);
                channel.write(value, now);
            }
        }
        Some(())
    }

    fn control(&mut self, value: u8, now: u64) {
        let selected = value >> 6;
        if selected == 3 {
            for (n, channel) in self.channels.iter_mut().enumerate() {
                if value & (2 << n) != 0 {
                    channel.settle(now);
                    if value & 0x20 == 0 {
                        channel.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
            return;
        }
        let Some(channel) = self.channels.get_mut(usize::from(selected)) else { return };
        match (value >> 4) & 3 {
            0 => {
                channel.settle(now);
                channel.latch_count(now);
            }
            1 => channel.configure(Access::Low, value),
            2 => channel.configure(Access::High, value),
            _ => channel.configure(Access::Both, value),
        }
    }

    fn read_speaker(&mut self, now: u64) -> u8 {
        let [.., speaker] = &mut self.channels;
        speaker.settle(now);
        let refresh = now.wrapping_div(REFRESH_TICKS) as u8 & 1;
        u8::from(speaker.output(now)) << 5 | refresh << 4 | self.speaker | u8::from(speaker.gate)
    }
}

/// Four decimal digits, wrapping below zero as the counter does.
fn to_bcd(count: u64) -> u16 {
    let mut rest = (count as i64).rem_euclid(10_000) as u16;
    let mut bcd = 0;
    for shift in [0, 4, 8, 12] {
        bcd |= rest.wrapping_rem(10) << shift;
        rest = rest.wrapping_div(10);
    }
    bcd
}

fn from_bcd(bcd: u64) -> u64 {
    [12, 8, 4, 0]
        .into_iter()
        .fold(0u64, |count, shift| count.wrapping_mul(10).wrapping_add((bcd >> shift) & 0xf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ticks: u64) -> Instant {
        CLOCK.instant_of(ticks)
    }

    fn program(pit: &mut Pit, control: u8, count: u16, now: u64) {
        let port = PIT_PORT + u16::from(control >> 6);
        pit.write(0x43, control, at(now)).unwrap();
        pit.write(port, count as u8, at(now)).unwrap();
        pit.write(port, (count >> 8) as u8, at(now)).unwrap();
    }

    fn latch(pit: &mut Pit, channel: u8, now: u64) -> u16 {
        pit.write(0x43, channel << 6, at(now)).unwrap();
        let port = PIT_PORT + u16::from(channel);
        u16::from_le_bytes([pit.read(port, at(now)).unwrap(), pit.read(port, at(now)).unwrap()])
    }

    #[test]
    fn a_rate_generator_rises_every_period() {
        let mut pit = Pit::new();
        assert_eq!(pit.next_deadline(), None);
        assert!(pit.irq());
        program(&mut pit, 0x34, 1000, 500);
        assert!(!pit.advance(at(500)));
        assert_eq!(pit.next_deadline(), Some(at(1500)));
        assert_eq!(latch(&mut pit, 0, 900), 600);
        assert!(!pit.advance(at(1499)));
        assert!(pit.advance(at(1500)));
        assert!(!pit.advance(at(1501)));
        assert!(pit.advance(at(4400)), "missed edges are one");
        assert_eq!(pit.next_deadline(), Some(at(4500)));
    }

    #[test]
    fn a_new_rate_waits_for_the_periods_end() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 1000, 0);
        pit.write(0x40, 100, at(200)).unwrap();
        pit.write(0x40, 0, at(200)).unwrap();
        assert_eq!(latch(&mut pit, 0, 900), 100);
        assert!(pit.advance(at(1000)));
        assert_eq!(pit.next_deadline(), Some(at(1100)));
    }

    #[test]
    fn a_countdown_rises_once() {
        let mut pit = Pit::new();
        program(&mut pit, 0x30, 0, 0);
        assert!(!pit.irq());
        assert_eq!(pit.next_deadline(), Some(at(0x1_0000)), "zero is 65536");
        program(&mut pit, 0x30, 100, 0);
        assert!(pit.advance(at(100)) && pit.irq());
        assert_eq!(pit.next_deadline(), None);
        assert_eq!(latch(&mut pit, 0, 110), 0xfff6, "the count goes on below zero");
        program(&mut pit, 0x38, 100, 200);
        pit.advance(at(200));
        assert_eq!(pit.next_deadline(), Some(at(301)), "a strobe is low for one tick");
    }

    #[test]
    fn the_gate_holds_channel_2() {
        let mut pit = Pit::new();
        pit.write(0x61, 0, at(0)).unwrap();
        program(&mut pit, 0xb0, 1000, 0);
        assert_eq!(latch(&mut pit, 2, 500), 1000);
        pit.write(0x61, 1, at(500)).unwrap();
        assert_eq!(pit.read(0x61, at(1499)).unwrap() & 0x21, 0x01);
        assert_eq!(latch(&mut pit, 2, 800), 700);
        assert_eq!(pit.read(0x61, at(1500)).unwrap() & 0x21, 0x21);
        program(&mut pit, 0xb6, 1000, 2000);
        assert_eq!(pit.read(0x61, at(2499)).unwrap() & 0x20, 0x20, "square wave, first half");
        assert_eq!(pit.read(0x61, at(2500)).unwrap() & 0x20, 0);
        assert_eq!(latch(&mut pit, 2, 2100), 800);
        program(&mut pit, 0xb2, 10, 3000);
        assert_eq!(pit.read(0x61, at(3001)).unwrap() & 0x20, 0x20, "not triggered yet");
        pit.write(0x61, 0, at(3001)).unwrap();
        pit.write(0x61, 3, at(3002)).unwrap();
        assert_eq!(pit.read(0x61, at(3011)).unwrap() & 0x23, 0x03);
        assert_eq!(pit.read(0x61, at(3012)).unwrap() & 0x23, 0x23);
    }

    #[test]
    fn refresh_toggles() {
        let mut pit = Pit::new();
        let toggles = (0..360).map(|tick| pit.read(0x61, at(tick)).unwrap() & 0x10).collect::<Vec<_>>();
        assert_eq!(toggles.windows(2).filter(|pair| pair[0] != pair[1]).count(), 19);
    }

    #[test]
    fn latches_hold_until_read() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 1000, 0);
        pit.write(0x43, 0xc2, at(100)).unwrap();
        pit.write(0x43, 0x00, at(200)).unwrap();
        assert_eq!(pit.read(0x40, at(300)), Some(0xb4), "status: output high, both bytes, mode 2");
        assert_eq!(pit.read(0x40, at(300)), Some(0x84), "900, latched first");
        assert_eq!(pit.read(0x40, at(300)), Some(0x03));
        assert_eq!(pit.read(0x40, at(300)), Some(0xbc), "700, live");
        assert_eq!(pit.read(0x43, at(300)), Some(0xff));
    }

    #[test]
    fn decimal_counts_are_decimal() {
        let mut pit = Pit::new();
        program(&mut pit, 0x31, 0x1234, 0);
        assert_eq!(latch(&mut pit, 0, 235), 0x0999);
        assert_eq!(latch(&mut pit, 0, 1235), 0x9999);
        program(&mut pit, 0x31, 0, 2000);
        pit.advance(at(2000));
        assert_eq!(pit.next_deadline(), Some(at(12_000)));
    }

    proptest! {
        #[test]
        fn no_guest_can_confuse_it(
            steps in prop::collection::vec((0u8..8, any::<u8>(), 0u64..100_000), 0..300),
        ) {
            let mut pit = Pit::new();
            let mut now = 0;
            for (action, value, time) in steps {
                now += time;
                match action {
                    0..=3 => pit.write(0x40 + u16::from(action), value, at(now)).unwrap(),
                    4 => pit.write(0x61, value, at(now)).unwrap(),
                    5 => { pit.read(0x40 + u16::from(value & 3), at(now)).unwrap(); }
                    6 => { pit.read(0x61, at(now)).unwrap(); }
                    _ => {
                        let expected = pit.next_deadline().is_some_and(|deadline| deadline <= at(now));
                        prop_assert_eq!(pit.advance(at(now)), expected);
                        prop_assert!(pit.next_deadline().is_none_or(|deadline| deadline > at(now)));
                    }
                }
            }
        }
    }
}
