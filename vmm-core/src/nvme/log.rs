//! Log pages (NVMe 1.4, 5.14.1).

use super::command::Status;
use super::identify::{ERRORS, FIRMWARE};
use super::io::Kind;
use alloc::vec;
use alloc::vec::Vec;

const ERROR_INFORMATION: u8 = 1;
const HEALTH: u8 = 2;
const FIRMWARE_SLOT: u8 = 3;

const ERROR_BYTES: usize = 64;
const PAGE_BYTES: usize = 512;

/// What the guest did with the disk since power-on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
    errors: u64,
}

impl Health {
    /// Counts a request.
    pub(super) fn count(&mut self, kind: Kind, succeeded: bool) {
        let (bytes, requests, len) = match kind {
            _ if !succeeded => (&mut 0, &mut self.errors, 0),
            Kind::Read(len) => (&mut self.read_bytes, &mut self.reads, len),
            Kind::Write(len) => (&mut self.written_bytes, &mut self.writes, len),
            Kind::Other => return,
        };
        *bytes = bytes.saturating_add(len);
        *requests = requests.saturating_add(1);
    }

    /// The log page of this number.
    pub(super) fn page(&self, number: u8) -> Result<Vec<u8>, Status> {
        match number {
            // No command failed in a way that its answer does not tell.
            ERROR_INFORMATION => Ok(vec![0; usize::from(ERRORS).saturating_mul(ERROR_BYTES)]),
            HEALTH => Ok(self.health()),
            FIRMWARE_SLOT => Ok(page(&[(0, &[1]), (8, &FIRMWARE)])),
            _ => Err(Status::INVALID_LOG_PAGE),
        }
    }

    fn health(&self) -> Vec<u8> {
        /// Room temperature, in kelvins.
        const TEMPERATURE: u16 = 298;
        /// Percent.
        const SPARE: u8 = 100;
        const LEAST_SPARE: u8 = 10;
        // Data is counted in thousands of 512 bytes, rounded up.
        let units = |bytes: u64| bytes.div_ceil(512_000).to_le_bytes();
        page(&[
            (1, &TEMPERATURE.to_le_bytes()),
            (3, &[SPARE, LEAST_SPARE]),
            (32, &units(self.read_bytes)),
            (48, &units(self.written_bytes)),
            (64, &self.reads.to_le_bytes()),
            (80, &self.writes.to_le_bytes()),
            // Power cycles: each life of a guest begins with a new controller.
            (112, &[1]),
            (160, &self.errors.to_le_bytes()),
        ])
    }
}

fn page(fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES];
    for (at, bytes) in fields {
        page.iter_mut().skip(*at).zip(*bytes).for_each(|(byte, new)| *byte = *new);
    }
    page
}
