//! QEMU's firmware configuration device (QEMU's `docs/specs/fw_cfg.rst`), by its DMA interface.
#![allow(unsafe_code)] // The device writes into memory that it is told of.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr;
use core::sync::atomic::{Ordering, fence};

use crate::{physical, port};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const DMA_HIGH: u16 = 0x514;
const DMA_LOW: u16 = 0x518;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_CPU_COUNT: u16 = 0x05;
const KEY_DIRECTORY: u16 = 0x19;
const ID_DMA: u8 = 1 << 1;

const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;

/// Bytes of a directory entry: size, key, two unused bytes, name.
const ENTRY_BYTES: usize = 64;

/// The device, with its directory read.
pub struct FwCfg {
    files: Vec<File>,
}

struct File {
    name: String,
    key: u16,
    size: u32,
}

/// What the device reads when its DMA register is written; all fields are big-endian.
#[repr(C)]
struct Access {
    control: u32,
    length: u32,
    address: u64,
}

impl FwCfg {
    /// The device, if the machine has one that does DMA.
    pub fn find() -> Option<Self> {
        port::write_u16(SELECTOR, KEY_SIGNATURE);
        if [(); 4].map(|()| port::read_u8(DATA)) != *b"QEMU" {
            return None;
        }
        port::write_u16(SELECTOR, KEY_ID);
        if port::read_u8(DATA) & ID_DMA == 0 {
            return None;
        }
        let mut count = [0; 4];
        read(KEY_DIRECTORY, &mut count);
        let count = u32::from_be_bytes(count) as usize;
        let mut directory = vec![0; 4 + count * ENTRY_BYTES];
        read(KEY_DIRECTORY, &mut directory);
        Some(Self { files: directory[4..].chunks_exact(ENTRY_BYTES).map(File::parse).collect() })
    }

    /// Processors that run at power-on.
    pub fn processors(&self) -> u16 {
        let mut count = [0; 2];
        read(KEY_CPU_COUNT, &mut count);
        u16::from_le_bytes(count)
    }

    /// The whole file `name`.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let file = self.find_file(name)?;
        let mut bytes = vec![0; file.size as usize];
        read(file.key, &mut bytes).then_some(bytes)
    }

    /// Writes `bytes` into file `name` from `offset` on; `false` if the device does not let that happen.
    pub fn write(&self, name: &str, offset: u32, bytes: &[u8]) -> bool {
        let Some(file) = self.find_file(name) else { return false };
        let select = DMA_SELECT | u32::from(file.key) << 16;
        transfer(select | DMA_SKIP, offset, 0)
            && transfer(DMA_WRITE, bytes.len() as u32, physical::address_of(bytes))
    }

    fn find_file(&self, name: &str) -> Option<&File> {
        self.files.iter().find(|file| file.name == name)
    }
}

impl File {
    fn parse(entry: &[u8]) -> Self {
        let name = entry[8..].split(|byte| *byte == 0).next().unwrap_or_default();
        Self {
            name: String::from_utf8_lossy(name).into_owned(),
            key: u16::from_be_bytes([entry[4], entry[5]]),
            size: u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]),
        }
    }
}

fn read(key: u16, bytes: &mut [u8]) -> bool {
    let control = DMA_READ | DMA_SELECT | u32::from(key) << 16;
    transfer(control, bytes.len() as u32, physical::address_of(bytes.as_mut_ptr()))
}

/// Carries one access out. `address` is that of `length` bytes that nobody else uses meanwhile.
fn transfer(control: u32, length: u32, address: u64) -> bool {
    let mut access = Access { control: control.to_be(), length: length.to_be(), address: address.to_be() };
    let place = physical::address_of(&raw mut access);
    fence(Ordering::SeqCst);
    port::write_u32(DMA_HIGH, ((place >> 32) as u32).to_be());
    port::write_u32(DMA_LOW, (place as u32).to_be());
    fence(Ordering::SeqCst);
    loop {
        // SAFETY: `access` is alive; the device clears the field when it is done, hence volatile.
        let control = u32::from_be(unsafe { ptr::read_volatile(&raw const access.control) });
        if control & DMA_ERROR != 0 {
            return false;
        }
        if control == 0 {
            return true;
        }
    }
}
