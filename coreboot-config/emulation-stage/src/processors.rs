//! The other processors: given the same memory types, then halted in memory that the payload keeps.
#![allow(unsafe_code)] // Processors start in real mode, and run no Rust here.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use emulation_stage::mtrr;
use x86_64::registers::model_specific::Msr;

use crate::{handoff, interrupts, physical, pm};

/// Page below 1 MiB that processors start in; free again once they have arrived.
const STARTUP_PAGE: u8 = 8;
/// How long to wait before INIT is tried, and then at all, in ticks of the PM timer: 100 ms and 1 s.
const BEFORE_INIT_TICKS: u32 = 357_954;
const PATIENCE_TICKS: u32 = 3_579_545;
/// How long to wait where nobody knows how many there are: 10 ms, as Bochs's own firmware does.
const UNKNOWN_TICKS: u32 = 35_795;

const MTRR_CAPABILITIES: u32 = 0xFE;

/// What arriving processors read. `park` knows this layout.
#[repr(C)]
struct Park {
    /// One bit for each local APIC: a processor may come twice.
    arrived: [AtomicU32; 8],
    writes: u32,
    first_write: u32,
}

/// What follows the trampoline's code; it is packed as `lgdt` and `ljmp` want their operands.
#[repr(C, packed)]
struct TrampolineData {
    gdt_limit: u16,
    gdt: u32,
    target: u32,
    selector: u16,
    park: u32,
}

/// A register write that every processor does, as `park` reads it.
#[repr(C)]
struct MsrWrite {
    register: u32,
    low: u32,
    high: u32,
}

unsafe extern "C" {
    static processor_trampoline: u8;
    static processor_trampoline_data: u8;
    static processor_park: u8;
}

global_asm!(
    r#"
    .text
    .balign 16
    .code16
    .globl processor_trampoline, processor_trampoline_data, processor_park
processor_trampoline:
    cli
    cld
    lgdtl %cs:(processor_trampoline_data - processor_trampoline)
    movl %cs:(processor_trampoline_data - processor_trampoline + 12), %ebx
    movl %cr0, %eax
    andl $0x9FFFFFFF, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl *%cs:(processor_trampoline_data - processor_trampoline + 6)
processor_trampoline_data:
    .skip 16

    // Runs at its physical address; EBX is that of `Park`.
    .balign 16
    .code32
processor_park:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl 32(%ebx), %esi
    movl 36(%ebx), %edi
1:  testl %esi, %esi
    jz 2f
    movl (%edi), %ecx
    movl 4(%edi), %eax
    movl 8(%edi), %edx
    wrmsr
    addl $12, %edi
    decl %esi
    jmp 1b
2:  movl %ebx, %esi
    movl $1, %eax
    cpuid
    shrl $24, %ebx                      // the local APIC's number
    lock btsl %ebx, (%esi)
3:  cli
    hlt
    jmp 3b
    .code64
    "#,
    options(att_syntax)
);

/// The registers that `file` says to write on every processor: each an index of four bytes and a value of eight, low
/// byte first.
fn chosen_writes(file: &[u8]) -> impl Iterator<Item = MsrWrite> {
    file.chunks_exact(size_of::<MsrWrite>()).map(|record| {
        let word =
            |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        MsrWrite { register: word(0), low: word(4), high: word(8) }
    })
}

/// Makes this processor and the others, `count` in all if that is known, cache RAM up to `low_end` but not what is
/// between it and 4 GiB, has them write the registers that `chosen` names, and halts the others. Returns the local APICs' numbers of
/// those that are there, this one's first.
pub fn start(count: Option<u32>, low_end: u64, chosen: &[u8]) -> Vec<u8> {
    let mut writes = memory_type_writes(low_end);
    writes.extend(chosen_writes(chosen));
    for write in &writes {
        let value = u64::from(write.high) << 32 | u64::from(write.low);
        // SAFETY: these are MTRRs, and all memory in use stays cacheable throughout; or who made the ROM asked for it.
        unsafe { Msr::new(write.register).write(value) };
    }
    let park = Park {
        arrived: [const { AtomicU32::new(0) }; 8],
        writes: writes.len() as u32,
        first_write: physical::address_of(writes.as_ptr()) as u32,
    };
    place_trampoline(&park);
    let others = count.map(|count| count.saturating_sub(1) as usize);
    let all_came = || others.is_some_and(|others| park.arrived().count() >= others);
    // Reset leaves processors waiting for start-up. INIT is for those that do not: in QEMU that counts
    // instructions, a processor that takes INIT is charged for all of them up to the next timer's deadline.
    interrupts::start_others(STARTUP_PAGE);
    if others.is_none() {
        wait(UNKNOWN_TICKS, all_came);
    } else if !wait(BEFORE_INIT_TICKS, all_came) {
        interrupts::reset_others();
        interrupts::start_others(STARTUP_PAGE);
        wait(PATIENCE_TICKS, all_came);
    }
    core::iter::once(interrupts::local_apic_id()).chain(park.arrived()).collect()
}

impl Park {
    /// The local APICs' numbers of the processors that have come.
    fn arrived(&self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX)
            .filter(|id| self.arrived[usize::from(id / 32)].load(Ordering::Acquire) & 1 << (id % 32) != 0)
    }
}

fn wait(ticks: u32, done: impl Fn() -> bool) -> bool {
    let start = pm::timer();
    while !done() {
        if pm::timer().wrapping_sub(start) & 0x00FF_FFFF > ticks {
            return done();
        }
        core::hint::spin_loop();
    }
    true
}

fn memory_type_writes(low_end: u64) -> Vec<MsrWrite> {
    use core::arch::x86_64::__cpuid;
    if __cpuid(1).edx & 1 << 12 == 0 {
        return Vec::new();
    }
    let address_bits = match __cpuid(0x8000_0000).eax {
        0x8000_0008.. => __cpuid(0x8000_0008).eax & 0xFF,
        _ => 36,
    };
    // SAFETY: CPUID says that there are MTRRs.
    let variable = unsafe { Msr::new(MTRR_CAPABILITIES).read() } & 0xFF;
    mtrr::writes(low_end..1 << 32, variable as usize, address_bits)
        .into_iter()
        .map(|(register, value)| MsrWrite { register, low: value as u32, high: (value >> 32) as u32 })
        .collect()
}

fn place_trampoline(park: &Park) {
    let code = &raw const processor_trampoline;
    let target = physical::address_of(&raw const processor_park) as u32;
    let (gdt, gdt_limit) = handoff::gdt();
    let park = physical::address_of(park) as u32;
    let data = TrampolineData { gdt_limit, gdt: gdt as u32, target, selector: 0x08, park };
    let size = &raw const processor_trampoline_data as usize - code as usize;
    let page = u64::from(STARTUP_PAGE) << 12;
    // SAFETY: low memory is free RAM until the payload is loaded.
    let page = unsafe { physical::bytes(page, size + size_of::<TrampolineData>()) };
    // SAFETY: the symbols enclose the code, which nothing writes to.
    page[..size].copy_from_slice(unsafe { core::slice::from_raw_parts(code, size) });
    // SAFETY: the page has room for it, and the type is packed.
    unsafe { page.as_mut_ptr().add(size).cast::<TrampolineData>().write(data) };
}
