//! FROMAGe (Koh et al., "Grounding Language Models to Images for Multimodal Inputs and Outputs", 2023): linear maps bring
//! what a frozen OPT says behind the token `[RET]`, and what a frozen CLIP sees, into one space.
//!
//! Reference: kohjingyu/fromage, `fromage/models.py` with `mode='retrieval'`; transformers 4.21 for the tokens. The
//! reference computes in bf16, this crate in f32. Images that stand among the words of a text are not here.

use candle_core::{IndexOp, Tensor};

use crate::{
    ModelError,
    clip::{VisionConfig, VisionTower, scalar, sub_config},
    config::Config,
    decoder::Past,
    embedders::Towers,
    folder::ModelFolder,
    hub,
    language_model::LanguageModel,
    layers::{Embedding, Linear},
    opt::{Opt, OptConfig},
    registry::find,
    text_tokenizer::{Frame, Padding, TextTokenizer},
    weights::Weights,
};

type Candle<T> = candle_core::Result<T>;

/// The options of a folder.
pub(crate) const OPTIONS: &str = "model_args.json";
/// The maps and the vector of `[RET]`.
const CHECKPOINT: &str = "pretrained_ckpt.pth.tar";
/// Behind which a text's vector is taken.
const RETRIEVAL: &str = "[RET]";
/// The parts' folders, and what stands before the names of their tensors.
const OPT: &str = "opt";
const VISUAL: &str = "visual";

/// The models that a FROMAGe stands on.
pub(crate) struct Parts {
    opt: ModelFolder,
    pub(crate) visual: ModelFolder,
}

impl Parts {
    /// The folders `opt` and `visual` in `folder`, or the models of the hub that `opt_version` and `visual_encoder` name, from
    /// the cache.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`] where there is neither.
    pub(crate) fn of(folder: &ModelFolder, config: &Config) -> Result<Self, ModelError> {
        let part = |name: &str, key: &str| {
            if let Some(part) = folder.folder_if_there(name) {
                return Ok(part);
            }
            let named = config.text(key)?.unwrap_or("nothing");
            find(&format!("{}{named}", hub::SCHEME)).map_err(|e| {
                config.bad(key, format!("a model in the cache, or the model's files in a folder `{name}` ({e})"), named)
            })
        };
        Ok(Self { opt: part(OPT, "opt_version")?, visual: part(VISUAL, "visual_encoder")? })
    }

    /// The OPT's tokenizer, with `[RET]` behind every text and the white space before it away, as the reference reads texts.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn tokenizer(&self, network: &Fromage) -> Result<TextTokenizer, ModelError> {
        let (text, last) = (&network.text, network.retrieval_token);
        let longest = text.longest().saturating_sub(1);
        let tokenizer = TextTokenizer::open(&self.opt, longest, |_| Padding::Longest(text.end()))?;
        match tokenizer.inner().id_to_token(last) {
            Some(other) if other != RETRIEVAL => Err(ModelError::BadConfig {
                origin: self.opt.file_name("tokenizer.json"),
                problem: format!("expected {RETRIEVAL} or nothing at {last}, retrieval_token_idx, found {other:?}"),
            }),
            _ => Ok(tokenizer.framed(Frame { first: text.start(), last, written: RETRIEVAL })),
        }
    }
}

/// The checkpoint of `folder` and the weights of the models that it stands on: behind `opt.` and `visual.`
///
/// # Errors
/// [`ModelError::Unreadable`], [`ModelError::BadConfig`], [`ModelError::BadWeights`].
pub(crate) fn weights(folder: &ModelFolder) -> Result<Weights, ModelError> {
    let parts = Parts::of(folder, &Config::open(folder)?)?;
    let checkpoint = Weights::checkpoint(folder, CHECKPOINT, "state_dict")?;
    Weights::together(&[("", checkpoint), (OPT, Weights::open(&parts.opt)?), (VISUAL, Weights::open(&parts.visual)?)])
}

/// Length of the vectors of images and texts.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn width(config: &Config) -> Result<usize, ModelError> {
    let found = config.size_if_there("shared_emb_dim")?;
    found.ok_or_else(|| config.bad("shared_emb_dim", "a whole number of at least 1", "nothing"))
}

/// `FromageModel`, as far as it makes vectors.
#[derive(Debug)]
pub(crate) struct Fromage {
    pub(crate) vision: VisionTower,
    image_map: Linear,
    text: Opt,
    /// The layers whose vectors are summed, each behind a map: 0 is the input of the first block.
    text_maps: Vec<(usize, Linear)>,
    /// The last of the layers: behind the last block, its norm and its projection.
    last: usize,
    /// The table of words, where the checkpoint holds it whole.
    words: Option<Embedding>,
    /// The vector of `[RET]`.
    retrieval: Tensor,
    pub(crate) retrieval_token: u32,
    /// Natural logarithm of the factor on the cosine.
    pub(crate) logit_scale: f64,
}

impl Fromage {
    /// Reads the network of a `model_args.json`.
    ///
    /// # Errors
    /// [`ModelError::BadConfig`], [`ModelError::BadWeights`].
    pub(crate) fn load(config: &Config, parts: &Parts, weights: &Weights) -> Result<Self, ModelError> {
        let (opt_config, vision_config) = (opt_config(&parts.opt)?, vision_config(&parts.visual)?);
        let (dims, last) = (width(config)?, opt_config.stack.layers);
        let layers = text_layers(config, last)?;
        let retrieval_token = config.id_if_there("retrieval_token_idx")?;
        let retrieval_token =
            retrieval_token.ok_or_else(|| config.bad("retrieval_token_idx", "a token id", "nothing"))?;
        config.only("append_retrieval_token", true)?;
        config.only("num_appended_retrieval_tokens", 1)?;
        config.only("use_pooler", true)?;
        // Else the checkpoint's own OPT and CLIP would go before those of the folders.
        config.only("freeze_lm", true)?;
        config.only("freeze_vm", true)?;
        config.only("use_image_embed_norm", false)?;
        config.only("use_text_embed_layernorm", false)?;
        config.only("tunable_prompt_length", 0)?;
        // Names, training, and what captions are written with.
        for inert in [
            "opt_version",
            "visual_encoder",
            "task",
            "pretrained_visual",
            "n_visual_tokens",
            "image_embed_dropout_prob",
            "text_embed_dropout_prob",
            "input_prompt",
            "add_input_to_ret",
        ] {
            config.value(inert);
        }
        config.finish()?;
        let model = if weights.at("module.model").is_empty() { "model" } else { "module.model" };
        let own = weights.at(model);
        let text_map = |(i, layer): (usize, usize)| {
            let seen = if layer == last { opt_config.words } else { opt_config.stack.width };
            Linear::load(&own.at("text_hidden_fcs").at(i).at(0), seen, dims, true).map(|map| (layer, map))
        };
        let table = own.at("input_embeddings");
        let words = match table.shape_of("weight") {
            Some(&[count, _]) => Some(Embedding::load(&table, count, opt_config.words)?),
            _ => None,
        };
        // A checkpoint that was not pruned has it among the words.
        let retrieval = match words.as_ref().filter(|_| !weights.has("ret_input_embeddings.weight")) {
            Some(words) => words.table().i(retrieval_token as usize..retrieval_token as usize + 1).map_err(|e| {
                weights
                    .bad(format!("expected {model}.input_embeddings to have the row {retrieval_token} of [RET] ({e})"))
            })?,
            None => weights.tensor("ret_input_embeddings.weight", &[1, opt_config.words])?,
        };
        let visual = weights.at(VISUAL);
        let this = Self {
            vision: VisionTower::load(&visual.at_first(&["vision_model", ""]), vision_config, "pre_layrnorm")?,
            image_map: Linear::load(&own.at("visual_fc"), vision_config.stack.width, dims, true)?,
            text_maps: layers.into_iter().enumerate().map(text_map).collect::<Result<_, _>>()?,
            last,
            words,
            retrieval,
            retrieval_token,
            logit_scale: scalar(&own, "logit_scale")?,
            text: Opt::load_at(&weights.at(OPT), opt_config)?,
        };
        let unused = |name: &str| format!("{model}.{name}.");
        let known = [
            // What captions are written with, and the frozen models in a checkpoint that was not pruned.
            unused("visual_embeddings"),
            unused("lm"),
            unused("visual_model"),
            "visual.text_model.".to_owned(),
            "visual.text_projection.".to_owned(),
            "visual.visual_projection.".to_owned(),
            "visual.logit_scale".to_owned(),
        ];
        weights.finish(&known.each_ref().map(String::as_str))?;
        Ok(this)
    }

    /// Texts `[n, length]` with `[RET]` in each → the summed maps of what the OPT says behind it, `[n, dims]`. What stands
    /// behind the first `[RET]` of a text is not looked at.
    fn read(&self, ids: &Tensor) -> Candle<Tensor> {
        let is_retrieval = ids.eq(self.retrieval_token)?;
        // The token may lie beyond the table.
        let known = is_retrieval.where_cond(&ids.zeros_like()?, ids)?;
        let vectors = match &self.words {
            Some(words) => words.forward(&known)?,
            None => self.text.embed(&known)?,
        };
        let retrieval = self.retrieval.broadcast_as(vectors.shape())?;
        let is_retrieval = is_retrieval.to_device(vectors.device())?;
        let vectors = is_retrieval.unsqueeze(2)?.broadcast_as(vectors.shape())?.where_cond(&retrieval, &vectors)?;
        let wanted = |layer: usize| self.text_maps.iter().any(|(of, _)| *of == layer);
        let mut seen = Vec::new();
        let mut keep = |x: &Tensor| seen.push(wanted(seen.len()).then(|| x.clone()));
        let said = self.text.forward(vectors, None, &mut Past::default(), &mut keep)?;
        let mut sum: Option<Tensor> = None;
        for (layer, map) in &self.text_maps {
            let hidden = if *layer == self.last { Some(&said) } else { seen.get(*layer).and_then(Option::as_ref) };
            let Some(hidden) = hidden else { candle_core::bail!("the language model showed no layer {layer}") };
            let mapped = map.forward(&behind(hidden, ids, self.retrieval_token)?)?;
            sum = Some(match sum {
                Some(sum) => (sum + mapped)?,
                None => mapped,
            });
        }
        sum.map_or_else(|| candle_core::bail!("a model without layers to look at"), Ok)
    }
}

/// Of each text the vector of the first token of this id, `[n, width]`.
fn behind(hidden: &Tensor, ids: &Tensor, token: u32) -> Candle<Tensor> {
    let mut rows = Vec::new();
    for (text, ids) in ids.to_vec2::<u32>()?.iter().enumerate() {
        let Some(place) = ids.iter().position(|&id| id == token) else {
            candle_core::bail!("text {text} of a batch has no token {token}")
        };
        rows.push(hidden.i((text, place))?);
    }
    Tensor::stack(&rows, 0)
}

impl Towers for Fromage {
    fn images(&self, pixels: &Tensor) -> Candle<Tensor> {
        let tokens = self.vision.forward(pixels, &mut |_| ())?;
        self.image_map.forward(&self.vision.pooled(&tokens)?)
    }

    fn texts(&self, ids: &Tensor) -> Candle<Tensor> {
        self.read(ids)
    }
}

/// The options of the OPT in `folder`.
fn opt_config(folder: &ModelFolder) -> Result<OptConfig, ModelError> {
    let config = Config::open(folder)?;
    let found = config.text("model_type")?.unwrap_or("nothing");
    if found != "opt" {
        return Err(config.bad("model_type", "opt", found));
    }
    let options = OptConfig::read(&config)?;
    config.finish()?;
    Ok(options)
}

/// The options of the vision tower in `folder`: of a CLIP, or of one alone.
fn vision_config(folder: &ModelFolder) -> Result<VisionConfig, ModelError> {
    let config = Config::open(folder)?;
    match config.text("model_type")?.unwrap_or("nothing") {
        "clip_vision_model" => {
            let options = VisionConfig::read(&config)?;
            config.finish()?;
            Ok(options)
        }
        "clip" => {
            let vision = sub_config(&config, "vision_config")?;
            let options = VisionConfig::read(&vision)?;
            for other in ["projection_dim", "text_config", "text_config_dict"] {
                config.value(other);
            }
            [&config, &vision].into_iter().try_for_each(Config::finish)?;
            Ok(options)
        }
        found => Err(config.bad("model_type", "clip or clip_vision_model", found)),
    }
}

/// The layers that `text_emb_layers` names, those counted from the end turned round: `last` is the last.
fn text_layers(config: &Config, last: usize) -> Result<Vec<usize>, ModelError> {
    let place = |value: &serde_json::Value| {
        let layer = value.as_i64()?;
        let layer = if layer < 0 { layer.checked_add(last as i64 + 1)? } else { layer };
        usize::try_from(layer).ok().filter(|layer| *layer <= last)
    };
    let found = config.value("text_emb_layers");
    let layers = found.and_then(|value| value.as_array()?.iter().map(place).collect::<Option<Vec<usize>>>());
    layers.filter(|layers| !layers.is_empty()).ok_or_else(|| {
        let expected = format!("a list of layers, 0 to {last} or -1 for the last");
        config.bad("text_emb_layers", expected, found.map_or("nothing".to_owned(), ToString::to_string))
    })
}
