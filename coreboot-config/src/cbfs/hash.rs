//! Checking of hashes.

use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::attribute::HashAlgorithm;

/// Whether `digest` is the hash of `data`; `None` when the algorithm is unknown or gives another length.
pub(super) fn matches(algorithm: HashAlgorithm, digest: &[u8], data: &[u8]) -> Option<bool> {
    match algorithm {
        HashAlgorithm::Sha1 => compare::<Sha1>(digest, data),
        HashAlgorithm::Sha224 => compare::<Sha224>(digest, data),
        HashAlgorithm::Sha256 => compare::<Sha256>(digest, data),
        HashAlgorithm::Sha384 => compare::<Sha384>(digest, data),
        HashAlgorithm::Sha512 => compare::<Sha512>(digest, data),
        HashAlgorithm::Unknown(_) => None,
    }
}

fn compare<D: Digest>(digest: &[u8], data: &[u8]) -> Option<bool> {
    let found = D::digest(data);
    (found.len() == digest.len()).then(|| found.as_slice() == digest)
}
