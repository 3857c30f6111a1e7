//! Random instructions under a fixed seed.
//!
//! Each stream is a handful of instructions, privileged and touching memory more often than chance would have
//! it, with registers full of numbers that mean something. A stream ends at its end, by an exception, or by a
//! non-maskable interrupt when it takes too long; what it did to the CPU is put right where that can be, and the
//! next one begins. What is beyond repair ends the guest.

use crate::random::Random;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use runtime::descriptors::{self, selector};
use runtime::interrupts::{self, Frame, GateKind, catch};
use runtime::{Machine, apic, cpu, io_apic, memory, pit, println};

/// How many streams one life has, unless it ends early.
const STREAMS: u32 = 1500;
/// Where the instructions go, and memory for them to play with.
const CODE: u64 = 0x60_0000;
const DATA: u64 = 0x80_0000;
/// Bytes of a stream, whatever is in them.
const LONGEST: u64 = 256;
/// INT 0x80, by which the runtime takes its code back.
const END: [u8; 2] = [0xcd, 0x80];
/// Ticks of the PIT between two looks at the stream: 10 ms.
const PERIOD: u16 = 11932;
/// So many looks see the same stream before it is ended.
const PATIENCE: u32 = 2;

/// How often the stream that runs was looked at; `IDLE` while none runs.
static LOOKS: AtomicU32 = AtomicU32::new(IDLE);
const IDLE: u32 = u32::MAX;

/// Runs the streams of the seed on the command line.
pub fn run(_: &Machine, seed: &str) {
    let seed: u64 = seed.parse().expect("a seed");
    println!("seed {seed}");
    let mut random = Random::new(seed);
    (0..32).for_each(|vector| interrupts::set_gate(vector, GateKind::OwnStack));
    interrupts::handle(2, look);
    apic::enable();
    let cpu = State::save();
    let mut faults = 0;
    for _ in 0..STREAMS {
        let registers = compose(&mut random);
        start_looking();
        LOOKS.store(0, Relaxed);
        faults += u32::from(catch(|| enter(&registers)).is_some_and(|fault| fault.vector < 32));
        LOOKS.store(IDLE, Relaxed);
        cpu.restore();
    }
    println!("{STREAMS} streams, {faults} of them ended by an exception");
}

/// Has the PIT raise NMIs, though the last stream may have done anything to it or to the IOAPIC.
fn start_looking() {
    io_apic::redirect(pit::PIN, apic::NMI);
    pit::start_periodic(PERIOD);
}

/// An NMI came: a stream that took too long goes on at its end.
fn look(frame: &mut Frame) {
    let looks = LOOKS.load(Relaxed);
    if looks == IDLE {
        return;
    }
    LOOKS.store(looks + 1, Relaxed);
    if looks >= PATIENCE {
        memory::write(CODE + LONGEST, END);
        (frame.rip, frame.rsp, frame.rflags) = (CODE + LONGEST, DATA, 2);
        (frame.cs, frame.ss) = (selector::CODE.into(), selector::DATA.into());
    }
}

/// What a stream may change and the next one needs.
struct State {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
}

const EFER: u32 = 0xc000_0080;

impl State {
    fn save() -> Self {
        Self { cr0: cpu::cr0(), cr3: cpu::cr3(), cr4: cpu::cr4(), efer: cpu::read_msr(EFER) }
    }

    fn restore(&self) {
        cpu::disable_interrupts();
        cpu::set_cr3(self.cr3);
        cpu::set_cr4(self.cr4);
        cpu::set_cr0(self.cr0);
        cpu::write_msr(EFER, self.efer);
        cpu::set_dr7(0x400);
        cpu::set_cr8(0);
        descriptors::load();
        interrupts::reload();
    }
}

/// Instructions that matter to a monitor.
const SYSTEM: &[&[u8]] = &[
    &[0x0f, 0x22, 0xc0],             // mov cr0, rax
    &[0x0f, 0x22, 0xe3],             // mov cr4, rbx
    &[0x0f, 0x22, 0xd9],             // mov cr3, rcx
    &[0x44, 0x0f, 0x22, 0xc0],       // mov cr8, rax
    &[0x0f, 0x20, 0xc0],             // mov rax, cr0
    &[0x0f, 0x23, 0xf8],             // mov dr7, rax
    &[0x0f, 0x23, 0xc3],             // mov dr0, rbx
    &[0x0f, 0x21, 0xf0],             // mov rax, dr6
    &[0x0f, 0x30],                   // wrmsr
    &[0x0f, 0x32],                   // rdmsr
    &[0x0f, 0xa2],                   // cpuid
    &[0x0f, 0x01, 0xd1],             // xsetbv
    &[0x0f, 0x01, 0xd9],             // vmmcall
    &[0x0f, 0x01, 0xc1],             // vmcall
    &[0x0f, 0x01, 0xc8],             // monitor
    &[0x0f, 0x01, 0xc9],             // mwait
    &[0x0f, 0x01, 0xf8],             // swapgs
    &[0x0f, 0x01, 0xf9],             // rdtscp
    &[0x0f, 0x01, 0x10],             // lgdt [rax]
    &[0x0f, 0x01, 0x1b],             // lidt [rbx]
    &[0x0f, 0x01, 0xf0],             // lmsw ax
    &[0x0f, 0x01, 0x38],             // invlpg [rax]
    &[0x0f, 0x00, 0xd8],             // ltr ax
    &[0x0f, 0x00, 0xd3],             // lldt bx
    &[0x8e, 0xd0],                   // mov ss, eax
    &[0x8e, 0xd8],                   // mov ds, eax
    &[0x8e, 0xe3],                   // mov fs, ebx
    &[0x0f, 0x06],                   // clts
    &[0x0f, 0x08],                   // invd
    &[0x0f, 0x09],                   // wbinvd
    &[0x0f, 0x05],                   // syscall
    &[0x48, 0x0f, 0x07],             // sysretq
    &[0x0f, 0x34],                   // sysenter
    &[0x48, 0x0f, 0x35],             // sysexit
    &[0x0f, 0xaa],                   // rsm
    &[0x0f, 0x31],                   // rdtsc
    &[0x0f, 0x33],                   // rdpmc
    &[0x0f, 0x79, 0xc3],             // vmwrite
    &[0xf3, 0x0f, 0xc7, 0x30],       // vmxon [rax]
    &[0x0f, 0x01, 0xd8],             // vmrun
    &[0x0f, 0x01, 0xda],             // vmload
    &[0x0f, 0x01, 0xdb],             // vmsave
    &[0x0f, 0x01, 0xdc],             // stgi
    &[0x0f, 0x01, 0xdd],             // clgi
    &[0x0f, 0x01, 0xdf],             // invlpga
    &[0x0f, 0x37],                   // getsec
    &[0xf4],                         // hlt
    &[0xf3, 0x90],                   // pause
    &[0xfa],                         // cli
    &[0xfb],                         // sti
    &[0xcc],                         // int3
    &[0xf1],                         // int1
    &[0xcd, 0x08],                   // int 8
    &[0xcf],                         // iretd
    &[0x48, 0xcf],                   // iretq
    &[0xcb],                         // retf
    &[0x48, 0xff, 0x28],             // far jump through [rax]
    &[0x9d],                         // popfq
    &[0x53, 0x9d],                   // push rbx, popfq
    &[0xec],                         // in al, dx
    &[0xed],                         // in eax, dx
    &[0x66, 0xef],                   // out dx, ax
    &[0xef],                         // out dx, eax
    &[0x6c],                         // insb
    &[0xf3, 0x6d],                   // rep insd
    &[0xf3, 0x6e],                   // rep outsb
    &[0x67, 0xf2, 0x66, 0x6f],       // repne outsw
    &[0xf3, 0xa4],                   // rep movsb
    &[0xf3, 0x48, 0xab],             // rep stosq
    &[0xf3, 0xa6],                   // repe cmpsb
    &[0xf2, 0xae],                   // repne scasb
    &[0xfd],                         // std
    &[0x48, 0x8b, 0x03],             // mov rax, [rbx]
    &[0x48, 0x89, 0x08],             // mov [rax], rcx
    &[0x88, 0x0b],                   // mov [rbx], cl
    &[0xf0, 0x48, 0x0f, 0xb1, 0x0b], // lock cmpxchg [rbx], rcx
    &[0xf0, 0x48, 0x0f, 0xc7, 0x0b], // lock cmpxchg16b [rbx]
    &[0xf0, 0x0f, 0xc1, 0x03],       // lock xadd [rbx], eax
    &[0x87, 0x03],                   // xchg [rbx], eax
    &[0xff, 0x03],                   // inc [rbx]
    &[0x48, 0x83, 0x28, 0x01],       // sub qword [rax], 1
    &[0x0f, 0xab, 0x0b],             // bts [rbx], ecx
    &[0x0f, 0xb6, 0x03],             // movzx eax, byte [rbx]
    &[0x0f, 0xae, 0x00],             // fxsave [rax]
    &[0x0f, 0xae, 0x2b],             // xrstor [rbx]
    &[0xf3, 0x0f, 0x6f, 0x03],       // movdqu xmm0, [rbx]
    &[0x66, 0x0f, 0x38, 0x82, 0x03], // invpcid rax, [rbx]
    &[0xff, 0xd3],                   // call rbx
    &[0xff, 0xe0],                   // jmp rax
    &[0x48, 0x89, 0xdc],             // mov rsp, rbx
    &[0x0f, 0x0b],                   // ud2
];

/// Bytes that change what the next instruction is.
const PREFIXES: &[u8] = &[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x64, 0x65, 0x40, 0x48, 0x4f];

/// Numbers that are addresses, registers, selectors, limits or flags.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    8,
    0x10,
    0x1b,
    0x23,
    0x40,
    0x48,
    0x60,
    0x70,
    0x80,
    0x3f8,
    0xcf8,
    0xcfc,
    0x174,
    0x1a0,
    0x1d9,
    0x277,
    0x6e0,
    0x802,
    0x830,
    0x3_3002,
    0x8001_0033,
    0x406f8,
    CODE,
    DATA,
    DATA + 0xffc,
    0xff_fffc,
    0x100_0000,
    0xb000_0000,
    0xfec0_0000,
    0xfee0_0000,
    0xfee0_0300,
    0xfee0_0ffc,
    0xffff_fff0,
    0xffff_ffff,
    0x1_0000_0000,
    0x4b56_4d01,
    0xc000_0080,
    0xc000_0081,
    0xc000_0100,
    0xc001_0117,
    0x7fff_ffff_ffff,
    0x7fff_ffff_fff8,
    0x8000_0000_0000,
    0xffff_8000_0000_0000,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Replaces what ends QEMU 7.2 itself by CLTS: MOV to a debug register, since a breakpoint that is hit while an
/// exception is delivered fails an assertion, and LTR, since a null selector is taken and then "invalid tss".
fn spare_qemu(end: u64) {
    for place in CODE..end {
        if let [0x0f, 0x23 | 0x00] = memory::read::<[u8; 2]>(place) {
            memory::write(place + 1, 0x06_u8);
        }
    }
}

/// Writes the next stream, and gives the registers to enter it with: RAX first, without RSP.
fn compose(random: &mut Random) -> [u64; 15] {
    let mut at = CODE;
    let mut put = |bytes: &[u8]| {
        bytes.iter().for_each(|byte| {
            memory::write(at, *byte);
            at += 1;
        });
    };
    for _ in 0..1 + random.below(8) {
        if random.below(4) == 0 {
            put(&[random.one_of(PREFIXES)]);
        }
        match random.below(4) {
            0 => put(&random.next().to_le_bytes()[..1 + random.below(8)]),
            _ => put(random.one_of(SYSTEM)),
        }
    }
    if cpu::is_tcg() {
        spare_qemu(at);
    }
    // Wherever the last instruction ends, an end follows.
    while at < CODE + LONGEST {
        at += 2;
        memory::write(at - 2, END);
    }
    core::array::from_fn(|_| match random.below(8) {
        0 => random.next(),
        1 => random.next() & 0xffff,
        2 => DATA + (random.next() & 0x3f_ffff),
        _ => random.one_of(NUMBERS),
    })
}

/// What the jump to a stream goes through, since no register is left for it.
static ENTRY: u64 = CODE;

/// Jumps to the stream with these registers.
fn enter(registers: &[u64; 15]) {
    // SAFETY: the runtime keeps what it needs on its own stack, and `catch` or nothing takes up the pieces.
    unsafe {
        asm!(
            "mov rcx, [rax + 8]", "mov rdx, [rax + 16]", "mov rbx, [rax + 24]", "mov rbp, [rax + 32]",
            "mov rsi, [rax + 40]", "mov rdi, [rax + 48]", "mov r8, [rax + 56]", "mov r9, [rax + 64]",
            "mov r10, [rax + 72]", "mov r11, [rax + 80]", "mov r12, [rax + 88]", "mov r13, [rax + 96]",
            "mov r14, [rax + 104]", "mov r15, [rax + 112]", "mov rsp, {stack}", "mov rax, [rax]",
            "jmp qword ptr [rip + {code}]",
            in("rax") registers.as_ptr(), stack = const DATA + 0x1000, code = sym ENTRY, options(noreturn)
        )
    }
}
