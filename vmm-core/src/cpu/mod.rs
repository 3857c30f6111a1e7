//! One virtual CPU, whatever runs it.
//!
//! A backend enters the guest, decodes what the hardware says on the way out into one [`Exit`], and gives the
//! rest of the monitor the guest's registers. It holds no device code and knows no policy.

mod exit;
mod state;

pub use exit::{EntryFailure, Event, Exit, MemoryAccess, PortAccess, PortString, Width};
pub use state::{
    ControlRegisters, CpuState, DescriptorTable, Gpr, Registers, Segment, SegmentRegister, rflags,
};

/// What instruction emulation and page-table walks need of a CPU: its registers, to read and write.
pub trait CpuView {
    /// The general registers, RIP and RFLAGS.
    fn registers(&self) -> &Registers;
    /// The same, to change.
    fn registers_mut(&mut self) -> &mut Registers;
    /// A segment register with its hidden part.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// CR0, CR2, CR3, CR4 and EFER as the guest sees them.
    fn control(&self) -> ControlRegisters;
    /// The current privilege level, 0 to 3.
    fn privilege_level(&self) -> u8 {
        self.segment(SegmentRegister::Ss).privilege_level()
    }
}
