//! One instruction of a guest's, run by setting its trap flag: AMD-V tells neither when an IRET nor when the
//! shadow of STI or MOV SS is over.

/// DR6: a breakpoint's number, an access to a debug register, a task switch.
const OTHER_CAUSES: u64 = 0xa00f;

/// What the trap flag's borrowing hides from the guest.
pub struct Step {
    /// Where the instruction is.
    pub rip: u64,
    /// The guest's own trap flag, in its place in RFLAGS.
    pub trap: u64,
    /// DR6 before it.
    pub dr6: u64,
}

impl Step {
    /// Whether the trap behind the instruction, of which `dr6` tells, is one that the guest is to see.
    pub fn is_guests(&self, dr6: u64) -> bool {
        self.trap != 0 || dr6 & OTHER_CAUSES & !self.dr6 != 0
    }
}
