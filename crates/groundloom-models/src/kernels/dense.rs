//! A dense layer, or a 1×1 convolution: a matrix product with bias, activation and residual fused into the store.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Activation, Aligned, Isa};

/// Columns of a full panel. Two AVX-512 vectors, four of AVX2, eight of NEON or SSE.
pub(super) const PANEL: usize = 32;
/// Columns of the last panel when no more are left.
const HALF: usize = PANEL / 2;

/// A matrix `[inputs, outputs]` and a bias, packed into column panels of [`PANEL`] or [`HALF`] columns, each panel row
/// after row.
#[derive(Debug)]
pub(crate) struct Dense {
    inputs: usize,
    outputs: usize,
    panels: Aligned,
    bias: Aligned,
}

/// What happens to a value before it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Epilogue<'a> {
    Linear,
    /// Clamped to [0, 6].
    Relu6,
    /// The value of the same place in this slice is added.
    Add(&'a [f32]),
    /// An activation function is applied.
    Activate(Activation),
}

/// Where the rows of a product go: row `i` starts at `start + i / per_line * line_stride + i % per_line * columns`, where
/// `columns` is how many columns are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement {
    pub(crate) start: usize,
    pub(crate) per_line: usize,
    pub(crate) line_stride: usize,
}

impl Placement {
    /// One row after the other.
    pub(crate) const CONTIGUOUS: Self = Self { start: 0, per_line: usize::MAX, line_stride: 0 };
}

fn panel_widths(outputs: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut column = 0;
    std::iter::from_fn(move || {
        if column >= outputs {
            return None;
        }
        let at = column;
        let width = if outputs - at > HALF { PANEL } else { HALF };
        column += width;
        Some((at, width))
    })
}

impl Dense {
    /// Packs `weight` (`[inputs, outputs]`, row-major) and `bias` (`[outputs]`).
    pub(crate) fn pack(weight: &[f32], bias: &[f32]) -> Self {
        let outputs = bias.len();
        Self::pack_strided(weight, outputs, weight.len() / outputs, bias)
    }

    /// As [`Dense::pack`], of a matrix of `inputs` rows whose row `i` begins at `i * stride`.
    pub(crate) fn pack_strided(weight: &[f32], stride: usize, inputs: usize, bias: &[f32]) -> Self {
        let outputs = bias.len();
        Self::pack_with(inputs, bias, |panel, column, width| {
            let valid = width.min(outputs - column);
            for (to, from) in panel.chunks_exact_mut(width).zip(weight.chunks(stride)) {
                to[..valid].copy_from_slice(&from[column..column + valid]);
            }
        })
    }

    /// As [`Dense::pack`], of the transposed matrix: `[outputs, inputs]`, as checkpoints hold it. Row `i` begins at
    /// `i * stride`.
    pub(crate) fn pack_transposed(weight: &[f32], stride: usize, inputs: usize, bias: &[f32]) -> Self {
        let outputs = bias.len();
        Self::pack_with(inputs, bias, |panel, column, width| {
            for (i, from) in weight.chunks(stride).skip(column).take(width.min(outputs - column)).enumerate() {
                for (to, &value) in panel[i..].iter_mut().step_by(width).zip(&from[..inputs]) {
                    *to = value;
                }
            }
        })
    }

    /// `fill` writes one panel: its values (zeros so far), its first column, its width.
    fn pack_with(inputs: usize, bias: &[f32], fill: impl Fn(&mut [f32], usize, usize)) -> Self {
        let outputs = bias.len();
        let columns: usize = panel_widths(outputs).map(|(_, width)| width).sum();
        let mut panels = Aligned::zeros(inputs * columns);
        let mut padded = Aligned::zeros(columns);
        padded[..outputs].copy_from_slice(bias);
        for (column, width) in panel_widths(outputs) {
            fill(&mut panels[inputs * column..][..inputs * width], column, width);
        }
        Self { inputs, outputs, panels, bias: padded }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// `out = epilogue(input · weight + bias)`; `input` is `[rows, inputs]`, and the rows of `out` lie where
    /// `placement` says.
    pub(crate) fn apply(&self, isa: Isa, input: &[f32], out: &mut [f32], placement: Placement, epilogue: Epilogue<'_>) {
        self.apply_columns(isa, input, out, 0..self.outputs, placement, epilogue);
    }

    /// As [`Dense::apply`], for some columns only: `out` has no others. `columns` starts at a multiple of [`PANEL`].
    pub(crate) fn apply_columns(
        &self,
        isa: Isa,
        input: &[f32],
        out: &mut [f32],
        columns: Range<usize>,
        placement: Placement,
        epilogue: Epilogue<'_>,
    ) {
        debug_assert!(columns.start.is_multiple_of(PANEL));
        isa.dispatch(Product { layer: self, input, out, columns, placement, epilogue });
    }
}

struct Product<'a> {
    layer: &'a Dense,
    input: &'a [f32],
    out: &'a mut [f32],
    columns: Range<usize>,
    placement: Placement,
    epilogue: Epilogue<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let layer = self.layer;
        let wanted = self.columns.clone();
        for (column, width) in panel_widths(layer.outputs).filter(|(column, _)| wanted.contains(column)) {
            let panel = &layer.panels[layer.inputs * column..][..layer.inputs * width];
            let bias = &layer.bias[column..column + width];
            let panel = Panel { column, values: S::as_simd_f32s(panel).0, bias: S::as_simd_f32s(bias).0 };
            // Tiles of (rows × vectors) whose sums, weights and input fit the registers: 24 sums in 32 registers, 12 in
            // 16. Where that is less than a panel its columns are walked in parts, but for one or two rows, which
            // need all the sums there are to hide how long an addition takes.
            let few = self.input.len() <= 2 * layer.inputs;
            match (S::F32_LANES, width) {
                (16, PANEL) => self.panel::<S, 12, 6, 3, 2>(simd, panel),
                (16, HALF) => self.panel::<S, 12, 6, 3, 1>(simd, panel),
                (8, PANEL) if few => self.panel::<S, 2, 2, 1, 4>(simd, panel),
                (8, _) => self.panel::<S, 6, 4, 2, 2>(simd, panel),
                (4, PANEL) if few => self.panel::<S, 2, 2, 1, 8>(simd, panel),
                (4, _) => self.panel::<S, 6, 4, 2, 4>(simd, panel),
                (_, PANEL) => self.panel::<S, 1, 1, 1, 32>(simd, panel),
                _ => self.panel::<S, 1, 1, 1, 16>(simd, panel),
            }
        }
    }
}

struct Panel<'a, S: Simd> {
    column: usize,
    /// Rows of as many vectors as `bias` has.
    values: &'a [S::f32s],
    bias: &'a [S::f32s],
}

impl<S: Simd> Clone for Panel<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Panel<'_, S> {}

/// Walks the rows of a placement without dividing.
#[derive(Clone, Copy)]
struct Cursor {
    line: usize,
    in_line: usize,
}

/// Runs the body for every number below `$limit`, at most 32, each time with a constant: what arrays hold that are
/// only asked for constant places stays in registers. Loops are unrolled too late for that, or not at all.
macro_rules! each {
    ($i:ident < $limit:expr, $body:expr) => {
        each!($i < $limit, $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    ($i:ident < $limit:expr, $body:expr; $($n:literal)*) => {
        $(if $n < $limit {
            let $i: usize = $n;
            $body;
        })*
    };
}

impl Product<'_> {
    /// All rows against one panel, `N` vectors at a time.
    #[inline(always)]
    fn panel<S: Simd, const A: usize, const B: usize, const C: usize, const N: usize>(
        &mut self,
        simd: S,
        panel: Panel<'_, S>,
    ) {
        let vectors = panel.bias.len();
        for vector in (0..vectors).step_by(N) {
            if panel.column + vector * S::F32_LANES < self.columns.end {
                self.rows::<S, A, B, C, N>(simd, panel, vector);
            }
        }
    }

    /// All rows against `N` vectors of a panel, in tiles of `A` rows and, at the end, the smallest of `A`, `B`, `C`
    /// that holds the rest.
    #[inline(always)]
    fn rows<S: Simd, const A: usize, const B: usize, const C: usize, const N: usize>(
        &mut self,
        simd: S,
        panel: Panel<'_, S>,
        vector: usize,
    ) {
        let rows = self.input.len() / self.layer.inputs;
        let mut cursor = Cursor { line: self.placement.start, in_line: 0 };
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            if left > B {
                self.tile::<S, A, N>(simd, panel, vector, row, left.min(A), &mut cursor);
                row += A;
            } else if left > C {
                self.tile::<S, B, N>(simd, panel, vector, row, left, &mut cursor);
                row += B;
            } else {
                self.tile::<S, C, N>(simd, panel, vector, row, left.min(C), &mut cursor);
                row += C;
            }
        }
    }

    /// `R` rows × `N` vectors in registers. When only `valid` < `R` rows are left the last one is computed again and
    /// not stored.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        panel: Panel<'_, S>,
        vector: usize,
        row: usize,
        valid: usize,
        cursor: &mut Cursor,
    ) {
        let depth = self.layer.inputs;
        let mut input: [&[f32]; R] = [&[]; R];
        each!(r < R, input[r] = &self.input[(row + r.min(valid - 1)) * depth..][..depth]);
        let mut bias = [simd.splat_f32s(0.0); N];
        each!(v < N, bias[v] = panel.bias[vector + v]);
        let mut sums = [bias; R];
        for (k, weights) in panel.values.chunks_exact(panel.bias.len()).take(depth).enumerate() {
            let weights = &weights[vector..vector + N];
            let mut weight = bias;
            each!(v < N, weight[v] = weights[v]);
            each!(r < R, {
                let x = simd.splat_f32s(input[r][k]);
                each!(v < N, sums[r][v] = simd.mul_add_e_f32s(x, weight[v], sums[r][v]));
            });
        }
        let stride = self.columns.len();
        let first = panel.column + vector * S::F32_LANES;
        let columns = (self.columns.end - first).min(N * S::F32_LANES);
        let mut places = [0; R];
        for place in places.iter_mut().take(valid) {
            *place = cursor.line + cursor.in_line * stride + first - self.columns.start;
            cursor.in_line += 1;
            if cursor.in_line == self.placement.per_line {
                *cursor = Cursor { line: cursor.line + self.placement.line_stride, in_line: 0 };
            }
        }
        if let Epilogue::Relu6 = self.epilogue {
            let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
            each!(r < R, each!(v < N, sums[r][v] = simd.min_f32s(simd.max_f32s(sums[r][v], zero), six)));
        }
        if columns == N * S::F32_LANES {
            if let Epilogue::Add(residual) = self.epilogue {
                each!(
                    r < R,
                    if r < valid {
                        let line = S::as_simd_f32s(&residual[places[r]..places[r] + N * S::F32_LANES]).0;
                        each!(v < N, sums[r][v] = simd.add_f32s(sums[r][v], line[v]));
                    }
                );
            }
            each!(
                r < R,
                if r < valid {
                    let out = S::as_mut_simd_f32s(&mut self.out[places[r]..places[r] + N * S::F32_LANES]).0;
                    each!(v < N, out[v] = sums[r][v]);
                }
            );
        } else {
            let sums = sums;
            for r in 0..valid {
                let out = &mut self.out[places[r]..places[r] + columns];
                for (v, &sum) in sums[r].iter().enumerate() {
                    let sum = match self.epilogue {
                        Epilogue::Add(residual) => {
                            let line = &residual[places[r]..places[r] + columns];
                            simd.add_f32s(sum, simd.partial_load_f32s(part::<S>(line, v)))
                        }
                        _ => sum,
                    };
                    let start = (v * S::F32_LANES).min(columns);
                    let end = (start + S::F32_LANES).min(columns);
                    simd.partial_store_f32s(&mut out[start..end], sum);
                }
            }
        }
        // What was just stored is still in the nearest cache.
        if let Epilogue::Activate(activation) = self.epilogue {
            for place in &places[..valid] {
                activation.map::<S>(&mut self.out[*place..*place + columns]);
            }
        }
    }
}

/// The `v`th vector's worth of a line, cut where the line ends.
#[inline(always)]
fn part<S: Simd>(line: &[f32], v: usize) -> &[f32] {
    let start = (v * S::F32_LANES).min(line.len());
    &line[start..(start + S::F32_LANES).min(line.len())]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, in double precision.
    fn product(input: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
        let (inputs, outputs) = (weight.len() / bias.len(), bias.len());
        let value = |row: &[f32], column: usize| {
            row.iter().enumerate().fold(f64::from(bias[column]), |sum, (k, &x)| {
                sum + f64::from(x) * f64::from(weight[k * outputs + column])
            })
        };
        input.chunks(inputs).flat_map(|row| (0..outputs).map(move |column| value(row, column))).collect()
    }

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_instruction_set_computes_the_product(
            rows in 1_usize..40,
            inputs in 1_usize..70,
            outputs in 1_usize..100,
            per_line in 1_usize..9,
            seed: u64,
        ) {
            let (input, weight) = (values(seed, rows * inputs), values(seed ^ 1, inputs * outputs));
            let (bias, residual) = (values(seed ^ 2, outputs), values(seed ^ 3, rows * outputs));
            let layer = Dense::pack(&weight, &bias);
            let expected = product(&input, &weight, &bias);
            let mut fused: Option<Vec<f32>> = None;
            for isa in Isa::all() {
                let mut linear = vec![f32::NAN; rows * outputs];
                layer.apply(isa, &input, &mut linear, Placement::CONTIGUOUS, Epilogue::Linear);
                for (found, expected) in linear.iter().zip(&expected) {
                    prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{isa:?}: {found}, expected {expected}");
                }
                let mut added = vec![f32::NAN; rows * outputs];
                layer.apply(isa, &input, &mut added, Placement::CONTIGUOUS, Epilogue::Add(&residual));
                prop_assert!(added.iter().zip(linear.iter().zip(&residual)).all(|(found, (a, b))| *found == a + b));

                // Lines of `per_line` rows with a gap of 5 behind each and 3 before the first; the gaps stay as they
                // are.
                let stride = per_line * outputs + 5;
                let mut placed = vec![-1.0_f32; 3 + rows.div_ceil(per_line) * stride];
                let placement = Placement { start: 3, per_line, line_stride: stride };
                layer.apply(isa, &input, &mut placed, placement, Epilogue::Relu6);
                let mut expected = vec![-1.0_f32; placed.len()];
                for (row, values) in linear.chunks(outputs).enumerate() {
                    let at = 3 + row / per_line * stride + row % per_line * outputs;
                    for (to, value) in expected[at..at + outputs].iter_mut().zip(values) {
                        *to = value.clamp(0.0, 6.0);
                    }
                }
                prop_assert_eq!(placed, expected);

                // The transposed matrix, in rows that are longer than they need be, packs to the same.
                let stride = inputs + 3;
                let mut transposed = vec![f32::NAN; outputs * stride];
                for (k, row) in weight.chunks(outputs).enumerate() {
                    row.iter().enumerate().for_each(|(column, &value)| transposed[column * stride + k] = value);
                }
                let same = Dense::pack_transposed(&transposed, stride, inputs, &bias);
                prop_assert_eq!(&*same.panels, &*layer.panels);

                // Columns from 32 on by themselves, activated.
                if outputs > PANEL {
                    let mut some = vec![f32::NAN; rows * (outputs - PANEL)];
                    let activate = Epilogue::Activate(Activation::Gelu);
                    layer.apply_columns(isa, &input, &mut some, PANEL..outputs, Placement::CONTIGUOUS, activate);
                    for (row, some) in linear.chunks(outputs).zip(some.chunks(outputs - PANEL)) {
                        let mut expected = row[PANEL..].to_vec();
                        Activation::Gelu.apply(isa, &mut expected);
                        prop_assert_eq!(some, &expected[..]);
                    }
                }

                if isa.class() == crate::KernelClass::Fused {
                    prop_assert!(fused.get_or_insert_with(|| linear.clone()) == &linear, "{isa:?} gives other bits");
                }
            }
        }
    }

    /// Multiply-adds a second in the shapes of the encoders beside those of `gemm`, on one thread: `RAYON_NUM_THREADS=1
    /// cargo test --release -p groundloom-models --lib speed -- --ignored --nocapture`. `gemm` chooses its instruction set
    /// itself: beside AVX2, take its feature `x86-v4` away.
    #[test]
    #[ignore = "it measures, and says nothing on a busy machine"]
    fn speed_beside_gemm() {
        let seconds = |mut run: Box<dyn FnMut() + '_>| {
            let (begun, mut best) = (std::time::Instant::now(), f64::MAX);
            while begun.elapsed().as_secs_f64() < 0.05 {
                let round = std::time::Instant::now();
                run();
                best = best.min(round.elapsed().as_secs_f64());
            }
            best
        };
        let shapes =
            [(384, 1152), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768), (256, 2048), (2048, 256)];
        for isa in Isa::all().into_iter().filter(|isa| isa.class() == crate::KernelClass::Fused) {
            println!("{}", format!("{isa:?}").split('{').next().unwrap_or_default());
            for (inputs, outputs) in shapes {
                print!("| {inputs} × {outputs} ");
                // As checkpoints hold it, row after row of inputs, which is column-major to `gemm`.
                let (transposed, bias) = (values(1, inputs * outputs), values(2, outputs));
                let layer = Dense::pack_transposed(&transposed, inputs, inputs, &bias);
                for rows in [1, 18, 50, 400, 1600] {
                    let input = values(3, rows * inputs);
                    let mut out = vec![0.0; rows * outputs];
                    let rate = |seconds: f64| 2.0 * (rows * inputs * outputs) as f64 / seconds / 1e9;
                    let ours = rate(seconds(Box::new(|| {
                        crate::kernels::product(&layer, isa, &input, &mut out, Epilogue::Linear);
                    })));
                    let theirs = rate(seconds(Box::new(|| {
                        let (out, left, right) = (out.as_mut_ptr(), input.as_ptr(), transposed.as_ptr());
                        let (wide, deep) = (outputs as isize, inputs as isize);
                        // SAFETY: all three matrices have the sizes and steps that are given.
                        unsafe {
                            gemm::gemm(
                                rows,
                                outputs,
                                inputs,
                                out,
                                1,
                                wide,
                                false,
                                left,
                                1,
                                deep,
                                right,
                                deep,
                                1,
                                0.0,
                                1.0,
                                false,
                                false,
                                false,
                                gemm::Parallelism::None,
                            );
                        }
                    })));
                    print!("| {ours:.0} / {theirs:.0} ");
                }
                println!("|");
            }
        }
    }
}
