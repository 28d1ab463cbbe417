//! What models that continue texts have in common: GPT-2, OPT.

use candle_core::{Device, IndexOp, Tensor};

use crate::{
    ModelError,
    decoder::Past,
    layers::{Embedding, Linear, compute},
    weights::Weights,
    writing::{Ending, Texts, Writing, Written, write},
};

type Candle<T> = candle_core::Result<T>;

/// A network that gives, behind every token, a value for each token that may come next.
pub(crate) trait LanguageModel: Send + Sync {
    /// Vectors of tokens behind `past` → vectors behind the last block and norm. `mask` (`[n, length]`, without a past
    /// only) is 0 where padding stands. `each` sees the vectors with their positions, and the output of every block.
    fn forward(
        &self,
        vectors: Tensor,
        mask: Option<&Tensor>,
        past: &mut Past,
        each: &mut dyn FnMut(&Tensor),
    ) -> Candle<Tensor>;

    /// Its words.
    fn words(&self) -> &Words;

    /// Token ids `[n, length]` → their vectors, `[n, length, width]`.
    fn embed(&self, ids: &Tensor) -> Candle<Tensor> {
        self.words().table.forward(ids)
    }

    /// What [`LanguageModel::forward`] gives → a value for each token, `[n, length, vocabulary]`.
    fn logits(&self, hidden: &Tensor) -> Candle<Tensor> {
        self.words().head.forward(hidden)
    }

    /// The longest text in tokens.
    fn longest(&self) -> usize {
        self.words().limits.longest
    }

    /// The token that begins a text.
    fn start(&self) -> u32 {
        self.words().limits.start
    }

    /// The token that ends a text.
    fn end(&self) -> u32 {
        self.words().limits.end
    }
}

/// How long texts may be, and what begins and ends them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextLimits {
    /// In tokens.
    pub(crate) longest: usize,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// A language model's words: the table of their vectors, and the layer that gives each a value.
#[derive(Debug)]
pub(crate) struct Words {
    table: Embedding,
    head: Linear,
    limits: TextLimits,
}

impl Words {
    /// Reads the table at `table`, and the layer at `weights` where the checkpoint has one.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`].
    pub(crate) fn load(
        weights: &Weights,
        table: &Weights,
        [vocabulary, width]: [usize; 2],
        limits: TextLimits,
    ) -> Result<Self, ModelError> {
        let table = Embedding::load(table, vocabulary, width)?;
        Ok(Self { head: word_layer(weights, &table, [vocabulary, width])?, table, limits })
    }
}

/// Ids as one row, `[1, length]`.
pub(crate) fn row(ids: &[u32]) -> Candle<Tensor> {
    Tensor::from_slice(ids, (1, ids.len()), &Device::Cpu)
}

/// Values behind the last token: `[n, length, vocabulary]` → for each text as many as the vocabulary has.
pub(crate) fn last(logits: &Tensor) -> Candle<Vec<Vec<f32>>> {
    logits.i((.., logits.dim(1)?.saturating_sub(1)))?.to_vec2()
}

/// Writes on behind `vectors` (`[1, length, width]`: tokens, or what stands in their place), `context` being the tokens
/// among them. `each` sees the values behind every token.
///
/// # Errors
/// [`ModelError::NoRoom`] where the model can take no more than these; [`Writing::check`]'s.
pub(crate) fn continue_behind(
    model: &dyn LanguageModel,
    vectors: Tensor,
    context: &[u32],
    writing: &Writing,
    seed: u64,
    each: &mut dyn FnMut(&[f32]),
) -> Result<Written, ModelError> {
    continue_until(model, vectors, context, writing, seed, Ending::at(&[model.end()]), each)
}

/// As [`continue_behind`], until an ending of the caller's.
///
/// # Errors
/// As [`continue_behind`], and the ending's.
pub(crate) fn continue_until(
    model: &dyn LanguageModel,
    vectors: Tensor,
    context: &[u32],
    writing: &Writing,
    seed: u64,
    ending: Ending<'_>,
    each: &mut dyn FnMut(&[f32]),
) -> Result<Written, ModelError> {
    let room = room(vectors.dim(1).map_err(compute("a text's vectors"))?, model.longest())?;
    let mut past = Past::default();
    let mut vectors = Some(vectors);
    let mut next = |texts: Texts<'_>| {
        let mut run = || -> Candle<Vec<Vec<f32>>> {
            let input = match (texts.follow([&mut past])?, vectors.take()) {
                (Some(ids), _) => model.embed(&ids)?,
                (None, Some(vectors)) => vectors,
                (None, None) => candle_core::bail!("a text was begun twice"),
            };
            let hidden = model.forward(input, None, &mut past, &mut |_| ())?;
            let newest = hidden.narrow(1, hidden.dim(1)?.saturating_sub(1), 1)?;
            last(&model.logits(&newest)?)
        };
        run().map_err(compute("the language model"))
    };
    write(writing, seed, context, ending, room, &mut next, each)
}

/// How many tokens may follow `tokens` of them.
///
/// # Errors
/// [`ModelError::NoRoom`] where none may.
pub(crate) fn room(tokens: usize, longest: usize) -> Result<usize, ModelError> {
    match longest.checked_sub(tokens) {
        // What is behind the last position is still predicted.
        Some(left) => Ok(left + 1),
        None => Err(ModelError::NoRoom { tokens, longest }),
    }
}

/// The layer that gives a value for each word: the checkpoint's own where it holds one (`lm_head`), else the table of
/// words.
///
/// # Errors
/// [`ModelError::BadWeights`].
pub(crate) fn word_layer(
    weights: &Weights,
    words: &Embedding,
    [vocabulary, width]: [usize; 2],
) -> Result<Linear, ModelError> {
    let own = weights.at("lm_head");
    match own.has("weight") {
        true => Linear::load(&own, width, vocabulary, false),
        false => Linear::tied(words, None),
    }
}
