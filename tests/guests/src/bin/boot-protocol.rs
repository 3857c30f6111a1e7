//! What the loader tells is so, whichever protocol it speaks: modules lie in free memory and hold what they should.
#![no_std]
#![no_main]

use runtime::memory::{image_end, read};
use runtime::{Machine, MemoryKind, Module, println};

runtime::guest!(main);

/// Where the guest's own image begins.
const IMAGE: u64 = 0x20_0000;

fn main(machine: &Machine) {
    let (loader, line, count) = (machine.loader(), machine.command_line(), machine.modules().count());
    println!("boot-protocol: {loader:?}, {count} modules, command line {line}");
    for module in machine.modules() {
        check(machine, &module);
    }
    let memory = machine.memory().filter(|range| range.kind == MemoryKind::Memory);
    let own = memory.filter(|range| range.base <= IMAGE && image_end() <= range.end).count();
    assert_eq!(own, 1, "ranges of memory that hold the guest itself");
}

/// A module's command line is the sum of its bytes.
fn check(machine: &Machine, module: &Module) {
    let (start, end) = (module.start, module.start + module.len);
    println!("boot-protocol: module at {start:#x}..{end:#x}, command line {}", module.command_line);
    assert_eq!(start % 0x1000, 0, "where in its page the module begins");
    assert!(end <= IMAGE || image_end() <= start, "the module overlaps the guest");
    let mut memory = machine.memory().filter(|range| range.kind == MemoryKind::Memory);
    assert!(memory.any(|range| range.base <= start && end <= range.end), "the module is not in memory");
    let sum: u64 = (start..end).map(|at| u64::from(read::<u8>(at))).sum();
    assert_eq!(module.command_line.parse(), Ok(sum), "the sum of the module's bytes");
}
