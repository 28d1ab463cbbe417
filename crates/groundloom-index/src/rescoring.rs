//! Scoring what a walk over codes found with the vectors themselves.
//!
//! Codes order vectors almost as their distances do. A node whose code is farther from the query than that of the last
//! answer by more than the codes can be wrong is no answer, so its vector is not looked at.

use std::{fs::File, os::unix::fs::FileExt};

use pulp::{Arch, Simd, WithSimd};

use crate::{
    IndexError,
    beam::Neighbour,
    kernels,
    space::{FloatSpace, Space, row},
    vector_file::VectorFile,
    walk::Codes,
};

/// How many standard errors of a difference of two coded distances are allowed for.
const ERRORS: f32 = 4.0;

/// Vectors that are read where they are needed, instead of mapped: a mapping draws the pages around every vector into the
/// process, sixteen of them under Linux, so that in the end the whole set counts as its memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) owner: &'a VectorFile,
    pub(crate) file: &'a File,
    /// Where the first vector begins, in bytes.
    pub(crate) start: u64,
}

impl Stored<'_> {
    fn read(&self, node: u32, vector: &mut [f32]) -> Result<(), IndexError> {
        let at = self.start + u64::from(node) * size_of_val(vector) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(vector), at).map_err(|e| self.owner.io(e))
    }
}

/// How many of `found`, ascending by the distance of their codes, may be among the `answers` nearest.
pub(crate) fn candidates(
    codes: Codes<'_>,
    query: &[i8],
    l2: bool,
    dims: usize,
    found: &[Neighbour],
    answers: usize,
) -> usize {
    let Codes::Int8 { codes, stride, .. } = codes else { return found.len() };
    let Some(last) = answers.checked_sub(1).and_then(|last| found.get(last)) else { return found.len() };
    // A value and its code differ by up to half a step, each amount as likely as the other: a variance of 1/12.
    let variance = if l2 {
        // Of |q - x|²: 4 |q - x|² · 2/12, and what the errors' own square adds.
        last.distance() / 1.5 + 0.04 * dims as f32
    } else {
        let square = |code: &[i8]| kernels::dot_i8(code, code) as f32;
        let longest = found[..answers].iter().map(|n| square(row(codes, stride, n.node()))).fold(0.0, f32::max);
        (square(query) + longest) / 12.0
    };
    // Two distances are compared, and both are wrong.
    let limit = last.distance() + ERRORS * (2.0 * variance).sqrt();
    found.partition_point(|n| n.distance() <= limit)
}

/// Replaces the distances of codes by those of the vectors, and sorts by them.
pub(crate) fn rescore(
    space: FloatSpace<'_>,
    stored: Option<Stored<'_>>,
    found: &mut [Neighbour],
) -> Result<(), IndexError> {
    let arch = Arch::new();
    match stored {
        None => arch.dispatch(Mapped { space, found: &mut *found }),
        Some(stored) => {
            let mut vector = vec![0.0; space.stride];
            for place in found.iter_mut() {
                stored.read(place.node(), &mut vector)?;
                let distance = arch.dispatch(One { space: FloatSpace { values: &vector, ..space } });
                *place = Neighbour::new(distance, place.node());
            }
        }
    }
    found.sort_unstable();
    Ok(())
}

struct Mapped<'a> {
    space: FloatSpace<'a>,
    found: &'a mut [Neighbour],
}

impl WithSimd for Mapped<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.space.rescore(simd, self.found);
    }
}

struct One<'a> {
    space: FloatSpace<'a>,
}

impl WithSimd for One<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        self.space.distance(simd, 0)
    }
}
