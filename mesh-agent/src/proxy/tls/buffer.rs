//! Buffers that a worker lends to streams while they have something in them. An idle stream holds none.

use std::{cell::RefCell, ops::Range};

use super::record::MOST_WIRE;

/// Four of the longest records and some short ones.
const SIZE: usize = 4 * MOST_WIRE + 8 * 1024;
/// How many a worker keeps for the next.
const SPARE: usize = 16;

thread_local! {
    static SPARES: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes from `start` to `end` in it count.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty one.
    pub(super) fn lend() -> Self {
        let bytes = SPARES.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        Self { bytes, start: 0, end: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// What is in it.
    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Some of what is in it, from the front.
    pub(super) fn front(&mut self, count: usize) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + count).unwrap_or_default()
    }

    /// Where the first byte that counts is.
    pub(super) fn position(&self) -> usize {
        self.start
    }

    /// Bytes by their place, whether they count or not.
    pub(super) fn at(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Room behind.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes of the space count now.
    pub(super) fn fill(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// So many bytes at the front are done with.
    pub(super) fn take(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// Adds what fits; returns how much.
    pub(super) fn put(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let count = bytes.len().min(space.len());
        if let (Some(space), Some(bytes)) = (space.get_mut(..count), bytes.get(..count)) {
            space.copy_from_slice(bytes);
        }
        self.fill(count);
        count
    }

    /// Makes room for the longest record.
    pub(super) fn make_room(&mut self) {
        if self.bytes.len() - self.end < MOST_WIRE {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // At the end of the thread there is nobody to keep it for.
        let _ = SPARES.try_with(|spares| {
            if let Ok(mut spares) = spares.try_borrow_mut()
                && spares.len() < SPARE
            {
                spares.push(bytes);
            }
        });
    }
}
