//! The emulator's ACPI tables, laid out as it asks, with a root pointer of revision 2; or our own.
#![allow(unsafe_code)] // Tables go to physical addresses.

use alloc::vec::Vec;
use core::ops::Range;

use coreboot_config::tables::CbmemEntry;
use emulation_stage::acpi::{self, AcpiError};
use emulation_stage::cbmem::Cbmem;
use emulation_stage::memory_map::F_SEGMENT_TABLES;
use emulation_stage::minimal_acpi::{self, Board};
use emulation_stage::table_loader::{self, Blob, Platform, Zone};

use crate::error::StageError;
use crate::fw_cfg::FwCfg;
use crate::{chipset, info, interrupts, physical, pm};

const LOADER_FILE: &str = "etc/table-loader";
const RSDP_FILE: &str = "etc/acpi/rsdp";
/// Bytes of CBMEM for ACPI. QEMU's tables take 128 KiB; coreboot too keeps 224 KiB.
const AREA_BYTES: u32 = 0x3_8000;
/// Tables are found by pointers; this is enough for any field in them.
const TABLE_ALIGNMENT: u64 = 16;

/// Places the tables in CBMEM and returns the physical address of the RSDP. Without tables, or with malformed
/// ones, there is none, which the log says: the payload may not need them.
pub fn place(fw_cfg: &FwCfg, cbmem: &mut Cbmem) -> Option<u64> {
    let script = fw_cfg.read(LOADER_FILE)?;
    let area = cbmem.allocate(CbmemEntry::ACPI, AREA_BYTES).ok()?;
    let mut room = Room { high: area..area + u64::from(AREA_BYTES), f_segment: F_SEGMENT_TABLES };
    let blobs = table_loader::run(&script, &mut Loader { fw_cfg, room: &mut room })
        .map_err(|error| info!("{error}"))
        .ok()?;
    for blob in &blobs {
        write(blob.address, &blob.bytes);
    }
    root(&blobs, &mut room).map_err(|error| info!("{error}")).ok()?
}

/// Places tables of our own for a machine with these local APICs, and returns the physical address of the RSDP.
pub fn place_our_own(apic_ids: &[u8], cbmem: &mut Cbmem) -> Result<Option<u64>, StageError> {
    let area = cbmem.allocate(CbmemEntry::ACPI, AREA_BYTES)?;
    let io_apic_id = interrupts::io_apic_id();
    let board = Board { apic_ids, io_apic_id, pm_ports: pm::PORTS, sci: chipset::SCI };
    let tables = minimal_acpi::build(area, &board);
    let mut room = Room { high: area..area + u64::from(AREA_BYTES), f_segment: F_SEGMENT_TABLES };
    let mut place = |bytes: &[u8], zone| {
        let address = room.take(bytes.len(), TABLE_ALIGNMENT, zone)?;
        write(address, bytes);
        Some(address)
    };
    place(&tables.bytes, Zone::High);
    // The second RSDP is for who scans.
    place(&tables.rsdp, Zone::FSegment);
    Ok(place(&tables.rsdp, Zone::High))
}

/// Makes the XSDT and the RSDP; `None` if no room is left.
fn root<'a>(blobs: &'a [Blob], room: &mut Room) -> Result<Option<u64>, AcpiError> {
    let old = blobs.iter().find(|blob| blob.name == RSDP_FILE).ok_or(AcpiError::Rsdp)?;
    let address = acpi::root_address(&old.bytes)?;
    let within = |blob: &'a Blob| blob.bytes.get(address.checked_sub(blob.address)? as usize..);
    let table = blobs.iter().find_map(within).ok_or(AcpiError::Root(address))?;
    let xsdt = acpi::xsdt(table, address)?;
    let Some(xsdt_address) = room.take(xsdt.len(), TABLE_ALIGNMENT, Zone::High) else { return Ok(None) };
    write(xsdt_address, &xsdt);
    let rsdp = acpi::rsdp(&old.bytes, xsdt_address)?;
    let Some(rsdp_address) = room.take(rsdp.len(), TABLE_ALIGNMENT, Zone::High) else { return Ok(None) };
    write(rsdp_address, &rsdp);
    Ok(Some(rsdp_address))
}

fn write(address: u64, bytes: &[u8]) {
    // SAFETY: the address was taken from `Room`, of this many bytes, and nothing refers to them.
    unsafe { physical::bytes(address, bytes.len()) }.copy_from_slice(bytes);
}

/// The memory that tables may take.
struct Room {
    high: Range<u64>,
    f_segment: Range<u64>,
}

impl Room {
    fn take(&mut self, bytes: usize, align: u64, zone: Zone) -> Option<u64> {
        let range = match zone {
            Zone::High => &mut self.high,
            Zone::FSegment => &mut self.f_segment,
        };
        let address = range.start.checked_next_multiple_of(align)?;
        let end = address.checked_add(bytes as u64).filter(|end| *end <= range.end)?;
        range.start = end;
        Some(address)
    }
}

struct Loader<'a> {
    fw_cfg: &'a FwCfg,
    room: &'a mut Room,
}

impl Platform for Loader<'_> {
    fn read_file(&mut self, name: &str) -> Option<Vec<u8>> {
        self.fw_cfg.read(name)
    }

    fn allocate(&mut self, bytes: usize, align: u64, zone: Zone) -> Option<u64> {
        self.room.take(bytes, align, zone)
    }

    fn write_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> bool {
        self.fw_cfg.write(name, offset, bytes)
    }
}
