//! A linear framebuffer on QEMU's standard display (QEMU's `docs/specs/standard-vga.rst`).

use coreboot_config::tables::{Channel, Framebuffer};
use emulation_stage::pci::Device;

use crate::port;

const IDENTITY: u32 = 0x1111_1234;
const FRAMEBUFFER_BAR: u16 = 0x10;

const INDEX: u16 = 0x1CE;
const DATA: u16 = 0x1CF;
const REGISTER_WIDTH: u16 = 1;
const REGISTER_HEIGHT: u16 = 2;
const REGISTER_DEPTH: u16 = 3;
const REGISTER_ENABLE: u16 = 4;
const ENABLED_LINEAR: u16 = 0x41;
const ATTRIBUTE_INDEX: u16 = 0x3C0;
const INPUT_STATUS: u16 = 0x3DA;
const ATTRIBUTE_SHOW: u8 = 0x20;

const WIDTH: u16 = 800;
const HEIGHT: u16 = 600;
const DEPTH: u8 = 32;

/// Switches the display to 800×600 with 32 bits a pixel, if the machine has one among `devices`.
pub fn start(devices: &[Device]) -> Option<Framebuffer> {
    let device = devices.iter().find(|device| device.identity == IDENTITY)?;
    let memory = device.bars.iter().find(|bar| bar.offset == FRAMEBUFFER_BAR)?;
    write(REGISTER_ENABLE, 0);
    write(REGISTER_WIDTH, WIDTH);
    write(REGISTER_HEIGHT, HEIGHT);
    write(REGISTER_DEPTH, u16::from(DEPTH));
    write(REGISTER_ENABLE, ENABLED_LINEAR);
    // The attribute controller blanks the screen until told; reading the status makes it expect an index.
    port::read_u8(INPUT_STATUS);
    port::write_u8(ATTRIBUTE_INDEX, ATTRIBUTE_SHOW);
    let channel = |position| Channel { position, size: 8 };
    Some(Framebuffer {
        address: memory.address,
        width: u32::from(WIDTH),
        height: u32::from(HEIGHT),
        bytes_per_line: u32::from(WIDTH) * u32::from(DEPTH) / 8,
        bits_per_pixel: DEPTH,
        red: channel(16),
        green: channel(8),
        blue: channel(0),
        reserved: channel(24),
    })
}

fn write(register: u16, value: u16) {
    port::write_u16(INDEX, register);
    port::write_u16(DATA, value);
}
