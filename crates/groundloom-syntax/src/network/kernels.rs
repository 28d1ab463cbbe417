//! The dense arithmetic, once per instruction set behind a run-time choice.
//!
//! All kernels share one inner loop: a few rows of inputs times a panel of weights, kept in
//! registers. Weights lie in panels of 48 columns, input by input. In a maxout layer a
//! panel holds the three pieces of sixteen units side by side, so that the maximum is taken
//! before anything is stored.
//!
//! The portable path computes the same sums without fused multiply-add; the kernels that
//! are marked exact never fuse and give the same bits on every path.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};
use crate::model::{HIDDEN, PIECES, SLOTS, WIDTH};

/// Columns of a panel.
pub(super) const PANEL: usize = PIECES * UNITS;
/// Maxout units of a panel: the width of the widest vector.
pub(super) const UNITS: usize = 16;
/// Panels of a maxout layer.
pub(super) const GROUPS: usize = WIDTH / UNITS;
/// Outputs of a maxout layer before the maximum.
pub(super) const PRE: usize = GROUPS * PANEL;
/// Inputs come in multiples of this many rows; buffers are padded to it.
pub(super) const ROW_BLOCK: usize = 8;
/// Products of one output that the convolution of two rows takes instead of six.
pub(super) const COMPONENTS: usize = 4;
/// Parser outputs are scored in blocks of this many.
pub(super) const CLASS_BLOCK: usize = 112;
/// Outputs of the parser's first layer: two pieces of 64 units, first pieces first.
pub(super) const LOWER: usize = 2 * HIDDEN;
/// Terms that the exact order adds before it adds the sum to the output.
const EXACT_BLOCK: usize = 256;

/// Which instructions the kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelClass {
    /// Plain Rust, on any CPU.
    Portable,
    /// 256-bit vectors with fused multiply-add (x86-64).
    Avx2,
    /// 512-bit vectors (x86-64).
    Avx512,
}

impl KernelClass {
    /// The fastest class that this CPU has.
    pub fn detect() -> Self {
        let best = [Self::Avx512, Self::Avx2].into_iter().find(|class| class.is_available());
        best.unwrap_or(Self::Portable)
    }

    /// Whether this CPU has the class.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

/// Pairs of neighbouring rows whose next values a convolution computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// The first row; the rows before and after the pair are read too.
    pub(super) row: u32,
    /// Whether the second row is wanted.
    pub(super) both: bool,
}

/// Weights of one residual block in the form that [`convolve`] reads.
#[derive(Debug)]
pub(super) struct ConvolutionWeights<'w> {
    /// `[GROUPS][COMPONENTS][WIDTH][PIECES][UNITS]`.
    pub(super) panels: &'w [f32],
    /// `[GROUPS][PIECES][UNITS]`.
    pub(super) bias: &'w [f32],
    /// `[WIDTH]`.
    pub(super) gain: &'w [f32],
    /// `[WIDTH]`.
    pub(super) shift: &'w [f32],
}

/// Defines each kernel as a safe function that picks the instruction set.
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?;)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(super) fn $name(class: KernelClass, $($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $out)? {
                // SAFETY: the feature is enabled here; the slices were checked by the caller.
                unsafe { generic::$name::<Avx512, 8>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $out)? {
                // SAFETY: as above.
                unsafe { generic::$name::<Avx2, 4>($($arg),*) }
            }
            checks::$name($(&$arg),*);
            match class {
                // SAFETY: a class is only chosen where `is_available` says so.
                #[cfg(target_arch = "x86_64")]
                KernelClass::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                KernelClass::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: no feature is needed.
                _ => unsafe { generic::$name::<Portable, 4>($($arg),*) },
            }
        }
    )*};
}

kernels! {
    /// `out = x · panels` row by row: `x` is `[rows][inputs]`, `panels` is
    /// `[n][inputs][PANEL]`, `out` is `[rows][n * PANEL]`, `rows` a multiple of
    /// [`ROW_BLOCK`].
    fn linear(x: &[f32], inputs: usize, panels: &[f32], out: &mut [f32]);

    /// As [`linear`], in spaCy's order of operations: products are rounded, then added one
    /// by one, and blocks of 256 terms are added up.
    fn linear_exact(x: &[f32], inputs: usize, panels: &[f32], out: &mut [f32]);

    /// The next values of the tiles' rows: `next = rows + norm(maxout(window · weights))`,
    /// where a window is the row before, the row, and the row after. Two rows at a time
    /// by Winograd's F(2, 3), which takes four products where six are due (Lavin & Gray
    /// 2016, section 4.1). The number of tiles is a multiple of [`ROW_BLOCK`]; repeat one to fill up.
    fn convolve(rows: &[f32], tiles: &[Tile], weights: &ConvolutionWeights<'_>, next: &mut [f32]);

    /// `out = base + norm(max over pieces of the terms' sum)` for one row; terms are
    /// `[GROUPS][PIECES][UNITS]`.
    fn maxout_norm(terms: [&[f32]; 4], base: &[f32], gain: &[f32], shift: &[f32], out: &mut [f32]);

    /// The parser's scores: the slots' terms (each `LOWER`) and the bias are added, the
    /// greater piece of each unit goes through `upper` (`[classes / CLASS_BLOCK][HIDDEN]
    /// [CLASS_BLOCK]`, then biases). Returns the first best class among those whose
    /// `mask` is 0 (others are -∞), and its lead.
    fn decide(terms: [&[f32]; SLOTS], lower_bias: &[f32], upper: &[f32], upper_bias: &[f32], mask: &[f32], scores: &mut [f32]) -> (usize, f32);
}

/// What the kernels' pointers rely on.
mod checks {
    #[allow(clippy::wildcard_imports)]
    use super::*;

    pub(super) fn linear(x: &&[f32], inputs: &usize, panels: &&[f32], out: &&mut [f32]) {
        let rows = x.len() / inputs;
        let columns = panels.len() / inputs;
        assert_eq!(x.len(), rows * inputs);
        assert_eq!(panels.len(), columns * inputs);
        assert_eq!(rows % ROW_BLOCK, 0);
        assert_eq!(columns % PANEL, 0);
        assert_eq!(out.len(), rows * columns);
    }

    pub(super) fn linear_exact(x: &&[f32], inputs: &usize, panels: &&[f32], out: &&mut [f32]) {
        linear(x, inputs, panels, out);
    }

    pub(super) fn convolve(rows: &&[f32], tiles: &&[Tile], weights: &&ConvolutionWeights<'_>, next: &&mut [f32]) {
        let count = rows.len() / WIDTH;
        assert_eq!(rows.len(), count * WIDTH);
        assert_eq!(next.len(), rows.len());
        assert_eq!(tiles.len() % ROW_BLOCK, 0);
        assert!(tiles.iter().all(|t| t.row >= 1 && (t.row as usize) + 2 < count));
        assert_eq!(weights.panels.len(), COMPONENTS * WIDTH * PRE);
        assert_eq!(weights.bias.len(), PRE);
        assert_eq!(weights.gain.len(), WIDTH);
        assert_eq!(weights.shift.len(), WIDTH);
    }

    pub(super) fn maxout_norm(terms: &[&[f32]; 4], base: &&[f32], gain: &&[f32], shift: &&[f32], out: &&mut [f32]) {
        assert!(terms.iter().all(|t| t.len() == PRE));
        assert!([base.len(), gain.len(), shift.len(), out.len()] == [WIDTH; 4]);
    }

    pub(super) fn decide(
        terms: &[&[f32]; SLOTS],
        lower_bias: &&[f32],
        upper: &&[f32],
        upper_bias: &&[f32],
        mask: &&[f32],
        scores: &&mut [f32],
    ) {
        assert!(terms.iter().all(|t| t.len() == LOWER) && lower_bias.len() == LOWER);
        let classes = scores.len();
        assert_eq!(classes % CLASS_BLOCK, 0);
        assert_eq!(upper.len(), classes * HIDDEN);
        assert!(upper_bias.len() == classes && mask.len() == classes);
    }
}

/// The kernels for any vector type. `ROWS` input rows are worked on at once: as many as
/// leave registers for a panel's part of the weights.
///
/// No closures around vectors here: a closure is a function of its own, without the CPU
/// features, and what isn't inlined into a function that has them becomes a slow call.
///
/// # Safety
/// The vector's CPU features must be enabled in the caller, and slices must have the
/// lengths that [`checks`] asks for.
mod generic {
    #![allow(clippy::needless_range_loop)]
    #[allow(clippy::wildcard_imports)]
    use super::*;

    /// Adds `x · panel` to the sums, `x` being `ROWS` rows `stride` apart. The panel's
    /// three vectors of each input are [`UNITS`] apart.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const ROWS: usize, const FUSED: bool>(
        sums: &mut [[S; PIECES]; ROWS],
        x: *const f32,
        stride: usize,
        panel: *const f32,
        inputs: usize,
    ) {
        unsafe {
            for i in 0..inputs {
                let at = panel.add(i * PANEL);
                let w: [S; PIECES] = [S::load(at), S::load(at.add(UNITS)), S::load(at.add(2 * UNITS))];
                for r in 0..ROWS {
                    let x = S::splat(*x.add(r * stride + i));
                    for p in 0..PIECES {
                        sums[r][p] = if FUSED { x.mul_add(w[p], sums[r][p]) } else { sums[r][p].add(x.mul(w[p])) };
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zeros<S: Simd, const ROWS: usize>() -> [[S; PIECES]; ROWS] {
        unsafe { [[S::splat(0.0); PIECES]; ROWS] }
    }

    #[inline(always)]
    unsafe fn linear_in_blocks<S: Simd, const ROWS: usize, const FUSED: bool>(
        x: &[f32],
        inputs: usize,
        panels: &[f32],
        out: &mut [f32],
        block: usize,
    ) {
        let rows = x.len() / inputs;
        let columns = panels.len() / inputs;
        unsafe {
            for row in (0..rows).step_by(ROWS) {
                for column in (0..columns).step_by(PANEL) {
                    for lane in (0..UNITS).step_by(S::LANES) {
                        let panel = panels.as_ptr().add(column * inputs + lane);
                        let x = x.as_ptr().add(row * inputs);
                        let mut total = zeros::<S, ROWS>();
                        for from in (0..inputs).step_by(block) {
                            let mut sums = zeros::<S, ROWS>();
                            let len = block.min(inputs - from);
                            let panel = panel.add(from * PANEL);
                            accumulate::<S, ROWS, FUSED>(&mut sums, x.add(from), inputs, panel, len);
                            for r in 0..ROWS {
                                for p in 0..PIECES {
                                    let sum = sums[r][p];
                                    total[r][p] = if from == 0 { sum } else { total[r][p].add(sum) };
                                }
                            }
                        }
                        for r in 0..ROWS {
                            let out = out.as_mut_ptr().add((row + r) * columns + column + lane);
                            for p in 0..PIECES {
                                total[r][p].store(out.add(p * UNITS));
                            }
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn linear<S: Simd, const ROWS: usize>(x: &[f32], inputs: usize, panels: &[f32], out: &mut [f32]) {
        unsafe { linear_in_blocks::<S, ROWS, true>(x, inputs, panels, out, inputs) }
    }

    #[inline(always)]
    pub(super) unsafe fn linear_exact<S: Simd, const ROWS: usize>(
        x: &[f32],
        inputs: usize,
        panels: &[f32],
        out: &mut [f32],
    ) {
        unsafe { linear_in_blocks::<S, ROWS, false>(x, inputs, panels, out, EXACT_BLOCK) }
    }

    /// A buffer on the stack that begins at a cache line.
    #[repr(align(64))]
    struct Stack<const N: usize>([f32; N]);

    #[inline(always)]
    pub(super) unsafe fn convolve<S: Simd, const ROWS: usize>(
        rows: &[f32],
        tiles: &[Tile],
        weights: &ConvolutionWeights<'_>,
        next: &mut [f32],
    ) {
        const BLOCK: usize = ROW_BLOCK * WIDTH;
        let mut inputs = Stack([0.0; COMPONENTS * BLOCK]);
        let mut outputs = Stack([0.0; 2 * BLOCK]);
        unsafe {
            for tiles in tiles.chunks_exact(ROW_BLOCK) {
                for (t, tile) in tiles.iter().enumerate() {
                    let x = rows.as_ptr().add((tile.row as usize - 1) * WIDTH);
                    let to = inputs.0.as_mut_ptr().add(t * WIDTH);
                    for i in (0..WIDTH).step_by(S::LANES) {
                        let x0 = S::load(x.add(i));
                        let x1 = S::load(x.add(WIDTH + i));
                        let x2 = S::load(x.add(2 * WIDTH + i));
                        let x3 = S::load(x.add(3 * WIDTH + i));
                        x1.add(x2).store(to.add(i));
                        x2.sub(x1).store(to.add(BLOCK + i));
                        x0.sub(x2).store(to.add(2 * BLOCK + i));
                        x3.sub(x1).store(to.add(3 * BLOCK + i));
                    }
                }
                for group in 0..GROUPS {
                    for lane in (0..UNITS).step_by(S::LANES) {
                        let at = group * PANEL + lane;
                        let bias = weights.bias.as_ptr().add(at);
                        const NEXT: usize = WIDTH * PANEL;
                        let panel = weights.panels.as_ptr().add(group * COMPONENTS * NEXT + lane);
                        for first in (0..ROW_BLOCK).step_by(ROWS) {
                            let x = inputs.0.as_ptr().add(first * WIDTH);
                            let out = outputs.0.as_mut_ptr().add(2 * first * WIDTH + group * UNITS + lane);
                            let mut other = zeros::<S, ROWS>();
                            accumulate::<S, ROWS, true>(&mut other, x, WIDTH, panel, WIDTH);
                            let mut sums = zeros::<S, ROWS>();
                            let (x1, p1) = (x.add(BLOCK), panel.add(NEXT));
                            accumulate::<S, ROWS, true>(&mut sums, x1, WIDTH, p1, WIDTH);
                            for r in 0..ROWS {
                                for p in 0..PIECES {
                                    let (a, b) = (other[r][p], sums[r][p]);
                                    (sums[r][p], other[r][p]) = (a.add(b), a.sub(b));
                                }
                            }
                            let (x2, p2) = (x.add(2 * BLOCK), panel.add(2 * NEXT));
                            accumulate::<S, ROWS, true>(&mut sums, x2, WIDTH, p2, WIDTH);
                            store_most(&sums, bias, out);
                            let (x3, p3) = (x.add(3 * BLOCK), panel.add(3 * NEXT));
                            accumulate::<S, ROWS, true>(&mut other, x3, WIDTH, p3, WIDTH);
                            store_most(&other, bias, out.add(WIDTH));
                        }
                    }
                }
                for (t, tile) in tiles.iter().enumerate() {
                    for second in 0..1 + usize::from(tile.both) {
                        let at = (tile.row as usize + second) * WIDTH;
                        norm::<S>(
                            outputs.0.as_ptr().add((2 * t + second) * WIDTH),
                            rows.as_ptr().add(at),
                            weights.gain.as_ptr(),
                            weights.shift.as_ptr(),
                            next.as_mut_ptr().add(at),
                        );
                    }
                }
            }
        }
    }

    /// Adds the bias and stores the greatest piece; rows are two rows of output apart.
    #[inline(always)]
    unsafe fn store_most<S: Simd, const ROWS: usize>(sums: &[[S; PIECES]; ROWS], bias: *const f32, out: *mut f32) {
        unsafe {
            let (b0, b1, b2) = (S::load(bias), S::load(bias.add(UNITS)), S::load(bias.add(2 * UNITS)));
            for r in 0..ROWS {
                let most = sums[r][0].add(b0).max(sums[r][1].add(b1)).max(sums[r][2].add(b2));
                most.store(out.add(2 * r * WIDTH));
            }
        }
    }

    /// `out = base + layer norm of x` for one row.
    #[inline(always)]
    unsafe fn norm<S: Simd>(x: *const f32, base: *const f32, gain: *const f32, shift: *const f32, out: *mut f32) {
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..WIDTH).step_by(S::LANES) {
                sum = sum.add(S::load(x.add(i)));
            }
            let mean = S::splat(sum_of(sum) / WIDTH as f32);
            let mut squares = S::splat(0.0);
            for i in (0..WIDTH).step_by(S::LANES) {
                let d = S::load(x.add(i)).sub(mean);
                squares = d.mul_add(d, squares);
            }
            let variance = sum_of(squares) / WIDTH as f32 + 1e-8;
            let scale = S::splat(1.0 / variance.sqrt());
            for i in (0..WIDTH).step_by(S::LANES) {
                let d = S::load(x.add(i)).sub(mean).mul(scale);
                let y = d.mul_add(S::load(gain.add(i)), S::load(shift.add(i)));
                y.add(S::load(base.add(i))).store(out.add(i));
            }
        }
    }

    #[inline(always)]
    unsafe fn sum_of<S: Simd>(x: S) -> f32 {
        let mut lanes = [0.0f32; UNITS];
        unsafe { x.store(lanes.as_mut_ptr()) };
        let mut n = S::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] += lanes[i + n];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    unsafe fn greatest_of<S: Simd>(x: S) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; UNITS];
        unsafe { x.store(lanes.as_mut_ptr()) };
        let mut n = S::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                lanes[i] = if lanes[i + n] > lanes[i] { lanes[i + n] } else { lanes[i] };
            }
        }
        lanes[0]
    }

    #[inline(always)]
    pub(super) unsafe fn maxout_norm<S: Simd, const ROWS: usize>(
        terms: [&[f32]; 4],
        base: &[f32],
        gain: &[f32],
        shift: &[f32],
        out: &mut [f32],
    ) {
        let mut y = Stack([0.0; WIDTH]);
        unsafe {
            for group in 0..GROUPS {
                for lane in (0..UNITS).step_by(S::LANES) {
                    let mut most = S::splat(f32::NEG_INFINITY);
                    for p in 0..PIECES {
                        let at = group * PANEL + p * UNITS + lane;
                        let (a, b) = (S::load(terms[0].as_ptr().add(at)), S::load(terms[1].as_ptr().add(at)));
                        let (c, d) = (S::load(terms[2].as_ptr().add(at)), S::load(terms[3].as_ptr().add(at)));
                        most = most.max(a.add(b).add(c.add(d)));
                    }
                    most.store(y.0.as_mut_ptr().add(group * UNITS + lane));
                }
            }
            norm::<S>(y.0.as_ptr(), base.as_ptr(), gain.as_ptr(), shift.as_ptr(), out.as_mut_ptr());
        }
    }

    #[inline(always)]
    pub(super) unsafe fn decide<S: Simd, const ROWS: usize>(
        terms: [&[f32]; SLOTS],
        lower_bias: &[f32],
        upper: &[f32],
        upper_bias: &[f32],
        mask: &[f32],
        scores: &mut [f32],
    ) -> (usize, f32) {
        const STEP: usize = 7;
        let mut hidden = Stack([0.0; HIDDEN]);
        unsafe {
            for i in (0..HIDDEN).step_by(S::LANES) {
                let mut a = S::load(lower_bias.as_ptr().add(i));
                let mut b = S::load(lower_bias.as_ptr().add(HIDDEN + i));
                for slot in 0..SLOTS {
                    let term = terms[slot].as_ptr().add(i);
                    a = a.add(S::load(term));
                    b = b.add(S::load(term.add(HIDDEN)));
                }
                a.max(b).store(hidden.0.as_mut_ptr().add(i));
            }
            let mut best = S::splat(f32::NEG_INFINITY);
            for block in (0..scores.len()).step_by(CLASS_BLOCK) {
                let upper = upper.as_ptr().add(block * HIDDEN);
                for from in (0..CLASS_BLOCK).step_by(STEP * S::LANES) {
                    let at = block + from;
                    let mut sums = [S::splat(0.0); STEP];
                    for v in 0..STEP {
                        sums[v] = S::load(upper_bias.as_ptr().add(at + v * S::LANES));
                    }
                    for i in 0..HIDDEN {
                        let h = S::splat(hidden.0[i]);
                        let w = upper.add(i * CLASS_BLOCK + from);
                        for v in 0..STEP {
                            sums[v] = h.mul_add(S::load(w.add(v * S::LANES)), sums[v]);
                        }
                    }
                    for v in 0..STEP {
                        let at = at + v * S::LANES;
                        let allowed = sums[v].add(S::load(mask.as_ptr().add(at)));
                        best = best.max(allowed);
                        allowed.store(scores.as_mut_ptr().add(at));
                    }
                }
            }
            let first = greatest_of(best);
            let class = scores.iter().position(|&s| s == first).unwrap_or(0);
            scores[class] = f32::NEG_INFINITY;
            let mut second = S::splat(f32::NEG_INFINITY);
            for at in (0..scores.len()).step_by(S::LANES) {
                second = second.max(S::load(scores.as_ptr().add(at)));
            }
            scores[class] = first;
            (class, first - greatest_of(second))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::aligned::Aligned;
    use super::*;

    /// Numbers between -1 and 1 from a linear congruence.
    fn noise(len: usize, seed: u32) -> Aligned {
        let mut out = Aligned::zeroed(len);
        let mut state = seed;
        for x in out.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        }
        out
    }

    fn classes() -> impl Iterator<Item = KernelClass> {
        let all = [KernelClass::Portable, KernelClass::Avx2, KernelClass::Avx512];
        all.into_iter().filter(|class| class.is_available())
    }

    fn assert_close(found: &[f32], expected: impl Iterator<Item = f64>, bound: f64) {
        let mut count = 0;
        for (&found, expected) in found.iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() < bound, "{found} {expected} at {count}");
            count += 1;
        }
        assert_eq!(count, found.len());
    }

    #[test]
    fn linear_is_a_matrix_product() {
        let (rows, inputs, columns) = (16, 40, 2 * PANEL);
        let (x, panels) = (noise(rows * inputs, 1), noise(columns * inputs, 2));
        let expected = |i: usize| -> f64 {
            let (row, column) = (i / columns, i % columns);
            let panel = &panels[column / PANEL * PANEL * inputs..];
            let term = |k: usize| f64::from(x[row * inputs + k]) * f64::from(panel[k * PANEL + column % PANEL]);
            (0..inputs).map(term).sum()
        };
        for class in classes() {
            let mut out = Aligned::zeroed(rows * columns);
            linear(class, &x, inputs, &panels, &mut out);
            assert_close(&out, (0..out.len()).map(expected), 1e-4);
        }
    }

    #[test]
    fn exact_products_are_added_one_by_one_in_blocks() {
        let (rows, inputs) = (8, 300);
        let (x, panels) = (noise(rows * inputs, 3), noise(PANEL * inputs, 4));
        for class in classes() {
            let mut out = Aligned::zeroed(rows * PANEL);
            linear_exact(class, &x, inputs, &panels, &mut out);
            for (i, &found) in out.iter().enumerate() {
                let (row, column) = (i / PANEL, i % PANEL);
                let sum = |range: std::ops::Range<usize>| {
                    range.fold(0.0f32, |sum, k| sum + x[row * inputs + k] * panels[k * PANEL + column])
                };
                assert_eq!(found.to_bits(), (sum(0..256) + sum(256..300)).to_bits(), "{class:?} {i}");
            }
        }
    }

    fn normed(x: &[f64], gain: &[f32], shift: &[f32], i: usize) -> f64 {
        let mean = x.iter().sum::<f64>() / WIDTH as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64 + 1e-8;
        (x[i] - mean) / variance.sqrt() * f64::from(gain[i]) + f64::from(shift[i])
    }

    #[test]
    fn convolution_equals_the_plain_sum() {
        let (count, weight) = (12, noise(3 * WIDTH * PRE, 5));
        let rows = noise(count * WIDTH, 6);
        let (bias, gain, shift) = (noise(PRE, 7), noise(WIDTH, 8), noise(WIDTH, 9));
        // weight[part][input][column]
        let at = |part: usize, input: usize, column: usize| weight[(part * WIDTH + input) * PRE + column];
        let mut panels = Aligned::zeroed(COMPONENTS * WIDTH * PRE);
        for (i, out) in panels.iter_mut().enumerate() {
            let (column, input) = (i % PANEL, i / PANEL % WIDTH);
            let (component, group) = (i / (PANEL * WIDTH) % COMPONENTS, i / (PANEL * WIDTH * COMPONENTS));
            let g = |part: usize| at(part, input, group * PANEL + column);
            *out = match component {
                0 => (g(0) + g(1) + g(2)) / 2.0,
                1 => (g(0) - g(1) + g(2)) / 2.0,
                2 => g(0),
                _ => g(2),
            };
        }
        let expected = |row: usize| -> Vec<f64> {
            let sum = |column: usize| -> f64 {
                let terms = (0..3 * WIDTH)
                    .map(|k| f64::from(rows[(row - 1) * WIDTH + k]) * f64::from(at(k / WIDTH, k % WIDTH, column)));
                terms.sum::<f64>() + f64::from(bias[column])
            };
            let most: Vec<f64> = (0..WIDTH)
                .map(|o| {
                    let piece = |p: usize| sum(o / UNITS * PANEL + p * UNITS + o % UNITS);
                    piece(0).max(piece(1)).max(piece(2))
                })
                .collect();
            (0..WIDTH).map(|i| f64::from(rows[row * WIDTH + i]) + normed(&most, &gain, &shift, i)).collect()
        };
        let tile = |row: u32, both: bool| Tile { row, both };
        let mut tiles = vec![tile(1, true), tile(3, false), tile(6, true), tile(8, true)];
        tiles.resize(ROW_BLOCK, tile(8, true));
        let weights = ConvolutionWeights { panels: &panels, bias: &bias, gain: &gain, shift: &shift };
        for class in classes() {
            let mut next = Aligned::zeroed(count * WIDTH);
            convolve(class, &rows, &tiles, &weights, &mut next);
            for row in [1, 2, 3, 6, 7, 8, 9] {
                assert_close(&next[row * WIDTH..][..WIDTH], expected(row).into_iter(), 1e-4);
            }
            for row in [0, 4, 5, 10, 11] {
                assert!(next[row * WIDTH..][..WIDTH].iter().all(|&x| x == 0.0), "row {row} was not asked for");
            }
        }
    }

    #[test]
    fn decision_is_the_first_best_of_the_allowed() {
        let terms: Vec<Aligned> = (0..SLOTS).map(|i| noise(LOWER, 10 + i as u32)).collect();
        let slots: [&[f32]; SLOTS] = std::array::from_fn(|i| &*terms[i]);
        let (bias, upper) = (noise(LOWER, 20), noise(CLASS_BLOCK * HIDDEN, 21));
        let upper_bias = noise(CLASS_BLOCK, 22);
        let mut mask = Aligned::zeroed(CLASS_BLOCK);
        mask.iter_mut().step_by(3).for_each(|m| *m = f32::NEG_INFINITY);
        let sum = |i: usize| f64::from(bias[i]) + terms.iter().map(|t| f64::from(t[i])).sum::<f64>();
        let hidden: Vec<f64> = (0..HIDDEN).map(|i| sum(i).max(sum(HIDDEN + i))).collect();
        let mut scores: Vec<(f64, usize)> = (0..CLASS_BLOCK)
            .filter(|class| class % 3 != 0)
            .map(|class| {
                let terms = (0..HIDDEN).map(|i| hidden[i] * f64::from(upper[i * CLASS_BLOCK + class]));
                (terms.sum::<f64>() + f64::from(upper_bias[class]), class)
            })
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        for class in classes() {
            let mut out = Aligned::zeroed(CLASS_BLOCK);
            let (best, margin) = decide(class, slots, &bias, &upper, &upper_bias, &mask, &mut out);
            assert_eq!(best, scores[0].1, "{class:?}");
            assert!((f64::from(margin) - (scores[0].0 - scores[1].0)).abs() < 1e-3);
            // All alike: the first that is allowed, without a lead.
            let zeros = Aligned::zeroed(CLASS_BLOCK * HIDDEN);
            let (best, margin) = decide(class, slots, &bias, &zeros, &zeros[..CLASS_BLOCK], &mask, &mut out);
            assert_eq!((best, margin), (1, 0.0), "{class:?}");
        }
    }
}
