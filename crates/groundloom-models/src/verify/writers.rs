//! Fixtures of models that write and judge texts.

use candle_core::{DType, Device, IndexOp, Tensor};
use serde_json::{Value, json};

use super::{Fixture, NOTES, Outputs, dual::pixels, numbered, text::token_table};
use crate::{
    ModelError, blip,
    blip2::Text,
    clip,
    decoder::Past,
    kosmos2::grounded,
    language_model::{LanguageModel, continue_behind, continue_until, row},
    layers::compute,
    registry::Opened,
    text_tokenizer::{TextTokenizer, Tokens},
    writers::TextModel,
    writing::{Ending, Writing, Written},
};

/// What BLIP-2 was asked where the notes say nothing.
const BLIP2_PROMPT: &str = "Question: what is in the image? Answer:";

/// The fixture's name of a model.
const NAME: &str = "fixture";

pub(super) fn open(fixture: &Fixture) -> Result<Opened, ModelError> {
    Opened::of(NAME, fixture.folder().clone(), fixture.device())
}

pub(super) fn named<const N: usize>(tensors: [(&str, Tensor); N]) -> Outputs {
    tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into()
}

/// Compares the notes' token table: ids, and the texts that come back from them.
///
/// # Errors
/// [`ModelError::BadConfig`] names the text and what came of it.
pub(super) fn tokens_and_texts(fixture: &Fixture, tokenizer: &TextTokenizer) -> Result<(), ModelError> {
    token_table(fixture, tokenizer)?;
    let rows = fixture.notes.get("tokenizer").and_then(Value::as_array);
    for row in rows.into_iter().flatten() {
        let ids = row.get("ids").and_then(Value::as_array);
        let ids: Vec<u32> = ids.into_iter().flatten().filter_map(|id| id.as_u64().map(|id| id as u32)).collect();
        let Some(expected) = row.get("decoded_skip_special").and_then(Value::as_str) else { continue };
        let found = tokenizer.decode(&ids)?;
        if found != expected {
            return Err(ModelError::BadConfig {
                origin: fixture.folder().file_name("tokenizer.json"),
                problem: format!("expected the text {expected:?} for {ids:?}, found {found:?}"),
            });
        }
    }
    Ok(())
}

/// A batch of the notes' texts at `key`.
fn texts(fixture: &Fixture, key: &str, tokenizer: &TextTokenizer) -> Result<Outputs, ModelError> {
    let tokens =
        fixture.strings(key).into_iter().map(|text| tokenizer.encode(text)).collect::<Result<Vec<Tokens>, _>>()?;
    let batch = tokenizer.pad(&tokens.iter().collect::<Vec<_>>())?;
    Ok(named([("in.input_ids", batch.ids), ("in.attention_mask", batch.mask)]))
}

/// The steps that a fixture recorded for `key`, and whether its text ended at the model's own end.
fn recorded(fixture: &Fixture, key: &str, end: u32) -> Result<(usize, bool), ModelError> {
    let steps = fixture.output(&format!("{key}_step_logits"))?.dim(0).map_err(compute("a fixture"))?;
    let ids =
        fixture.output(&format!("{key}_ids"))?.to_dtype(DType::U32).and_then(|ids| ids.flatten_all()?.to_vec1::<u32>());
    let ids = ids.map_err(compute("a fixture"))?;
    Ok((steps, ids.last() == Some(&end)))
}

/// A greedy text of as many tokens as the fixture has: its ids behind `context`, and the values at every step.
pub(super) fn greedy(
    fixture: &Fixture,
    key: &str,
    context: &[u32],
    end: u32,
    write: impl FnOnce(&Writing, &mut dyn FnMut(&[f32])) -> Result<Written, ModelError>,
) -> Result<Outputs, ModelError> {
    let (steps, ended) = recorded(fixture, key, end)?;
    let (mut values, mut width) = (Vec::new(), 0);
    // A step that the fixture has not would show as another shape.
    let writing = Writing { max_new_tokens: if ended { steps + 1 } else { steps }, ..Writing::default() };
    let written = write(&writing, &mut |step| {
        values.extend_from_slice(step);
        width = step.len();
    })?;
    let mut ids = context.to_vec();
    ids.extend(&written.ids);
    let tensors = || -> candle_core::Result<Outputs> {
        let logits = Tensor::from_vec(values, (written.ids.len(), width), &Device::Cpu)?;
        let mut outputs = vec![(format!("{key}_ids"), row(&ids)?), (format!("{key}_step_logits"), logits)];
        outputs.push((format!("{key}_hf_generate_ids"), row(&ids)?));
        Ok(outputs)
    };
    tensors().map_err(compute("a fixture"))
}

pub(super) fn blip(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let opened = open(fixture)?;
    let mut outputs = pixels(fixture, blip::IMAGE_DEFAULTS)?;
    let (pixels, ids, mask) =
        (fixture.input("pixel_values")?, fixture.ids("input_ids")?, fixture.ids("attention_mask")?);
    if opened.has("text_decoder") {
        let mut captioner = opened.blip_captioner()?;
        let network = &captioner.network;
        tokens_and_texts(fixture, &captioner.tokenizer)?;
        outputs.extend(texts(fixture, "captions", &captioner.tokenizer)?);
        let run = || -> candle_core::Result<(Tensor, Outputs)> {
            let tokens = network.vision.forward(&pixels, &mut |_| ())?;
            let memory = network.text.remember(&tokens)?;
            let hidden = network.text.continue_with(&ids, Some(&mask), &mut Past::default(), &memory)?;
            let first = tokens.narrow(0, 0, 1)?.contiguous()?;
            Ok((first, named([("logits", network.logits(&hidden)?), ("vision_last_hidden", tokens)])))
        };
        let (image, more) = run().map_err(compute("BLIP"))?;
        outputs.extend(more);
        for (key, prompt) in [("greedy", ""), ("greedy_prompt", "a picture of")] {
            let context = captioner.context(prompt)?;
            if !prompt.is_empty() {
                outputs.push(("in.prompt_ids".to_owned(), row(&context).map_err(compute("a fixture"))?));
            }
            outputs.extend(greedy(fixture, key, &context, captioner.network.end, |writing, each| {
                captioner.write(&image, &context, writing, 0, each)
            })?);
            let end = captioner.network.end;
            outputs.extend(fixture.beams.found(key, |ends, writing| {
                captioner.network.end = ends.first().copied().unwrap_or(end);
                captioner.write(&image, &context, writing, 0, &mut |_| ())
            })?);
            captioner.network.end = end;
        }
        return Ok(outputs);
    }
    let matcher = opened.blip_matcher()?;
    let network = &matcher.network;
    tokens_and_texts(fixture, &matcher.tokenizer)?;
    outputs.extend(texts(fixture, "captions", &matcher.tokenizer)?);
    let run = || -> candle_core::Result<Outputs> {
        let mut vision = Vec::new();
        let tokens = network.vision.forward(&pixels, &mut |x| vision.push(x.clone()))?;
        let itm = network.match_logits(&ids, &mask, &network.text.remember(&tokens)?)?;
        let itc = network.image_vectors(&tokens)?.matmul(&network.text_vectors(&ids, &mask)?.t()?)?;
        let mut outputs = numbered("vision_hidden", vision);
        outputs.extend(named([
            ("itm_prob", candle_nn::ops::softmax_last_dim(&itm)?),
            ("itm_score", itm),
            ("itc_score", itc),
            ("text_last_hidden", network.text.encode(&ids, &mask, None)?),
            ("vision_pooled", network.vision.pooled(&tokens)?),
            ("vision_last_hidden", tokens),
        ]));
        Ok(outputs)
    };
    outputs.extend(run().map_err(compute("BLIP"))?);
    Ok(outputs)
}

pub(super) fn blip2(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let mut captioner = open(fixture)?.blip2_captioner()?;
    let network = &captioner.network;
    tokens_and_texts(fixture, &captioner.tokenizer)?;
    let mut outputs = pixels(fixture, blip::IMAGE_DEFAULTS)?;
    let pixels = fixture.input("pixel_values")?;
    let ids = captioner.context(fixture.notes.get("prompt").and_then(Value::as_str).unwrap_or(BLIP2_PROMPT))?;
    let run = || -> candle_core::Result<(Tensor, Vec<u32>, Outputs)> {
        let tokens = network.vision.forward(&pixels, &mut |_| ())?;
        let queried = network.queried(&tokens)?;
        let projected = network.projected(&queried)?;
        // The reference has a token in the place of each query.
        let mut whole = vec![network.image_token.unwrap_or_default(); projected.dim(1)?];
        whole.extend(&ids);
        let vectors = captioner.vectors(&projected, &ids)?;
        let outputs = named([
            ("in.input_ids", row(&whole)?),
            ("vision_pooled", network.vision.pooled(&tokens)?),
            ("vision_last_hidden", tokens),
            ("qformer_query_output", queried),
            ("language_projection", projected),
        ]);
        Ok((vectors, whole, outputs))
    };
    let (vectors, whole, more) = run().map_err(compute("BLIP-2"))?;
    outputs.extend(more);
    let (unending, begun) = match &network.text {
        Text::Opt(text) => {
            let run = || text.logits(&text.forward(vectors.clone(), None, &mut Past::default(), &mut |_| ())?);
            outputs.push(("logits".to_owned(), run().map_err(compute("BLIP-2"))?));
            (true, whole)
        }
        Text::T5(text) => {
            let written = fixture.ids("decoder_input_ids")?;
            let run = || {
                let mask = Tensor::ones((1, whole.len()), DType::U32, &Device::Cpu)?;
                let encoded = text.encode(vectors.clone(), &mask, &mut |_| ())?;
                let logits = text.decode(&written, &mut Past::default(), &text.remember(&encoded, &mask)?)?;
                Ok(named([("encoder_last_hidden", encoded), ("logits", logits)]))
            };
            outputs.extend(run().map_err(compute("BLIP-2"))?);
            (false, vec![text.start])
        }
    };
    outputs.extend(greedy(fixture, "greedy", &begun, network.text.end(), |writing, each| {
        // The loop of the reference with an OPT knows no end, and its own generation was forbidden it: so it is here.
        let min_new_tokens = if unending { usize::MAX } else { writing.min_new_tokens };
        captioner.write(vectors.clone(), &ids, &Writing { min_new_tokens, ..writing.clone() }, 0, each)
    })?);
    outputs.extend(fixture.beams.found("greedy", |ends, writing| {
        if let Text::T5(text) = &mut captioner.network.text {
            text.end = ends.first().copied().unwrap_or(text.end);
        }
        match &captioner.network.text {
            Text::T5(text) => text.answer(vectors.clone(), writing, 0, &mut |_| ()),
            Text::Opt(text) => {
                let whole = captioner.ids(&vectors, &ids)?;
                continue_until(text, vectors.clone(), &whole, writing, 0, Ending::at(ends), &mut |_| ())
            }
        }
    })?);
    Ok(outputs)
}

pub(super) fn llava(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let captioner = open(fixture)?.llava_captioner()?;
    let network = &captioner.network;
    tokens_and_texts(fixture, &captioner.tokenizer)?;
    let mut outputs = pixels(fixture, clip::IMAGE_DEFAULTS)?;
    let pixels = fixture.input("pixel_values")?;
    let parts = captioner.context(fixture.notes.get("prompt").and_then(Value::as_str).unwrap_or_default())?;
    let run = || -> candle_core::Result<(Tensor, Vec<u32>, Outputs)> {
        let selected = network.selected(&pixels)?;
        let projected = network.projected(&selected)?;
        let vectors = captioner.vectors(&parts, &projected)?;
        let hidden = network.text.forward(vectors.clone(), None, &mut Past::default(), &mut |_| ())?;
        let expanded = |count: usize| parts.join(&vec![network.image_token; count][..]);
        let whole = expanded(projected.dim(1)?);
        let outputs = named([
            ("in.prompt_ids_unexpanded", row(&expanded(1))?),
            ("in.input_ids", row(&whole)?),
            ("logits", network.text.logits(&hidden)?),
            ("vision_selected", selected),
            ("projected", projected),
        ]);
        Ok((vectors, whole, outputs))
    };
    let (vectors, whole, more) = run().map_err(compute("LLaVA"))?;
    outputs.extend(more);
    outputs.extend(greedy(fixture, "greedy", &whole, network.text.end(), |writing, each| {
        continue_behind(&network.text, vectors.clone(), &whole, writing, 0, each)
    })?);
    outputs.extend(continued(fixture, &network.text, &vectors, &whole)?);
    Ok(outputs)
}

pub(super) fn kosmos2(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let captioner = open(fixture)?.kosmos2_captioner()?;
    let network = &captioner.network;
    tokens_and_texts(fixture, &captioner.tokenizer)?;
    phrases(fixture)?;
    let mut outputs = pixels(fixture, clip::IMAGE_DEFAULTS)?;
    let pixels = fixture.input("pixel_values")?;
    let context = captioner.context(fixture.notes.get("prompt").and_then(Value::as_str).unwrap_or_default())?;
    let whole = captioner.ids(&context);
    let run = || -> candle_core::Result<(Tensor, Outputs)> {
        let tokens = network.vision.forward(&pixels, &mut |_| ())?;
        let projected = network.projected(&tokens)?;
        let vectors = captioner.vectors(&context, &projected)?;
        let hidden = network.text.forward(vectors.clone(), None, &mut Past::default(), &mut |_| ())?;
        let behind = whole.len() - context.behind.len();
        let replaced = (0..whole.len()).map(|i| u32::from((behind - network.queries()..behind).contains(&i)));
        let outputs = named([
            ("in.input_ids", row(&whole)?),
            ("in.attention_mask", row(&vec![1; whole.len()])?),
            ("in.image_embeds_position_mask", row(&replaced.collect::<Vec<_>>())?),
            ("logits", network.text.logits(&hidden)?),
            ("image_embeds", projected),
            ("vision_last_hidden", tokens),
        ]);
        Ok((vectors, outputs))
    };
    let (vectors, more) = run().map_err(compute("Kosmos-2"))?;
    outputs.extend(more);
    outputs.extend(greedy(fixture, "greedy", &whole, network.text.end(), |writing, each| {
        continue_behind(&network.text, vectors.clone(), &whole, writing, 0, each)
    })?);
    outputs.extend(continued(fixture, &network.text, &vectors, &whole)?);
    Ok(outputs)
}

/// The beam searches of a model that continues texts.
fn continued(
    fixture: &Fixture,
    model: &dyn LanguageModel,
    vectors: &Tensor,
    context: &[u32],
) -> Result<Outputs, ModelError> {
    fixture.beams.found("greedy", |ends, writing| {
        continue_until(model, vectors.clone(), context, writing, 0, Ending::at(ends), &mut |_| ())
    })
}

/// Compares the notes' phrases with those of the notes' text.
///
/// # Errors
/// [`ModelError::BadConfig`] names the text and what came of it.
fn phrases(fixture: &Fixture) -> Result<(), ModelError> {
    let Some(text) = fixture.notes.get("post_input").and_then(Value::as_str) else { return Ok(()) };
    let (caption, phrases) = grounded(text);
    let rows: Vec<Value> = phrases
        .iter()
        .map(|found| {
            let boxes: Vec<[f32; 4]> = found.boxes.iter().map(|found| found.xyxy()).collect();
            json!([found.phrase, [found.span.start, found.span.end], boxes])
        })
        .collect();
    let note = |key: &str| fixture.notes.get(key).cloned().unwrap_or_default();
    let (found, expected) = (json!([caption, rows]), json!([note("post_caption"), note("post_entities")]));
    match found == expected {
        true => Ok(()),
        false => Err(ModelError::BadConfig {
            origin: fixture.folder().file_name(NOTES),
            problem: format!("expected {expected} of the text {text:?}, found {found}"),
        }),
    }
}

pub(super) fn language_model(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let TextModel { network, tokenizer, .. } = open(fixture)?.text_model()?;
    tokens_and_texts(fixture, &tokenizer)?;
    let ids = fixture.ids("input_ids")?;
    let padded = match fixture.has("padded_ids") {
        true => Some((fixture.ids("padded_ids")?, fixture.ids("padded_mask")?)),
        false => None,
    };
    let run = || -> candle_core::Result<(Tensor, Vec<u32>, Outputs)> {
        let mut seen = Vec::new();
        let vectors = network.embed(&ids)?;
        let hidden = network.forward(vectors.clone(), None, &mut Past::default(), &mut |x| seen.push(x.clone()))?;
        // The reference shows the last block's output behind the norm.
        seen.pop();
        seen.push(hidden.clone());
        let mut outputs = numbered("hidden", seen);
        outputs.push(("logits".to_owned(), network.logits(&hidden)?));
        if let Some((ids, mask)) = &padded {
            let hidden = network.forward(network.embed(ids)?, Some(mask), &mut Past::default(), &mut |_| ())?;
            let logits = network.logits(&hidden)?;
            outputs.push(("padded_last_logits".to_owned(), logits.i((.., logits.dim(1)? - 1))?));
        }
        Ok((vectors, ids.flatten_all()?.to_vec1()?, outputs))
    };
    let (vectors, context, mut outputs) = run().map_err(compute("the language model"))?;
    outputs.extend(greedy(fixture, "greedy", &context, network.end(), |writing, each| {
        continue_behind(&*network, vectors.clone(), &context, writing, 0, each)
    })?);
    outputs.extend(continued(fixture, &*network, &vectors, &context)?);
    Ok(outputs)
}

pub(super) fn t5(fixture: &Fixture) -> Result<Outputs, ModelError> {
    let mut generator = open(fixture)?.t5_generator()?;
    let network = &generator.network;
    tokens_and_texts(fixture, &generator.tokenizer)?;
    let mut outputs = texts(fixture, "sentences", &generator.tokenizer)?;
    let (ids, mask) = (fixture.ids("input_ids")?, fixture.ids("attention_mask")?);
    let written = fixture.ids("decoder_input_ids")?;
    let run = || -> candle_core::Result<Outputs> {
        let mut seen = Vec::new();
        let encoded = network.encode(network.embed(&ids)?, &mask, &mut |x| seen.push(x.clone()))?;
        // The reference shows the last block's output behind the norm.
        seen.pop();
        seen.push(encoded.clone());
        let memory = network.remember(&encoded, &mask)?;
        let mut outputs = numbered("encoder_hidden", seen);
        outputs.push(("logits".to_owned(), network.decode(&written, &mut Past::default(), &memory)?));
        outputs.push(("encoder_last_hidden".to_owned(), encoded));
        Ok(outputs)
    };
    outputs.extend(run().map_err(compute("T5"))?);
    let first = fixture.strings("sentences").first().map(|text| generator.tokenizer.encode(text)).transpose()?;
    let first = first.map(|tokens| tokens.ids).unwrap_or_default();
    outputs.extend(greedy(fixture, "greedy", &[network.start], network.end, |writing, each| {
        generator.write(&first, writing, 0, each)
    })?);
    outputs.extend(fixture.beams.found("greedy", |ends, writing| {
        generator.network.end = ends.first().copied().unwrap_or(generator.network.end);
        generator.write(&first, writing, 0, &mut |_| ())
    })?);
    Ok(outputs)
}
