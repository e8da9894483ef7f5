//! Notices clients that read one piece after the other.

use lifeboat_model::FRAME_BYTES;

/// Streams that are followed at the same time: several clients, or one with several connections.
const STREAMS: usize = 8;
/// Reads in a row after which a stream is believed.
const BELIEVED: u32 = 2;
const FRAME: u64 = FRAME_BYTES as u64;
/// Most bytes that are read ahead of a stream.
const WINDOW_BYTES_MAX: u64 = 16 * FRAME;

#[derive(Clone, Copy, Default)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Up to where frames were asked for ahead.
    ahead: u64,
    reads: u32,
    /// When it was last seen, in reads of the disk.
    seen: u64,
}

/// The streams of one disk.
#[derive(Default)]
pub(crate) struct ReadAhead {
    streams: [Stream; STREAMS],
    clock: u64,
}

impl ReadAhead {
    /// Takes note of a read; gives the bytes that are likely to be read next and were not given before.
    pub(crate) fn note(&mut self, offset: u64, len: u64) -> Option<std::ops::Range<u64>> {
        self.clock += 1;
        // Requests that a client has sent one after the other may come in another order.
        let slack = (2 * len).max(FRAME);
        let near = |stream: &&mut Stream| stream.reads > 0 && stream.next.abs_diff(offset) <= slack;
        let clock = self.clock;
        let Some(stream) = self.streams.iter_mut().find(near) else {
            let oldest = self.streams.iter_mut().min_by_key(|stream| stream.seen)?;
            *oldest = Stream { next: offset + len, ahead: offset + len, reads: 1, seen: clock };
            return None;
        };
        stream.seen = clock;
        if offset + len <= stream.next {
            return None;
        }
        stream.next = offset + len;
        stream.reads = stream.reads.saturating_add(1);
        if stream.reads <= BELIEVED {
            return None;
        }
        let window = (u64::from(stream.reads) * len.max(FRAME / 4)).clamp(2 * FRAME, WINDOW_BYTES_MAX);
        let until = stream.next + window.max(2 * len).min(WINDOW_BYTES_MAX.max(2 * len));
        let from = stream.ahead.max(stream.next);
        // In steps of a frame, so that small reads do not ask each time.
        if until < from + FRAME {
            return None;
        }
        stream.ahead = until;
        Some(from..until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_read_ahead_once_and_in_order() {
        let mut ahead = ReadAhead::default();
        let mut covered = None;
        for read in 0..1000u64 {
            let offset = (5 << 30) + read * 4096;
            if let Some(range) = ahead.note(offset, 4096) {
                assert!(covered.is_none_or(|end| end == range.start), "no gap and nothing twice");
                covered = Some(range.end);
            }
            if read > 100 {
                assert!(covered.unwrap() > offset + FRAME, "ahead of the reader");
            }
        }
    }

    #[test]
    fn two_streams_are_followed_at_once_and_random_reads_are_not() {
        let mut ahead = ReadAhead::default();
        let mut ranges = [0, 0];
        for read in 0..50u64 {
            for (stream, count) in ranges.iter_mut().enumerate() {
                let base = (stream as u64) << 32;
                *count += u32::from(ahead.note(base + read * FRAME, FRAME).is_some());
            }
        }
        assert!(ranges.iter().all(|count| *count > 10), "{ranges:?}");
        let mut ahead = ReadAhead::default();
        let scattered = |read: u64| (read.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) & !4095;
        assert!((0..1000).all(|read| ahead.note(scattered(read), 4096).is_none()));
    }
}
