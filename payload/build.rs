//! Links the payload at the address the board wants.

use std::env;
use std::process::exit;

/// 16 MiB: above everything that coreboot and a BIOS-shaped machine keep in low memory.
const DEFAULT_LOAD_ADDRESS: u64 = 0x100_0000;
/// The code model makes every address a sign-extended 32-bit number.
const HIGHEST_LOAD_ADDRESS: u64 = 0x7f00_0000;

fn main() {
    println!("cargo:rerun-if-env-changed=PEERBOOT_LOAD_ADDRESS");
    println!("cargo:rerun-if-changed=payload.ld");
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
