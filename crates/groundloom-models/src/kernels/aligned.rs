//! f32 storage that starts on a cache line.

use std::ops::{Deref, DerefMut};

/// Length of a cache line in f32 values; also the widest vector (AVX-512).
const LINE: usize = 16;

/// A slice of f32 whose first value lies on a 64-byte boundary, so that a full vector never straddles two cache lines.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    buffer: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let buffer = vec![0.0; len + LINE];
        let misplaced = buffer.as_ptr() as usize / size_of::<f32>() % LINE;
        Self { buffer, start: (LINE - misplaced) % LINE, len }
    }

    /// A copy of `values`.
    pub(crate) fn copy_of(values: &[f32]) -> Self {
        let mut copy = Self::zeros(values.len());
        copy.copy_from_slice(values);
        copy
    }

    /// The first `len` values, growing the storage when it is shorter. What they hold is whatever was there.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            *self = Self::zeros(len);
        }
        &mut self[..len]
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}
