//! The one fault of an emulator that nothing works around, and that Peerboot recognises and says
//! (docs/decisions/0010-flags-of-the-first-cpu-under-tcg.md): a check that failed where it was seen proves nothing, and is
//! made again.

use std::cell::Cell;

/// What Peerboot says of it.
pub const SENTENCE: &str = "QEMU has put the host's state in the place of the guest's";

thread_local! {
    static SEEN: Cell<bool> = const { Cell::new(false) };
}

/// Whether a machine has said it.
#[must_use]
pub fn is_in(transcript: &str) -> bool {
    transcript.contains(SENTENCE)
}

/// Looks for it in what a machine of this thread's has said.
pub fn look(transcript: &str) {
    if is_in(transcript) {
        SEEN.set(true);
    }
}

/// Whether it was seen in this thread since this was last asked.
pub fn take() -> bool {
    SEEN.take()
}
