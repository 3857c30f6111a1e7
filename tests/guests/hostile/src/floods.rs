//! Everything that makes the monitor work, over and over, as fast as the guest can.

use crate::random::Random;
use core::arch::asm;
use runtime::apic::{self, register};
use runtime::cpu::{self, read_msr, write_msr};
use runtime::interrupts::catch;
use runtime::{Machine, io_apic, memory, pit, rtc};

/// The first memory address that nothing answers at, in a machine of a few MiB.
const NOTHING: u64 = 0x8000_0000;
/// The PCI configuration space in memory.
const ECAM: u64 = 0xb000_0000;

/// Port reads and writes of all widths, to devices and to nobody.
pub fn ports(_: &Machine, _: &str) {
    const PORTS: [u16; 16] = [
        0x20, 0x21, 0x40, 0x43, 0x61, 0x70, 0x71, 0x80, 0xed, 0x3fd, 0x510, 0x1234, 0x608, 0xcf8, 0xcfc,
        0xffff,
    ];
    loop {
        for port in PORTS {
            cpu::read_port_u8(port);
            cpu::read_port_u16(port);
            cpu::read_port_u32(port);
            cpu::write_port_u8(port, 0);
        }
    }
}

/// String instructions with the largest count there is, on ports and on device memory.
pub fn strings(_: &Machine, _: &str) {
    let repeat = |(port, target): (u16, u64)| {
        // SAFETY: they write to devices, or to memory far above the guest's own; a fault is caught.
        unsafe {
            asm!("rep outsb", in("dx") port, inout("rsi") 0x20_0000_u64 => _, inout("rcx") 0x4000_u64 => _);
            asm!("rep insb", in("dx") port, inout("rdi") target => _, inout("rcx") 1_u64 << 32 => _);
        }
    };
    loop {
        catch(|| repeat((0x80, NOTHING)));
        catch(|| repeat((0x1234, apic::BASE)));
        // SAFETY: as above.
        catch(|| unsafe {
            asm!("rep stosq", in("rax") 0, inout("rdi") NOTHING => _, inout("rcx") 1_u64 << 28 => _);
        });
        // SAFETY: as above.
        catch(|| unsafe {
            asm!("rep movsb", inout("rsi") ECAM => _, inout("rdi") NOTHING => _, inout("rcx") 1_u64 << 28 => _);
        });
    }
}

/// Reads and writes of devices' memory and of nothing.
pub fn device_memory(_: &Machine, _: &str) {
    loop {
        for base in [apic::BASE, io_apic::BASE, ECAM, NOTHING] {
            for offset in [0x20, 0x30, 0x80, 0xfffc, 0x1ffffc] {
                let value: u32 = memory::read(base + offset);
                memory::write(base + offset, value);
            }
        }
    }
}

/// Registers that are there and registers that are not.
pub fn msrs(_: &Machine, _: &str) {
    const REGISTERS: [u32; 7] = [0x10, 0x1b, 0x174, 0x277, 0x6e0, 0xc000_0080, 0xc000_0102];
    loop {
        for index in REGISTERS {
            catch(|| write_msr(index, read_msr(index)));
        }
        catch(|| write_msr(0x1234, read_msr(0x1234)));
    }
}

/// CPUID of every leaf that may be one.
pub fn cpuid(_: &Machine, _: &str) {
    loop {
        for leaf in (0..0x20).chain(0x4000_0000..0x4000_0020).chain(0x8000_0000..0x8000_0020) {
            for subleaf in [0, 1, 63, !0] {
                cpu::cpuid(leaf, subleaf);
            }
        }
    }
}

/// Interprocessor interrupts of every kind to everybody; the other CPU is sent back to its start all the time.
pub fn ipis(_: &Machine, _: &str) {
    const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfc];
    const OTHER: u32 = 1 << 24;
    (0x9000..).zip(HALT).for_each(|(address, byte)| memory::write(address, byte));
    apic::enable();
    cpu::enable_interrupts();
    let send = |high, low| {
        apic::write(register::COMMAND_HIGH, high);
        apic::write(register::COMMAND_LOW, low);
    };
    loop {
        for vector in [0x20, 0x81, 0xfe] {
            apic::send_self(vector);
            // To all, and to all but this one.
            send(0, 2 << 18 | u32::from(vector));
            send(0, 3 << 18 | u32::from(vector));
        }
        // Vectors and kinds that are none.
        send(0xff00_0000, 3 << 18 | 0x05);
        send(OTHER, 3 << 8 | 0x20);
        send(OTHER, 2 << 8);
        // INIT, and two start-up messages.
        send(OTHER, 0x4500);
        send(OTHER, 0x4609);
        send(OTHER, 0x4609);
    }
}

/// Non-maskable interrupts to itself.
pub fn nmis(_: &Machine, _: &str) {
    runtime::interrupts::handle(2, |_| apic::send_self_nmi());
    apic::enable();
    loop {
        apic::send_self_nmi();
    }
}

/// Every timer at its fastest, set again and again, its interrupts taken.
pub fn timers(_: &Machine, _: &str) {
    const VECTOR: u8 = 0x40;
    apic::enable();
    for pin in [pit::PIN, rtc::PIN] {
        io_apic::route(pin, VECTOR);
    }
    rtc::start_periodic();
    cpu::enable_interrupts();
    loop {
        apic::set_timer(VECTOR, apic::PERIODIC);
        apic::start_timer(1);
        pit::start_periodic(1);
        pit::start_once(2);
        rtc::acknowledge();
        for _ in 0..100 {
            core::hint::black_box(cpu::tsc());
        }
        apic::set_timer(VECTOR, apic::TSC_DEADLINE);
        for deadline in [1, cpu::tsc() + 1, !0] {
            catch(|| write_msr(apic::TSC_DEADLINE_MSR, deadline));
        }
    }
}

/// Instructions that a monitor must answer or refuse.
pub fn traps(_: &Machine, _: &str) {
    let mut number = 0_u64;
    loop {
        number += 1;
        // SAFETY: all of them fault, or do nothing that matters here.
        unsafe {
            catch(|| asm!("vmmcall", inout("rax") number => _, options(nostack)));
            catch(|| asm!("vmcall", inout("rax") number => _, options(nostack)));
            catch(|| asm!("vmrun rax", in("rax") 0x60_0000_u64));
            catch(|| asm!("vmload rax", in("rax") 0x60_0000_u64));
            catch(|| asm!("stgi"));
            catch(|| asm!("clgi"));
            catch(|| asm!("skinit eax", in("eax") 0));
            catch(|| asm!("vmxoff"));
            catch(|| asm!("monitor", in("rax") 0x60_0000, in("ecx") 0, in("edx") 0));
            catch(|| asm!("mwait", in("eax") 0, in("ecx") 0));
            catch(|| asm!("rdpmc", in("ecx") 0, out("eax") _, out("edx") _));
            catch(|| asm!("rsm"));
            asm!("pause", "wbinvd", "invd");
        }
    }
}

/// Control, debug and table registers.
pub fn control(_: &Machine, _: &str) {
    loop {
        catch(|| cpu::set_cr3(cpu::cr3()));
        catch(|| cpu::set_cr4(cpu::cr4() ^ 1 << 7));
        catch(|| cpu::set_cr0(cpu::cr0() ^ 1 << 16));
        catch(|| cpu::set_cr8(cpu::tsc() & 15));
        if !cpu::is_tcg() {
            // QEMU 7.2 takes it.
            catch(|| cpu::set_cr4(!0));
        }
        catch(|| cpu::set_xcr(0, !0));
        catch(|| cpu::set_dr7(0x400));
        catch(|| {
            cpu::dr6();
        });
        runtime::descriptors::load();
    }
}

/// Bytes without end to the serial port.
pub fn console(_: &Machine, _: &str) {
    const PORT: u16 = 0x3f8;
    let mut random = Random::new(1);
    loop {
        // Whether the port has room or not; bytes that move a terminal's cursor among them.
        cpu::write_port_u8(PORT, random.next() as u8);
    }
}

/// Ports, addresses and registers that are not there, never the same again, so that each is news.
pub fn unknown(_: &Machine, _: &str) {
    let mut random = Random::new(2);
    loop {
        let bits = random.next();
        memory::read::<u8>(NOTHING + (bits & 0x1fff_ffff));
        cpu::read_port_u8(0x2000 | bits as u16 & 0xdfff);
        catch(|| write_msr(0x2000 + (bits as u32 & 0xf_ffff), bits));
        // SAFETY: one of an unknown number.
        catch(|| unsafe { asm!("vmmcall", inout("rax") bits => _) });
        // SAFETY: the same with Intel's.
        catch(|| unsafe { asm!("vmcall", inout("rax") bits => _) });
    }
}
