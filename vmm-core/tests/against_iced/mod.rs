//! The decoder beside iced-x86: whatever ours says about bytes, iced must say too; and what ours claims to
//! know, it must accept. Shared with the fuzz target.

use iced_x86::{Decoder, DecoderOptions, Instruction as Iced, MemorySize, Mnemonic, OpKind, Register};
use vmm_core::cpu::{CodeSize, Gpr, SegmentRegister, Width};
use vmm_core::emulate::{
    AddressSize, Arithmetic, Base, Bit, DecodeError, Instruction, Kind, MemoryOperand, Operand, Repeat,
    decode,
};

/// Decodes `code` both ways and panics where the two differ.
pub fn check(code: &[u8], size: CodeSize) {
    let bitness = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let iced = Decoder::with_ip(bitness, code, 0, DecoderOptions::NONE).decode();
    let ours = decode(code, size);
    let context = || format!("{code:02x?} in {bitness}-bit code\nours: {ours:x?}\niced: {iced:?}");
    match ours {
        Ok(instruction) => {
            assert!(!iced.is_invalid(), "only ours accepts {}", context());
            if let Err(what) = agree(&instruction, &iced, size) {
                panic!("{what} differs for {}", context());
            }
        }
        Err(DecodeError::Unsupported) => {
            assert!(iced.is_invalid() || !claimed(&iced), "ours ought to know {}", context());
        }
        Err(_) => assert!(iced.is_invalid(), "ours refuses {}", context()),
    }
}

/// Whether our decoder claims to know this valid instruction.
fn claimed(iced: &Iced) -> bool {
    use Mnemonic as M;
    let memory = (0..iced.op_count()).any(|index| iced.op_kind(index) == OpKind::Memory);
    match iced.mnemonic() {
        M::Mov => !(0..iced.op_count()).any(|index| {
            iced.op_kind(index) == OpKind::Register && iced.op_register(index).is_segment_register()
        }),
        M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movdqu | M::Movdqa => memory,
        M::Movsd => !iced.op_register(0).is_xmm() && !iced.op_register(1).is_xmm(),
        M::Cmpsd => !iced.op_register(0).is_xmm(),
        _ => kinds(iced.mnemonic()).is_some(),
    }
}

/// Our kind for a mnemonic, where the mnemonic alone tells.
fn kinds(mnemonic: Mnemonic) -> Option<Kind> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Cpuid => Kind::Cpuid,
        M::Rdmsr => Kind::Rdmsr,
        M::Wrmsr => Kind::Wrmsr,
        M::Rdtsc => Kind::Rdtsc,
        M::Rdtscp => Kind::Rdtscp,
        M::Rdpmc => Kind::Rdpmc,
        M::Hlt => Kind::Hlt,
        M::Pause => Kind::Pause,
        M::Monitor => Kind::Monitor,
        M::Mwait => Kind::Mwait,
        M::Vmcall => Kind::Vmcall,
        M::Vmmcall => Kind::Vmmcall,
        M::Xgetbv => Kind::Xgetbv,
        M::Xsetbv => Kind::Xsetbv,
        M::Invd => Kind::Invd,
        M::Wbinvd => Kind::Wbinvd,
        M::Invlpg => Kind::Invlpg,
        M::Clts => Kind::Clts,
        M::Lmsw => Kind::Lmsw,
        M::Smsw => Kind::Smsw,
        M::In => Kind::In,
        M::Out => Kind::Out,
        M::Insb | M::Insw | M::Insd => Kind::Ins,
        M::Outsb | M::Outsw | M::Outsd => Kind::Outs,
        M::Movnti => Kind::Mov,
        M::Movzx => Kind::Movzx,
        M::Movsx | M::Movsxd => Kind::Movsx,
        M::Movups | M::Movupd | M::Movaps | M::Movapd | M::Movdqu | M::Movdqa => Kind::MovVector,
        M::Movntps | M::Movntpd | M::Movntdq => Kind::MovVector,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => Kind::Movs,
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Kind::Stos,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Kind::Lods,
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Kind::Scas,
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Kind::Cmps,
        M::Add => Kind::Arithmetic(Arithmetic::Add),
        M::Or => Kind::Arithmetic(Arithmetic::Or),
        M::Adc => Kind::Arithmetic(Arithmetic::Adc),
        M::Sbb => Kind::Arithmetic(Arithmetic::Sbb),
        M::And => Kind::Arithmetic(Arithmetic::And),
        M::Sub => Kind::Arithmetic(Arithmetic::Sub),
        M::Xor => Kind::Arithmetic(Arithmetic::Xor),
        M::Cmp => Kind::Arithmetic(Arithmetic::Cmp),
        M::Test => Kind::Test,
        M::Not => Kind::Not,
        M::Neg => Kind::Neg,
        M::Inc => Kind::Inc,
        M::Dec => Kind::Dec,
        M::Xchg => Kind::Xchg,
        M::Xadd => Kind::Xadd,
        M::Cmpxchg => Kind::Cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => Kind::CmpxchgPair,
        M::Bt => Kind::Bit(Bit::Test),
        M::Bts => Kind::Bit(Bit::Set),
        M::Btr => Kind::Bit(Bit::Reset),
        M::Btc => Kind::Bit(Bit::Complement),
        _ => return None,
    })
}

fn agree(ours: &Instruction, iced: &Iced, size: CodeSize) -> Result<(), &'static str> {
    same("length", usize::from(ours.length), iced.len())?;
    let kind = kinds(iced.mnemonic()).or_else(|| {
        let special = |index| iced.op_kind(index) == OpKind::Register && iced.op_register(index).is_cr();
        let debug = |index| iced.op_kind(index) == OpKind::Register && iced.op_register(index).is_dr();
        (iced.mnemonic() == Mnemonic::Mov).then(|| match () {
            () if special(0) => Kind::MovToControl,
            () if special(1) => Kind::MovFromControl,
            () if debug(0) => Kind::MovToDebug,
            () if debug(1) => Kind::MovFromDebug,
            () => Kind::Mov,
        })
    });
    same("kind", Some(ours.kind), kind)?;
    match ours.kind {
        Kind::Movs | Kind::Stos | Kind::Lods | Kind::Scas | Kind::Cmps | Kind::Ins | Kind::Outs => {
            return string_agrees(ours, iced, size);
        }
        Kind::MovVector => {
            same("vector memory size", 16, iced.memory_size().size())?;
            let store = iced.op_kind(0) == OpKind::Memory;
            let memory = if store { ours.destination } else { ours.source };
            let Operand::Memory(memory) = memory else { return Err("vector operand") };
            return memory_agrees(&memory, ours, iced, size);
        }
        _ => {}
    }
    let mut operands = Vec::new();
    for (operand, width) in [(ours.destination, ours.width), (ours.source, ours.source_width)] {
        if operand != Operand::None {
            operands.push((operand, width));
        }
    }
    if operands.is_empty() {
        return Ok(());
    }
    same("number of operands", operands.len(), iced.op_count() as usize)?;
    for (index, (operand, width)) in (0..).zip(operands) {
        operand_agrees(operand, width, ours, iced, index, size)?;
    }
    Ok(())
}

fn operand_agrees(
    operand: Operand,
    width: Width,
    ours: &Instruction,
    iced: &Iced,
    index: u32,
    size: CodeSize,
) -> Result<(), &'static str> {
    let register = |what, full: Register, bytes| {
        same(what, OpKind::Register, iced.op_kind(index))?;
        let register = iced.op_register(index);
        // LMSW takes 16 bits of a register, however iced names it.
        if ours.kind != Kind::Lmsw {
            same("register width", bytes, register.size())?;
        }
        same(what, full, register.full_register())
    };
    let bytes = width.bytes() as usize;
    match operand {
        Operand::None => Ok(()),
        Operand::Register(gpr) => {
            // DX holds a port number whatever the width of the access.
            let port = matches!((ours.kind, index), (Kind::In, 1) | (Kind::Out, 0));
            register("register", full(gpr), if port { 2 } else { bytes })?;
            let register = iced.op_register(index);
            same("half", false, (Register::AH..=Register::BH).contains(&register))
        }
        Operand::HighByte(gpr) => {
            register("register", full(gpr), 1)?;
            let register = iced.op_register(index);
            same("half", true, (Register::AH..=Register::BH).contains(&register))
        }
        Operand::Control(number) => {
            same("control register", Register::CR0 + u32::from(number), iced.op_register(index))
        }
        Operand::Debug(number) => {
            same("debug register", Register::DR0 + u32::from(number), iced.op_register(index))
        }
        Operand::Immediate(value) => {
            let byte = matches!(ours.kind, Kind::Bit(_) | Kind::In | Kind::Out);
            let mask = if byte { 0xff } else { width.mask() };
            same("immediate", value, iced.try_immediate(index).map_err(|_| "immediate")? & mask)
        }
        Operand::Memory(memory) => {
            match ours.kind {
                Kind::Invlpg => {}
                Kind::CmpxchgPair => same("memory width", bytes * 2, iced.memory_size().size())?,
                _ => {
                    let known = iced.memory_size() != MemorySize::Unknown;
                    same("memory width", (true, bytes), (known, iced.memory_size().size()))?;
                }
            }
            same("memory operand", OpKind::Memory, iced.op_kind(index))?;
            memory_agrees(&memory, ours, iced, size)
        }
    }
}

fn memory_agrees(
    memory: &MemoryOperand,
    ours: &Instruction,
    iced: &Iced,
    size: CodeSize,
) -> Result<(), &'static str> {
    let mask = ours.address_size.mask();
    let address_bytes = usize::from(ours.address_size.bits() / 8);
    let register_agrees = |what, ours: Option<Gpr>, iced: Register| {
        same(what, ours.map_or(Register::None, full), iced.full_register())?;
        if iced != Register::None { same("address size", address_bytes, iced.size()) } else { Ok(()) }
    };
    segment_agrees(memory.segment, iced, size)?;
    let mut displacement = memory.displacement;
    match memory.base {
        Base::Rip => {
            let base = if address_bytes == 8 { Register::RIP } else { Register::EIP };
            same("base", base, iced.memory_base())?;
            displacement = displacement.wrapping_add(u64::from(ours.length));
        }
        Base::None => {
            same("base", Register::None, iced.memory_base())?;
            if memory.index.is_none() {
                same("address size", address_bytes, iced.memory_displ_size() as usize)?;
            }
        }
        Base::Register(gpr) => register_agrees("base", Some(gpr), iced.memory_base())?,
    }
    register_agrees("index", memory.index, iced.memory_index())?;
    if memory.index.is_some() {
        same("scale", u32::from(memory.scale), iced.memory_index_scale())?;
    }
    same("displacement", displacement & mask, iced.memory_displacement64() & mask)
}

fn segment_agrees(ours: SegmentRegister, iced: &Iced, size: CodeSize) -> Result<(), &'static str> {
    let based = matches!(ours, SegmentRegister::Fs | SegmentRegister::Gs);
    let prefix = iced.segment_prefix();
    if size == CodeSize::Bits64 && prefix != Register::None && !matches!(prefix, Register::FS | Register::GS)
    {
        // iced reports the prefixes of ES, CS, SS and DS, which 64-bit mode ignores.
        return same("segment", false, based);
    }
    let expected = match ours {
        SegmentRegister::Es => Register::ES,
        SegmentRegister::Cs => Register::CS,
        SegmentRegister::Ss => Register::SS,
        SegmentRegister::Fs => Register::FS,
        SegmentRegister::Gs => Register::GS,
        _ => Register::DS,
    };
    same("segment", expected, iced.memory_segment())
}

fn string_agrees(ours: &Instruction, iced: &Iced, size: CodeSize) -> Result<(), &'static str> {
    same("element width", ours.width.bytes() as usize, iced.memory_size().size())?;
    let repeat = match (iced.has_repe_prefix(), iced.has_repne_prefix()) {
        (_, true) => Some(Repeat::WhileNotEqual),
        (true, false) => Some(Repeat::WhileEqual),
        (false, false) => None,
    };
    same("repeat", ours.repeat, repeat)?;
    let (source, destination) = match ours.address_size {
        AddressSize::Bits16 => (OpKind::MemorySegSI, OpKind::MemoryESDI),
        AddressSize::Bits32 => (OpKind::MemorySegESI, OpKind::MemoryESEDI),
        AddressSize::Bits64 => (OpKind::MemorySegRSI, OpKind::MemoryESRDI),
    };
    let has = |kind| (0..iced.op_count()).any(|index| iced.op_kind(index) == kind);
    let (reads, writes) = match ours.kind {
        Kind::Movs | Kind::Cmps => (true, true),
        Kind::Lods | Kind::Outs => (true, false),
        _ => (false, true),
    };
    same("string source", reads, has(source))?;
    same("string destination", writes, has(destination))?;
    if reads { segment_agrees(ours.segment, iced, size) } else { Ok(()) }
}

fn full(gpr: Gpr) -> Register {
    Register::RAX + gpr as u32
}

fn same<T: PartialEq>(what: &'static str, ours: T, iced: T) -> Result<(), &'static str> {
    if ours == iced { Ok(()) } else { Err(what) }
}
