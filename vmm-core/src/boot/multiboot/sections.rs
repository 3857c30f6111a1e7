//! An ELF file's section headers, and those sections that are not part of the program: symbols, their names,
//! and what debuggers want. Kernels print backtraces with them.

use super::fields::{put32, put64};
use super::{MultibootError, Room};
use alloc::vec::Vec;
use elf::ElfBytes;
use elf::abi::SHT_NOBITS;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::section::SectionHeader;

/// The highest alignment that a section gets.
const ALIGNMENT_MAX: u64 = 0x1000;

/// The section headers as kernels are given them.
#[derive(Clone)]
pub struct Sections<'a> {
    image: &'a [u8],
    class: Class,
    headers: Vec<SectionHeader>,
    /// The section with the sections' names.
    names: u32,
    /// By their place in the list, those that are loaded beside the program.
    extra: Vec<usize>,
}

impl<'a> Sections<'a> {
    /// Those of `file`, which `image` holds; `None` when it has none.
    pub fn parse(image: &'a [u8], file: &ElfBytes<'a, LittleEndian>) -> Result<Option<Self>, MultibootError> {
        let Some(table) = file.section_headers() else { return Ok(None) };
        let headers: Vec<SectionHeader> = table.iter().collect();
        let is_extra = |header: &SectionHeader| {
            header.sh_addr == 0 && header.sh_size > 0 && header.sh_type != SHT_NOBITS
        };
        let extra = headers.iter().enumerate().filter(|(_, header)| is_extra(header));
        let extra = extra.map(|(number, _)| number).collect();
        let names = file.ehdr.e_shstrndx.into();
        let sections = Self { image, class: file.ehdr.class, headers, names, extra };
        for header in sections.extra() {
            sections
                .bytes(header)
                .ok_or(MultibootError::Section { offset: header.sh_offset, len: header.sh_size })?;
        }
        Ok(if sections.headers.is_empty() { None } else { Some(sections) })
    }

    /// The same, with places for what is loaded beside the program.
    pub fn place(mut self, room: &mut Room) -> Result<Self, MultibootError> {
        for number in &self.extra {
            if let Some(header) = self.headers.get_mut(*number) {
                let alignment = header.sh_addralign.clamp(1, ALIGNMENT_MAX);
                header.sh_addr = room.take(header.sh_size, alignment)?;
            }
        }
        Ok(self)
    }

    /// What is loaded beside the program: where, and the bytes.
    pub fn contents(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.extra().filter_map(|header| Some((header.sh_addr, self.bytes(header)?)))
    }

    /// How many headers there are.
    pub fn count(&self) -> u32 {
        self.headers.len() as u32
    }

    /// Bytes of one header.
    pub fn header_size(&self) -> u32 {
        match self.class {
            Class::ELF32 => 40,
            Class::ELF64 => 64,
        }
    }

    /// The number of the section with the sections' names.
    pub fn names(&self) -> u32 {
        self.names
    }

    /// The headers as the file's class has them.
    pub fn table(&self) -> Vec<u8> {
        let mut table = Vec::new();
        for header in &self.headers {
            put32(&mut table, &[header.sh_name, header.sh_type]);
            let [flags, address, offset, size] =
                [header.sh_flags, header.sh_addr, header.sh_offset, header.sh_size];
            let (links, layout) =
                ([header.sh_link, header.sh_info], [header.sh_addralign, header.sh_entsize]);
            match self.class {
                Class::ELF32 => {
                    put32(&mut table, &[flags, address, offset, size].map(|field| field as u32));
                    put32(&mut table, &links);
                    put32(&mut table, &layout.map(|field| field as u32));
                }
                Class::ELF64 => {
                    put64(&mut table, &[flags, address, offset, size]);
                    put32(&mut table, &links);
                    put64(&mut table, &layout);
                }
            }
        }
        table
    }

    fn extra(&self) -> impl Iterator<Item = &SectionHeader> {
        self.extra.iter().filter_map(|number| self.headers.get(*number))
    }

    fn bytes(&self, header: &SectionHeader) -> Option<&'a [u8]> {
        let start = usize::try_from(header.sh_offset).ok()?;
        let len = usize::try_from(header.sh_size).ok()?;
        self.image.get(start..)?.get(..len)
    }
}
