//! How files and payload segments are compressed.

use core::fmt;

use super::error::CbfsFault;

/// A compression algorithm, by coreboot's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// LZMA with a 13-byte header.
    Lzma,
    /// One LZ4 frame of independent blocks.
    Lz4,
    /// Zstandard frames.
    Zstd,
    /// Another number.
    Unknown(u32),
}

/// Why a stream cannot be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// This build does not know the algorithm.
    Unsupported,
    /// The stream begins with something else than its algorithm writes.
    Header(&'static str),
    /// The stream is corrupted or truncated.
    Corrupt(&'static str),
    /// The stream holds more than there is room for.
    TooLong,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("this build does not know its compression"),
            Self::Header(algorithm) => write!(f, "its data does not begin as {algorithm} does"),
            Self::Corrupt(algorithm) => write!(f, "its {algorithm} stream is corrupted or truncated"),
            Self::TooLong => f.write_str("its compressed stream holds more bytes than it should"),
        }
    }
}

impl core::error::Error for StreamError {}

impl StreamError {
    pub(super) fn fault(self, compression: Compression) -> CbfsFault {
        match self {
            Self::Unsupported => CbfsFault::UnknownCompression(compression.number()),
            error => CbfsFault::Stream(error),
        }
    }
}

impl Compression {
    /// What this build can decompress, for messages.
    pub(super) const NAMES: &str = "none, LZMA (1), LZ4 (2), zstd (3) as far as this build has them";

    /// The algorithm that this number stands for.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Lzma,
            2 => Self::Lz4,
            3 => Self::Zstd,
            other => Self::Unknown(other),
        }
    }

    /// The number that stands for it.
    pub const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lzma => 1,
            Self::Lz4 => 2,
            Self::Zstd => 3,
            Self::Unknown(number) => number,
        }
    }

    /// Decompresses `input` to the beginning of `output` and says how many bytes that gave. An error when
    /// `output` is too short; what it holds then is of no use.
    pub fn decompress(self, input: &[u8], output: &mut [u8]) -> Result<usize, StreamError> {
        match self {
            Self::None => {
                let output = output.get_mut(..input.len()).ok_or(StreamError::TooLong)?;
                output.copy_from_slice(input);
                Ok(input.len())
            }
            #[cfg(feature = "lzma")]
            Self::Lzma => lzma::decompress(input, output),
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4::decompress(input, output),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::decompress(input, output),
            #[allow(unreachable_patterns, reason = "with every feature only unknown numbers are left")]
            _ => Err(StreamError::Unsupported),
        }
    }
}

#[cfg(feature = "lzma")]
mod lzma {
    use lzma_rust2::{Action, LzmaStream, Status};

    use super::StreamError;
    use crate::bytes::{le_u32, le_u64};

    const HEADER_LEN: usize = 13;
    /// The literal coder's tables take 3 KiB × 2^(lc+lp); coreboot's own decoder takes 3 bits at most.
    const MOST_LITERAL_BITS: u8 = 4;

    pub(super) fn decompress(input: &[u8], output: &mut [u8]) -> Result<usize, StreamError> {
        let (header, mut input) = input.split_at_checked(HEADER_LEN).ok_or(StreamError::Header("LZMA"))?;
        let mut stream = stream(header, output.len()).ok_or(StreamError::Header("LZMA"))?;
        let mut done = 0_usize;
        loop {
            let room = output.get_mut(done..).unwrap_or(&mut []);
            let full = room.is_empty();
            let step =
                stream.process(input, room, Action::Finish).map_err(|_| StreamError::Corrupt("LZMA"))?;
            input = input.get(step.bytes_consumed..).unwrap_or(&[]);
            done = done.saturating_add(step.bytes_produced);
            if step.status == Status::StreamEnd {
                return Ok(done);
            }
            if step.bytes_consumed == 0 && step.bytes_produced == 0 {
                return Err(if full { StreamError::TooLong } else { StreamError::Corrupt("LZMA") });
            }
        }
    }

    /// A decoder as the header wants it, unless it wants more memory than the output is worth.
    fn stream(header: &[u8], room: usize) -> Option<LzmaStream> {
        let properties = *header.first()?;
        let dictionary = le_u32(header, 1)?;
        let size = le_u64(header, 5)?;
        let literal_context = properties.checked_rem(9)?;
        let literal_position = properties.checked_div(9)?.checked_rem(5)?;
        if literal_context.checked_add(literal_position)? > MOST_LITERAL_BITS {
            return None;
        }
        // No match reaches back beyond the output's beginning.
        let dictionary = dictionary.min(u32::try_from(room).unwrap_or(u32::MAX));
        LzmaStream::new_with_props(size, properties, dictionary, None).ok()
    }
}

#[cfg(feature = "lz4")]
mod lz4 {
    use lz4_flex::block::{DecompressError, decompress_into};

    use super::StreamError;
    use crate::bytes::{le_u32, slice};

    const MAGIC: u32 = 0x184d_2204;
    const BLOCK_UNCOMPRESSED: u32 = 1 << 31;

    /// The bits of a frame's flag byte (LZ4 frame format 1.6.4).
    mod flag {
        pub const VERSION_MASK: u8 = 0xc0;
        pub const VERSION_1: u8 = 0x40;
        pub const INDEPENDENT_BLOCKS: u8 = 0x20;
        pub const BLOCK_CHECKSUM: u8 = 0x10;
        pub const CONTENT_SIZE: u8 = 0x08;
        pub const RESERVED: u8 = 0x03;
    }

    /// Reads the frame as coreboot does: one frame of independent blocks, checksums passed over. lz4_flex
    /// has frames only with std.
    pub(super) fn decompress(input: &[u8], output: &mut [u8]) -> Result<usize, StreamError> {
        const TRUNCATED: StreamError = StreamError::Corrupt("LZ4");
        let flags = frame_flags(input).ok_or(StreamError::Header("LZ4"))?;
        let content_size = if flags & flag::CONTENT_SIZE != 0 { 8 } else { 0 };
        let checksum = if flags & flag::BLOCK_CHECKSUM != 0 { 4 } else { 0 };
        // Magic, flags, block descriptor; the content's size; the header's checksum.
        let mut at = 6_usize.saturating_add(content_size).saturating_add(1);
        let mut done = 0_usize;
        loop {
            let block = le_u32(input, at).ok_or(TRUNCATED)?;
            at = at.saturating_add(4);
            let len = (block & !BLOCK_UNCOMPRESSED) as usize;
            if len == 0 {
                return Ok(done);
            }
            let data = slice(input, at, len).ok_or(TRUNCATED)?;
            let room = output.get_mut(done..).unwrap_or(&mut []);
            let produced = if block & BLOCK_UNCOMPRESSED != 0 {
                room.get_mut(..len).ok_or(StreamError::TooLong)?.copy_from_slice(data);
                len
            } else {
                decompress_into(data, room).map_err(|error| match error {
                    DecompressError::OutputTooSmall { .. } => StreamError::TooLong,
                    _ => TRUNCATED,
                })?
            };
            done = done.saturating_add(produced);
            at = at.saturating_add(len).saturating_add(checksum);
        }
    }

    /// The flag byte of a frame that can be read.
    fn frame_flags(input: &[u8]) -> Option<u8> {
        let flags = *input.get(4)?;
        let readable = le_u32(input, 0)? == MAGIC
            && flags & flag::VERSION_MASK == flag::VERSION_1
            && flags & flag::RESERVED == 0
            && flags & flag::INDEPENDENT_BLOCKS != 0;
        readable.then_some(flags)
    }
}

#[cfg(feature = "zstd")]
mod zstd {
    use ruzstd::decoding::{FrameDecoder, errors::FrameDecoderError};

    use super::StreamError;

    /// A window that every encoder may use, whatever it compresses (RFC 8878, 3.1.1.1.2).
    const LEAST_WINDOW: u64 = 8 << 20;

    pub(super) fn decompress(input: &[u8], output: &mut [u8]) -> Result<usize, StreamError> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(LEAST_WINDOW.max(output.len() as u64));
        decoder.decode_all(input, output).map_err(|error| match error {
            FrameDecoderError::TargetTooSmall => StreamError::TooLong,
            FrameDecoderError::ReadFrameHeaderError(_) => StreamError::Header("zstd"),
            _ => StreamError::Corrupt("zstd"),
        })
    }
}
