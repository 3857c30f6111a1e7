//! Memory by physical address, and the page tables that map it.

use core::arch::asm;
use core::ops::Range;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Page-table entry bit: nothing may be executed.
pub const NO_EXECUTE: u64 = 1 << 63;
/// What a level-2 entry maps.
pub const LARGE_PAGE: u64 = 2 << 20;

unsafe extern "C" {
    static mut root_table: [u64; 512];
    static __start: u8;
    static __end: u8;
}

/// The guest's own code and data.
pub fn image() -> Range<u64> {
    &raw const __start as u64..image_end()
}

/// Where the guest's own code and data end.
pub fn image_end() -> u64 {
    &raw const __end as u64
}

#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Table([u64; 512]);

/// Tables for what lies above the first 4 GiB.
static mut SPARE: [Table; 32] = [Table([0; 512]); 32];
static mut SPARE_USED: usize = 0;

/// Reads a `T` from physical `address`, which must be mapped. Device registers too.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: all of the guest's machine is the guest's; `T` is an integer in every use.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes a `T` to physical `address`, which must be mapped and not be the guest's own code or data.
#[inline(always)]
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: as for `read`.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// The entry of the table at `table` for `address` at `level` (3 is the root).
fn entry(table: u64, address: u64, level: u32) -> u64 {
    table + (address >> (12 + 9 * level) & 511) * 8
}

/// Gives the table that the entry at `entry` points to, a new one where it points to none.
fn table_below(entry: u64) -> u64 {
    let value: u64 = read(entry);
    if value & PRESENT != 0 {
        return value & ADDRESS;
    }
    // SAFETY: one CPU; each table is given out once, and the index is checked.
    let table = unsafe {
        let table = &raw const SPARE[SPARE_USED].0 as u64;
        SPARE_USED += 1;
        table
    };
    write(entry, table | PRESENT | WRITABLE);
    table
}

/// The page-directory entry for `address`, whose tables are made where there are none.
fn large_entry(address: u64) -> u64 {
    let root = &raw const root_table as u64;
    let pointers = table_below(entry(root, address, 3));
    let directory = table_below(entry(pointers, address, 2));
    entry(directory, address, 1)
}

/// Maps the 2 MiB page that holds `address` onto itself, writable.
pub fn map(address: u64) {
    set_large_page(address, PRESENT | WRITABLE | LARGE);
}

/// Maps the 2 MiB page that holds `address` onto itself, read-only, with `flags` beside.
pub fn map_read_only(address: u64, flags: u64) {
    set_large_page(address, PRESENT | LARGE | flags);
}

/// Unmaps the 2 MiB page that holds `address`.
pub fn unmap(address: u64) {
    set_large_page(address, 0);
}

/// Lets privilege level 3 use the 2 MiB page that holds `address`, as it is mapped.
pub fn allow_user(address: u64) {
    let root = &raw const root_table as u64;
    let pointers = entry(root, address, 3);
    let directory = entry(table_below(pointers), address, 2);
    for entry in [pointers, directory, large_entry(address)] {
        write(entry, read::<u64>(entry) | USER);
    }
    flush(address);
}

/// Maps the 2 MiB page that holds `address` to the one that holds `physical`, writable.
pub fn map_to(address: u64, physical: u64) {
    write(large_entry(address), physical & !(LARGE_PAGE - 1) | PRESENT | WRITABLE | LARGE);
    flush(address);
}

/// Does the same with `flags` beside, and leaves the old translation where the CPU may still have it.
pub fn map_to_quietly(address: u64, physical: u64, flags: u64) {
    write(large_entry(address), physical & !(LARGE_PAGE - 1) | flags | PRESENT | WRITABLE | LARGE);
}

/// Where the root of the page tables lies: CR3.
pub fn root() -> u64 {
    &raw const root_table as u64
}

/// Drops the translation of `address`.
fn flush(address: u64) {
    // SAFETY: drops a translation, nothing more.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

fn set_large_page(address: u64, flags: u64) {
    let page = address & !(LARGE_PAGE - 1);
    write(large_entry(address), if flags == 0 { 0 } else { page | flags });
    flush(page);
}
