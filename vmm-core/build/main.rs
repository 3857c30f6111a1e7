//! Draws up the guest's ACPI tables: all but the few numbers that differ between guests is the same for each, and
//! the payload needs no code to make it.

mod dsdt;
mod tables;

#[allow(dead_code, reason = "the library uses all of it")]
#[path = "../src/chipset/layout.rs"]
mod layout;
#[allow(dead_code, reason = "the library uses all of it")]
#[path = "../src/memory/address.rs"]
mod memory;

use std::env;
use std::fs;
use std::path::Path;
use std::process::exit;

/// Stands for a processor's three digits until the guest is built.
const SOME_DIGITS: &str = "XYZ";
/// Stands for a processor's number; as long in AML as the longest.
const SOME_UID: u32 = 0xa5a5_5a5a;
/// Stand for the first and last address of a window above 4 GiB.
const SOME_WINDOW: [u64; 2] = [0xa5a5_0000_0000, 0xa5a5_ffff_ffff];
/// The MADT's room in bytes, the last of all; the DSDT has what is left.
const MADT_ROOM: u64 = 0x8000;

fn main() {
    for input in ["build", "src/chipset/layout.rs", "src/memory/address.rs"] {
        println!("cargo:rerun-if-changed={input}");
    }
    let file = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("acpi.rs");
    if let Err(error) = fs::write(&file, source()) {
        fail(&format!("cannot write {}: {error}", file.display()));
    }
}

/// The tables and their pieces as Rust source.
fn source() -> String {
    let madt_at = layout::ACPI_TABLES.end - MADT_ROOM;
    let (fixed, xsdt_at, xsdt) = tables::tables(madt_at);
    let dsdt = tables::head(b"DSDT", 2, &dsdt::board().0);
    let [first, last] = SOME_WINDOW;
    let window = dsdt::memory_window(first, last);
    let range = [first, last, 0, last - first + 1].map(u64::to_le_bytes);
    let windows = dsdt::pci_windows(Some(&window)).0;
    [
        "/// The tables that are the same for every guest, the RSDP first.".to_owned(),
        bytes("FIXED", &fixed.bytes),
        "/// Where the XSDT goes, and it, to be sealed. Its last entry is the WDAT.".to_owned(),
        format!("pub const XSDT_AT: u64 = {xsdt_at:#x};"),
        bytes("XSDT", &xsdt),
        "/// Where they expect the DSDT and the MADT.".to_owned(),
        format!("pub const DSDT_AT: u64 = {:#x};\npub const MADT_AT: u64 = {madt_at:#x};", fixed.end()),
        "/// The DSDT's beginning: its header, to be sealed, and the devices that every guest has.".to_owned(),
        bytes("DSDT", &dsdt),
        "/// What the PCI host bridge passes on, but for a window above 4 GiB.".to_owned(),
        bytes("PCI_WINDOWS", &dsdt::pci_windows(None).0),
        "/// The same with such a window: before and after its first and last address, translation and length."
            .to_owned(),
        parts("PCI_WINDOWS_WITH_64_BIT", &windows, &[range.as_flattened()]),
        "/// A processor device: around its number as three digits, and as a dword.".to_owned(),
        parts("PROCESSOR", &dsdt::processor().0, &[SOME_DIGITS.as_bytes(), &SOME_UID.to_le_bytes()]),
        "/// The MADT before its CPUs, to be sealed, and after them.".to_owned(),
        bytes("MADT", &tables::madt_head()),
        bytes("INTERRUPT_SOURCES", &tables::interrupt_sources()),
    ]
    .join("\n")
}

/// Rust source for bytes.
fn bytes(name: &str, bytes: &[u8]) -> String {
    format!("pub static {name}: &[u8] = &{bytes:?};")
}

/// Rust source for the pieces of `code` around the gaps.
fn parts(name: &str, code: &[u8], gaps: &[&[u8]]) -> String {
    let (mut pieces, mut rest) = (Vec::new(), code);
    for gap in gaps {
        let Some(at) = rest.windows(gap.len()).position(|bytes| bytes == *gap) else {
            fail(&format!("{name} has no gap {gap:x?}: {code:x?}"))
        };
        pieces.push(format!("&{:?}", &rest[..at]));
        rest = &rest[at + gap.len()..];
    }
    pieces.push(format!("&{rest:?}"));
    format!("pub static {name}: [&[u8]; {}] = [{}];", pieces.len(), pieces.join(", "))
}

fn fail(complaint: &str) -> ! {
    eprintln!("{complaint}");
    exit(1)
}
