//! The coreboot table, with the records that coreboot writes on QEMU.
#![allow(unsafe_code)] // Tables go to physical addresses.

use alloc::string::String;

use coreboot_config::fmap::Fmap;
use coreboot_config::tables::{
    BoardConfig, BootMediaParams, CbmemEntry, ConsoleKind, Framebuffer, Mainboard, PointerTag, Record,
    Serial, SerialKind, StringTag, TableBuilder,
};
use emulation_stage::cbmem::Cbmem;
use emulation_stage::memory_map;

use crate::chipset::Chipset;
use crate::error::StageError;
use crate::{physical, serial};

/// Where a payload that was told nothing looks first.
const FORWARDER: u64 = 0x500;
/// As much as coreboot keeps for its table.
const TABLE_BYTES: u32 = 0x8000;
const GNVS_BYTES: u32 = 0x100;
/// Bytes of an FMAP header and of each area.
const FMAP_HEADER_BYTES: usize = 56;
const FMAP_AREA_BYTES: usize = 42;

/// What the table tells about.
pub struct Machine<'a> {
    /// The whole flash.
    pub image: &'static [u8],
    /// Its map, at its beginning.
    pub flash_map: Fmap,
    /// What it is and its RAM.
    pub chipset: &'a Chipset,
    /// The display, where there is one.
    pub framebuffer: Option<Framebuffer>,
    /// Physical address of ACPI's RSDP.
    pub rsdp: Option<u64>,
}

/// Writes the table into CBMEM, and the forwarder to it, and returns its physical address.
pub fn place(machine: &Machine<'_>, cbmem: &mut Cbmem) -> Result<u64, StageError> {
    let flash_map = flash_map_bytes(machine);
    let flash_map_copy = cbmem.allocate(CbmemEntry::FMAP, flash_map.len() as u32)?;
    write(flash_map_copy, flash_map);
    let gnvs = cbmem.allocate(CbmemEntry::ACPI_GNVS, GNVS_BYTES)?;
    write(gnvs, &[0; GNVS_BYTES as usize]);
    let address = cbmem.allocate(CbmemEntry::COREBOOT_TABLE, TABLE_BYTES)?;

    let chipset = machine.chipset;
    let mut table = TableBuilder::new();
    table.add(&Record::Memory(memory_map::compose(&chipset.ram, cbmem.used(), &chipset.reserved)));
    let names = Mainboard { vendor: "Emulation".into(), part_number: chipset.board.into() };
    table.add(&Record::Mainboard(names));
    table.add(&Record::Serial(Serial {
        kind: SerialKind::Port,
        base: u32::from(serial::BASE),
        baud: serial::BAUD,
        register_width: 1,
        input_hertz: serial::CLOCK,
    }));
    table.add(&Record::Console(ConsoleKind::Serial8250));
    let version = concat!("peerboot-emulation-stage-", env!("CARGO_PKG_VERSION"));
    for (tag, text) in [
        (StringTag::Version, version),
        (StringTag::ExtraVersion, ""),
        (StringTag::Build, ""),
        (StringTag::CompileTime, ""),
    ] {
        table.add(&Record::String(tag, String::from(text)));
    }
    table.add(&Record::VersionTimestamp(0));
    if let Some(framebuffer) = machine.framebuffer {
        table.add(&Record::Framebuffer(framebuffer));
    }
    let place_of = |id| cbmem.entries().iter().find(|entry| entry.id == id).map(|entry| entry.address);
    for (tag, address) in [
        (PointerTag::Timestamps, place_of(CbmemEntry::TIMESTAMP)),
        (PointerTag::CbmemConsole, place_of(CbmemEntry::CONSOLE)),
        (PointerTag::AcpiGnvs, Some(gnvs)),
        (PointerTag::Fmap, Some(flash_map_copy)),
    ] {
        if let Some(address) = address {
            table.add(&Record::Pointer(tag, address));
        }
    }
    if let Ok(cbfs) = machine.flash_map.area("COREBOOT") {
        table.add(&Record::BootMediaParams(BootMediaParams {
            fmap_offset: 0,
            cbfs_offset: u64::from(cbfs.offset),
            cbfs_size: u64::from(cbfs.size),
            boot_media_size: machine.image.len() as u64,
        }));
    }
    table.add(&Record::BoardConfig(BoardConfig::NONE));
    for entry in cbmem.entries() {
        table.add(&Record::CbmemEntry(*entry));
    }
    if let Some(rsdp) = machine.rsdp {
        table.add(&Record::Pointer(PointerTag::AcpiRsdp, rsdp));
    }
    table.add(&Record::BootMode(0));

    let bytes = table.finish();
    assert!(bytes.len() <= TABLE_BYTES as usize, "the coreboot table outgrew its area");
    write(address, &bytes);
    write(FORWARDER, &TableBuilder::forwarder(address));
    Ok(address)
}

fn flash_map_bytes(machine: &Machine<'_>) -> &'static [u8] {
    let length = FMAP_HEADER_BYTES + machine.flash_map.areas().len() * FMAP_AREA_BYTES;
    &machine.image[..length.min(machine.image.len())]
}

fn write(address: u64, bytes: &[u8]) {
    // SAFETY: the forwarder's page and CBMEM are the stage's to write, and nothing refers to these places.
    unsafe { physical::bytes(address, bytes.len()) }.copy_from_slice(bytes);
}
