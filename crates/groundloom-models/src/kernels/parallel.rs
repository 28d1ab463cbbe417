//! Dense layers and norms over the threads of the current rayon pool. How the work is cut changes no bit: each value
//! is one chain of operations wherever it is computed.

use rayon::prelude::*;

use super::{Activation, Dense, Epilogue, Isa, Placement, dense::PANEL, norm};

/// Values of the input that one task works on: with a panel of weights they fit the second-level cache of a core.
const BLOCK: usize = 96 * 1024;
/// Rows of a task are a multiple of this where it can be had: the kernel's tiles are of 12 or 6 rows at most.
const TILE: usize = 36;
/// Multiply-adds below which a second thread costs more than it gives.
const SMALL: usize = 1 << 17;

/// `out = epilogue(input · weight + bias)`, rows one after the other. A residual is a slice as long as `out`.
pub(crate) fn product(layer: &Dense, isa: Isa, input: &[f32], out: &mut [f32], epilogue: Epilogue<'_>) {
    let (inputs, outputs) = (layer.inputs(), layer.outputs());
    let (rows, threads) = (input.len() / inputs, rayon::current_num_threads());
    if threads == 1 || rows * inputs * outputs < SMALL {
        for (block, (input, out)) in row_blocks(layer, rows, 1, input, out) {
            layer.apply(isa, input, out, Placement::CONTIGUOUS, part(epilogue, block, out.len()));
        }
    } else if rows >= threads * TILE * 2 {
        let blocks: Vec<_> = row_blocks(layer, rows, threads, input, out).collect();
        blocks.into_par_iter().for_each(|(block, (input, out))| {
            layer.apply(isa, input, out, Placement::CONTIGUOUS, part(epilogue, block, out.len()));
        });
    } else {
        by_columns(layer, isa, input, out, epilogue, threads);
    }
}

/// Consecutive rows of `input` and `out`, each with the place in `out` at which they begin.
fn row_blocks<'a>(
    layer: &Dense,
    rows: usize,
    threads: usize,
    input: &'a [f32],
    out: &'a mut [f32],
) -> impl Iterator<Item = (usize, (&'a [f32], &'a mut [f32]))> {
    let most = (BLOCK / layer.inputs()).max(TILE);
    let tasks = rows.div_ceil(most).next_multiple_of(threads).max(1);
    let each = rows.div_ceil(tasks).max(1);
    let (inputs, outputs) = (layer.inputs(), layer.outputs());
    let pairs = input.chunks(each * inputs).zip(out.chunks_mut(each * outputs));
    pairs.enumerate().map(move |(i, pair)| (i * each * outputs, pair))
}

fn part(epilogue: Epilogue<'_>, start: usize, len: usize) -> Epilogue<'_> {
    match epilogue {
        Epilogue::Add(residual) => Epilogue::Add(&residual[start..start + len]),
        other => other,
    }
}

/// Few rows: each thread takes some of the columns, so that the weights are read once.
fn by_columns(layer: &Dense, isa: Isa, input: &[f32], out: &mut [f32], epilogue: Epilogue<'_>, threads: usize) {
    let outputs = layer.outputs();
    let rows = input.len() / layer.inputs();
    let each = outputs.div_ceil(threads * 2).next_multiple_of(PANEL);
    let starts: Vec<usize> = (0..outputs).step_by(each).collect();
    // A residual lies in rows of all columns: it is added when the columns come together.
    let inside = match epilogue {
        Epilogue::Add(_) => Epilogue::Linear,
        other => other,
    };
    let parts: Vec<Vec<f32>> = starts
        .par_iter()
        .map(|&start| {
            let columns = start..(start + each).min(outputs);
            let mut part = vec![0.0; rows * columns.len()];
            layer.apply_columns(isa, input, &mut part, columns, Placement::CONTIGUOUS, inside);
            part
        })
        .collect();
    for (start, part) in starts.into_iter().zip(parts) {
        let width = part.len() / rows.max(1);
        for (to, from) in out.chunks_exact_mut(outputs).zip(part.chunks_exact(width)) {
            to[start..start + width].copy_from_slice(from);
        }
    }
    if let Epilogue::Add(residual) = epilogue {
        out.iter_mut().zip(residual).for_each(|(to, from)| *to += from);
    }
}

/// Rows of a task of [`feed_forward`].
const FEED_ROWS: usize = 4 * TILE;

/// `out = down(activation(up(input))) + residual`, some rows at a time, so that what lies between, which is several times
/// as wide, never leaves the cache. The same bits as of two products.
pub(crate) fn feed_forward(
    [up, down]: [&Dense; 2],
    activation: Activation,
    isa: Isa,
    input: &[f32],
    residual: &[f32],
    out: &mut [f32],
) {
    let rows = input.len() / up.inputs();
    if rows < 2 * FEED_ROWS {
        let mut inner = vec![0.0; rows * up.outputs()];
        product(up, isa, input, &mut inner, Epilogue::Activate(activation));
        return product(down, isa, &inner, out, Epilogue::Add(residual));
    }
    let of = |width: usize| FEED_ROWS * width;
    let blocks = out.par_chunks_mut(of(down.outputs())).zip(residual.par_chunks(of(down.outputs())));
    blocks.zip(input.par_chunks(of(up.inputs()))).for_each_init(
        || vec![0.0; of(up.outputs())],
        |inner, ((out, residual), input)| {
            let inner = &mut inner[..input.len() / up.inputs() * up.outputs()];
            up.apply(isa, input, inner, Placement::CONTIGUOUS, Epilogue::Activate(activation));
            down.apply(isa, inner, out, Placement::CONTIGUOUS, Epilogue::Add(residual));
        },
    );
}

/// As [`norm::layer_norm`].
pub(crate) fn layer_norm(isa: Isa, values: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let rows = (BLOCK / 4 / weight.len()).max(1);
    if values.len() <= rows * weight.len() {
        return norm::layer_norm(isa, values, weight, bias, eps);
    }
    values.par_chunks_mut(rows * weight.len()).for_each(|rows| norm::layer_norm(isa, rows, weight, bias, eps));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::kernels::Activation;

    #[test]
    fn blocks_of_rows_give_the_bits_of_two_products() {
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
        };
        let (inputs, inner) = (37, 150);
        let up = Dense::pack(&values(inputs * inner, 1), &values(inner, 2));
        let down = Dense::pack(&values(inner * inputs, 3), &values(inputs, 4));
        for rows in [1, 100, 239, 240, 1001] {
            let (input, residual) = (values(rows * inputs, 5), values(rows * inputs, 6));
            let (mut wide, mut expected) = (vec![f32::NAN; rows * inner], vec![f32::NAN; rows * inputs]);
            product(&up, Isa::detect(), &input, &mut wide, Epilogue::Activate(Activation::Gelu));
            product(&down, Isa::detect(), &wide, &mut expected, Epilogue::Add(&residual));
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut found = vec![f32::NAN; rows * inputs];
                pool.install(|| {
                    feed_forward([&up, &down], Activation::Gelu, Isa::detect(), &input, &residual, &mut found);
                });
                assert_eq!(found, expected, "{rows} rows");
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
        };
        let pools = [1, 2, 3, 8].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
        for (rows, inputs, outputs) in [(1, 300, 500), (7, 130, 1000), (50, 96, 97), (400, 64, 70), (700, 33, 256)] {
            let input = values(rows * inputs, 1);
            let layer = Dense::pack(&values(inputs * outputs, 2), &values(outputs, 3));
            let residual = values(rows * outputs, 4);
            for epilogue in [Epilogue::Linear, Epilogue::Add(&residual), Epilogue::Activate(Activation::QuickGelu)] {
                let run = |pool: &rayon::ThreadPool| {
                    let mut out = vec![f32::NAN; rows * outputs];
                    pool.install(|| product(&layer, Isa::detect(), &input, &mut out, epilogue));
                    out
                };
                let alone = run(&pools[0]);
                assert!(alone.iter().all(|x| x.is_finite()));
                for pool in &pools[1..] {
                    assert_eq!(alone, run(pool), "{rows}×{inputs}×{outputs}");
                }
                // Nor do the rows beside a row.
                let mut first = vec![f32::NAN; outputs];
                let first_residual = &residual[..outputs];
                let epilogue = if let Epilogue::Add(_) = epilogue { Epilogue::Add(first_residual) } else { epilogue };
                product(&layer, Isa::detect(), &input[..inputs], &mut first, epilogue);
                assert_eq!(first, alone[..outputs]);
            }
        }
    }
}
