//! As much of ACPI as it takes to read the time and to power off.

use crate::memory::read;
use crate::{Machine, cpu};
use core::sync::atomic::{AtomicU16, Ordering::Relaxed};

static PM1_CONTROL: AtomicU16 = AtomicU16::new(0);
static PM_TIMER: AtomicU16 = AtomicU16::new(0);
static SOFT_OFF: AtomicU16 = AtomicU16::new(0);

/// PM1 control: SLP_EN, which starts the sleep; SLP_TYP begins at bit 10.
const SLEEP: u16 = 1 << 13;

/// Finds the registers in the FADT and the code for soft off in the DSDT.
pub(crate) fn find(machine: &Machine) {
    let rsdp = machine.rsdp();
    assert_eq!(read::<[u8; 8]>(rsdp), *b"RSD PTR ", "the RSDP's signature");
    let fadt = find_table(rsdp, b"FACP");
    PM1_CONTROL.store(read::<u32>(fadt + 64) as u16, Relaxed);
    PM_TIMER.store(read::<u32>(fadt + 76) as u16, Relaxed);
    let dsdt: u32 = read(fadt + 40);
    SOFT_OFF.store(soft_off_type(dsdt.into()), Relaxed);
}

/// The table with this signature; panics when there is none.
pub(crate) fn find_table(rsdp: u64, signature: &[u8; 4]) -> u64 {
    let (list, width) = if read::<u8>(rsdp + 15) >= 2 {
        (read::<u64>(rsdp + 24), 8)
    } else {
        (u64::from(read::<u32>(rsdp + 16)), 4)
    };
    let len: u32 = read(list + 4);
    let table = (36..u64::from(len)).step_by(width).map(|offset| match width {
        8 => read::<u64>(list + offset),
        _ => read::<u32>(list + offset).into(),
    });
    let mut table = table.filter(|table| read::<[u8; 4]>(*table) == *signature);
    table.next().expect("an ACPI table with that signature")
}

/// SLP_TYP of `\_S5`: the first element of the package that follows its name.
fn soft_off_type(dsdt: u64) -> u16 {
    const PACKAGE: u8 = 0x12;
    const BYTE: u8 = 0x0a;
    let end = dsdt + u64::from(read::<u32>(dsdt + 4));
    let name = (dsdt + 36..end - 8).find(|at| read::<[u8; 4]>(*at) == *b"_S5_");
    let package = name.expect("\\_S5 in the DSDT") + 4;
    assert_eq!(read::<u8>(package), PACKAGE, "what \\_S5 is");
    // A short length and the count of elements come before the first; 0 and 1 are opcodes of their own.
    match read::<u8>(package + 3) {
        BYTE => read::<u8>(package + 4).into(),
        small => small.into(),
    }
}

pub(crate) fn pm_timer_port() -> u16 {
    PM_TIMER.load(Relaxed)
}

/// Switches the machine off (ACPI's state S5).
pub fn power_off() -> ! {
    let port = PM1_CONTROL.load(Relaxed);
    if port != 0 {
        cpu::write_port_u16(port, SOFT_OFF.load(Relaxed) << 10 | SLEEP);
    }
    cpu::halt_forever()
}
