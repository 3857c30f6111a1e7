//! Compressed clusters.

use super::header::Compression;

/// What expanding takes beside stream and cluster, at most, in bytes: by zlib; by zstd, and three windows in addition.
pub const WORKSPACE: (u64, u64) = (64 << 10, 512 << 10);
/// A frame's window may be so long even where a cluster is shorter.
pub const LEAST_WINDOW: u64 = 256 << 10;

/// Fills `cluster` with what `stream` expands to; false where it expands to something else than one cluster. What
/// follows in `stream` is the next one's.
pub fn expand(compression: Compression, stream: &[u8], cluster: &mut [u8]) -> bool {
    match compression {
        Compression::Zlib => inflate(stream, cluster),
        Compression::Zstd => zstd(stream, cluster),
    }
}

fn inflate(stream: &[u8], cluster: &mut [u8]) -> bool {
    use miniz_oxide::inflate::TINFLStatus;
    use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
    let mut decompressor = alloc::boxed::Box::new(DecompressorOxide::new());
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, len) = decompress(&mut decompressor, stream, cluster, 0, flags);
    // A stream may say that it ends only behind the last byte that is wanted.
    let ended = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
    ended && len == cluster.len()
}

fn zstd(stream: &[u8], cluster: &mut [u8]) -> bool {
    use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
    let mut decoder = FrameDecoder::new();
    // A frame that is longer than a cluster is none of ours; its window is no longer either.
    decoder.set_max_window_size((cluster.len() as u64).max(LEAST_WINDOW));
    let mut rest = stream;
    if decoder.init(&mut rest).is_err() {
        return false;
    }
    let mut done = 0;
    while let Some(room) = cluster.get_mut(done..).filter(|room| !room.is_empty()) {
        if !decoder.is_finished()
            && decoder.decode_blocks(&mut rest, BlockDecodingStrategy::UptoBlocks(1)).is_err()
        {
            return false;
        }
        match ruzstd::io::Read::read(&mut decoder, room) {
            Ok(0) if decoder.is_finished() => return false,
            Ok(len) => done = done.saturating_add(len),
            Err(_) => return false,
        }
    }
    true
}
