//! `expand_expressions`: from noun chunks that have a box to the referring expressions around them.

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::{
    BoxesView, CharIndex, CharSpan, Chunk, ChunksView, ColumnTypeError, Expression, ExpressionsBuilder, columns,
};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    expression_edges::trim_edges,
    inputs::{self, Texts},
    noun_chunks::default_text,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError, codes},
    window::{Fault, Window},
};

/// The expressions of one caption may have this many bytes together; a row with more goes to quarantine. Nested expressions repeat each other's text, so that a
/// caption made for it could otherwise grow with the square of its length.
pub const MAX_EXPRESSION_BYTES: usize = 1 << 20;

/// Widens every noun chunk that has a box to the referring expression around it: "a dog" becomes "a dog in a field of flowers".
///
/// The expression is the text of the head noun's whole subtree in the dependency parse, one contiguous span (GrIT's stage of that name; Kosmos-2, arXiv 2306.14824,
/// section 2.1, and the author's `root.left_edge` … `root.right_edge` in microsoft/unilm issue 1171). A chunk whose head has conjuncts ("a cat and a dog") stays as it
/// is, and so does one whose head has nothing to its right. The expression inherits the chunk's boxes. Nothing is parsed again: `noun_chunks` wrote down what this needs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpandExpressions {
    /// Column with the caption that the chunks were found in.
    #[serde(default = "default_text")]
    pub text: String,
    /// Column with the noun chunks, as `noun_chunks` writes it.
    #[serde(default = "default_chunks")]
    pub chunks: String,
    /// Column with the boxes, as `filter_boxes` or `ground` writes it: a chunk without a box gives no expression.
    #[serde(default = "default_boxes")]
    pub boxes: String,
    /// Column to write: `list<struct<start, end, text, chunk>>`, one entry per chunk that has a box, in the order of the chunks.
    #[serde(default = "default_output")]
    pub output: String,
    /// Where an expression begins and ends.
    #[serde(default)]
    pub edges: Edges,
}

/// Where an expression begins and ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Edges {
    /// Without spaces, sentence punctuation, dashes and unpaired brackets or quotation marks at the ends: "A dog in a field of flowers." loses the full stop.
    /// What belongs to a word stays: "a view of Washington D.C."
    #[default]
    Trimmed,
    /// At the subtree's own edges, as GrIT's authors do, full stop included.
    Raw,
}

fn default_chunks() -> String {
    "chunks".to_owned()
}

fn default_boxes() -> String {
    "boxes".to_owned()
}

fn default_output() -> String {
    "expressions".to_owned()
}

impl Config for ExpandExpressions {
    const NAME: &'static str = "expand_expressions";
    const SUMMARY: &'static str = "Widen noun chunks that have a box to the referring expressions around them";
    const EXAMPLE: &'static str = "expanded: { type: expand_expressions, text: caption }";
}

/// The expressions of the chunks at the indices `with_box` (ascending) of one caption, in that order.
///
/// # Errors
/// A sentence that names the chunk whose span or subtree does not fit the caption, or whose subtree does not hold the chunk.
pub fn expand<'a>(
    caption: &CharIndex<'a>,
    chunks: &[Chunk<'_>],
    with_box: impl IntoIterator<Item = usize>,
    edges: Edges,
) -> Result<Vec<Expression<'a>>, String> {
    for (at, chunk) in chunks.iter().enumerate() {
        if chunk.subtree.end > caption.len() || !chunk.subtree.contains(&chunk.span) {
            return Err(format!(
                "entry {at}: expected a span inside its subtree inside the caption of {} characters, found {}..{} inside {}..{}; were the chunks found in another text?",
                caption.len(),
                chunk.span.start,
                chunk.span.end,
                chunk.subtree.start,
                chunk.subtree.end
            ));
        }
    }
    // Decoded once, and only where something must be trimmed.
    let mut characters: Option<Vec<char>> = None;
    let mut expressions = Vec::new();
    for at in with_box {
        let Some(chunk) = chunks.get(at) else { return Err(format!("a box points at chunk {at} of {}", chunks.len())) };
        let widened = if chunk.has_children && !chunk.has_conjunct { chunk.subtree } else { chunk.span };
        let span = match edges {
            Edges::Raw => widened,
            Edges::Trimmed => {
                let characters = characters.get_or_insert_with(|| caption.text().chars().collect());
                trim_edges(characters, widened, words_of(chunk, widened, chunks))
            }
        };
        let text = caption
            .slice(span)
            .ok_or_else(|| format!("entry {at}: span {}..{} is not in the caption", span.start, span.end))?;
        expressions.push(Expression { span, text, chunk: at });
    }
    Ok(expressions)
}

/// The part of `widened` that is words for certain: from the chunk's head noun to the last head noun of any chunk inside. A chunk ends with its head noun, which is how
/// the full stop of an abbreviation is told from that of a sentence.
fn words_of(chunk: &Chunk<'_>, widened: CharSpan, chunks: &[Chunk<'_>]) -> CharSpan {
    let head = chunk.span.end.saturating_sub(chunk.root.chars().count()).max(chunk.span.start);
    let last = chunks.iter().filter(|c| widened.contains(&c.span)).map(|c| c.span.end).max().unwrap_or(chunk.span.end);
    CharSpan { start: head, end: last }
}

impl Stage for ExpandExpressions {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "text", &self.text, Texts::check_type)?;
        inputs::require(input, "chunks", &self.chunks, ChunksView::check_type)?;
        inputs::require(input, "boxes", &self.boxes, |data_type| {
            let boxes = BoxesView::try_new(&arrow::array::new_empty_array(data_type))?;
            if boxes.has_chunk() {
                return Ok(());
            }
            Err(ColumnTypeError {
                expected: "boxes tied to chunks by a field `chunk` (put filter_boxes before, which ties them)"
                    .to_owned(),
                found: data_type.to_string(),
            })
        })?;
        Ok(vec![columns::column(&self.output, columns::expressions_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Expanding { config: self.clone() }))
    }

    fn notes(&self) -> Vec<String> {
        match self.edges {
            Edges::Trimmed => vec![
                "Expressions lost stray punctuation at their ends (`edges: trimmed`); GrIT's authors kept the subtree's own edges, full stops included.".to_owned(),
            ],
            Edges::Raw => Vec::new(),
        }
    }
}

#[derive(Debug)]
struct Expanding {
    config: ExpandExpressions,
}

/// The open columns of a window.
struct Columns {
    texts: Texts,
    chunks: ChunksView,
    boxes: BoxesView,
}

impl Expanding {
    /// The expressions of a row, and how many of them are wider than their chunk and how many were kept from it by conjuncts.
    fn row<'a>(&self, columns: &'a Columns, row: usize) -> Result<(Vec<Expression<'a>>, usize, usize), Fault> {
        let ExpandExpressions { text, chunks, boxes, edges, .. } = &self.config;
        let caption = columns.texts.get(row).ok_or_else(|| Fault::missing(text, "give each image a caption"))?;
        let given = columns
            .chunks
            .row(row)
            .map_err(|e| Fault::invalid(chunks, e))?
            .ok_or_else(|| Fault::missing(chunks, "run noun_chunks before"))?;
        let grounded = columns.boxes.row(row).map_err(|e| Fault::invalid(boxes, e))?;
        let grounded = grounded.ok_or_else(|| Fault::missing(boxes, "write an empty list where there is no box"))?;
        let mut with_box = Vec::with_capacity(grounded.len());
        for (entry, grounded) in grounded.iter().enumerate() {
            match grounded.chunk {
                Some(chunk) if chunk < given.len() => with_box.push(chunk),
                Some(chunk) => {
                    return Err(Fault::invalid(
                        boxes,
                        format!(
                            "entry {entry}: expected `chunk` to be an index into the row's {} chunks, found {chunk}",
                            given.len()
                        ),
                    ));
                }
                None => {
                    return Err(Fault::invalid(
                        boxes,
                        format!(
                            "entry {entry}: expected a `chunk`, found null; put filter_boxes before, which ties boxes to chunks"
                        ),
                    ));
                }
            }
        }
        with_box.sort_unstable();
        with_box.dedup();
        let expressions =
            expand(&CharIndex::new(caption), &given, with_box, *edges).map_err(|e| Fault::invalid(chunks, e))?;
        let bytes: usize = expressions.iter().map(|e| e.text.len()).sum();
        if bytes > MAX_EXPRESSION_BYTES {
            let message = format!(
                "column `{text}`: expected expressions of at most {MAX_EXPRESSION_BYTES} bytes together, found {bytes}; shorten the caption"
            );
            return Err(Fault { code: codes::TEXT_TOO_LONG, message });
        }
        let wider = expressions.iter().filter(|e| e.span.len() > given[e.chunk].span.len()).count();
        let held = expressions.iter().filter(|e| given[e.chunk].has_conjunct).count();
        Ok((expressions, wider, held))
    }
}

#[async_trait]
impl RowWise for Expanding {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let ExpandExpressions { text, chunks, boxes, .. } = &self.config;
        let columns = Columns {
            texts: Texts::try_new(inputs::column(rows, text)?).map_err(inputs::type_changed(text))?,
            chunks: ChunksView::try_new(inputs::column(rows, chunks)?).map_err(inputs::type_changed(chunks))?,
            boxes: BoxesView::try_new(inputs::column(rows, boxes)?).map_err(inputs::type_changed(boxes))?,
        };
        let (mut window, mut output) = (Window::default(), ExpressionsBuilder::new());
        for row in 0..rows.num_rows() {
            match window.settle(row, self.row(&columns, row)) {
                Some((expressions, wider, held)) => {
                    window.count("expressions", expressions.len());
                    window.count("expanded", wider);
                    window.count("kept_for_conjuncts", held);
                    output.append_row(&expressions);
                }
                None => output.append_null(),
            }
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures;

    fn span(start: usize, end: usize) -> CharSpan {
        CharSpan { start, end }
    }

    /// The chunk `text`, which stands once in `caption`, with the subtree that stands there too.
    fn chunk<'a>(caption: &'a str, text: &'a str, subtree: &str) -> Chunk<'a> {
        let at = |part: &str| {
            let start = caption[..caption.find(part).unwrap()].chars().count();
            span(start, start + part.chars().count())
        };
        let (span, subtree) = (at(text), at(subtree));
        let root = text.rsplit(' ').next().unwrap();
        Chunk { span, text, root, lemma: root, subtree, has_conjunct: false, has_children: subtree.end > span.end }
    }

    fn expanded(caption: &str, chunks: &[Chunk<'_>], edges: Edges) -> Vec<String> {
        let index = CharIndex::new(caption);
        let expressions = expand(&index, chunks, 0..chunks.len(), edges).unwrap();
        assert!(expressions.iter().all(|e| index.slice(e.span) == Some(e.text)));
        expressions.iter().map(|e| e.text.to_owned()).collect()
    }

    #[test]
    fn chunks_widen_to_their_subtree() {
        let caption = "a dog in a field of flowers";
        let chunks = [
            chunk(caption, "a dog", caption),
            chunk(caption, "a field", "a field of flowers"),
            chunk(caption, "flowers", "flowers"),
        ];
        for edges in [Edges::Trimmed, Edges::Raw] {
            assert_eq!(
                expanded(caption, &chunks, edges),
                ["a dog in a field of flowers", "a field of flowers", "flowers"]
            );
        }
        let index = CharIndex::new(caption);
        let only_field = expand(&index, &chunks, [1], Edges::Trimmed).unwrap();
        assert_eq!(only_field, [Expression { span: span(9, 27), text: "a field of flowers", chunk: 1 }]);
    }

    #[test]
    fn conjuncts_are_not_expanded() {
        let caption = "a cat and a dog on a mat";
        let mut cat = chunk(caption, "a cat", caption);
        cat.has_conjunct = true;
        for edges in [Edges::Trimmed, Edges::Raw] {
            assert_eq!(expanded(caption, &[cat], edges), ["a cat"]);
        }
    }

    #[test]
    fn trimmed_and_raw_edges_differ_in_punctuation_alone() {
        // (caption, chunk, subtree, raw = the subtree, trimmed)
        let cases = [
            ("A dog in a field of flowers.", "A dog", "A dog in a field of flowers.", "A dog in a field of flowers"),
            (
                "A woman (left) with a red hat sits.",
                "A woman",
                "A woman (left) with a red hat",
                "A woman (left) with a red hat",
            ),
            ("Look: (a woman with a red hat) sits.", "a woman", "(a woman with a red hat)", "a woman with a red hat"),
            ("\"A dog in snow\" by Ann", "\"A dog", "\"A dog in snow\" by Ann", "\"A dog in snow\" by Ann"),
            ("Photo: \"A dog in snow", "\"A dog", "\"A dog in snow", "A dog in snow"),
            ("👩🏽\u{200D}🚀 a woman\tin\na suit…", "a woman", "a woman\tin\na suit…", "a woman\tin\na suit"),
            ("كلب كبير في حقل.", "كلب", "كلب كبير في حقل.", "كلب كبير في حقل"),
            ("nul\0 a dog in\0 snow \0", "a dog", "a dog in\0 snow \0", "a dog in\0 snow"),
        ];
        for (caption, text, subtree, trimmed) in cases {
            let chunks = [chunk(caption, text, subtree)];
            assert_eq!(expanded(caption, &chunks, Edges::Raw), [subtree], "{caption}");
            assert_eq!(expanded(caption, &chunks, Edges::Trimmed), [trimmed], "{caption}");
        }
    }

    #[test]
    fn the_full_stop_of_an_abbreviation_belongs_to_its_chunk() {
        let caption = "a view of Washington D.C.";
        let chunks = [chunk(caption, "a view", caption), chunk(caption, "Washington D.C.", "Washington D.C.")];
        assert_eq!(expanded(caption, &chunks, Edges::Trimmed), [caption, "Washington D.C."]);
    }

    fn rows(caption: Option<&str>, chunks: Value, boxes: Value) -> RecordBatch {
        fixtures::rows([
            ("caption", fixtures::texts([caption])),
            ("chunks", fixtures::column(columns::chunks_type(), [chunks])),
            ("boxes", fixtures::column(columns::boxes_type(), [boxes])),
        ])
    }

    fn stage() -> ExpandExpressions {
        serde_json::from_value(json!({})).unwrap()
    }

    fn boxed(chunk: Value) -> Value {
        json!({"chunk": chunk, "score": 0.9, "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5})
    }

    #[test]
    fn only_chunks_with_a_box_give_an_expression() {
        let caption = "a dog in a field of flowers";
        let outcome = fixtures::run(
            &stage(),
            &rows(Some(caption), fixtures::dog_chunks(), json!([boxed(json!(1)), boxed(json!(0)), boxed(json!(1))])),
        );
        assert_eq!(
            fixtures::json(&outcome.columns[0]),
            [json!([
                {"start": 0, "end": 27, "text": "a dog in a field of flowers", "chunk": 0},
                {"start": 9, "end": 27, "text": "a field of flowers", "chunk": 1},
            ])]
        );
        assert_eq!(fixtures::counts(&outcome), [("expanded", 2), ("expressions", 2)]);
        let outcome = fixtures::run(&stage(), &rows(Some(""), json!([]), json!([])));
        assert_eq!((fixtures::json(&outcome.columns[0]), outcome.failures.len()), (vec![json!([])], 0));
    }

    #[test]
    fn rows_that_contradict_themselves_fail() {
        let dog = fixtures::dog_chunks;
        let cases = [
            (None, dog(), json!([]), codes::MISSING_VALUE, "column `caption`, found null"),
            (
                Some("a dog"),
                dog(),
                json!([]),
                codes::INVALID_VALUE,
                "inside the caption of 5 characters, found 0..5 inside 0..27",
            ),
            (
                Some("a dog in a field of flowers"),
                dog(),
                json!([boxed(json!(7))]),
                codes::INVALID_VALUE,
                "index into the row's 3 chunks, found 7",
            ),
            (
                Some("a dog in a field of flowers"),
                dog(),
                json!([boxed(json!(null))]),
                codes::INVALID_VALUE,
                "put filter_boxes before",
            ),
            (Some("a dog"), json!(null), json!([]), codes::MISSING_VALUE, "run noun_chunks before"),
            (Some("a dog"), json!([]), json!(null), codes::MISSING_VALUE, "column `boxes`, found null"),
        ];
        for (caption, chunks, boxes, code, message) in cases {
            let outcome = fixtures::run(&stage(), &rows(caption, chunks, boxes));
            assert_eq!(outcome.failures.len(), 1, "{message}");
            assert_eq!(outcome.failures[0].code, code);
            assert!(outcome.failures[0].message.contains(message), "{}", outcome.failures[0].message);
        }
    }

    #[test]
    fn boxes_that_name_phrases_are_refused_before_any_work() {
        use arrow::datatypes::{DataType, Field};
        let fields =
            [("phrase", DataType::Utf8)].into_iter().chain(["x1", "y1", "x2", "y2"].map(|n| (n, DataType::Float32)));
        let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true)).collect();
        let schema = Schema::new(vec![
            columns::column("caption", DataType::Utf8),
            columns::column("chunks", columns::chunks_type()),
            columns::column("boxes", DataType::List(Arc::new(Field::new("item", DataType::Struct(fields), true)))),
        ]);
        let error = stage().outputs(&schema).unwrap_err();
        assert!(error.key == "boxes" && error.message.contains("put filter_boxes before"), "{}", error.message);
    }

    proptest! {
        #[test]
        fn spans_are_inside_the_caption_and_on_characters(
            caption in "(?s)[ a-z.,\"'()“”é🐶\u{0}\t\u{200F}ش]{0,40}", cuts in prop::collection::vec((0_usize..41, 0_usize..41, 0_usize..41, any::<bool>()), 0..5), raw: bool,
        ) {
            let index = CharIndex::new(&caption);
            let chunks: Vec<Chunk<'_>> = cuts.iter().map(|&(a, b, c, has_conjunct)| {
                let mut at = [a, b, c].map(|at| at.min(index.len()));
                at.sort_unstable();
                let (span, subtree) = (span(at[0], at[1]), span(at[0], at[2]));
                let text = index.slice(span).unwrap();
                Chunk { span, text, root: text, lemma: text, subtree, has_conjunct, has_children: subtree != span }
            }).collect();
            let expressions = expand(&index, &chunks, 0..chunks.len(), if raw { Edges::Raw } else { Edges::Trimmed }).unwrap();
            prop_assert_eq!(expressions.len(), chunks.len());
            for e in expressions {
                let chunk = chunks[e.chunk];
                prop_assert_eq!(index.slice(e.span), Some(e.text));
                prop_assert!(chunk.subtree.contains(&e.span));
                prop_assert!(!chunk.has_conjunct || chunk.span.contains(&e.span));
                let edges_of = if chunk.has_conjunct { chunk.span } else { chunk.subtree };
                prop_assert!(!raw || e.span == edges_of);
            }
        }

        #[test]
        fn any_chunks_give_expressions_or_a_sentence(caption in ".{0,10}", bounds in prop::array::uniform4(0_usize..20), at in 0_usize..3) {
            let [a, b, c, d] = bounds;
            let chunk = Chunk { span: span(a.min(b), a.max(b)), text: "x", root: "xyz", lemma: "x", subtree: span(c.min(d), c.max(d)), has_conjunct: false, has_children: true };
            if let Ok(expressions) = expand(&CharIndex::new(&caption), &[chunk], [at], Edges::Trimmed) {
                prop_assert!(expressions.iter().all(|e| e.span.end <= caption.chars().count()));
            }
        }
    }
}
