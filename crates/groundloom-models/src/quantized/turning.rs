//! The same networks with positions that are scaled, which candle's do not know: linearly, as Llama 3.1 does, or by YaRN. Weights stay as small as they are stored.

use candle_core::{
    Device, Module, Tensor,
    quantized::{
        QMatMul,
        gguf_file::{Content, Value},
    },
};
use candle_transformers::quantized_nn::RmsNorm;

use crate::{
    decoder::Rotary,
    layers::{Embedding, attention_scaled, causal_bias},
};

type Candle<T> = candle_core::Result<T>;

/// The tensor with what points are slowed by, each for itself.
const FACTORS: &str = "rope_freqs.weight";

/// A Llama, Qwen2 or Qwen3 in whose head every point is turned at a speed of its own.
pub(crate) struct Turning {
    words: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    output: QMatMul,
    heads: usize,
    key_heads: usize,
    head_width: usize,
    rotary: Rotary,
    /// The two values of a point are neighbours (llama.cpp's Llama), not half a head apart.
    neighbours: bool,
    past: Vec<[Tensor; 2]>,
}

struct Block {
    attention_norm: RmsNorm,
    /// Of queries, keys and values.
    qkv: [(QMatMul, Option<Tensor>); 3],
    /// Of each head's queries and keys (Qwen3).
    head_norms: Option<[RmsNorm; 2]>,
    output: QMatMul,
    feed_forward_norm: RmsNorm,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
}

/// What a file says about how its positions are scaled, `None` where they are not.
///
/// # Errors
/// Names a scaling that is not known.
pub(crate) fn scaling(content: &Content, architecture: &str) -> Result<Option<String>, String> {
    let kind =
        content.metadata.get(&format!("{architecture}.rope.scaling.type")).and_then(|kind| kind.to_string().ok());
    match kind.map(String::as_str) {
        None | Some("none") => Ok(content.tensor_infos.contains_key(FACTORS).then(|| "none".to_owned())),
        Some(kind @ ("linear" | "yarn")) => Ok(Some(kind.to_owned())),
        Some(other) => Err(format!(
            "expected positions that are scaled by linear, yarn or {FACTORS}, found {other}; use the model's safetensors"
        )),
    }
}

/// Numbers and tensors of a file.
struct Reader<'a, 'b> {
    content: &'a Content,
    file: &'a mut std::io::Cursor<&'b [u8]>,
    architecture: &'a str,
}

impl Reader<'_, '_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(&format!("{}.{key}", self.architecture))
    }

    fn count(&self, key: &str) -> Candle<usize> {
        match self.value(key) {
            Some(value) => value.to_u32().map(|n| n as usize),
            None => candle_core::bail!("no {}.{key}", self.architecture),
        }
    }

    fn number_or(&self, key: &str, otherwise: f32) -> f32 {
        self.value(key).and_then(|value| value.to_f32().ok()).unwrap_or(otherwise)
    }

    fn matrix(&mut self, name: &str) -> Candle<QMatMul> {
        QMatMul::from_qtensor(self.content.tensor(self.file, &format!("{name}.weight"), &Device::Cpu)?)
    }

    fn values(&mut self, name: &str) -> Candle<Tensor> {
        self.content.tensor(self.file, name, &Device::Cpu)?.dequantize(&Device::Cpu)
    }

    fn norm(&mut self, name: &str) -> Candle<RmsNorm> {
        let eps = f64::from(self.number_or("attention.layer_norm_rms_epsilon", 1e-5));
        RmsNorm::from_qtensor(self.content.tensor(self.file, &format!("{name}.weight"), &Device::Cpu)?, eps)
    }

    fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    /// How places turn a head of `width` values, by llama.cpp's names of it.
    fn rotary(&mut self, width: usize) -> Candle<Rotary> {
        let base = f64::from(self.number_or("rope.freq_base", 10_000.0));
        let mut rotary = Rotary::new(base, width);
        if self.has(FACTORS) {
            let factors = self.values(FACTORS)?.flatten_all()?.to_vec1::<f32>()?;
            if factors.len() != width / 2 || factors.iter().any(|factor| !(*factor > 0.0 && factor.is_finite())) {
                candle_core::bail!("expected {} factors above 0 in {FACTORS}", width / 2)
            }
            rotary = rotary.slower_each(&factors);
        }
        let factor = f64::from(self.number_or("rope.scaling.factor", 1.0));
        if !(factor > 0.0 && factor.is_finite()) {
            candle_core::bail!("expected a rope.scaling.factor above 0, found {factor}")
        }
        let kind =
            self.value("rope.scaling.type").and_then(|kind| kind.to_string().ok()).map_or("none", String::as_str);
        Ok(match kind {
            "linear" => rotary.slower(factor),
            "yarn" => {
                let trained = self.count("context_length").unwrap_or(2048) as f32;
                let original =
                    self.value("rope.scaling.original_context_length").and_then(|length| length.to_u32().ok());
                let betas = [
                    self.number_or("rope.scaling.yarn_beta_fast", 32.0),
                    self.number_or("rope.scaling.yarn_beta_slow", 1.0),
                ];
                let longer = self.value("rope.scaling.attn_factor").and_then(|value| value.to_f32().ok());
                let length = longer.map(|longer| f64::from(longer) * (0.1 * factor.ln() + 1.0));
                rotary.yarn(base, factor, betas.map(f64::from), original.map_or(f64::from(trained), f64::from), length)
            }
            _ => rotary,
        })
    }
}

impl Turning {
    /// Reads the network of `architecture` from the bytes of a file whose head is `content`.
    ///
    /// # Errors
    /// Names what is missing.
    pub(crate) fn read(content: &Content, bytes: &[u8], architecture: &str) -> Candle<Self> {
        let mut file = std::io::Cursor::new(bytes);
        let mut reader = Reader { content, file: &mut file, architecture };
        let (heads, width) = (reader.count("attention.head_count")?, reader.count("embedding_length")?);
        let key_heads = reader.count("attention.head_count_kv").unwrap_or(heads);
        let head_width = reader.count("attention.key_length").unwrap_or(width / heads.max(1));
        if key_heads == 0
            || !heads.is_multiple_of(key_heads)
            || !head_width.is_multiple_of(2)
            || reader.has("blk.0.ffn_gate_inp.weight")
        {
            candle_core::bail!("expected heads of an even width that their keys divide, and no experts")
        }
        if reader.count("rope.dimension_count").is_ok_and(|turned| turned != head_width) {
            candle_core::bail!("expected all of a head to be turned")
        }
        let blocks = (0..reader.count("block_count")?)
            .map(|i| block(&mut reader, &format!("blk.{i}")))
            .collect::<Candle<_>>()?;
        let output = if reader.has("output.weight") { "output" } else { "token_embd" };
        Ok(Self {
            words: Embedding::new(reader.values("token_embd.weight")?),
            blocks,
            norm: reader.norm("output_norm")?,
            output: reader.matrix(output)?,
            heads,
            key_heads,
            head_width,
            rotary: reader.rotary(head_width)?,
            neighbours: architecture == "llama",
            past: Vec::new(),
        })
    }

    /// Forgets what it has read.
    pub(crate) fn forget(&mut self) {
        self.past.clear();
    }

    /// Values behind the last of `ids` (`[1, length]`), which stand behind `before` others, `[vocabulary]`.
    pub(crate) fn forward(&mut self, ids: &Tensor, before: usize) -> Candle<Tensor> {
        let mut x = self.words.forward(ids)?;
        let length = x.dim(1)?;
        let bias = causal_bias(before, length, None)?;
        for i in 0..self.blocks.len() {
            let block = &self.blocks[i];
            let input = block.attention_norm.forward(&x)?;
            let [queries, keys, values] = block.qkv.each_ref().map(|(matrix, bias)| {
                let x = matrix.forward(&input)?;
                bias.as_ref().map_or(Ok(x.clone()), |bias| x.broadcast_add(bias))
            });
            let [query_norm, key_norm] =
                block.head_norms.as_ref().map_or([None; 2], |norms| norms.each_ref().map(Some));
            let queries = self.turned(&queries?, self.heads, query_norm, before)?;
            let mut newest = [self.turned(&keys?, self.key_heads, key_norm, before)?, values?];
            if let Some(known) = self.past.get(i) {
                for (known, newest) in known.iter().zip(&mut newest) {
                    *newest = Tensor::cat(&[known, &*newest], 1)?;
                }
            }
            let [keys, values] = newest.each_ref().map(|shared| self.to_all_heads(shared));
            let scale = 1.0 / (self.head_width as f32).sqrt();
            let attended = attention_scaled(&queries, &keys?, &values?, self.heads, scale, Some(&bias))?;
            match self.past.get_mut(i) {
                Some(known) => *known = newest,
                None => self.past.push(newest),
            }
            let block = &self.blocks[i];
            x = (x + block.output.forward(&attended)?)?;
            let input = block.feed_forward_norm.forward(&x)?;
            let inner = (block.gate.forward(&input)?.silu()? * block.up.forward(&input)?)?;
            x = (x + block.down.forward(&inner)?)?;
        }
        let last = x.narrow(1, length.saturating_sub(1), 1)?.contiguous()?;
        self.output.forward(&self.norm.forward(&last)?)?.flatten_all()
    }

    /// Queries or keys, `[1, length, heads · width]`, normed and turned; the halves of a point half a head apart.
    fn turned(&self, x: &Tensor, heads: usize, norm: Option<&RmsNorm>, before: usize) -> Candle<Tensor> {
        let (_, length, whole) = x.dims3()?;
        let mut x = x.reshape((1, length, heads, self.head_width))?;
        if let Some(norm) = norm {
            x = norm.forward(&x.contiguous()?)?;
        }
        if self.neighbours {
            // The same order of queries and of keys gives the same scores.
            x = x.reshape((1, length, heads, self.head_width / 2, 2))?.transpose(3, 4)?;
        }
        self.rotary.turn(&x.contiguous()?.reshape((1, length, whole))?, heads, before)
    }

    /// Keys or values of shared heads, `[1, length, key heads · width]` → `[1, length, heads · width]`.
    fn to_all_heads(&self, shared: &Tensor) -> Candle<Tensor> {
        let (_, length, _) = shared.dims3()?;
        let each = shared.reshape((1, length, self.key_heads, 1, self.head_width))?;
        each.repeat((1, 1, 1, self.heads / self.key_heads, 1))?.reshape((1, length, self.heads * self.head_width))
    }
}

fn block(reader: &mut Reader<'_, '_>, place: &str) -> Candle<Block> {
    let mut part = |name: &str| -> Candle<(QMatMul, Option<Tensor>)> {
        let bias = format!("{place}.{name}.bias");
        let bias = if reader.has(&bias) { Some(reader.values(&bias)?) } else { None };
        Ok((reader.matrix(&format!("{place}.{name}"))?, bias))
    };
    let qkv = [part("attn_q")?, part("attn_k")?, part("attn_v")?];
    let head_norms = match reader.has(&format!("{place}.attn_q_norm.weight")) {
        true => Some([reader.norm(&format!("{place}.attn_q_norm"))?, reader.norm(&format!("{place}.attn_k_norm"))?]),
        false => None,
    };
    Ok(Block {
        attention_norm: reader.norm(&format!("{place}.attn_norm"))?,
        qkv,
        head_norms,
        output: reader.matrix(&format!("{place}.attn_output"))?,
        feed_forward_norm: reader.norm(&format!("{place}.ffn_norm"))?,
        gate: reader.matrix(&format!("{place}.ffn_gate"))?,
        up: reader.matrix(&format!("{place}.ffn_up"))?,
        down: reader.matrix(&format!("{place}.ffn_down"))?,
    })
}
