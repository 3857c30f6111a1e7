//! Random bytes for guests: from the CPU's generator where it has one, and from the jitter of its timing.
//!
//! Where there is RDRAND, each word is its, mixed with the pool: so a generator that has failed (some answer all ones
//! after a sleep) gives no constant. Where there is none, all of it is jitter: how long a few memory accesses take
//! differs in the low bits of the time-stamp counter by what caches, buses and interrupts are doing. Of each sample
//! less than one bit is counted on, so a word of 64 bits takes 128 of them. That is for a guest to add to what it
//! gathers itself; there is no proof of how good it is, in emulators least of all.

use super::cpu;
use spin::Mutex;
use x86_64::instructions::random::RdRand;

/// Samples for a word where there is nothing else, and beside the CPU's generator.
const SAMPLES: usize = 128;
const SAMPLES_BESIDE: usize = 4;
/// How often RDRAND is asked before it counts as failed (SDM 1, 7.3.17.1).
const TRIES: usize = 10;

static POOL: Mutex<Pool> = Mutex::new(Pool { state: 0, scratch: [0; 256] });

/// What is left of all samples.
struct Pool {
    state: u64,
    /// Memory whose accesses are timed.
    scratch: [u64; 256],
}

/// Fills `bytes` with random ones.
pub fn fill(bytes: &mut [u8]) {
    let generator = RdRand::new();
    let mut pool = POOL.lock();
    for part in bytes.chunks_mut(8) {
        let own = generator.and_then(|generator| (0..TRIES).find_map(|_| generator.get_u64()));
        let jitter = pool.word(if own.is_some() { SAMPLES_BESIDE } else { SAMPLES });
        part.copy_from_slice(&(own.unwrap_or(0) ^ jitter).to_le_bytes()[..part.len()]);
    }
}

impl Pool {
    /// A word that depends on all samples so far and on so many new ones.
    fn word(&mut self, samples: usize) -> u64 {
        for _ in 0..samples {
            let before = cpu::tsc_in_order();
            // Which place comes next depends on what came before, so that no CPU runs ahead of it.
            let place = self.state as usize % self.scratch.len();
            self.scratch[place] = core::hint::black_box(self.scratch[place].wrapping_add(before));
            let taken = cpu::tsc_in_order().wrapping_sub(before);
            self.state = mix(self.state.rotate_left(7) ^ taken ^ self.scratch[place]);
        }
        // What goes out says nothing of what is kept.
        let out = mix(self.state ^ 0x9e37_79b9_7f4a_7c15);
        self.state = mix(self.state.wrapping_add(out.rotate_left(32)) ^ cpu::tsc());
        out
    }
}

/// Spreads each bit over all (the finalizer of SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
