//! Lets every program that uses the runtime find its linker script by name.

fn main() {
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=guest.ld");
}
