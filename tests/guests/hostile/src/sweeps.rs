//! Everything there is an address for, once.

use crate::random::Random;
use runtime::cpu::{self, read_msr, write_msr};
use runtime::interrupts::{GateKind, catch, set_gate};
use runtime::memory::{self, LARGE_PAGE};
use runtime::{Machine, MemoryKind, println};

/// Linear addresses that stand for whatever is looked at.
const WINDOW: u64 = 0x7fc0_0000;

/// Every guest-physical address that is not memory, a page or a piece at a time: below 4 GiB, and from there to
/// the end of what the CPU can address.
pub fn memory(machine: &Machine, _: &str) {
    let end = machine
        .memory()
        .filter(|range| range.kind == MemoryKind::Memory)
        .map(|range| range.end)
        .max()
        .expect("some memory");
    let mut count = 0_u64;
    let mut touch = |physical: u64| {
        if physical >= end || (0xa_0000..0x10_0000).contains(&physical) {
            count += 1;
            memory::map_to(WINDOW, physical);
            let address = WINDOW + physical % LARGE_PAGE;
            let value: u64 = memory::read(address);
            memory::write(address, !value);
            memory::write(address, 0_u8);
        }
    };
    // Pages where a host has its legacy memory, APICs, tables and flash; elsewhere one place in each 256 KiB.
    for page in (0xa_0000..0x10_0000).chain(0xfec0_0000..0xfef0_0000).step_by(0x1000) {
        touch(page);
    }
    for piece in (end..1 << 32).step_by(0x4_0000) {
        touch(piece);
    }
    for piece in (0xffff_0000..1 << 32_u64).step_by(0x1000) {
        touch(piece);
    }
    let bits = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    for bit in 32..bits {
        for offset in [0, LARGE_PAGE, 0xfee0_0000, 1 << bit.min(38)] {
            touch(((1 << bit) + offset) & ((1 << bits) - 1));
        }
        touch((2 << bit) - 8);
    }
    let mut random = Random::new(3);
    for _ in 0..2000 {
        touch(random.next() & ((1 << bits) - 8));
    }
    println!("{count} places outside memory");
}

/// Every I/O port read and written in every width; or of those from one on and before another, each so-many-th.
pub fn ports(_: &Machine, rest: &str) {
    /// Those that reset or switch off: the keyboard controller, the fast reset, PCI's reset, and power management.
    fn ends_a_life(port: u16) -> bool {
        matches!(port, 0x60..=0x64 | 0x8f..=0x92 | 0xcf6..=0xcf9 | 0xb2 | 0x5fc..=0x640 | 0xe6..=0xe9)
    }
    let mut words = rest.split(' ').map(|word| word.parse().ok());
    let mut number = || words.next().flatten();
    let (first, end, step) =
        (number().unwrap_or(0), number().unwrap_or(0x1_0000), number().unwrap_or(1) as usize);
    let ports = || (first..end).step_by(step).map(|port: u32| port as u16);
    for port in ports() {
        cpu::read_port_u8(port);
        cpu::read_port_u16(port);
        cpu::read_port_u32(port);
    }
    for value in [0, !0] {
        for port in ports().filter(|port| !ends_a_life(*port)) {
            cpu::write_port_u8(port, value as u8);
            cpu::write_port_u16(port, value as u16);
            cpu::write_port_u32(port, value);
        }
    }
    println!("{} ports read, the harmless ones written", ports().count());
}

/// Every model-specific register of the architectural and the vendors' ranges, read and written.
pub fn msrs(_: &Machine, _: &str) {
    /// IA32_APIC_BASE and x2APIC's interrupt command, which could end this.
    const LEFT_OUT: [u32; 2] = [0x1b, 0x830];
    let ranges = [
        0..0x2000,
        0x4000_0000..0x4000_0200,
        0x4b56_4d00..0x4b56_4e00,
        0xc000_0000..0xc000_2000,
        0xc001_0000..0xc001_2000,
    ];
    let (mut known, mut taken) = (0, 0);
    for index in ranges.into_iter().flatten() {
        let mut old = None;
        if catch(|| old = Some(read_msr(index))).is_none() {
            known += 1;
        }
        if LEFT_OUT.contains(&index) {
            continue;
        }
        for value in [0, 1, !0, 0x8000_0000_0000, 0x60_0001, 1 << 40] {
            // The last is where the base of GS, FS or a time page may come to lie: the runtime uses none.
            taken += u32::from(catch(|| write_msr(index, value)).is_none());
        }
        if let Some(old) = old {
            for bit in 0..64 {
                catch(|| write_msr(index, old ^ 1 << bit));
            }
            catch(|| write_msr(index, old));
        }
    }
    println!("{known} registers can be read, {taken} writes were taken");
}

/// Control, debug and extended control registers with every bit and with many together.
pub fn control(_: &Machine, _: &str) {
    let (cr0, cr3, cr4) = (cpu::cr0(), cpu::cr3(), cpu::cr4());
    (0..32).for_each(|vector| set_gate(vector, GateKind::OwnStack));
    // QEMU 7.2 takes what a CPU refuses: PE and PG, PAE and LA57, and the upper halves.
    const UPPER: u64 = !0 << 32;
    let (keep_cr0, keep_cr4, keep_dr) =
        if cpu::is_tcg() { (UPPER | 1 << 31 | 1, UPPER | 1 << 12 | 1 << 5, UPPER) } else { (0, 0, 0) };
    let mut random = Random::new(4);
    let mut attempt = |number: u32| {
        let value = match number {
            0..64 => 1 << number,
            _ => random.next() & random.next(),
        };
        catch(|| cpu::set_cr0(cr0 ^ value & !keep_cr0));
        catch(|| cpu::set_cr0(cr0));
        catch(|| cpu::set_cr4(cr4 ^ value & !keep_cr4));
        catch(|| cpu::set_cr4(cr4));
        // Tables elsewhere would end this at once: only what lies beside the address.
        catch(|| cpu::set_cr3(cr3 | value & !0x000f_ffff_ffff_f000));
        cpu::set_cr3(cr3);
        catch(|| cpu::set_cr8(value));
        cpu::set_cr8(0);
        catch(|| cpu::set_xcr(0, value));
        catch(|| cpu::set_dr6(value & !keep_dr));
        catch(|| cpu::set_dr7(value & !keep_dr & !(3 << 16 | 3 << 20 | 3 << 24 | 3 << 28)));
        catch(|| cpu::set_dr7(0x400));
    };
    (0..2000).for_each(&mut attempt);
    println!("2000 values of each control register");
}
