//! The word by which a guest ends an interrupt without a write to EOI (KVM's MSR_KVM_PV_EOI_EN): where the hypervisor
//! offers it, clearing it is the end; where it does not, EOI must be written, and both can be mixed.
#![no_std]
#![no_main]
// Unsafe because the test of the word and its clearing are to be one instruction.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use runtime::apic::{self, holds, register, send_self};
use runtime::interrupts::{catch, count, handle};
use runtime::io_apic::{LEVEL, MASKED, REMOTE_REQUEST, redirect, redirection};
use runtime::{cpu, println, uart};

runtime::guest!(main);

const KVM_LEAVES: u32 = 0x4000_0100;
const KVM_PV_EOI: u32 = 1 << 6;
const MSR: u32 = 0x4b56_4d04;
const ENABLE: u64 = 1;

const LOW: u8 = 0x31;
const MIDDLE: u8 = 0x41;
const HIGH: u8 = 0x51;
const LEVELED: u8 = 0x61;

/// Ours; the hypervisor writes it.
static WORD: AtomicU32 = AtomicU32::new(0);
/// How often the word was there to be cleared.
static CLEARED: AtomicU64 = AtomicU64::new(0);

fn main(_: &runtime::Machine) {
    if cpu::cpuid(KVM_LEAVES, 0).ebx != u32::from_le_bytes(*b"KVMK")
        || cpu::cpuid(KVM_LEAVES + 1, 0).eax & KVM_PV_EOI == 0
    {
        println!("eoi-word: nobody offers it here");
        return;
    }
    apic::enable();
    the_register();
    // A CPU that ends interrupts without an exit offers no word; neither way may be noticed.
    for _ in 0..2 {
        one_after_another();
        one_within_another();
        one_behind_another();
        levels();
        if cpu::cpuid(1, 0).ecx & 1 << 21 == 0 {
            break;
        }
        apic::enable_x2apic();
    }
    let cleared = CLEARED.load(Relaxed);
    println!("eoi-word: {cleared} interrupts ended by the word");
    assert!(cleared > 0 || !cpu::is_tcg(), "QEMU's CPU exits at each EOI, and no word was offered");
    cpu::write_msr(MSR, 0);
    WORD.store(0, Relaxed);
    handle(LOW, |_| {
        assert_eq!(WORD.load(Relaxed), 0, "the word, switched off");
        apic::end_of_interrupt();
    });
    deliver(LOW);
}

fn the_register() {
    for wrong in [(&raw const WORD as u64) | 2 | ENABLE, 0x00ff_ffff_ffff_fffd] {
        let fault = catch(|| cpu::write_msr(MSR, wrong));
        assert_eq!(fault.map(|fault| (fault.vector, fault.error_code)), Some((13, 0)), "{wrong:#x}");
    }
    let place = &raw const WORD as u64 | ENABLE;
    cpu::write_msr(MSR, place);
    assert_eq!(cpu::read_msr(MSR), place, "the register");
}

/// Tests and clears the word with one instruction, as the interface asks for.
fn clear() -> bool {
    let was: u8;
    // SAFETY: the word is ours, and the hypervisor writes it only between instructions.
    unsafe {
        asm!("btr dword ptr [{word}], 0", "setc {was}", word = in(reg) WORD.as_ptr(), was = out(reg_byte) was);
    }
    CLEARED.fetch_add(was.into(), Relaxed);
    was != 0
}

/// Ends an interrupt in the way that there is.
fn end() {
    if !clear() {
        apic::end_of_interrupt();
    }
}

fn deliver(vector: u8) {
    let before = count(vector);
    send_self(vector);
    cpu::take_interrupts();
    assert_eq!(count(vector), before + 1, "{vector:#x}");
    for vector in [LOW, MIDDLE, HIGH] {
        assert!(!holds(register::IN_SERVICE, vector), "{vector:#x} in service after its end");
    }
    assert_eq!(apic::read(register::PROCESSOR_PRIORITY), 0, "processor priority after all ends");
}

fn one_after_another() {
    handle(MIDDLE, |_| end());
    (0..20).for_each(|_| deliver(MIDDLE));
    // Written EOI is an end too, offered word or not, and takes the offer away.
    handle(MIDDLE, |_| {
        apic::end_of_interrupt();
        assert!(!holds(register::IN_SERVICE, MIDDLE), "in service after EOI");
        assert!(!clear(), "the word after EOI");
    });
    (0..5).for_each(|_| deliver(MIDDLE));
    // So is the word, for whoever looks.
    handle(MIDDLE, |_| {
        let cleared = clear();
        assert_ne!(holds(register::IN_SERVICE, MIDDLE), cleared, "in service after the word was cleared");
        if !cleared {
            apic::end_of_interrupt();
        }
    });
    (0..5).for_each(|_| deliver(MIDDLE));
}

/// A higher one comes before the end of a lower one.
fn one_within_another() {
    handle(HIGH, |_| end());
    handle(MIDDLE, |_| {
        let before = count(HIGH);
        send_self(HIGH);
        cpu::take_interrupts();
        assert_eq!(count(HIGH), before + 1, "the higher one");
        assert!(holds(register::IN_SERVICE, MIDDLE), "the lower one's service");
        assert!(!holds(register::IN_SERVICE, HIGH), "the higher one's end");
        end();
    });
    (0..5).for_each(|_| deliver(MIDDLE));
}

/// A lower one waits for the end of a higher one, which so must be told.
fn one_behind_another() {
    handle(LOW, |_| end());
    handle(MIDDLE, |_| {
        send_self(LOW);
        let before = count(LOW);
        cpu::take_interrupts();
        assert_eq!(count(LOW), before, "the lower one comes later");
        end();
    });
    for _ in 0..5 {
        let before = count(LOW);
        deliver(MIDDLE);
        cpu::take_interrupts();
        assert_eq!(count(LOW), before + 1, "the lower one came");
    }
}

/// The IOAPIC hears of a level's end.
fn levels() {
    handle(LEVELED, |_| {
        uart::identify_interrupt();
        assert!(!clear(), "a word for the end of a level");
        apic::end_of_interrupt();
    });
    let pin = uart::IRQ;
    redirect(pin, LEVEL | u32::from(LEVELED));
    for round in 0..3 {
        let before = count(LEVELED);
        uart::assert_interrupt();
        cpu::take_interrupts();
        assert_eq!(count(LEVELED), before + 1, "round {round}");
        assert_eq!(redirection(pin) & REMOTE_REQUEST, 0, "remote request, round {round}");
        uart::release_interrupt();
    }
    redirect(pin, MASKED);
}
