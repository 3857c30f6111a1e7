//! AMD-V: secure virtual machine (APM volume 2, chapter 15), with nested paging.

mod core;
mod enter;
mod permissions;
mod step;
mod vcpu;
mod vmcb;

pub use self::core::Core;
pub use vcpu::Vcpu;
