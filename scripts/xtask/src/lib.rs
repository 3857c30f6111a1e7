//! The work behind `scripts/`: set-up, payload build, ROM composition, emulated machines, tests and figures.

pub mod bench;
pub mod bochs;
pub mod cbfs;
pub mod command;
pub mod cpio;
pub mod debian_disk;
pub mod error;
pub mod fault;
pub mod figures;
pub mod guests;
pub mod kvm;
pub mod machine;
pub mod manifest;
pub mod packages;
pub mod payload;
pub mod progress;
pub mod project;
pub mod qemu;
pub mod ram_files;
pub mod rom;
pub mod run;
pub mod serial;
pub mod stage;
pub mod suite;
pub mod test;
pub mod toolchain;
