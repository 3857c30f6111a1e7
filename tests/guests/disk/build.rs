//! Links the guest by the runtime's linker script.

fn main() {
    println!("cargo::rustc-link-arg-bins=-Tguest.ld");
    println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
}
