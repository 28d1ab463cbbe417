//! A spaCy model folder: `config.cfg`, `meta.json` and one folder per component.
//!
//! Weights are in thinc's MessagePack (`thinc/model.py`, `Model.to_bytes`): four parallel
//! lists `nodes`, `attrs`, `params`, `shims` in breadth-first order of the layer tree.
//! Layers are found by name, since node numbers shift between versions.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ModelFiles, Tensor};
use crate::error::{Result, SyntaxError, bad_model, unsupported};
use crate::lemmatizer::{LemmaTables, WordList};
use crate::msgpack::{self, Value};

/// What the tok2vec layer must embed, in this order.
const ATTRS: &str = r#"attrs = ["NORM","PREFIX","SUFFIX","SHAPE","SPACY","IS_SPACE"]"#;

#[derive(Deserialize)]
struct Meta {
    lang: String,
    name: String,
    version: String,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    pipeline: Vec<String>,
}

fn read_file(path: PathBuf) -> Result<Vec<u8>> {
    fs::read(&path).map_err(|source| SyntaxError::Unreadable { path, source })
}

/// Reads a folder and checks that its components are those that this crate computes.
pub(super) fn read(dir: &Path) -> Result<ModelFiles> {
    let meta: Meta = serde_json::from_slice(&read_file(dir.join("meta.json"))?)
        .map_err(|e| bad_model("meta.json", e.to_string()))?;
    check_meta(&meta)?;
    let config = read_file(dir.join("config.cfg"))?;
    check_config(&String::from_utf8_lossy(&config))?;

    let mut tensors = HashMap::new();
    let tok2vec = read_file(dir.join("tok2vec").join("model"))?;
    let layers = Layers::read(&tok2vec, "tok2vec/model")?;
    let embeds = layers.params("hashembed");
    if embeds.len() != 6 {
        return Err(unsupported("6 hash embeddings in tok2vec", embeds.len().to_string()));
    }
    for (column, params) in embeds.into_iter().enumerate() {
        tensors.insert(format!("embed.{column}"), layers.tensor(params, "E")?);
    }
    let (maxouts, norms) = (layers.params("maxout"), layers.params("layernorm"));
    if maxouts.len() != 5 || norms.len() != 5 {
        return Err(unsupported(
            "5 maxout and 5 layernorm layers in tok2vec",
            format!("{} and {}", maxouts.len(), norms.len()),
        ));
    }
    for (i, (maxout, norm)) in maxouts.into_iter().zip(norms).enumerate() {
        let name = if i == 0 { "mix".to_owned() } else { format!("encoder.{}", i - 1) };
        tensors.insert(format!("{name}.weight"), layers.tensor(maxout, "W")?);
        tensors.insert(format!("{name}.bias"), layers.tensor(maxout, "b")?);
        tensors.insert(format!("{name}.norm.gain"), layers.tensor(norm, "G")?);
        tensors.insert(format!("{name}.norm.bias"), layers.tensor(norm, "b")?);
    }

    let tagger = read_file(dir.join("tagger").join("model"))?;
    let layers = Layers::read(&tagger, "tagger/model")?;
    let softmax = layers.only("softmax")?;
    tensors.insert("tagger.weight".to_owned(), layers.tensor(softmax, "W")?);
    tensors.insert("tagger.bias".to_owned(), layers.tensor(softmax, "b")?);

    let parser = read_file(dir.join("parser").join("model"))?;
    let layers = Layers::read(&parser, "parser/model")?;
    let lower = layers.only("precomputable_affine")?;
    for (ours, theirs) in [("weight", "W"), ("bias", "b"), ("pad", "pad")] {
        tensors.insert(format!("parser.lower.{ours}"), layers.tensor(lower, theirs)?);
    }
    // Breadth-first order puts the scoring layer before the one inside the tok2vec branch.
    let linears = layers.params("linear");
    let [upper, reduce] = linears[..] else {
        return Err(unsupported("2 linear layers in the parser", linears.len().to_string()));
    };
    for (name, params) in [("parser.upper", upper), ("parser.reduce", reduce)] {
        tensors.insert(format!("{name}.weight"), layers.tensor(params, "W")?);
        tensors.insert(format!("{name}.bias"), layers.tensor(params, "b")?);
    }

    Ok(ModelFiles {
        id: format!("{}_{}-{}", meta.lang, meta.name, meta.version),
        tensors,
        tokenizer: read_file(dir.join("tokenizer"))?.into(),
        attribute_ruler: read_file(dir.join("attribute_ruler").join("patterns"))?.into(),
        lexeme_norm: read_file(dir.join("vocab").join("lookups.bin"))?.into(),
        tagger_cfg: read_file(dir.join("tagger").join("cfg"))?.into(),
        parser_moves: read_file(dir.join("parser").join("moves"))?.into(),
        lemmas: read_lemmas(dir)?,
    })
}

fn check_meta(meta: &Meta) -> Result<()> {
    if meta.lang != "en" {
        return Err(unsupported("an English model (`lang` = `en`)", format!("`{}`", meta.lang)));
    }
    if !(meta.version.starts_with("3.7.") || meta.version.starts_with("3.8.")) {
        return Err(unsupported("model version 3.7 or 3.8", meta.version.clone()));
    }
    let have = if meta.pipeline.is_empty() { &meta.components } else { &meta.pipeline };
    for needed in ["tok2vec", "tagger", "parser", "attribute_ruler"] {
        if !have.iter().any(|c| c == needed) {
            return Err(unsupported(format!("a component `{needed}`"), format!("only {}", have.join(", "))));
        }
    }
    Ok(())
}

/// Checks the lines of `config.cfg` that decide what is computed.
fn check_config(config: &str) -> Result<()> {
    let section = |name: &str| {
        let from = config.find(&format!("[{name}]\n")).map(|at| at + name.len() + 3)?;
        let body = &config[from..];
        Some(&body[..body.find("\n[").unwrap_or(body.len())])
    };
    let expect = |name: &str, line: &str| match section(name) {
        Some(body) if body.lines().any(|l| l.trim() == line) => Ok(()),
        Some(body) => {
            let key = line.split(" = ").next().unwrap_or(line);
            let found = body.lines().find(|l| l.trim().split(" = ").next() == Some(key));
            Err(unsupported(
                format!("`{line}` in [{name}]"),
                found.map_or_else(|| format!("no `{key}`"), |l| format!("`{l}`")),
            ))
        }
        None => Err(unsupported(format!("a section [{name}] in config.cfg"), "none")),
    };
    let embed = "components.tok2vec.model.embed";
    expect(embed, ATTRS)?;
    expect(embed, "include_static_vectors = false")?;
    let encode = "components.tok2vec.model.encode";
    for line in ["width = 96", "depth = 4", "window_size = 1", "maxout_pieces = 3"] {
        expect(encode, line)?;
    }
    let parser = "components.parser.model";
    for line in [
        r#"state_type = "parser""#,
        "extra_state_tokens = false",
        "hidden_width = 64",
        "maxout_pieces = 2",
        "use_upper = true",
    ] {
        expect(parser, line)?;
    }
    Ok(())
}

struct Layers<'a> {
    file: &'a str,
    value: Value<'a>,
}

impl<'a> Layers<'a> {
    fn read(bytes: &'a [u8], file: &'a str) -> Result<Self> {
        let value = msgpack::read(bytes, file)?;
        Ok(Self { file, value })
    }

    /// The parameters of every layer with this name, in file order.
    fn params(&self, name: &str) -> Vec<&Value<'a>> {
        let list = |key| self.value.get(key).and_then(Value::as_array).unwrap_or_default();
        list("nodes")
            .iter()
            .zip(list("params"))
            .filter(|(node, _)| node.get("name").and_then(Value::as_str) == Some(name))
            .map(|(_, params)| params)
            .collect()
    }

    fn only(&self, name: &str) -> Result<&Value<'a>> {
        match self.params(name)[..] {
            [one] => Ok(one),
            ref many => {
                Err(unsupported(format!("one layer `{name}` in {}", self.file), format!("{} of them", many.len())))
            }
        }
    }

    /// Decodes a little-endian f32 array in `msgpack-numpy`'s form.
    fn tensor(&self, params: &Value<'a>, name: &str) -> Result<Tensor> {
        let missing = |what: &str| bad_model(self.file, format!("parameter `{name}` has no {what}"));
        let array = params.get(name).ok_or_else(|| missing("value"))?;
        let dtype = match array.get("type").ok_or_else(|| missing("type"))? {
            Value::Str(s) => s.as_bytes(),
            Value::Bin(b) => b,
            _ => b"",
        };
        if dtype != b"<f4" {
            let found = String::from_utf8_lossy(dtype).into_owned();
            return Err(unsupported(format!("`{name}` in little-endian f32 (`<f4`)"), found));
        }
        let shape = array.get("shape").and_then(Value::as_array).ok_or_else(|| missing("shape"))?;
        let shape = shape
            .iter()
            .map(|d| d.as_u64().and_then(|d| usize::try_from(d).ok()))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| missing("sound shape"))?;
        let data = array.get("data").and_then(Value::as_bin).ok_or_else(|| missing("data"))?;
        Tensor::from_le_bytes(self.file, shape, data)
    }
}

/// The lemmatizer's tables; a model without a lemmatizer gives empty ones.
fn read_lemmas(dir: &Path) -> Result<LemmaTables> {
    let file = "lemmatizer/lookups/lookups.bin";
    let path = dir.join("lemmatizer").join("lookups").join("lookups.bin");
    if !path.exists() {
        return Ok(LemmaTables::default());
    }
    let bytes = read_file(path)?;
    let tables = msgpack::read(&bytes, file)?;
    let mut indexes = HashMap::new();
    let index = tables.get("lemma_index").and_then(Value::as_map).unwrap_or_default();
    for (key, words) in index {
        let Some(pos) = LemmaTables::pos_of_key(key) else { continue };
        let mut words: Vec<&str> = words.as_array().unwrap_or_default().iter().filter_map(Value::as_str).collect();
        words.sort_unstable();
        words.dedup();
        let lines = Cow::Owned(words.join("\n").into_bytes());
        indexes.insert(pos.to_owned(), WordList::from_lines(file, lines)?);
    }
    let table = |name: &str| tables.get(name).cloned().unwrap_or(Value::Map(Vec::new()));
    LemmaTables::from_values(&table("lemma_rules"), &table("lemma_exc"), indexes)
}
