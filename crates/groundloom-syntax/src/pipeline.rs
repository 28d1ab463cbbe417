//! Text in, parsed document out.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::attribute_ruler::{AttributeRuler, RuleValue, RuledToken, Ruling};
use crate::doc::{Doc, TokenData};
use crate::error::{Result, SyntaxError};
use crate::lemmatizer::LemmaTables;
use crate::lexeme::Lexicon;
use crate::model::{ModelFiles, WIDTH, Weights};
use crate::network::exact::ExactScorer;
use crate::network::fast::{Encoder, FastScorer, Masks, REACH, Reduced, Segment, TagChoice};
use crate::network::words::{WordCache, WordFacts};
use crate::network::{KernelClass, Network};
use crate::noun_chunks::{NOMINAL, RELATIONS};
use crate::parser::{self, Actions, DepId, Labels, State, Tree};
use crate::tokenizer::{NormId, SpanCache, TokenSpan, Tokenizer};
use crate::unicode;

/// spaCy's `Language.max_length`.
pub const DEFAULT_MAX_CHARS: usize = 1_000_000;

/// Tokens that are encoded in one pass: enough for the kernels, few enough for the cache.
const PASS: usize = 768;
/// Decisions closer than this are made again in spaCy's own order of operations.
///
/// The fast way's narrowest margins were off by 2.7e-5 at most over 26,000 texts.
const CERTAIN: f32 = 2e-4;

/// A loaded model, immutable and shared by pipelines and documents.
#[derive(Debug)]
pub(crate) struct Model {
    id: String,
    tokenizer: Tokenizer,
    lexicon: Lexicon,
    network: Network,
    tags: Vec<String>,
    actions: Actions,
    masks: Masks,
    labels: Labels,
    ruler: AttributeRuler,
    lemmas: LemmaTables,
    root: DepId,
    conj: DepId,
    /// By label index: whether it makes a noun the head of a chunk.
    chunk_relations: Vec<bool>,
    /// By value index: whether it is NOUN, PROPN or PRON.
    nominal: Vec<bool>,
}

impl Model {
    fn new(mut files: ModelFiles, kernels: KernelClass) -> Result<Self> {
        let tags = files.tag_labels()?;
        let mut labels = Labels::default();
        let root = labels.root();
        let conj = labels.intern("conj");
        let actions = Actions::read(&files.moves_json()?, &mut labels)?;
        let ruler = AttributeRuler::read(&files.attribute_ruler, &tags, &mut labels)?;
        let weights = Weights::take(&mut files, tags.len(), actions.len())?;
        let table_rows = std::array::from_fn(|c| (weights.embed[c].len() / WIDTH) as u32);
        let chunk_relations = (0..labels.len()).map(|i| RELATIONS.contains(&labels.name(DepId(i as u16)))).collect();
        let nominal = ruler.values().map(|value| NOMINAL.contains(&value)).collect();
        Ok(Self {
            id: files.id,
            tokenizer: Tokenizer::read(&files.tokenizer)?,
            lexicon: Lexicon::read(&files.lexeme_norm, table_rows)?,
            network: Network::new(weights, kernels),
            masks: Masks::new(&actions),
            tags,
            actions,
            labels,
            ruler,
            lemmas: files.lemmas,
            root,
            conj,
            chunk_relations,
            nominal,
        })
    }

    pub(crate) fn tag(&self, tag: u8) -> &str {
        self.tags.get(usize::from(tag)).map_or("", String::as_str)
    }

    pub(crate) fn dep(&self, dep: DepId) -> &str {
        self.labels.name(dep)
    }

    pub(crate) fn rule_value(&self, value: RuleValue) -> &str {
        self.ruler.value(value)
    }

    pub(crate) fn conj(&self) -> DepId {
        self.conj
    }

    pub(crate) fn is_chunk_relation(&self, dep: DepId) -> bool {
        self.chunk_relations.get(usize::from(dep.0)).copied().unwrap_or(false)
    }

    pub(crate) fn is_nominal(&self, pos: RuleValue) -> bool {
        self.nominal.get(usize::from(pos.0)).copied().unwrap_or(false)
    }

    pub(crate) fn norm<'a>(&'a self, text: &'a str, exception: Option<NormId>) -> Cow<'a, str> {
        match exception {
            Some(id) => Cow::Borrowed(self.tokenizer.norm(id)),
            None => self.lexicon.norm(text),
        }
    }

    pub(crate) fn lemma<'t>(&self, text: &'t str, pos: &str, morph: &str) -> Cow<'t, str> {
        self.lemmas.lemma(text, pos, morph)
    }
}

/// Buffers and caches of one worker.
#[derive(Debug, Default)]
struct Worker {
    spans: SpanCache,
    words: WordCache,
    encoder: Encoder,
    reduced: Reduced,
    scores: Vec<f32>,
    state: State,
    tree: Tree,
    /// Tokens of one document while it is cut.
    cut: Vec<TokenSpan>,
    /// All tokens of the documents at hand, and what is known of each.
    tokens: Vec<TokenSpan>,
    facts: Vec<WordFacts>,
    tags: Vec<TagChoice>,
    slots: Vec<u32>,
    ruled: Vec<RuledToken>,
    rulings: Vec<Ruling>,
    timings: Timings,
}

/// How close the closest decisions of a document were: the best score minus the second.
///
/// A difference to spaCy where its own margin is below 5e-5 is a tie that rounding decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Margins {
    /// Over the tokens' tags.
    pub tagger: f32,
    /// Over the parser's steps.
    pub parser: f32,
    /// Whether the document was parsed a second time, in spaCy's order of operations.
    pub exact: bool,
}

/// Where the time of a call went, summed over its texts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Cutting texts into tokens.
    pub tokenizer: Duration,
    /// Looking words up and hashing new ones.
    pub words: Duration,
    /// Token vectors.
    pub tok2vec: Duration,
    /// Tag scores, and the parser's reduction, which is computed with them.
    pub tagger: Duration,
    /// The parser's first layer and its steps.
    pub parser: Duration,
    /// Documents that were parsed again exactly.
    pub exact: Duration,
    /// The tree, the attribute rules and the document.
    pub rules: Duration,
}

/// The parser: a model, a limit, and the caches that parsing warms up.
///
/// Cloning is cheap and shares all of them. Calls from several threads run side by side;
/// each borrows a worker with caches of its own (up to some 90 MB).
#[derive(Debug, Clone)]
pub struct Pipeline {
    model: Arc<Model>,
    max_chars: usize,
    certain: f32,
    workers: Arc<Mutex<Vec<Worker>>>,
}

impl Pipeline {
    /// The embedded model, `en_core_web_sm` 3.8.0.
    ///
    /// # Errors
    /// None in a sound build; the embedded file is checked like any other.
    pub fn embedded() -> Result<Self> {
        Self::new(ModelFiles::embedded()?, KernelClass::detect())
    }

    /// The embedded model with kernels of a given class; answers are the same.
    ///
    /// A class that this CPU lacks is replaced by the best that it has.
    ///
    /// # Errors
    /// As [`Self::embedded`].
    pub fn embedded_with(kernels: KernelClass) -> Result<Self> {
        let kernels = if kernels.is_available() { kernels } else { KernelClass::detect() };
        Self::new(ModelFiles::embedded()?, kernels)
    }

    /// A spaCy 3.7 or 3.8 English model from its folder: the one that holds `config.cfg`.
    ///
    /// # Errors
    /// If a file can't be read, is damaged, or describes other components than those of
    /// `en_core_web_sm` (models with static vectors, such as `_md` and `_lg`, are refused).
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        Self::new(ModelFiles::folder(folder.as_ref())?, KernelClass::detect())
    }

    fn new(files: ModelFiles, kernels: KernelClass) -> Result<Self> {
        Ok(Self {
            model: Arc::new(Model::new(files, kernels)?),
            max_chars: DEFAULT_MAX_CHARS,
            certain: CERTAIN,
            workers: Arc::default(),
        })
    }

    /// Sets the longest text that is parsed, in characters; [`DEFAULT_MAX_CHARS`] at first.
    ///
    /// While a text is parsed it takes some 400 bytes a token.
    #[must_use]
    pub fn with_max_chars(mut self, limit: usize) -> Self {
        // Token positions are 32 bits wide, and a character has four bytes at most.
        self.max_chars = limit.min(i32::MAX as usize / 4);
        self
    }

    /// Parses everything in spaCy's own order of operations: some three times slower, and
    /// the same answer but where spaCy itself is undecided. For comparisons.
    #[must_use]
    pub fn exactly(mut self) -> Self {
        self.certain = f32::INFINITY;
        self
    }

    /// Name and version of the model.
    pub fn model_id(&self) -> &str {
        &self.model.id
    }

    /// Parses one text.
    ///
    /// # Errors
    /// [`SyntaxError::TextTooLong`] for a text beyond the limit.
    pub fn parse(&self, text: &str) -> Result<Doc> {
        let mut docs = self.parse_batch(&[text]);
        docs.pop().unwrap_or_else(|| Ok(Doc::new("", Vec::new(), NO_MARGINS, Arc::clone(&self.model))))
    }

    /// Parses one text given as bytes.
    ///
    /// # Errors
    /// [`SyntaxError::NotUtf8`], and those of [`Self::parse`].
    pub fn parse_bytes(&self, text: &[u8]) -> Result<Doc> {
        let text = std::str::from_utf8(text).map_err(|e| SyntaxError::NotUtf8 { valid_up_to: e.valid_up_to() })?;
        self.parse(text)
    }

    /// Parses many texts on the calling thread.
    ///
    /// Results are in the order of the texts and the same as one by one; a text that is
    /// refused doesn't affect the others. A few hundred captions at a time are fastest.
    pub fn parse_batch<S: AsRef<str>>(&self, texts: &[S]) -> Vec<Result<Doc>> {
        self.parse_batch_timed(texts).0
    }

    /// As [`Self::parse_batch`], with the time that each part took.
    pub fn parse_batch_timed<S: AsRef<str>>(&self, texts: &[S]) -> (Vec<Result<Doc>>, Timings) {
        let mut worker = self.lock().pop().unwrap_or_default();
        worker.timings = Timings::default();
        let mut docs = Vec::with_capacity(texts.len());
        let mut from = 0;
        while from < texts.len() {
            worker.tokens.clear();
            // Token ranges of the documents of this group, or why there is none.
            let mut group = Vec::new();
            let start = Instant::now();
            while from < texts.len() && worker.tokens.len() < PASS {
                let text = texts[from].as_ref();
                group.push(self.check_length(text).map(|()| {
                    self.model.tokenizer.tokenize(text, &mut worker.spans, &mut worker.cut);
                    let start = worker.tokens.len();
                    worker.tokens.append(&mut worker.cut);
                    (text, start..worker.tokens.len())
                }));
                from += 1;
            }
            worker.timings.tokenizer += start.elapsed();
            self.encode(&mut worker, &group);
            for item in group {
                docs.push(item.map(|(text, tokens)| self.finish(&mut worker, text, tokens)));
            }
        }
        let timings = worker.timings;
        self.lock().push(worker);
        (docs, timings)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        // A worker is taken out while it is used, so a panic can't leave a broken one here.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_length(&self, text: &str) -> Result<()> {
        if text.len() > self.max_chars {
            let found = text.chars().count();
            if found > self.max_chars {
                return Err(SyntaxError::TextTooLong { found, limit: self.max_chars });
            }
        }
        Ok(())
    }

    /// Fills in facts, tags and the parser's input for all tokens of a group.
    fn encode(&self, worker: &mut Worker, group: &[Result<(&str, Range<usize>)>]) {
        worker.facts.clear();
        worker.tags.clear();
        worker.reduced.clear();
        let mut segments = Vec::new();
        let mut waiting = 0;
        worker.slots.clear();
        worker.words.reserve(2 * PASS);
        for (text, tokens) in group.iter().flatten() {
            // A long document goes through in pieces that overlap by what a token depends on.
            for start in tokens.clone().step_by(PASS) {
                let end = tokens.end.min(start + PASS);
                let from = tokens.start.max(start.saturating_sub(REACH));
                let to = tokens.end.min(end + REACH);
                if waiting + (to - from) > PASS + 2 * REACH {
                    self.encode_pass(worker, &mut segments);
                    waiting = 0;
                }
                let clock = Instant::now();
                for i in from..to {
                    let (slot, facts) = self.look_up(&mut worker.words, text, worker.tokens[i]);
                    worker.slots.push(slot);
                    if (start..end).contains(&i) {
                        worker.facts.push(facts);
                    }
                }
                worker.timings.words += clock.elapsed();
                segments.push(Segment { len: to - from, context: (start - from, to - end) });
                waiting += to - from;
            }
        }
        self.encode_pass(worker, &mut segments);
    }

    fn encode_pass(&self, worker: &mut Worker, segments: &mut Vec<Segment>) {
        let Worker { words, encoder, reduced, slots, tags, timings, .. } = worker;
        if !segments.is_empty() {
            let start = Instant::now();
            encoder.encode(&self.model.network, words, slots, segments);
            let encoded = Instant::now();
            encoder.choose_tags(&self.model.network, segments, tags, reduced);
            timings.tok2vec += encoded - start;
            timings.tagger += encoded.elapsed();
        }
        segments.clear();
        slots.clear();
        words.reserve(2 * PASS);
    }

    fn look_up(&self, words: &mut WordCache, text: &str, token: TokenSpan) -> (u32, WordFacts) {
        let model = &*self.model;
        let word = &text[token.start as usize..token.end as usize];
        let describe = || {
            let facts = WordFacts {
                class: model.ruler.classify(word),
                chars: word.chars().count() as u32,
                is_space: word.chars().all(unicode::is_space),
            };
            (facts, model.lexicon.string_rows(word, &model.norm(word, token.norm)))
        };
        let flags = |facts: &WordFacts| model.lexicon.flag_rows(token.space_after, facts.is_space);
        words.slot(word, token.norm, token.space_after, describe, flags)
    }

    /// Parses one document of an encoded group.
    fn finish(&self, worker: &mut Worker, text: &str, range: Range<usize>) -> Doc {
        let model = &*self.model;
        let Worker { reduced, scores, state, tree, ruled, rulings, .. } = worker;
        let tokens = &worker.tokens[range.clone()];
        let facts = &worker.facts[range.clone()];
        let tags = &mut worker.tags[range.clone()];
        let narrowest_tag = |tags: &[TagChoice]| tags.iter().map(|t| t.1).fold(f32::INFINITY, f32::min);

        let start = Instant::now();
        let mut margins = Margins { tagger: narrowest_tag(tags), ..NO_MARGINS };
        if margins.tagger >= self.certain {
            let (network, masks, first) = (&model.network, &model.masks, range.start);
            let mut scorer = FastScorer { network, masks, reduced, first, scores };
            margins.parser = parser::run(state, &model.actions, tokens.len(), &mut scorer);
        }
        let parsed = Instant::now();
        worker.timings.parser += parsed - start;
        if margins.tagger.min(margins.parser) < self.certain {
            let rows: Vec<_> = tokens
                .iter()
                .zip(facts)
                .map(|(token, facts)| {
                    let word = &text[token.start as usize..token.end as usize];
                    let norm = model.norm(word, token.norm);
                    let [a, b, c, d] = model.lexicon.string_rows(word, &norm);
                    let [e, f] = model.lexicon.flag_rows(token.space_after, facts.is_space);
                    [a, b, c, d, e, f]
                })
                .collect();
            let (exact_tags, reduced) = model.network.encode_exactly(&rows);
            tags.copy_from_slice(&exact_tags);
            let mut scorer = ExactScorer::new(&model.network, &model.actions, &reduced);
            let parser = parser::run(state, &model.actions, tokens.len(), &mut scorer);
            margins = Margins { tagger: narrowest_tag(tags), parser, exact: true };
        }
        let decided = Instant::now();
        worker.timings.exact += decided - parsed;
        parser::resolve(state, &model.labels, model.root, |i| facts[i].is_space, tree);

        ruled.clear();
        ruled.extend(tags.iter().zip(facts).zip(&tree.deps).map(|((&(tag, _), facts), &dep)| RuledToken {
            tag,
            dep,
            word: facts.class,
            is_space: facts.is_space,
        }));
        model.ruler.apply(ruled, rulings);
        let mut idx = 0;
        let mut data = Vec::with_capacity(tokens.len());
        for (i, (token, ruling)) in tokens.iter().zip(&*rulings).enumerate() {
            data.push(TokenData {
                start: token.start,
                end: token.end,
                idx,
                head: tree.heads[i],
                left_edge: tree.left_edges[i],
                right_edge: tree.right_edges[i],
                norm: token.norm,
                pos: ruling.pos,
                lemma: ruling.lemma,
                morph: ruling.morph,
                dep: ruling.dep.unwrap_or(tree.deps[i]),
                tag: ruling.tag.unwrap_or(tags[i].0),
                space_after: token.space_after,
                sentence_start: tree.sentence_starts[i],
            });
            idx += facts[i].chars + u32::from(token.space_after);
        }
        let doc = Doc::new(text, data, margins, Arc::clone(&self.model));
        worker.timings.rules += decided.elapsed();
        doc
    }
}

const NO_MARGINS: Margins = Margins { tagger: f32::INFINITY, parser: f32::INFINITY, exact: false };

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader};

    use super::*;

    /// The texts of the frozen sample, or of a file with one JSON string a line.
    fn texts() -> Vec<String> {
        if let Ok(path) = std::env::var("GROUNDLOOM_TEXTS") {
            let lines = std::fs::read_to_string(path).unwrap();
            return lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/sample.jsonl.gz");
        let lines = BufReader::new(flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap())).lines();
        let records = lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
        records.map(|record| record["doc"].as_str().unwrap().to_owned()).collect()
    }

    /// What `CERTAIN` rests on: without a second parse, decisions are off by far less.
    #[test]
    fn shortcuts_move_margins_by_less_than_a_quarter_of_what_is_certain() {
        let exact = Pipeline::embedded().unwrap().exactly();
        for kernels in [KernelClass::Portable, KernelClass::Avx2, KernelClass::Avx512] {
            let mut fast = Pipeline::embedded_with(kernels).unwrap();
            fast.certain = 0.0;
            let (mut worst, mut tokens) = (0.0f32, 0);
            for texts in texts().chunks(256) {
                for (f, e) in fast.parse_batch(texts).into_iter().zip(exact.parse_batch(texts)) {
                    let (f, e) = (f.unwrap(), e.unwrap());
                    tokens += e.len();
                    assert!(!f.margins().exact && e.margins().exact != e.is_empty());
                    let (f, e) = (f.margins(), e.margins());
                    for (f, e) in [(f.tagger, e.tagger), (f.parser, e.parser)] {
                        // Beyond a first decision that came out differently nothing compares.
                        if f.min(e) > CERTAIN && f.is_finite() {
                            worst = worst.max((f - e).abs());
                        }
                    }
                }
            }
            println!("{kernels:?}: {worst:e} at most over {tokens} tokens");
            assert!(worst > 0.0 && worst < CERTAIN / 4.0, "{kernels:?}: {worst}");
        }
    }

    #[test]
    fn a_damaged_container_is_an_error() {
        for (at, value) in [(0, b'X'), (8, 9), (12, 255), (16, b'!')] {
            let mut bytes = crate::model::ModelFiles::embedded_bytes().to_vec();
            bytes[at] = value;
            assert!(crate::model::ModelFiles::container(bytes.leak()).is_err(), "byte {at}");
        }
        let bytes = crate::model::ModelFiles::embedded_bytes();
        assert!(crate::model::ModelFiles::container(&bytes[..bytes.len() / 2]).is_err());
    }
}
