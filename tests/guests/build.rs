//! Links the guests by our linker script.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/guest.ld");
    println!("cargo::rustc-link-arg-bins=-T{script}");
    println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
    println!("cargo::rerun-if-changed={script}");
}
