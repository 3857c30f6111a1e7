//! VT-x: virtual-machine extensions (SDM volume 3, chapters 24 to 31), with EPT and unrestricted guest.

mod capabilities;
mod check;
mod control_registers;
mod controls;
mod core;
mod enter;
mod event;
mod exit;
mod guest_state;
mod host_state;
mod hygiene;
mod msr_bitmap;
mod task_switch;
mod unswitched;
mod vcpu;
mod vmcs;

pub use self::core::Core;
pub use vcpu::Vcpu;
