//! Compressed bytes as plain ones; how they are compressed is seen by how they begin.
//!
//! It promises: memory is bounded whatever the bytes say (a zstd frame may want a window of [`ZSTD_WINDOW`] at most). How much comes out is for
//! the reader to bound. Frames of zstd that hold nothing to be unpacked, such as the indexes of seekable archives, are passed over.

use std::io::{self, BufRead as _, BufReader, Cursor, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::limits::ZSTD_WINDOW;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    /// They are not.
    No,
    Gzip,
    Zstd,
}

impl Packed {
    /// By the first four bytes.
    pub(crate) fn of(head: &[u8]) -> Packed {
        match head {
            [0x1f, 0x8b, ..] => Packed::Gzip,
            // A frame, or one to be passed over.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packed::Zstd,
            _ => Packed::No,
        }
    }

    /// By looking at how it begins, which is read.
    pub(crate) fn look(reader: &mut dyn Read) -> io::Result<(Packed, Vec<u8>)> {
        let mut head = Vec::with_capacity(4);
        reader.take(4).read_to_end(&mut head)?;
        Ok((Packed::of(&head), head))
    }
}

/// The plain bytes.
pub(crate) fn unpacked<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let (packed, head) = Packed::look(&mut reader)?;
    let whole = Cursor::new(head).chain(reader);
    Ok(match packed {
        Packed::No => Box::new(whole),
        Packed::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Packed::Zstd => Box::new(Zstd::new(whole)),
    })
}

/// All frames of an archive, one after the other.
struct Zstd<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    in_frame: bool,
}

fn broken(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))
}

impl<R: Read> Zstd<R> {
    fn new(source: R) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        Zstd {
            source: BufReader::with_capacity(64 << 10, source),
            decoder,
            in_frame: false,
        }
    }

    /// Begins the next frame. False: there is none.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        if block.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            self.in_frame = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(broken)?;
            }
            match self.decoder.read(block)? {
                0 => self.in_frame = false,
                read => return Ok(read),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        unpacked(bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        compress_to_vec(plain, CompressionLevel::Fastest)
    }

    #[test]
    fn plain_gzip_and_zstd_are_told_by_how_they_begin() {
        let plain: Vec<u8> = (0..400_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("compressed");
        for bytes in [plain.clone(), gzip.finish().expect("compressed"), zstd(&plain)] {
            assert_eq!(read(&bytes).expect("read"), plain);
        }
        for short in [b"".as_slice(), b"\x1f", b"abc"] {
            assert_eq!(read(short).expect("read"), short);
        }
    }

    #[test]
    fn zstd_may_be_several_frames_and_have_some_to_be_passed_over() {
        let skipped = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let all = [
            skipped.clone(),
            zstd(b"one "),
            zstd(b""),
            skipped.clone(),
            zstd(b"two"),
            skipped,
        ];
        assert_eq!(read(&all.concat()).expect("read"), b"one two");
    }

    #[test]
    fn zstd_that_is_cut_damaged_or_wants_too_much_memory_is_refused() {
        let whole = zstd(&[7; 300_000]);
        for length in [4, 5, 9, whole.len() - 1] {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        assert!(
            read(&[0x5e, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]).is_err(),
            "a frame to be passed over"
        );
        assert!(read(&[whole.as_slice(), b"rubbish"].concat()).is_err());
        // No single segment, a window of 2^41 bytes.
        let greedy = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3, 1, 0, 0];
        let error = read(&greedy).expect_err("too much").to_string();
        assert!(error.to_lowercase().contains("window"), "{error}");
    }
}
