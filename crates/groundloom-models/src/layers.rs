//! The layers that transformers are made of, on candle tensors of f32: on the CPU computed by this crate's kernels, on any
//! other device by candle's operations ([`plain`]).
//!
//! On the CPU a row of a result depends on that row of the input alone (attention: on its sequence), not on what else is in
//! the batch nor on the number of threads; the tests compare each with candle's own operations. Elsewhere the last bits may
//! depend on what is computed together.

use candle_core::{Device, Result, Storage, Tensor, bail};

use crate::{
    ModelError,
    config::Config,
    device::{by_kernels, has_kernels},
    kernels::{self, Attention, Bias, Dense, Epilogue, Isa, Rows},
    weights::Weights,
};

pub(crate) mod plain;

pub(crate) use crate::kernels::Activation;

/// Runs `f` on the values of a tensor in row-major order, without a copy where they lie so already on the CPU. This is where
/// answers come back from another device.
pub(crate) fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?.to_device(&Device::Cpu)?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("expected a tensor on the CPU") };
    let values = storage.as_slice::<f32>()?;
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
    f(&values[start..end])
}

/// A candle error as one of this crate, with where it happened.
pub(crate) fn compute(operation: &'static str) -> impl Fn(candle_core::Error) -> ModelError {
    move |e| {
        let reason = e.to_string();
        match plain::is_out_of_memory(&reason) {
            true => ModelError::DeviceMemory { operation, reason },
            false => ModelError::Compute { operation, reason },
        }
    }
}

/// The activation function that the option `key` names.
pub(crate) fn activation(
    config: &Config,
    key: &str,
    default: Activation,
) -> std::result::Result<Activation, ModelError> {
    let Some(name) = config.text(key)? else { return Ok(default) };
    name.parse().map_err(|()| config.bad(key, format!("one of {}", Activation::NAMES), name))
}

/// y = x·Wᵀ + b.
#[derive(Debug)]
pub(crate) struct Linear {
    form: LinearForm,
    inputs: usize,
    outputs: usize,
}

/// How a layer lies in memory.
#[derive(Debug)]
enum LinearForm {
    /// For this crate's kernels.
    Packed(Dense),
    /// For candle's operations.
    Tensors(plain::Linear),
}

impl Linear {
    /// Reads `weight` (`[outputs, inputs]`) and, with `bias`, `bias` (`[outputs]`) at the place of `weights`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> std::result::Result<Self, ModelError> {
        let weight = weights.values("weight", &[outputs, inputs])?;
        let bias = if bias { weights.values("bias", &[outputs])? } else { vec![0.0; outputs] };
        Self::new(weights.device(), &weight, &bias)
    }

    /// Several layers of one input as one: their outputs lie side by side in the order given. A part that has no bias
    /// of its own (`false`) gets zeros.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_fused(
        parts: &[(Weights, bool)],
        inputs: usize,
        outputs: usize,
    ) -> std::result::Result<Self, ModelError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (part, with_bias) in parts {
            weight.extend(part.values("weight", &[outputs, inputs])?);
            bias.extend(if *with_bias { part.values("bias", &[outputs])? } else { vec![0.0; outputs] });
        }
        let device = parts.first().map_or(&Device::Cpu, |(part, _)| part.device());
        Self::new(device, &weight, &bias)
    }

    /// From values, for a network on `device`: `weight` is `[outputs, inputs]`, `bias` is `[outputs]`.
    ///
    /// # Errors
    /// Where the device cannot hold them.
    pub(crate) fn new(device: &Device, weight: &[f32], bias: &[f32]) -> std::result::Result<Self, ModelError> {
        let (inputs, outputs) = (weight.len() / bias.len(), bias.len());
        let form = match has_kernels(device) {
            true => LinearForm::Packed(Dense::pack_transposed(weight, inputs, inputs, bias)),
            false => {
                LinearForm::Tensors(plain::Linear::new(device, weight, bias).map_err(compute("a layer's weights"))?)
            }
        };
        Ok(Self { form, inputs, outputs })
    }

    /// From a matrix that lies the other way round, `[inputs, outputs]`; otherwise as [`Linear::new`].
    fn of_columns(device: &Device, weight: &[f32], bias: &[f32]) -> std::result::Result<Self, ModelError> {
        let (inputs, outputs) = (weight.len() / bias.len(), bias.len());
        let form = match has_kernels(device) {
            true => LinearForm::Packed(Dense::pack(weight, bias)),
            false => LinearForm::Tensors(
                plain::Linear::of_columns(device, weight, bias).map_err(compute("a layer's weights"))?,
            ),
        };
        Ok(Self { form, inputs, outputs })
    }

    /// As [`Linear::load`] with a bias, of a `weight` that lies the other way round, `[inputs, outputs]`, as GPT-2 keeps
    /// its layers.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_columns(
        weights: &Weights,
        inputs: usize,
        outputs: usize,
    ) -> std::result::Result<Self, ModelError> {
        let weight = weights.values("weight", &[inputs, outputs])?;
        Self::of_columns(weights.device(), &weight, &weights.values("bias", &[outputs])?)
    }

    /// The matrix `name` (`[inputs, outputs]`) that a row of values is multiplied by: a layer without a bias.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load_matrix(
        weights: &Weights,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> std::result::Result<Self, ModelError> {
        Self::of_columns(weights.device(), &weights.values(name, &[inputs, outputs])?, &vec![0.0; outputs])
    }

    /// The layer whose weight is a table of vectors (`[outputs, inputs]`): how like each of them `x` is.
    ///
    /// # Errors
    /// Where the device cannot hold it.
    pub(crate) fn tied(table: &Embedding, bias: Option<&[f32]>) -> std::result::Result<Self, ModelError> {
        let failed = compute("a tied layer");
        let (outputs, inputs) = table.table.dims2().map_err(&failed)?;
        let zeros = vec![0.0; outputs];
        let bias = bias.unwrap_or(&zeros);
        let form = match by_kernels(&table.table) {
            true => {
                let pack = |weight: &[f32]| Ok(Dense::pack_transposed(weight, inputs, inputs, bias));
                LinearForm::Packed(with_values(&table.table, pack).map_err(&failed)?)
            }
            // The table itself: it lies on the device already.
            false => LinearForm::Tensors(plain::Linear::tied(&table.table, bias).map_err(&failed)?),
        };
        Ok(Self { form, inputs, outputs })
    }

    /// `[…, inputs]` → `[…, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, Epilogue::Linear, |_, y| Ok(y))
    }

    /// As [`Linear::forward`], with an activation function behind it.
    pub(crate) fn forward_activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, Epilogue::Activate(activation), |_, y| plain::activate(activation, &y))
    }

    /// As [`Linear::forward`], added to `residual` (`[…, outputs]`).
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.form {
            LinearForm::Packed(_) => {
                with_values(residual, |residual| self.run(x, Epilogue::Add(residual), |_, y| Ok(y)))
            }
            LinearForm::Tensors(_) => self.run(x, Epilogue::Linear, |device, y| {
                let residual = residual.to_device(device)?.reshape(y.dims())?;
                y + residual
            }),
        }
    }

    /// `behind` is the epilogue in candle's operations: it is given the device and what the layer gave.
    fn run(
        &self,
        x: &Tensor,
        epilogue: Epilogue<'_>,
        behind: impl FnOnce(&Device, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let Some(last) = shape.last_mut().filter(|last| **last == self.inputs) else {
            bail!("a layer of {} inputs was given {:?}", self.inputs, x.dims())
        };
        *last = self.outputs;
        let dense = match &self.form {
            LinearForm::Packed(dense) => dense,
            LinearForm::Tensors(layer) => return behind(layer.device(), layer.forward(x)?.reshape(shape)?),
        };
        let mut out = vec![0.0; shape.iter().product()];
        if let Epilogue::Add(residual) = epilogue
            && residual.len() != out.len()
        {
            bail!("a residual of {} values was given to {shape:?}", residual.len())
        }
        with_values(x, |x| {
            kernels::product(dense, Isa::detect(), x, &mut out, epilogue);
            Ok(())
        })?;
        Tensor::from_vec(out, shape, &Device::Cpu)
    }
}

/// Layer normalisation over the last axis.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Factors,
    bias: Factors,
    eps: f32,
}

/// One value for each place of a vector.
#[derive(Debug, Clone)]
enum Factors {
    /// For this crate's kernels.
    Values(Vec<f32>),
    /// For candle's operations, `[width]`.
    Tensor(Tensor),
}

impl Factors {
    fn load(weights: &Weights, name: &str, width: usize) -> std::result::Result<Self, ModelError> {
        let values = weights.values(name, &[width])?;
        let device = weights.device();
        match has_kernels(device) {
            true => Ok(Self::Values(values)),
            false => Tensor::from_vec(values, width, device).map(Self::Tensor).map_err(compute("a norm's weights")),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Tensor(tensor) => tensor.elem_count(),
        }
    }
}

impl LayerNorm {
    /// Reads `weight` and `bias` (older files: `gamma` and `beta`), `[width]` each.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, width: usize, eps: f64) -> std::result::Result<Self, ModelError> {
        let old = !weights.has("weight") && weights.has("gamma");
        let [weight, bias] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let (weight, bias) = (Factors::load(weights, weight, width)?, Factors::load(weights, bias, width)?);
        Ok(Self { weight, bias, eps: eps as f32 })
    }

    /// `[…, width]` → the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dims().last() != Some(&self.weight.len()) {
            bail!("a norm of {} values was given {:?}", self.weight.len(), x.dims())
        }
        if let (Factors::Tensor(weight), Factors::Tensor(bias)) = (&self.weight, &self.bias) {
            return plain::layer_norm(x, weight, bias, self.eps);
        }
        let mut values = with_values(x, |x| Ok(x.to_vec()))?;
        self.apply(&mut values)?;
        Tensor::from_vec(values, x.dims(), &Device::Cpu)
    }

    /// The same in place, of the values of whole rows, on the CPU.
    pub(crate) fn apply(&self, values: &mut [f32]) -> Result<()> {
        let (Factors::Values(weight), Factors::Values(bias)) = (&self.weight, &self.bias) else {
            bail!("a norm on a device was given values on the CPU")
        };
        kernels::layer_norm(Isa::detect(), values, weight, bias, self.eps);
        Ok(())
    }
}

/// Division by the root of the mean square over the last axis (Zhang and Sennrich, "Root Mean Square Layer
/// Normalization", 2019): no mean is taken away, nothing is added.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    weight: Factors,
    eps: f32,
}

impl RmsNorm {
    /// Reads `weight`, `[width]`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, width: usize, eps: f64) -> std::result::Result<Self, ModelError> {
        Ok(Self { weight: Factors::load(weights, "weight", width)?, eps: eps as f32 })
    }

    /// `[…, width]` → the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.weight.len();
        if x.dims().last() != Some(&width) {
            bail!("a norm of {width} values was given {:?}", x.dims())
        }
        let weight = match &self.weight {
            Factors::Values(weight) => weight,
            Factors::Tensor(weight) => return plain::rms_norm(x, weight, self.eps),
        };
        let mut values = with_values(x, |x| Ok(x.to_vec()))?;
        for row in values.chunks_exact_mut(width) {
            let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let factor = 1.0 / ((squares / width as f64) as f32 + self.eps).sqrt();
            row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * factor * weight);
        }
        Tensor::from_vec(values, x.dims(), &Device::Cpu)
    }
}

/// `down(activation(up(x))) + residual`, as two layers one behind the other give it: `[…, inputs]` → `[…, outputs]`.
pub(crate) fn feed_forward(
    x: &Tensor,
    up: &Linear,
    activation: Activation,
    down: &Linear,
    residual: &Tensor,
) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or_default();
    let rows = x.elem_count() / width.max(1);
    if width != up.inputs || up.outputs != down.inputs || residual.elem_count() != rows * down.outputs {
        bail!("layers of {} and {} inputs were given {:?} and {:?}", up.inputs, down.inputs, x.dims(), residual.dims())
    }
    let (LinearForm::Packed(up), LinearForm::Packed(down)) = (&up.form, &down.form) else {
        return down.forward_onto(&up.forward_activated(x, activation)?, residual);
    };
    let mut out = vec![0.0; rows * down.outputs()];
    with_values(x, |x| {
        with_values(residual, |residual| {
            kernels::feed_forward([up, down], activation, Isa::detect(), x, residual, &mut out);
            Ok(())
        })
    })?;
    Tensor::from_vec(out, residual.dims(), &Device::Cpu)
}

/// A table of vectors looked up by number.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    table: Tensor,
}

impl Embedding {
    /// Reads `weight`, `[count, width]`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(weights: &Weights, count: usize, width: usize) -> std::result::Result<Self, ModelError> {
        Ok(Self { table: weights.tensor("weight", &[count, width])? })
    }

    /// Of a table read already, `[count, width]`.
    pub(crate) fn new(table: Tensor) -> Self {
        Self { table }
    }

    /// The whole table, `[count, width]`.
    pub(crate) fn table(&self) -> &Tensor {
        &self.table
    }

    /// `[…]` of u32 → `[…, width]`, on the table's device.
    pub(crate) fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.table.dim(1)?);
        self.table.index_select(&ids.flatten_all()?.to_device(self.table.device())?, 0)?.reshape(shape)
    }
}

/// Attention of each sequence to itself: `qkv` is `[batch, length, 3 · width]`, the queries of all heads, then the keys,
/// then the values. `bias` is added to the scores (scaled by 1/√(head width)): `[batch or 1, heads or 1, length or 1,
/// length]`. Gives `[batch, length, width]`.
pub(crate) fn self_attention(qkv: &Tensor, heads: usize, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, length, triple) = qkv.dims3()?;
    let width = triple / 3;
    if !by_kernels(qkv) {
        let part = |i: usize| qkv.narrow(2, i * width, width);
        return plain::attention(&part(0)?, &part(1)?, &part(2)?, heads, scale(width / heads), bias);
    }
    with_values(qkv, |values| {
        let rows = |start| Rows { values, start, stride: triple, length, width: width / heads };
        run(batch, heads, [0, width, 2 * width].map(rows), scale(width / heads), bias)
    })
}

/// What scores are multiplied by: 1/√(head width).
fn scale(width: usize) -> f32 {
    1.0 / (width as f32).sqrt()
}

/// Attention of `queries` (`[batch, m, width]`) to `keys` and `values` (`[batch, n, width]`); `bias` as in
/// [`self_attention`], `[batch or 1, heads or 1, m or 1, n]`. Gives `[batch, m, width]`.
pub(crate) fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: usize,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    attention_scaled(queries, keys, values, heads, scale(queries.dim(2)? / heads), bias)
}

/// As [`attention`], of scores that are multiplied by `scale`.
pub(crate) fn attention_scaled(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: usize,
    scale: f32,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, m, width) = queries.dims3()?;
    let (n, out) = (keys.dim(1)?, values.dim(2)?);
    if keys.dims() != [batch, n, width] || values.dims() != [batch, n, out] {
        bail!("attention of {:?} to {:?} and {:?}", queries.dims(), keys.dims(), values.dims())
    }
    if !by_kernels(queries) {
        return plain::attention(queries, keys, values, heads, scale, bias);
    }
    with_values(queries, |q| {
        with_values(keys, |k| {
            with_values(values, |v| {
                let parts = [(q, m, width), (k, n, width), (v, n, out)];
                let rows = |(values, length, stride)| Rows { values, start: 0, stride, length, width: stride / heads };
                run(batch, heads, parts.map(rows), scale, bias)
            })
        })
    })
}

fn run(
    batch: usize,
    heads: usize,
    [queries, keys, values]: [Rows<'_>; 3],
    scale: f32,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (length, width) = (queries.length, heads * values.width);
    let whole = Attention { batch, heads, scale, queries, keys, values, bias: None };
    let out = match bias {
        None => whole.run(Isa::detect()),
        Some(bias) => {
            let dims = bias.dims4()?;
            let fits = |have: usize, want: usize| have == want || have == 1;
            if !(fits(dims.0, batch) && fits(dims.1, heads) && fits(dims.2, length) && dims.3 == keys.length) {
                bail!("a bias of {dims:?} for {batch} sequences, {heads} heads, {length} queries, {} keys", keys.length)
            }
            let stride = |have: usize, each: usize| if have == 1 { 0 } else { each };
            let query = stride(dims.2, dims.3);
            // One query of one: its row is the only one.
            let query = if length == 1 { dims.3 } else { query };
            let (head, sequence) = (stride(dims.1, dims.2 * dims.3), stride(dims.0, dims.1 * dims.2 * dims.3));
            with_values(bias, |values| {
                let bias = Some(Bias { values, sequence, head, query });
                Ok(Attention { bias, ..whole }.run(Isa::detect()))
            })?
        }
    };
    Tensor::from_vec(out, (batch, length, width), &Device::Cpu)
}

/// The bias that keeps padding from being attended to: 0 where `mask` (`[batch, keys]` of u32) is 1, the least f32
/// where it is 0. `[batch, 1, 1, keys]`, on the mask's device.
pub(crate) fn padding_bias(mask: &Tensor) -> Result<Tensor> {
    let (batch, keys) = mask.dims2()?;
    let values = mask.flatten_all()?.to_vec1::<u32>()?;
    let bias = values.into_iter().map(|real| if real == 0 { f32::MIN } else { 0.0 }).collect::<Vec<_>>();
    Tensor::from_vec(bias, (batch, 1, 1, keys), mask.device())
}

/// The bias that keeps a token from attending to later ones, of `length` tokens behind `past` others, which they all see:
/// `[1, 1, length, past + length]`. With `mask` (`[batch, past + length]`) they see no padding either, and the bias is that
/// of each sequence of the batch. It lies where the mask does, without one on the CPU: stacks of blocks move it to what it
/// is added to.
pub(crate) fn causal_bias(past: usize, length: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let keys = past + length;
    let row = |query: usize| (0..keys).map(move |key| if key > past + query { f32::MIN } else { 0.0 });
    let device = mask.map_or(&Device::Cpu, Tensor::device);
    let causal = Tensor::from_vec((0..length).flat_map(row).collect::<Vec<_>>(), (1, 1, length, keys), device)?;
    match mask {
        Some(mask) => causal.broadcast_minimum(&padding_bias(mask)?),
        None => Ok(causal),
    }
}

/// Cuts images into squares: `[n, channels, height, width]` → `[n, squares, channels · patch · patch]`, in reading
/// order; what does not fill a square is left out. A convolution with stride and kernel `patch` is a [`Linear`] of it. It is
/// done on the CPU, where images come from: the layer moves the squares to its weights.
pub(crate) fn patches(pixels: &Tensor, patch: usize) -> Result<Tensor> {
    patches_every(pixels, patch, patch)
}

/// As [`patches`], of squares that begin `stride` pixels behind one another.
pub(crate) fn patches_every(pixels: &Tensor, patch: usize, stride: usize) -> Result<Tensor> {
    let (n, channels, height, width) = pixels.dims4()?;
    let squares = |side: usize| side.checked_sub(patch).map_or(0, |rest| rest / stride + 1);
    let (down, across) = (squares(height), squares(width));
    let length = channels * patch * patch;
    let mut out = vec![0.0; n * down * across * length];
    with_values(pixels, |pixels| {
        // Of no square at all there is nothing to cut.
        let image = (down * across * length).max(1);
        for (image, out) in pixels.chunks_exact(channels * height * width).zip(out.chunks_mut(image)) {
            for (i, out) in out.chunks_exact_mut(length).enumerate() {
                let (top, left) = (i / across * stride, i % across * stride);
                for (line, out) in out.chunks_exact_mut(patch).enumerate() {
                    let (channel, y) = (line / patch, top + line % patch);
                    out.copy_from_slice(&image[(channel * height + y) * width + left..][..patch]);
                }
            }
        }
        Ok(())
    })?;
    Tensor::from_vec(out, (n, down * across, length), &Device::Cpu)
}

/// Divides each row by its Euclidean length: `[…, width]` → the same. A row of zeros stays zeros.
pub(crate) fn normalise(x: &Tensor) -> Result<Tensor> {
    if !by_kernels(x) {
        return plain::normalise(x);
    }
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    let mut values = with_values(x, |x| Ok(x.to_vec()))?;
    for row in values.chunks_mut(width) {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    Tensor::from_vec(values, x.dims(), &Device::Cpu)
}

#[cfg(test)]
mod tests;
