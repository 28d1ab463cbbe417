//! f32 buffers that begin at a cache line, so that no vector load straddles two.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; Line::LEN]);

impl Line {
    const LEN: usize = 16;
}

/// A growable f32 buffer aligned to 64 bytes.
#[derive(Debug, Default, Clone)]
pub(super) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    pub(super) fn zeroed(len: usize) -> Self {
        let mut out = Self::default();
        out.resize(len);
        out
    }

    /// Changes the length; new elements are zero, old ones stay.
    pub(super) fn resize(&mut self, len: usize) {
        self.lines.resize(len.div_ceil(Line::LEN), Line([0.0; Line::LEN]));
        if len > self.len {
            let old = self.len;
            self.len = len;
            // The last line may hold what a longer buffer left there.
            let tail = old.next_multiple_of(Line::LEN).min(len);
            self[old..tail].fill(0.0);
        }
        self.len = len;
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` of 16 f32, so the lines are one run of f32, and
        // `len` never exceeds their number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_zeros_and_stays_aligned() {
        let mut a = Aligned::zeroed(20);
        a.fill(1.0);
        a.resize(3);
        a.resize(40);
        assert_eq!(&a[..4], &[1.0, 1.0, 1.0, 0.0]);
        assert!(a[3..].iter().all(|&x| x == 0.0));
        assert_eq!(a.as_ptr() as usize % 64, 0);
    }
}
