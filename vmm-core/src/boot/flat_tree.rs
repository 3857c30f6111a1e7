//! A flattened device tree (Devicetree Specification 0.4, chapter 5), built node by node.

use alloc::vec::Vec;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;
const HEADER_SIZE: usize = 40;
/// The list of reserved memory: nothing but its end.
const RESERVATIONS: [u8; 16] = [0; 16];

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// A tree that grows.
#[derive(Debug, Default)]
pub struct FlatTree {
    structure: Vec<u8>,
    names: Vec<u8>,
}

// None of this is worth a second copy of its code.
impl FlatTree {
    /// Begins a node; the root's name is empty.
    #[inline(never)]
    pub fn begin(&mut self, name: &str) {
        self.put(BEGIN_NODE);
        self.structure.extend_from_slice(name.as_bytes());
        self.structure.push(0);
        self.pad();
    }

    /// Ends the node that was begun last and not ended yet.
    pub fn end(&mut self) {
        self.put(END_NODE);
    }

    /// Gives the node that was begun a property, before any node in it.
    #[inline(never)]
    pub fn property(&mut self, name: &str, value: &[u8]) {
        for word in [PROPERTY, value.len() as u32, self.names.len() as u32] {
            self.put(word);
        }
        self.structure.extend_from_slice(value);
        self.pad();
        self.names.extend_from_slice(name.as_bytes());
        self.names.push(0);
    }

    /// Does so with a text.
    #[inline(never)]
    pub fn text(&mut self, name: &str, value: &str) {
        self.property(name, &[value.as_bytes(), &[0]].concat());
    }

    /// Does so with two 64-bit numbers, two cells each.
    #[inline(never)]
    pub fn range(&mut self, name: &str, base: u64, len: u64) {
        self.property(name, [base, len].map(u64::to_be_bytes).as_flattened());
    }

    /// The whole blob, once every node is ended.
    pub fn finish(mut self) -> Vec<u8> {
        self.put(END);
        let structure = HEADER_SIZE.saturating_add(RESERVATIONS.len());
        let names = structure.saturating_add(self.structure.len());
        let total = names.saturating_add(self.names.len());
        let (structure_size, names_size) = (self.structure.len(), self.names.len());
        let header = [
            MAGIC,
            total as u32,
            structure as u32,
            names as u32,
            HEADER_SIZE as u32,
            VERSION,
            LAST_COMPATIBLE_VERSION,
            0,
            names_size as u32,
            structure_size as u32,
        ];
        [header.map(u32::to_be_bytes).as_flattened(), &RESERVATIONS, &self.structure, &self.names].concat()
    }

    #[inline(never)]
    fn put(&mut self, word: u32) {
        self.structure.extend_from_slice(&word.to_be_bytes());
    }

    #[inline(never)]
    fn pad(&mut self) {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_finds_what_was_put_in() {
        let mut tree = FlatTree::default();
        tree.begin("");
        tree.text("compatible", "some,thing");
        tree.begin("memory@100000");
        tree.range("reg", 0x10_0000, 0x1_2345_6789);
        tree.end();
        tree.begin("chosen");
        tree.text("bootargs", "");
        tree.end();
        tree.end();
        let blob = tree.finish();
        let tree = fdt::Fdt::new(&blob).unwrap();
        assert_eq!(tree.total_size(), blob.len());
        assert_eq!(tree.root().compatible().first(), "some,thing");
        let reg = tree.find_node("/memory@100000").unwrap().property("reg").unwrap();
        assert_eq!(reg.value, [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 1, 0x23, 0x45, 0x67, 0x89]);
        assert_eq!(tree.chosen().bootargs(), Some(""));
    }
}
