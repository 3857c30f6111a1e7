//! What memory a device can work on in place.

use alloc::vec::Vec;
use storage::{Buffer, Piece};

/// What a device asks of the memory that it reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// The last address that it can name.
    pub last: u64,
    /// Addresses and lengths are multiples of this power of two.
    pub align: u64,
    /// All pieces but the first begin, and all but the last end, at a multiple of this power of two.
    pub page: u64,
    /// No piece crosses a multiple of this power of two.
    pub boundary: u64,
    /// The longest piece, at least 1 and a multiple of `align`.
    pub longest: usize,
    /// How many pieces a command can have.
    pub pieces: usize,
}

impl Reach {
    /// Puts the buffer's pieces into `out` as the device takes them: those that lie together as one, and cut where
    /// the device wants them cut. Whether it can take them all; if not, `out` is of no use.
    pub fn cut(&self, buffer: &Buffer, out: &mut Vec<Piece>) -> bool {
        out.clear();
        let mut joined: Option<Piece> = None;
        for piece in buffer.pieces() {
            let Some(piece) = piece else { return false };
            match &mut joined {
                Some(last) if last.address.checked_add(last.len as u64) == Some(piece.address) => {
                    last.len = last.len.saturating_add(piece.len);
                }
                _ => {
                    if joined.replace(piece).is_some_and(|before| !self.cut_piece(before, out)) {
                        return false;
                    }
                }
            }
        }
        joined.is_none_or(|last| self.cut_piece(last, out)) && self.pages_meet(out)
    }

    fn cut_piece(&self, piece: Piece, out: &mut Vec<Piece>) -> bool {
        let aligned = |value: u64| value & self.align.saturating_sub(1) == 0;
        let Some(last) = piece.address.checked_add((piece.len as u64).saturating_sub(1)) else {
            return false;
        };
        if last > self.last || !aligned(piece.address) || !aligned(piece.len as u64) {
            return false;
        }
        let Piece { mut address, mut len } = piece;
        while len > 0 {
            if out.len() == self.pieces {
                return false;
            }
            let whole = self.boundary.saturating_sub(address & self.boundary.saturating_sub(1));
            let part = len.min(self.longest).min(usize::try_from(whole).unwrap_or(usize::MAX)).max(1);
            out.push(Piece { address, len: part });
            address = address.saturating_add(part as u64);
            len = len.saturating_sub(part);
        }
        true
    }

    /// Whether pieces follow one another at ends of pages only.
    fn pages_meet(&self, pieces: &[Piece]) -> bool {
        let aligned = |address: u64| address & self.page.saturating_sub(1) == 0;
        pieces.windows(2).all(|pair| match pair {
            [one, next] => aligned(one.address.saturating_add(one.len as u64)) && aligned(next.address),
            _ => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use storage::Memory;

    /// Memory that lies where a test says.
    struct Lying(Vec<Piece>);

    impl Memory for Lying {
        fn size(&self) -> usize {
            self.0.iter().map(|piece| piece.len).sum()
        }
        fn read(&self, _at: usize, _bytes: &mut [u8]) {}
        fn write(&self, _at: usize, _bytes: &[u8]) {}
        fn piece(&self, at: usize) -> Option<Piece> {
            let mut at = at;
            for piece in &self.0 {
                if at < piece.len {
                    return Some(Piece { address: piece.address + at as u64, len: piece.len - at });
                }
                at -= piece.len;
            }
            None
        }
    }

    fn cut(reach: Reach, pieces: &[(u64, usize)]) -> Option<Vec<(u64, usize)>> {
        let pieces = pieces.iter().map(|&(address, len)| Piece { address, len }).collect();
        let mut out = Vec::new();
        reach
            .cut(&Buffer::new(Arc::new(Lying(pieces))), &mut out)
            .then(|| out.iter().map(|piece| (piece.address, piece.len)).collect())
    }

    const ANY: Reach =
        Reach { last: u64::MAX, align: 2, page: 1, boundary: 1 << 32, longest: 1 << 22, pieces: 8 };

    #[test]
    fn what_lies_together_is_one_piece() {
        assert_eq!(
            cut(ANY, &[(0x1000, 512), (0x1200, 512), (0x2000, 512)]),
            Some(vec![(0x1000, 1024), (0x2000, 512)])
        );
        assert_eq!(cut(ANY, &[(0x1000, 1 << 23)]), Some(vec![(0x1000, 1 << 22), (0x40_1000, 1 << 22)]));
    }

    #[test]
    fn what_a_device_cannot_take_is_refused() {
        assert_eq!(cut(ANY, &[(0x1001, 512)]), None, "an odd address");
        assert_eq!(cut(ANY, &[(0x1000, 511), (0x3000, 1)]), None, "an odd length");
        assert_eq!(cut(ANY, &[(u64::MAX - 1, 512)]), None, "around the end");
        assert_eq!(cut(Reach { last: 0xffff_ffff, ..ANY }, &[(0xffff_fff0, 32)]), None, "too high");
        assert!(cut(Reach { last: 0xffff_ffff, ..ANY }, &[(0xffff_ffe0, 32)]).is_some());
        let many: Vec<_> = (0..9).map(|n| (n * 0x1000, 512)).collect();
        assert_eq!(cut(ANY, &many), None, "too many pieces");
        assert!(cut(ANY, &many[1..]).is_some());
    }

    #[test]
    fn pieces_keep_to_boundaries_and_pages() {
        let ata = Reach { boundary: 0x1_0000, longest: 0x8000, ..ANY };
        assert_eq!(cut(ata, &[(0xf000, 0x3000)]), Some(vec![(0xf000, 0x1000), (0x1_0000, 0x2000)]));
        let nvme = Reach { align: 4, page: 0x1000, boundary: 0x1000, longest: 0x1000, ..ANY };
        let parts = cut(nvme, &[(0x1e00, 0x200), (0x5000, 0x1200)]);
        assert_eq!(parts, Some(vec![(0x1e00, 0x200), (0x5000, 0x1000), (0x6000, 0x200)]));
        assert_eq!(cut(nvme, &[(0x1000, 0x200), (0x5000, 0x200)]), None, "a gap within a page");
        assert_eq!(cut(nvme, &[(0x1e00, 0x200), (0x5200, 0x200)]), None);
    }
}
