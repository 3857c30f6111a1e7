//! The instruction decoder against iced-x86: the first byte chooses the code size, the rest is code.
#![no_main]

#[path = "../../../../vmm-core/tests/against_iced/mod.rs"]
mod against_iced;

use vmm_core::cpu::CodeSize;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((size, code)) = data.split_first() else { return };
    let size = match size % 3 {
        0 => CodeSize::Bits16,
        1 => CodeSize::Bits32,
        _ => CodeSize::Bits64,
    };
    against_iced::check(code, size);
});
