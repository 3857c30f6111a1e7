//! Log lines on the screen, where coreboot left a linear framebuffer.

use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, DeviceError, map_device};
use crate::log;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use coreboot_config::tables::{Channel, Framebuffer};
use embedded_graphics::geometry::{OriginDimensions, Point};
use embedded_graphics::image::GetPixel;
use embedded_graphics::mono_font::MonoFont;
use embedded_graphics::mono_font::ascii::FONT_8X13;
use embedded_graphics::pixelcolor::BinaryColor;
use spin::{Mutex, Once};

/// The font, and the size of its characters in pixels.
const FONT: MonoFont = FONT_8X13;
const WIDTH: usize = 8;
const HEIGHT: usize = 13;
/// The printable ASCII characters.
const FIRST: u8 = b' ';
const LAST: u8 = b'~';
/// Light grey: red, green and blue.
const INK: [u8; 3] = [0xd0, 0xd0, 0xd0];
/// Black, in every format of pixel.
const PAPER: u32 = 0;

static SCREEN: Once<Mutex<Screen>> = Once::new();

/// A character's rows, the leftmost pixel in the top bit.
type Glyph = [u8; HEIGHT];

struct Screen {
    memory: Mmio,
    bytes_per_line: usize,
    bytes_per_pixel: usize,
    columns: usize,
    rows: usize,
    ink: u32,
    glyphs: Vec<Glyph>,
    /// What is drawn, row by row.
    cells: Vec<u8>,
    row: usize,
    column: usize,
}

/// Why there is no console on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScreenError {
    /// Bits per pixel other than 16, 24 and 32.
    Depth(u8),
    /// Too small for a character, or lines that overlap.
    Shape,
    /// It cannot be mapped.
    Device(DeviceError),
}

impl fmt::Display for ScreenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Depth(bits) => write!(f, "{bits} bits per pixel; wanted 16, 24 or 32"),
            Self::Shape => write!(f, "its width, height and line length do not fit together"),
            Self::Device(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ScreenError {}

struct LogLines;

impl log::Sink for LogLines {
    fn write(&self, text: &str) {
        if let Some(mut screen) = SCREEN.get().and_then(log::lock) {
            text.bytes().for_each(|byte| screen.put(byte));
        }
    }
}

/// Clears the screen and has log lines go there.
pub fn start(record: &Framebuffer) -> Result<(), ScreenError> {
    let bytes_per_pixel = match record.bits_per_pixel {
        16 => 2,
        24 => 3,
        32 => 4,
        other => return Err(ScreenError::Depth(other)),
    };
    let (width, height) = (record.width as usize, record.height as usize);
    let bytes_per_line = record.bytes_per_line as usize;
    let (columns, rows) = (width / WIDTH, height / HEIGHT);
    if columns == 0 || rows == 0 || bytes_per_line < width * bytes_per_pixel {
        return Err(ScreenError::Shape);
    }
    let range = Range::with_len(record.address, (bytes_per_line * height) as u64);
    let memory = map_device(range, Cache::WriteCombining).map_err(ScreenError::Device)?;
    let screen = Screen {
        memory,
        bytes_per_line,
        bytes_per_pixel,
        columns,
        rows,
        ink: colour(record, INK),
        glyphs: (FIRST..=LAST).map(glyph).collect(),
        cells: vec![FIRST; columns * rows],
        row: 0,
        column: 0,
    };
    screen.clear();
    SCREEN.call_once(|| Mutex::new(screen));
    log::attach(&LogLines);
    Ok(())
}

/// A colour as the framebuffer has it.
fn colour(record: &Framebuffer, rgb: [u8; 3]) -> u32 {
    let part = |(channel, value): (Channel, u8)| {
        let bits = u32::from(channel.size.min(8));
        (u32::from(value) >> (8 - bits)).checked_shl(u32::from(channel.position)).unwrap_or(0)
    };
    [record.red, record.green, record.blue].into_iter().zip(rgb).map(part).fold(0, |all, one| all | one)
}

/// The font's picture of a character.
fn glyph(character: u8) -> Glyph {
    let per_row = FONT.image.size().width as usize / WIDTH;
    let index = FONT.glyph_mapping.index(char::from(character));
    let (x, y) = (index % per_row * WIDTH, index / per_row * HEIGHT);
    core::array::from_fn(|line| {
        (0..WIDTH).fold(0, |bits, pixel| {
            let at = Point::new((x + pixel) as i32, (y + line) as i32);
            bits << 1 | u8::from(FONT.image.pixel(at) == Some(BinaryColor::On))
        })
    })
}

impl Screen {
    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => self.next_row(),
            b'\r' => self.column = 0,
            _ => {
                if self.column == self.columns {
                    self.next_row();
                }
                let shown = if (FIRST..=LAST).contains(&byte) { byte } else { b'?' };
                self.draw(self.row, self.column, shown);
                self.column += 1;
            }
        }
    }

    fn next_row(&mut self) {
        self.column = 0;
        self.row += 1;
        if self.row == self.rows {
            self.scroll();
        }
    }

    /// Moves the text up by a quarter of the screen: drawing is slow, so it is not done for every line.
    fn scroll(&mut self) {
        let by = self.rows.div_ceil(4);
        for row in 0..self.rows {
            for column in 0..self.columns {
                let from = (row + by) * self.columns + column;
                let byte = self.cells.get(from).copied().unwrap_or(FIRST);
                self.draw(row, column, byte);
            }
        }
        self.row = self.rows - by;
    }

    /// Draws one character, unless it is already there. The screen is only ever written: reading it is slow.
    fn draw(&mut self, row: usize, column: usize, byte: u8) {
        let cell = &mut self.cells[row * self.columns + column];
        if core::mem::replace(cell, byte) == byte {
            return;
        }
        let glyph = self.glyphs[usize::from(byte - FIRST)];
        for (line, bits) in glyph.into_iter().enumerate() {
            let start = (row * HEIGHT + line) * self.bytes_per_line + column * WIDTH * self.bytes_per_pixel;
            for pixel in 0..WIDTH {
                let lit = bits & (0x80 >> pixel) != 0;
                let colour = if lit { self.ink } else { PAPER };
                self.plot((start + pixel * self.bytes_per_pixel) as u64, colour);
            }
        }
    }

    fn plot(&self, at: u64, colour: u32) {
        match self.bytes_per_pixel {
            2 => self.memory.write_u16(at, colour as u16),
            4 => self.memory.write_u32(at, colour),
            _ => {
                let [low, middle, high, _] = colour.to_le_bytes();
                self.memory.write_u8(at, low);
                self.memory.write_u8(at + 1, middle);
                self.memory.write_u8(at + 2, high);
            }
        }
    }

    fn clear(&self) {
        let len = self.memory.len();
        (0..len / 8).for_each(|index| self.memory.write_u64(index * 8, 0));
        (len & !7..len).for_each(|at| self.memory.write_u8(at, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glyphs_are_pictures_of_their_characters() {
        assert_eq!(glyph(b' '), [0; HEIGHT]);
        let bar = glyph(b'|');
        let column = bar.iter().fold(0, |all, row| all | row);
        assert_eq!(column.count_ones(), 1, "a bar is one pixel wide: {bar:?}");
        assert_ne!(glyph(b'A'), glyph(b'B'));
    }

    #[test]
    fn colours_follow_the_masks() {
        let channel = |position, size| Channel { position, size };
        let mut record = Framebuffer {
            address: 0,
            width: 0,
            height: 0,
            bytes_per_line: 0,
            bits_per_pixel: 32,
            red: channel(16, 8),
            green: channel(8, 8),
            blue: channel(0, 8),
            reserved: channel(24, 8),
        };
        assert_eq!(colour(&record, [0x12, 0x34, 0x56]), 0x12_3456);
        (record.red, record.green, record.blue) = (channel(11, 5), channel(5, 6), channel(0, 5));
        assert_eq!(colour(&record, [0xff, 0, 0xff]), 0xf81f);
        record.red = channel(255, 255);
        assert_eq!(colour(&record, [0xff, 0, 0]), 0, "a mask beyond the pixel shows nothing");
    }
}
