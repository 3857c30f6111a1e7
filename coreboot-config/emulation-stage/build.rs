//! Hands the linker the bootblock's layout when the stage itself is built, and nothing on the host.

fn main() {
    println!("cargo::rerun-if-changed=stage.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{here}/stage.ld");
    }
}
