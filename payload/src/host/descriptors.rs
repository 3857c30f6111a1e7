//! A CPU's GDT and TSS: flat segments, and a stack of its own for each interrupt that may find the current one
//! unusable.
// Unsafe because a wrong descriptor table takes the CPU away from Rust.
#![allow(unsafe_code)]

use super::stacks::CpuStacks;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

/// The interrupts that get a stack of their own, by entry of the interrupt stack table (1 to 7).
pub mod ist {
    /// Non-maskable interrupts.
    pub const NMI: u8 = 1;
    /// Double faults.
    pub const DOUBLE_FAULT: u8 = 2;
    /// Machine checks.
    pub const MACHINE_CHECK: u8 = 3;
}

/// One CPU's GDT and TSS.
pub struct Descriptors {
    tss: TaskStateSegment,
    gdt: Once<(GlobalDescriptorTable, Selectors)>,
}

/// The segments of the GDT.
#[derive(Clone, Copy)]
struct Selectors {
    code: SegmentSelector,
    data: SegmentSelector,
    tss: SegmentSelector,
}

impl Descriptors {
    /// Tables whose TSS names `stacks`.
    pub fn new(stacks: &'static CpuStacks) -> Self {
        let mut tss = TaskStateSegment::new();
        tss.interrupt_stack_table[usize::from(ist::NMI) - 1] = VirtAddr::new(stacks.nmi.top());
        tss.interrupt_stack_table[usize::from(ist::DOUBLE_FAULT) - 1] =
            VirtAddr::new(stacks.double_fault.top());
        tss.interrupt_stack_table[usize::from(ist::MACHINE_CHECK) - 1] =
            VirtAddr::new(stacks.machine_check.top());
        Self { tss, gdt: Once::new() }
    }

    /// Makes them the tables of the CPU we run on.
    pub fn load(&'static self) {
        let (gdt, selectors) = self.gdt.call_once(|| {
            let mut gdt = GlobalDescriptorTable::new();
            let code = gdt.append(Descriptor::kernel_code_segment());
            let data = gdt.append(Descriptor::kernel_data_segment());
            let tss = gdt.append(Descriptor::tss_segment(&self.tss));
            (gdt, Selectors { code, data, tss })
        });
        gdt.load();
        // SAFETY: the selectors are those of the GDT just loaded: flat code and data, an available TSS.
        unsafe {
            CS::set_reg(selectors.code);
            SS::set_reg(selectors.data);
            DS::set_reg(selectors.data);
            ES::set_reg(selectors.data);
            FS::set_reg(SegmentSelector::NULL);
            GS::set_reg(SegmentSelector::NULL);
            load_tss(selectors.tss);
        }
    }
}
