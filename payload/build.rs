//! Links the payload at the address the board wants, and draws the console's font.

use std::env;
use std::fmt::Write;
use std::path::Path;
use std::process::exit;

use embedded_graphics::geometry::{OriginDimensions, Point};
use embedded_graphics::image::GetPixel;
use embedded_graphics::mono_font::ascii::FONT_8X13;
use embedded_graphics::pixelcolor::BinaryColor;

/// 16 MiB: above everything that coreboot and a BIOS-shaped machine keep in low memory.
const DEFAULT_LOAD_ADDRESS: u64 = 0x100_0000;
/// The code model makes every address a sign-extended 32-bit number.
const HIGHEST_LOAD_ADDRESS: u64 = 0x7f00_0000;

fn main() {
    println!("cargo:rerun-if-env-changed=PEERBOOT_LOAD_ADDRESS");
    println!("cargo:rerun-if-changed=payload.ld");
    write_font();
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let address = match env::var("PEERBOOT_LOAD_ADDRESS") {
        Ok(text) => parse(&text).unwrap_or_else(|| {
            eprintln!(
                "PEERBOOT_LOAD_ADDRESS is `{text}`; wanted: a multiple of 0x1000 from 0x100000 to \
                 {HIGHEST_LOAD_ADDRESS:#x}"
            );
            exit(1)
        }),
        Err(_) => DEFAULT_LOAD_ADDRESS,
    };
    let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bins=-T{directory}/payload.ld");
    println!("cargo:rustc-link-arg-bins=--defsym=PAYLOAD_LOAD_ADDRESS={address:#x}");
    println!("cargo:rustc-link-arg-bins=-zmax-page-size=0x1000");
}

/// A page-aligned address above the first MiB, decimal or with 0x.
fn parse(text: &str) -> Option<u64> {
    let address = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => text.parse().ok()?,
    };
    let allowed = 0x10_0000..=HIGHEST_LOAD_ADDRESS;
    (allowed.contains(&address) && address % 0x1000 == 0).then_some(address)
}

/// Writes `font.rs`: the printable ASCII characters, 8 by 13 pixels each.
fn write_font() {
    let mut source =
        String::from("/// The printable ASCII characters' rows, the leftmost pixel in the top bit.\n");
    source += "static GLYPHS: [Glyph; 95] = [\n";
    for character in ' '..='~' {
        // Writing to a string does not fail.
        let _ = writeln!(source, "    {:?},", glyph(character));
    }
    source += "];\n";
    let directory = env::var("OUT_DIR").unwrap_or_default();
    let file = Path::new(&directory).join("font.rs");
    if let Err(error) = std::fs::write(&file, source) {
        eprintln!("cannot write {}: {error}", file.display());
        exit(1)
    }
}

/// The font's picture of a character.
fn glyph(character: char) -> [u8; 13] {
    let font = FONT_8X13;
    let per_row = font.image.size().width as usize / 8;
    let index = font.glyph_mapping.index(character);
    let (x, y) = (index % per_row * 8, index / per_row * 13);
    std::array::from_fn(|line| {
        (0..8).fold(0, |bits, pixel| {
            let at = Point::new((x + pixel) as i32, (y + line) as i32);
            bits << 1 | u8::from(font.image.pixel(at) == Some(BinaryColor::On))
        })
    })
}
