//! The monitor's own memory, and who may take how much of it.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// What nobody has claimed yet, in bytes.
#[derive(Debug)]
pub struct OwnMemory(AtomicU64);

/// A part of it that is somebody's for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    account: &'static OwnMemory,
    bytes: u64,
}

/// There is not as much left as somebody needs; both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What it needs.
    pub wanted: u64,
    /// What is left.
    pub left: u64,
}

impl OwnMemory {
    /// So many bytes, which nobody has claimed.
    pub const fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// Takes a part for somebody.
    ///
    /// # Errors
    /// There is less.
    pub fn claim(&'static self, bytes: u64) -> Result<Claim, Shortage> {
        let rest = |left: u64| left.checked_sub(bytes);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest) {
            Ok(_) => Ok(Claim { account: self, bytes }),
            Err(left) => Err(Shortage { wanted: bytes, left }),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.account.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, left) = (self.wanted.div_ceil(1 << 10), self.left >> 10);
        write!(f, "needs {wanted} KiB of Peerboot's own memory, of which {left} KiB are free")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_is_nobody_elses_until_it_is_given_back() {
        static ACCOUNT: OwnMemory = OwnMemory::new(10 << 10);
        let most = ACCOUNT.claim(9 << 10).unwrap();
        let refused = ACCOUNT.claim((1 << 10) + 1).unwrap_err();
        assert_eq!(refused, Shortage { wanted: 1025, left: 1 << 10 });
        assert_eq!(refused.to_string(), "needs 2 KiB of Peerboot's own memory, of which 1 KiB are free");
        let rest = ACCOUNT.claim(1 << 10).unwrap();
        assert!(ACCOUNT.claim(1).is_err() && ACCOUNT.claim(0).is_ok());
        drop(most);
        assert!(ACCOUNT.claim(9 << 10).is_ok());
        drop(rest);
        assert!(ACCOUNT.claim(10 << 10).is_ok());
    }
}
