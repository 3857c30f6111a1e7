//! The code of the DSDT (ACPI 6.5, chapter 19).

use crate::SOME_DIGITS;
use crate::SOME_UID;
use crate::layout;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Local, Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package, Path, ResourceTemplate, Return, Scope,
    Store, Uuid, ZERO,
};
use acpi_tables::{Aml, AmlSink};

/// The sleep state and the devices that cannot be discovered otherwise.
pub fn board() -> Code {
    let mut code = Vec::new();
    soft_off(&mut code);
    let devices =
        [pci_root(), motherboard(), interrupt_controller(), timer(), real_time_clock(), serial_port()];
    in_scope("\\_SB_", devices.iter().map(|device| device as &dyn Aml).collect(), &mut code);
    Code(code)
}

fn in_scope(path: &str, objects: Vec<&dyn Aml>, code: &mut Vec<u8>) {
    Scope::new(Path::new(path), objects).to_aml_bytes(code);
}

/// `\_S5`, the one sleep state: soft off.
fn soft_off(code: &mut Vec<u8>) {
    let sleep_type = layout::S5_SLEEP_TYPE;
    let package = Package::new(vec![&sleep_type, &sleep_type, &ZERO, &ZERO]);
    Name::new(Path::new("\\_S5_"), &package).to_aml_bytes(code);
}

/// The code of one AML object, made where its parts live.
pub struct Code(pub Vec<u8>);

impl Code {
    fn of(object: &dyn Aml) -> Self {
        let mut code = Vec::new();
        object.to_aml_bytes(&mut code);
        Self(code)
    }
}

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// A device that plug-and-play knows by `id`, with its resources.
fn pnp_device(name: &str, id: &str, resources: Vec<&dyn Aml>) -> Code {
    Code::of(&Device::new(
        Path::new(name),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new(id)),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// Fixed ports from `port` on.
fn ports(port: u16, count: u8) -> IO {
    IO::new(port, port, 1, count)
}

/// An edge-triggered ISA interrupt of one device (ACPI 6.4.2.1).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const IRQ_NO_FLAGS: u8 = 0x22;
        sink.byte(IRQ_NO_FLAGS);
        sink.word(1_u16.wrapping_shl(self.0.into()));
    }
}

/// Addresses that are taken and belong to no device of their own. Linux uses ECAM only where it finds it
/// reserved.
fn motherboard() -> Code {
    let ecam = Memory32Fixed::new(true, layout::ECAM_BASE.get() as u32, layout::ECAM_BYTES as u32);
    let power = ports(layout::PM_BASE, layout::PM_PORTS as u8);
    pnp_device("MBRD", "PNP0C02", vec![&ecam, &power, &ports(layout::ELCR_PORT, 2)])
}

fn interrupt_controller() -> Code {
    let (master, slave) = (ports(layout::PIC_MASTER_PORT, 2), ports(layout::PIC_SLAVE_PORT, 2));
    pnp_device("PIC_", "PNP0000", vec![&master, &slave, &Irq(2)])
}

fn timer() -> Code {
    pnp_device("TMR_", "PNP0100", vec![&ports(layout::PIT_PORT, 4), &Irq(layout::PIT_IRQ)])
}

fn real_time_clock() -> Code {
    pnp_device("RTC_", "PNP0B00", vec![&ports(layout::CMOS_PORT, 4), &Irq(layout::RTC_IRQ)])
}

fn serial_port() -> Code {
    pnp_device("COM1", "PNP0501", vec![&ports(layout::UART_PORT, 8), &Irq(layout::UART_IRQ)])
}

/// A processor device.
pub fn processor() -> Code {
    let id = Name::new(Path::new("_HID"), &"ACPI0007");
    let uid = Name::new(Path::new("_UID"), &SOME_UID);
    let name = format!("C{SOME_DIGITS}");
    let device = Device::new(Path::new(&name), vec![&id, &uid]);
    let mut code = Vec::new();
    in_scope("\\_SB_", vec![&device], &mut code);
    Code(code)
}

/// The PCI Express host bridge with its interrupts and `_OSC`.
fn pci_root() -> Code {
    Code::of(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            // No DMA of a device needs to be kept coherent by hand.
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(Path::new("_PRT"), &interrupt_routing()),
            &operating_system_capabilities(),
        ],
    ))
}

/// Buses, ports and memory that the host bridge passes on.
pub fn pci_windows(above_4_gib: Option<&dyn Aml>) -> Code {
    let buses = AddressSpace::<u16>::new_bus_number(0, layout::ECAM_LAST_BUS.into());
    let configuration = ports(layout::PCI_ADDRESS_PORT, 8);
    let low_ports = AddressSpace::<u16>::new_io(0, layout::PCI_ADDRESS_PORT - 1, None);
    let high_ports = AddressSpace::<u16>::new_io(layout::PCI_DATA_PORT + 4, 0xffff, None);
    let base = layout::PCI_WINDOW_BASE.get();
    let memory = memory_window(base as u32, (base + layout::PCI_WINDOW_BYTES - 1) as u32);
    let mut windows: Vec<&dyn Aml> = vec![&buses, &configuration, &low_ports, &high_ports, &memory];
    windows.extend(above_4_gib);
    let mut code = Vec::new();
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(windows));
    in_scope("\\_SB_.PCI0", vec![&resources], &mut code);
    Code(code)
}

/// A window for devices' memory.
pub fn memory_window<T: Default>(first: T, last: T) -> AddressSpace<T> {
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
}

/// Which IOAPIC pin every device's INTA to INTD reaches (ACPI 6.2.13).
fn interrupt_routing() -> Code {
    let routes: Vec<Code> = (0_u8..32)
        .flat_map(|device| (0_u8..4).map(move |pin| (device, pin)))
        .map(|(device, pin)| {
            let any_function = u32::from(device) << 16 | 0xffff;
            let interrupt = layout::intx_pin(device, pin);
            Code::of(&Package::new(vec![&any_function, &pin, &ZERO, &interrupt]))
        })
        .collect();
    Code::of(&Package::new(routes.iter().map(|route| route as &dyn Aml).collect()))
}

/// `_OSC` of a PCI Express host bridge (PCI Firmware Specification 4.5.1).
const PCI_HOST_BRIDGE_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// What the guest may control: native hot plug, PME, AER and the capability structure. Not SHPC hot plug.
const GRANTED: u32 = 0b1_1101;
/// `_OSC` status bits.
const UNKNOWN_UUID: u8 = 1 << 2;
const UNKNOWN_REVISION: u8 = 1 << 3;
const CAPABILITIES_MASKED: u8 = 1 << 4;

/// `_OSC`: the guest says what it wants to control, and is told what it may.
fn operating_system_capabilities() -> Code {
    let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
    let (status, wanted) = (Path::new("CDW1"), Path::new("CDW3"));
    let granted = Local(0);
    let masked = Code::of(&If::new(
        &NotEqual::new(&wanted, &granted),
        vec![&Or::new(&status, &status, &CAPABILITIES_MASKED)],
    ));
    let wrong_revision = Code::of(&If::new(
        &NotEqual::new(&revision, &ONE),
        vec![&Or::new(&status, &status, &UNKNOWN_REVISION)],
    ));
    let ours = Code::of(&If::new(
        &Equal::new(&uuid, &Uuid::new(PCI_HOST_BRIDGE_UUID)),
        vec![
            &CreateDWordField::new(&wanted, &buffer, &8_u8),
            &And::new(&granted, &wanted, &GRANTED),
            &wrong_revision,
            &masked,
            &Store::new(&wanted, &granted),
        ],
    ));
    Code::of(&Method::new(
        Path::new("_OSC"),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &buffer, &ZERO),
            &ours,
            &Else::new(vec![&Or::new(&status, &status, &UNKNOWN_UUID)]),
            &Return::new(&buffer),
        ],
    ))
}
