//! Where the payload itself lies.
// Unsafe because the linker's symbols are declared, not defined, in Rust.
#![allow(unsafe_code)]

use super::memory::Range;
use super::paging::Rights;

unsafe extern "C" {
    safe static image_start: u8;
    safe static code_end: u8;
    safe static constants_end: u8;
    safe static image_end: u8;
}

fn address(symbol: &u8) -> u64 {
    core::ptr::from_ref(symbol) as u64
}

/// The whole image with its zeroed data.
pub fn range() -> Range {
    Range::new(address(&image_start), address(&image_end))
}

/// The image's parts, each in whole pages, with what may be done with them.
pub fn sections() -> [(Range, Rights); 3] {
    let (start, code) = (address(&image_start), address(&code_end));
    let (constants, end) = (address(&constants_end), address(&image_end));
    [
        (Range::new(start, code), Rights::CODE),
        (Range::new(code, constants), Rights::CONSTANTS),
        (Range::new(constants, end), Rights::DATA),
    ]
}
