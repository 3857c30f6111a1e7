//! The emulation stage: what a payload finds is what coreboot leaves, on machines and ROMs of several sizes, and
//! a ROM that cannot be booted gets one clear line.

use std::collections::BTreeSet;
use std::fs;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coreboot_config::tables::{CorebootTable, MemoryKind, Record};
use coreboot_config::timestamps::{self, id};
use coreboot_config::{PhysicalMemory, Unreadable, cbfs, cbmem_console};
use regex::Regex;
use serde_json::json;
use xtask::cbfs::Cbfs;
use xtask::error::{Error, Result};
use xtask::machine::{Firmware, Machine, Spec};
use xtask::stage;
use xtask::suite::Outcome;

use crate::lab::{Lab, read};

const BOOT: Duration = Duration::from_secs(300);
/// Where the probe is loaded and entered.
const PROBE: u32 = 0x20_0000;
/// `cli; hlt; jmp` back to the `hlt`: leaves everything as it found it.
const PROBE_CODE: [u8; 4] = [0xFA, 0xF4, 0xEB, 0xFD];
/// Bytes of the probe's segment in its file, enough to be compressed, and in memory, where all but the code is zero.
const PROBE_FILE_BYTES: u32 = 0x800;
const PROBE_BYTES: u32 = 0x1000;

const MIB: u64 = 1 << 20;
const ECAM: u64 = 0xB000_0000;

/// A machine and the size of its ROM in MiB.
struct Case {
    rom: u64,
    memory: &'static str,
    low_end: u64,
    ram: u64,
    cpus: u32,
}

const MACHINES: [Case; 3] = [
    Case { rom: 16, memory: "2G", low_end: 2048 * MIB, ram: 2048 * MIB, cpus: 4 },
    Case { rom: 8, memory: "512M", low_end: 512 * MIB, ram: 512 * MIB, cpus: 1 },
    Case { rom: 4, memory: "6G", low_end: 2048 * MIB, ram: 6144 * MIB, cpus: 8 },
];

/// CPU state, tables, devices and the other processors at payload entry.
pub fn payload_entry_is_as_coreboot_leaves_it(lab: &Lab) -> Result<Outcome> {
    for case in MACHINES {
        let rom = Rom::with_probe(lab, "stage-entry", case.rom)?;
        let mut spec = rom.spec();
        (spec.memory, spec.smp) = (case.memory.to_owned(), case.cpus);
        // A bridge and a device behind it want bus numbers and addresses.
        spec.extra =
            ["-device", "pcie-root-port,id=bridge,chassis=1", "-device", "virtio-rng-pci,bus=bridge"]
                .map(str::to_owned)
                .to_vec();
        let mut machine = Machine::spawn(&spec)?;
        machine.expect("Jumping to the payload", BOOT)?;
        let cpus = entered(&mut machine)?;
        let memory = Dump::take(&mut machine, &rom.dir, case.low_end)?;
        let table = CorebootTable::find(&memory, None).map_err(failed)?;
        check_cpus(&cpus, &case, &table, &memory)?;
        check_memory(&table, &case)?;
        check_cbmem(&table, &memory)?;
        check_acpi(&table, &memory)?;
        check_devices(&mut machine)?;
        check_records(lab, &table)?;
    }
    Ok(Outcome::Passed)
}

/// Each way in which a ROM can be unbootable.
pub fn unbootable_roms_are_explained(lab: &Lab) -> Result<Outcome> {
    let rom = Rom::with_probe(lab, "stage-refusal", 4)?;
    let whole = read(&rom.file)?;
    let payload = cbfs::Cbfs::in_image(&whole).map_err(failed)?.find("fallback/payload").map_err(failed)?;
    // Behind two segment headers of 28 bytes are LZMA's of 13 and the stream.
    let stream = payload.data.as_ptr() as usize - whole.as_ptr() as usize + 2 * 28 + 13;
    rom.refused(|bytes| bytes[0] = b'X', "FMAP")?;
    rom.write(&whole)?;
    rom.refused(|bytes| bytes[stream..stream + 8].fill(0xFF), "LZMA")?;
    rom.write(&whole)?;
    rom.cbfs.remove("fallback/payload")?;
    rom.refused(|_| (), "fallback/payload")?;
    rom.cbfs.add_payload(&rom.file_of("high.elf", &elf(0x7FF0_0000))?)?;
    rom.refused(|_| (), "0x7ff00000.*free RAM")?;
    Ok(Outcome::Passed)
}

/// A ROM of the stage's with a payload of the test's.
struct Rom {
    cbfs: Cbfs,
    dir: PathBuf,
    file: PathBuf,
}

impl Rom {
    fn with_probe(lab: &Lab, test: &str, mib: u64) -> Result<Self> {
        let dir = lab.project().build(&format!("tests/{test}"))?;
        let (file, size) = (dir.join("test.rom"), mib * MIB);
        let map = format!(
            "FLASH@{:#x} {size:#x} {{ BIOS@0x0 {size:#x} {{ FMAP@0x0 0x1000 COREBOOT(CBFS)@0x1000 {:#x} }} }}",
            (1_u64 << 32) - size,
            size - 0x1000
        );
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(|e| Error::file("write", &path, &e)).map(|()| path)
        };
        let cbfs = Cbfs::create(&file, &write("flash.fmd", map.as_bytes())?)?;
        cbfs.add_bootblock(&stage::build(lab.project())?)?;
        cbfs.add_payload(&write("probe.elf", &elf(PROBE))?)?;
        Ok(Self { cbfs, dir, file })
    }

    fn spec(&self) -> Spec {
        Spec::new(Firmware::Rom(self.file.clone()))
    }

    fn file_of(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|e| Error::file("write", &path, &e))?;
        Ok(path)
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        fs::write(&self.file, bytes).map_err(|e| Error::file("write", &self.file, &e))
    }

    /// Boots the ROM after `change` and expects it to end with a line that says `words`.
    fn refused(&self, change: impl FnOnce(&mut Vec<u8>), words: &str) -> Result<()> {
        let mut bytes = read(&self.file)?;
        change(&mut bytes);
        self.write(&bytes)?;
        let mut machine = Machine::spawn(&self.spec())?;
        machine.expect(&format!(r"\[EMERG\].*{words}"), BOOT)?;
        hold(!machine.transcript().contains("Jumping"), || "the payload was entered".to_owned())
    }
}

/// The probe as an ELF file with one segment at `address`.
fn elf(address: u32) -> Vec<u8> {
    let mut file = vec![0x7F, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Executable, 386, version 1; then entry point, program headers at 52, no sections, flags.
    file.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    let header_end: u32 = 52 + 32;
    for word in [address, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 40, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, header_end, address, address, PROBE_FILE_BYTES, PROBE_BYTES, 7, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(PROBE_CODE);
    file.resize((header_end + PROBE_FILE_BYTES) as usize, 0);
    file
}

/// One processor's registers by `info registers`.
struct Cpu {
    text: String,
}

impl Cpu {
    /// The hexadecimal number after `name=`, or the `field`th after that.
    fn register(&self, name: &str, field: usize) -> Result<u64> {
        let pattern = Regex::new(&format!(r"\b{name} *=\s*(.*)")).map_err(failed)?;
        let line = pattern.captures(&self.text).and_then(|found| found.get(1));
        let word = line.and_then(|line| line.as_str().split_whitespace().nth(field));
        let number = word.and_then(|word| u64::from_str_radix(word, 16).ok());
        number.ok_or_else(|| Error::failed(format!("no {name} in\n{}", self.text)))
    }
}

/// Waits until the probe halts and gives all processors' registers.
fn entered(machine: &mut Machine) -> Result<Vec<Cpu>> {
    let deadline = Instant::now() + BOOT;
    loop {
        let text = machine.monitor("info registers -a")?;
        let cpus: Vec<Cpu> = text.split("CPU#").skip(1).map(|text| Cpu { text: text.to_owned() }).collect();
        let first = cpus.first().ok_or_else(|| Error::failed("QEMU shows no processors"))?;
        // In long mode, where the stage still is, QEMU calls the register RIP.
        let halted = first.register("EIP", 0).is_ok_and(|eip| eip == u64::from(PROBE) + 2);
        if halted && first.register("HLT", 0)? == 1 {
            return Ok(cpus);
        }
        hold(Instant::now() < deadline, || format!("the payload was not entered:\n{text}"))?;
    }
}

fn check_cpus(cpus: &[Cpu], case: &Case, table: &CorebootTable, memory: &Dump) -> Result<()> {
    let kept = |address: u64| {
        table
            .memory_ranges()
            .any(|range| range.kind == MemoryKind::Table && (range.start..range.end()).contains(&address))
    };
    hold(cpus.len() == case.cpus as usize, || format!("{} processors", cpus.len()))?;
    for (number, cpu) in cpus.iter().enumerate() {
        let fail = |what: &str| format!("processor {number}: {what}:\n{}", cpu.text);
        hold(cpu.register("CS", 0)? == 0x08, || fail("CS"))?;
        for name in ["DS", "ES", "SS"] {
            hold(cpu.register(name, 0)? == 0x10, || fail(name))?;
        }
        for name in ["CS", "DS", "ES", "SS"] {
            let (base, limit) = (cpu.register(name, 1)?, cpu.register(name, 2)?);
            hold(base == 0 && limit == 0xFFFF_FFFF, || fail("a segment is not flat"))?;
        }
        let (cr0, efer) = (cpu.register("CR0", 0)?, cpu.register("EFER", 0)?);
        hold(cr0 & 0xE000_0001 == 1, || fail("not protected mode with caches and without paging"))?;
        hold(efer & 0x500 == 0, || fail("long mode is on"))?;
        hold(cpu.register("EFL", 0)? & 0x200 == 0, || fail("interrupts are on"))?;
        hold(cpu.register("HLT", 0)? == 1, || fail("does not halt"))?;
        hold(kept(cpu.register("GDT", 0)?), || fail("its GDT is not in kept memory"))?;
        if number > 0 {
            hold(kept(cpu.register("EIP", 0)?), || fail("it halts in memory that is not kept"))?;
        }
    }
    let stack = cpus.first().map_or(Ok(0), |cpu| cpu.register("ESP", 0))?;
    let (back, argument) = (memory.u32(stack)?, memory.u32(stack + 4)?);
    hold(kept(stack) && kept(u64::from(back)), || format!("stack {stack:#x}, return address {back:#x}"))?;
    hold(u64::from(argument) == table.address(), || format!("the argument is {argument:#x}"))
}

fn check_memory(table: &CorebootTable, case: &Case) -> Result<()> {
    let map: Vec<_> = table.memory_ranges().collect();
    let sum = |kind| map.iter().filter(|range| range.kind == kind).map(|range| range.size).sum::<u64>();
    // CBMEM is taken from RAM; so are the first page and what lies between 640 KiB and 1 MiB.
    let (ram, kept) = (sum(MemoryKind::Ram), sum(MemoryKind::Table));
    let all = ram + kept + 0x6_0000 - 0x1000;
    hold(all == case.ram, || format!("{all:#x} bytes of RAM, {:#x} expected: {map:x?}", case.ram))?;
    hold(kept < 4 * MIB, || format!("{kept:#x} bytes are kept"))?;
    let ecam = |range: &&_| {
        **range
            == coreboot_config::tables::MemoryRange {
                start: ECAM,
                size: 256 * MIB,
                kind: MemoryKind::Reserved,
            }
    };
    hold(map.iter().any(|range| ecam(&range)), || format!("configuration space: {map:x?}"))?;
    hold(map.is_sorted_by(|a, b| a.end() <= b.start), || format!("ranges overlap: {map:x?}"))
}

fn check_cbmem(table: &CorebootTable, memory: &Dump) -> Result<()> {
    let address = table.cbmem_console().ok_or_else(|| Error::failed("no CBMEM console"))?;
    let console = memory.bytes(address, 0x2_0000)?;
    let header = cbmem_console::Header::decode(console).ok_or_else(|| Error::failed("bad CBMEM console"))?;
    let text = String::from_utf8_lossy(&header.contents(&console[cbmem_console::HEADER_LEN..])).into_owned();
    hold(text.contains("Jumping to the payload"), || format!("the CBMEM console says:\n{text}"))?;

    let address = table.timestamps().ok_or_else(|| Error::failed("no timestamps"))?;
    let stamps = memory.bytes(address, 0x910)?;
    let header = timestamps::Header::decode(stamps).ok_or_else(|| Error::failed("bad timestamps"))?;
    hold(header.tick_freq_mhz > 0, || format!("{header:?}"))?;
    let entries = stamps[timestamps::HEADER_LEN..].chunks(timestamps::ENTRY_LEN);
    let entries: Vec<_> =
        entries.take(header.num_entries as usize).filter_map(timestamps::Entry::decode).collect();
    hold(entries.is_sorted_by_key(|entry| entry.stamp), || format!("{entries:?}"))?;
    hold(entries.first().is_some_and(|entry| entry.id == id::BOOTBLOCK_START), || format!("{entries:?}"))?;
    hold(entries.last().is_some_and(|entry| entry.id == id::SELFBOOT_JUMP), || format!("{entries:?}"))
}

fn check_acpi(table: &CorebootTable, memory: &Dump) -> Result<()> {
    let rsdp = table.acpi_rsdp().ok_or_else(|| Error::failed("no RSDP"))?;
    let bytes = memory.bytes(rsdp, 36)?;
    hold(bytes.starts_with(b"RSD PTR ") && bytes[15] == 2 && sum(bytes) == 0, || format!("{bytes:x?}"))?;
    let xsdt = memory.table(memory.u64(rsdp + 24)?)?;
    hold(xsdt.starts_with(b"XSDT"), || format!("{xsdt:x?}"))?;
    let mut found = BTreeSet::new();
    for entry in xsdt[36..].chunks_exact(8) {
        let address = entry.iter().rev().fold(0, |address, byte| address << 8 | u64::from(*byte));
        let table = memory.table(address)?;
        match &table[..4] {
            b"MCFG" => hold(memory.u64(address + 44)? == ECAM, || format!("{table:x?}"))?,
            b"FACP" => {
                hold(memory.u32(address + 76)? == 0x608, || format!("{table:x?}"))?;
                memory.table(u64::from(memory.u32(address + 40)?))?;
            }
            _ => {}
        }
        found.insert(String::from_utf8_lossy(&table[..4]).into_owned());
    }
    let wanted = ["APIC", "FACP", "HPET", "MCFG"];
    hold(wanted.iter().all(|name| found.contains(*name)), || format!("ACPI tables {found:?}"))?;
    // The second RSDP, for who scans.
    hold(memory.bytes(0xF_6000, 8)? == b"RSD PTR ", || "no RSDP in the F segment".to_owned())
}

fn check_devices(machine: &mut Machine) -> Result<()> {
    let pics = machine.monitor("info pic")?;
    hold(pics.contains("pic1: irr=00 imr=ff") && pics.contains("imr=fb"), || pics.clone())?;
    let lapic = machine.monitor("info lapic")?;
    let wire = Regex::new(r"LVT0\s+0x00000700").map_err(failed)?;
    hold(wire.is_match(&lapic) && lapic.contains("APIC enabled"), || lapic.clone())?;
    let pci = machine.monitor("info pci")?;
    hold(pci.contains("Bus  1, device   0"), || format!("the bridge has no bus behind it:\n{pci}"))?;
    let memory = Regex::new(r"BAR[0-5]: .*memory at (\S+)").map_err(failed)?;
    let unset = |found: &str| found.starts_with("0xffff") || found == "0x0";
    let bars: Vec<&str> =
        memory.captures_iter(&pci).filter_map(|found| Some(found.get(1)?.as_str())).collect();
    hold(bars.len() >= 3 && !bars.iter().any(|bar| unset(bar)), || format!("BARs {bars:?}:\n{pci}"))
}

/// The kinds of records are those that coreboot wrote on the same machine.
fn check_records(lab: &Lab, table: &CorebootTable) -> Result<()> {
    let folder = lab.project().path("../shared/fixtures/coreboot/q35-i386-smp4");
    if !folder.is_dir() {
        return Ok(());
    }
    let real = CorebootTable::find(&Dump::load(&folder)?, None).map_err(failed)?;
    let holds = |table: &CorebootTable, kind: &Record| {
        table.records().iter().any(|record| match (record, kind) {
            (Record::Pointer(a, _), Record::Pointer(b, _)) => a == b,
            (Record::String(a, _), Record::String(b, _)) => a == b,
            _ => discriminant(record) == discriminant(kind),
        })
    };
    for record in real.records() {
        hold(holds(table, record), || format!("coreboot writes {record:?}, the stage does not"))?;
    }
    for record in table.records() {
        hold(holds(&real, record), || format!("the stage writes {record:?}, coreboot does not"))?;
    }
    Ok(())
}

/// Pieces of a machine's physical memory.
struct Dump(Vec<(u64, Vec<u8>)>);

impl Dump {
    /// The first MiB and the last 4 MiB of low memory.
    fn take(machine: &mut Machine, dir: &Path, low_end: u64) -> Result<Self> {
        let mut pieces = Vec::new();
        for (start, size) in [(0, MIB), (u64::from(PROBE), MIB), (low_end - 4 * MIB, 4 * MIB)] {
            let file = dir.join("memory.bin");
            machine.query("pmemsave", &json!({ "val": start, "size": size, "filename": file }))?;
            pieces.push((start, read(&file)?));
        }
        let dump = Self(pieces);
        let probe = dump.bytes(u64::from(PROBE), PROBE_BYTES as usize)?;
        let zeroed = probe[PROBE_CODE.len()..].iter().all(|byte| *byte == 0);
        hold(probe.starts_with(&PROBE_CODE) && zeroed, || "the payload is not as its file".to_owned())?;
        Ok(dump)
    }

    /// Files whose names end in the physical address of their bytes.
    fn load(folder: &Path) -> Result<Self> {
        let entries = fs::read_dir(folder).map_err(|e| Error::file("list", folder, &e))?;
        let mut pieces = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let address = stem.rsplit_once("-at-0x").and_then(|(_, at)| u64::from_str_radix(at, 16).ok());
            if let Some(address) = address {
                pieces.push((address, read(&path)?));
            }
        }
        Ok(Self(pieces))
    }

    fn bytes(&self, address: u64, length: usize) -> Result<&[u8]> {
        let piece = |(start, bytes): &(u64, Vec<u8>)| {
            let from = usize::try_from(address.checked_sub(*start)?).ok()?;
            (from + length <= bytes.len()).then_some(from)
        };
        self.0.iter().find_map(|found| Some(&found.1[piece(found)?..][..length])).ok_or_else(|| {
            Error::failed(format!("{length:#x} bytes at {address:#x} are not where they should"))
        })
    }

    fn u32(&self, address: u64) -> Result<u32> {
        Ok(self.bytes(address, 4)?.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn u64(&self, address: u64) -> Result<u64> {
        Ok(u64::from(self.u32(address)?) | u64::from(self.u32(address + 4)?) << 32)
    }

    /// The ACPI table at `address`, whose checksum holds.
    fn table(&self, address: u64) -> Result<&[u8]> {
        let table = self.bytes(address, self.u32(address + 4)? as usize)?;
        hold(sum(table) == 0, || format!("the ACPI table at {address:#x} has a wrong checksum"))?;
        Ok(table)
    }
}

impl PhysicalMemory for Dump {
    fn read(&self, address: u64, buffer: &mut [u8]) -> std::result::Result<(), Unreadable> {
        let len = buffer.len();
        let found = self.bytes(address, len).map_err(|_| Unreadable { address, len })?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn hold(condition: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::failed(otherwise())) }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::failed(error.to_string())
}
