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

/// How many of `found`, ascending by the distance of their codes, may be among the `answers` nearest. `dims` may count
/// padding, which only spares more.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        codes::{Coding, byte_scale, byte_stride, encode_bytes},
        graph::SplitMix,
        lines::Rows,
        metric::Metric,
        vector_file::{self, Header},
    };

    const DIMS: usize = 40;

    /// Vectors of which some dimensions are much larger than the rest, as the worst that byte codes meet.
    fn rows(count: usize, large: f32) -> Rows {
        let mut random = SplitMix(3);
        let mut rows = Rows::new(DIMS);
        let mut one = || (random.next() >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
        for _ in 0..count {
            let row: Vec<f32> = (0..DIMS).map(|i| if i < 2 { large * one() } else { one() }).collect();
            rows.push(&row);
        }
        rows
    }

    fn exact<'a>(rows: &'a Rows, query: &'a [f32], l2: bool) -> FloatSpace<'a> {
        FloatSpace { values: rows.values(), stride: rows.stride(), query, l2 }
    }

    fn all(count: usize) -> Vec<Neighbour> {
        (0..count).map(|node| Neighbour::new(0.0, node as u32)).collect()
    }

    #[test]
    fn vectors_that_are_read_score_as_those_that_are_mapped() {
        let rows = rows(50, 1.0);
        let folder = tempfile::tempdir().unwrap();
        let header = Header {
            dims: DIMS,
            metric: Metric::Ip,
            coding: Coding::F32,
            rows: 50,
            nodes: 50,
            m: 0,
            levels: Vec::new(),
            scale: 0.0,
            sections: Vec::new(),
        };
        // Something stands before the vectors, so that they begin elsewhere than the sections.
        let sections: [(&str, &[u8]); 2] = [("before", &[7; 100]), ("vectors", bytemuck::cast_slice(rows.values()))];
        let entry = vector_file::write(&folder.path().join("v.glv"), header, &sections).unwrap();
        let file = VectorFile::open(folder.path(), &entry).unwrap();
        for l2 in [false, true] {
            let (mut mapped, mut read) = (all(50), all(50));
            rescore(exact(&rows, rows.row(7), l2), None, &mut mapped).unwrap();
            rescore(exact(&rows, rows.row(7), l2), Some(file.stored("vectors").unwrap()), &mut read).unwrap();
            assert_eq!(mapped, read);
        }
        // A vector that the file does not hold is an error that names it.
        let beyond = &mut [Neighbour::new(0.0, 1 << 20)];
        let error =
            rescore(exact(&rows, rows.row(7), false), Some(file.stored("vectors").unwrap()), beyond).unwrap_err();
        assert!(error.to_string().contains("v.glv"), "{error}");
    }

    #[test]
    fn no_answer_is_left_out_and_most_others_are() {
        let (count, k) = (2_000, 10);
        for (large, l2) in [(1.0, false), (1.0, true), (12.0, false), (12.0, true)] {
            let rows = rows(count, large);
            let (scale, stride) = (byte_scale(&rows, DIMS), byte_stride(DIMS));
            let mut codes = vec![0; count * stride];
            for (node, code) in codes.chunks_exact_mut(stride).enumerate() {
                encode_bytes(&rows.row(node)[..DIMS], scale, code);
            }
            let (mut looked_at, mut missed) = (0, 0);
            for query in 0..40 {
                let code = &codes[query * stride..][..stride];
                let mut found: Vec<Neighbour> = (0..count as u32)
                    .map(|node| {
                        let other = row(&codes, stride, node);
                        let distance =
                            if l2 { kernels::squared_distance_i8(code, other) } else { -kernels::dot_i8(code, other) };
                        Neighbour::new(distance as f32, node)
                    })
                    .collect();
                found.sort_unstable();
                let mut truth = all(count);
                rescore(exact(&rows, rows.row(query), l2), None, &mut truth).unwrap();
                let kept = candidates(Codes::Int8 { codes: &codes, stride, scale }, code, l2, DIMS, &found, k);
                looked_at += kept;
                let kept: Vec<u32> = found[..kept].iter().map(|n| n.node()).collect();
                missed += truth[..k].iter().filter(|n| !kept.contains(&n.node())).count();
            }
            assert_eq!(missed, 0, "{large} {l2}");
            assert!(looked_at < 40 * count / 4, "{looked_at} of {} with {large} {l2}", 40 * count);
        }
    }
}
