//! Log lines on the screen, where coreboot left a linear framebuffer.

use crate::host::lock::Lock;
use crate::host::memory::Range;
use crate::host::mmio::Mmio;
use crate::host::paging::{Cache, DeviceError, map_device};
use crate::log;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use coreboot_config::tables::{Channel, Framebuffer};
use spin::Once;

/// The size of a character in pixels.
const WIDTH: usize = 8;
const HEIGHT: usize = 13;
/// The printable ASCII characters.
const FIRST: u8 = b' ';
const LAST: u8 = b'~';
/// Light grey: red, green and blue.
const INK: [u8; 3] = [0xd0, 0xd0, 0xd0];

static SCREEN: Once<Lock<Screen>> = Once::new();

/// A character's rows, the leftmost pixel in the top bit.
type Glyph = [u8; HEIGHT];

include!(concat!(env!("OUT_DIR"), "/font.rs"));

/// A character as the framebuffer has it: eight pixels a row, of at most four bytes each.
type Picture = [[u64; 4]; HEIGHT];

struct Screen {
    memory: Mmio,
    bytes_per_line: usize,
    bytes_per_pixel: usize,
    columns: usize,
    rows: usize,
    ink: u32,
    /// What was drawn before, by character.
    pictures: Vec<Option<Picture>>,
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
    /// Too small for a character, lines that overlap, or that do not start on multiples of 8 bytes.
    Shape,
    /// It cannot be mapped.
    Device(DeviceError),
}

impl fmt::Display for ScreenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Depth(bits) => write!(f, "{bits} bits per pixel; wanted 16, 24 or 32"),
            Self::Shape => write!(f, "its address, width, height and line length do not fit together"),
            Self::Device(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ScreenError {}

struct LogLines;

impl log::Sink for LogLines {
    fn write(&self, text: &str) {
        if let Some(mut screen) = SCREEN.get().and_then(Lock::lock) {
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
    let aligned = record.address.is_multiple_of(8) && bytes_per_line.is_multiple_of(8);
    if columns == 0 || rows == 0 || bytes_per_line < width * bytes_per_pixel || !aligned {
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
        pictures: vec![None; GLYPHS.len()],
        cells: vec![FIRST; columns * rows],
        row: 0,
        column: 0,
    };
    // All zeros is black in every format.
    screen.memory.zero();
    SCREEN.call_once(|| Lock::new(screen));
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

/// A character in ink on black, in pixels of `bytes_per_pixel` bytes.
fn picture(glyph: Glyph, ink: u32, bytes_per_pixel: usize) -> Picture {
    glyph.map(|bits| {
        let mut row = [0; 32];
        for (pixel, bytes) in row.chunks_exact_mut(bytes_per_pixel).take(WIDTH).enumerate() {
            if bits & (0x80 >> pixel) != 0 {
                bytes.copy_from_slice(&ink.to_le_bytes()[..bytes_per_pixel]);
            }
        }
        let (words, _) = row.as_chunks();
        core::array::from_fn(|word| u64::from_le_bytes(words[word]))
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
        let character = usize::from(byte - FIRST);
        let (ink, depth) = (self.ink, self.bytes_per_pixel);
        let picture = self.pictures[character].get_or_insert_with(|| picture(GLYPHS[character], ink, depth));
        let start = row * HEIGHT * self.bytes_per_line + column * WIDTH * depth;
        for (line, pixels) in picture.iter().enumerate() {
            // Eight pixels fill as many words as a pixel has bytes.
            self.memory.write_words((start + line * self.bytes_per_line) as u64, &pixels[..depth]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glyphs_are_pictures_of_their_characters() {
        let glyph = |byte: u8| GLYPHS[usize::from(byte - FIRST)];
        assert_eq!(glyph(b' '), [0; HEIGHT]);
        let bar = glyph(b'|');
        let column = bar.iter().fold(0, |all, row| all | row);
        assert_eq!(column.count_ones(), 1, "a bar is one pixel wide: {bar:?}");
        assert_ne!(glyph(b'A'), glyph(b'B'));
    }

    #[test]
    fn pictures_have_a_pixel_for_every_bit() {
        let mut glyph = [0; HEIGHT];
        glyph[3] = 0b1000_0010;
        let row = |depth| picture(glyph, 0x1122_3344, depth)[3];
        assert_eq!(row(4), [0x1122_3344, 0, 0, 0x1122_3344]);
        assert_eq!(row(3), [0x22_3344, 0, 0x22_3344 << 16, 0]);
        assert_eq!(row(2), [0x3344, 0x3344 << 32, 0, 0]);
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
