//! `dialogue`: checks a model's reply and turns it into the turns of a training sample.

pub mod checks;
pub mod instructions;
pub mod turns;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, StructArray},
    datatypes::{FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use checks::Fault as Rejection;
use groundloom_data::{ConversationsBuilder, Turn, columns};
use groundloom_models::ModelPool;
use groundloom_spec::Config;
use instructions::{BRIEF, DETAILED, ImagePlace, draw, with_image};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use turns::{Exchange, read_exchanges};

use crate::{
    inputs::{self, Texts},
    noun_chunks::default_text,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Turns a model's reply into `conversations`, the turns of a LLaVA training sample, or refuses it by name.
///
/// A refused row goes to quarantine with its reply as it was, under one of these codes: `cut_answer`, `empty_answer`, `refused_answer`, `broken_turns`, `turn_order`,
/// `empty_turn`, `repeated_question`, `source_leak` ("the caption says"), `coordinate_leak`, `box_out_of_range`.
/// Where the reply's info column says that it was cut (`finish`), it is refused as `cut_answer`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dialogue {
    /// Column with the reply, as `generate` writes it.
    #[serde(default = "default_answer")]
    pub answer: String,
    /// What kind of reply it is.
    pub kind: DialogueKind,
    /// Column to write: `list<struct<from, value>>`.
    #[serde(default = "default_output")]
    pub output: String,
    /// Where `<image>` stands in the first question.
    #[serde(default)]
    pub image_place: ImagePlace,
    /// Whether answers may quote boxes, as `[x1, y1, x2, y2]` in fractions of the image. Otherwise coordinates are refused.
    #[serde(default)]
    pub allow_boxes: bool,
    /// Another seed draws other questions and image places.
    #[serde(default)]
    pub seed: u64,
}

/// The kinds of LLaVA's instruction data (arXiv 2304.08485, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DialogueKind {
    /// Several questions and answers, in the reply grammar: blocks of `Question:` and `Answer:` with `===` lines between them.
    Conversation,
    /// One question and its answer, in the same grammar.
    ComplexReasoning,
    /// An answer only; its question is drawn from 16 that ask for a detailed description.
    Detail,
}

fn default_answer() -> String {
    "answer".to_owned()
}

fn default_output() -> String {
    "conversations".to_owned()
}

impl Config for Dialogue {
    const NAME: &'static str = "dialogue";
    const SUMMARY: &'static str = "Check a model's reply and make it the turns of a training sample";
    const EXAMPLE: &'static str = "talk: { type: dialogue, answer: answer, kind: conversation }";
}

/// The exchanges of a reply that passes every check.
///
/// # Errors
/// The first rule that it breaks.
pub fn checked_exchanges(
    reply: &str,
    kind: DialogueKind,
    allow_boxes: bool,
    question: &str,
) -> Result<Vec<Exchange>, Rejection> {
    if reply.trim().is_empty() {
        return Err(Rejection { code: "empty_answer", message: "the reply is empty".into() });
    }
    if let Some(fault) = checks::refusal(reply) {
        return Err(fault);
    }
    let exchanges = match kind {
        DialogueKind::Detail => {
            vec![Exchange { question: question.to_owned(), answer: reply.trim().to_owned() }]
        }
        DialogueKind::Conversation | DialogueKind::ComplexReasoning => read_exchanges(reply)?,
    };
    if kind == DialogueKind::ComplexReasoning && exchanges.len() != 1 {
        let message = format!("expected one question, found {}", exchanges.len());
        return Err(Rejection { code: "broken_turns", message });
    }
    if let Some(fault) = checks::repeated_question(&exchanges) {
        return Err(fault);
    }
    let asked = exchanges.iter().map(|e| &e.question).filter(|_| kind != DialogueKind::Detail);
    match asked.chain(exchanges.iter().map(|e| &e.answer)).find_map(|text| checks::leak(text, allow_boxes)) {
        Some(fault) => Err(fault),
        None => Ok(exchanges),
    }
}

impl Stage for Dialogue {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "answer", &self.answer, Texts::check_type)?;
        Ok(vec![columns::column(&self.output, columns::conversations_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Checking { config: self.clone() }))
    }
}

#[derive(Debug)]
struct Checking {
    config: Dialogue,
}

/// The texts of a struct column's field, if it is one.
fn texts_of(rows: &RecordBatch, column: &str, field: &str) -> Option<Texts> {
    let column: &StructArray = rows.column_by_name(column)?.as_struct_opt()?;
    Texts::try_new(column.column_by_name(field)?).ok()
}

/// The row ids of a window.
pub(crate) fn row_ids(rows: &RecordBatch) -> Result<Texts, StageError> {
    Texts::try_new(inputs::column(rows, columns::ROW_ID)?).map_err(inputs::type_changed(columns::ROW_ID))
}

#[async_trait]
impl RowWise for Checking {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let config = &self.config;
        let name = &config.answer;
        let answers = Texts::try_new(inputs::column(rows, name)?).map_err(inputs::type_changed(name))?;
        let finishes = texts_of(rows, &format!("{name}_info"), "finish");
        let ids = row_ids(rows)?;
        let (mut window, mut output) = (Window::default(), ConversationsBuilder::new());
        for row in 0..rows.num_rows() {
            let id = ids.get(row).unwrap_or_default();
            let Some(reply) = answers.get(row) else {
                window.fail(row, Fault::missing(name, "give each row a reply"));
                output.append_null();
                continue;
            };
            let cut = finishes.as_ref().and_then(|f| f.get(row)).filter(|f| matches!(*f, "length" | "content_filter"));
            let question = DETAILED[draw(id, config.seed, "instruction", DETAILED.len())];
            let checked = match cut {
                Some(finish) => {
                    Err(Rejection { code: "cut_answer", message: format!("the reply ended with `{finish}`") })
                }
                None => checked_exchanges(reply, config.kind, config.allow_boxes, question),
            };
            match checked {
                Ok(exchanges) => {
                    window.count("turns", exchanges.len());
                    append(&mut output, &exchanges, config.image_place, id, config.seed);
                }
                Err(fault) => {
                    window.fail(row, Fault { code: fault.code, message: fault.message });
                    output.append_null();
                }
            }
        }
        Ok(window.finish(vec![Arc::new(output.finish())]))
    }
}

fn append(output: &mut ConversationsBuilder, exchanges: &[Exchange], place: ImagePlace, id: &str, seed: u64) {
    let first = exchanges.first().map(|e| with_image(&e.question, place, id, seed)).unwrap_or_default();
    let mut turns = Vec::with_capacity(2 * exchanges.len());
    for (i, exchange) in exchanges.iter().enumerate() {
        turns.push(Turn { from: "human", value: if i == 0 { &first } else { &exchange.question } });
        turns.push(Turn { from: "gpt", value: &exchange.answer });
    }
    output.append_row(&turns);
}

/// Makes a caption (or any text) the answer to an instruction: LLaVA's feature-alignment data, no language model needed.
///
/// The instruction is drawn for every row from a list; the first turn carries the image.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Instruct {
    /// Column with the text that answers.
    #[serde(default = "default_text")]
    pub text: String,
    /// What is asked for.
    #[serde(default)]
    pub instructions: Instructions,
    /// Your own instructions instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub questions: Option<Vec<String>>,
    /// Column to write: `list<struct<from, value>>`.
    #[serde(default = "default_output")]
    pub output: String,
    /// Where `<image>` stands in the question.
    #[serde(default)]
    pub image_place: ImagePlace,
    /// Another seed draws other instructions and image places.
    #[serde(default)]
    pub seed: u64,
}

/// Lists of instructions that are built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Instructions {
    /// 11 that ask for a short description.
    #[default]
    Brief,
    /// 16 that ask for a detailed one.
    Detailed,
}

impl Config for Instruct {
    const NAME: &'static str = "instruct";
    const SUMMARY: &'static str = "Make a caption the answer to an instruction";
    const EXAMPLE: &'static str = "asked: { type: instruct, text: caption, instructions: brief }";
}

impl Instruct {
    fn question(&self, row_id: &str) -> &str {
        let at = |n| draw(row_id, self.seed, "instruction", n);
        match (&self.questions, self.instructions) {
            (Some(own), _) => own.get(at(own.len())).map_or("", String::as_str),
            (None, Instructions::Brief) => BRIEF[at(BRIEF.len())],
            (None, Instructions::Detailed) => DETAILED[at(DETAILED.len())],
        }
    }
}

impl Stage for Instruct {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "text", &self.text, Texts::check_type)?;
        Ok(vec![columns::column(&self.output, columns::conversations_type())])
    }

    fn open(&self, _input: SchemaRef, _models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Arc::new(Instructing { config: self.clone() }))
    }

    fn notes(&self) -> Vec<String> {
        vec!["Instructions are Groundloom's own wordings; LLaVA publishes others to the same purpose.".to_owned()]
    }
}

#[derive(Debug)]
struct Instructing {
    config: Instruct,
}

#[async_trait]
impl RowWise for Instructing {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let config = &self.config;
        let texts = Texts::try_new(inputs::column(rows, &config.text)?).map_err(inputs::type_changed(&config.text))?;
        let ids = row_ids(rows)?;
        let (mut window, mut output) = (Window::default(), ConversationsBuilder::new());
        for row in 0..rows.num_rows() {
            let id = ids.get(row).unwrap_or_default();
            match texts.get(row).map(str::trim).filter(|t| !t.is_empty()) {
                Some(text) => {
                    let exchange = Exchange { question: config.question(id).to_owned(), answer: text.to_owned() };
                    append(&mut output, &[exchange], config.image_place, id, config.seed);
                }
                None => {
                    window.fail(row, Fault::missing(&config.text, "give each row a text"));
                    output.append_null();
                }
            }
        }
        let column: ArrayRef = Arc::new(output.finish());
        Ok(window.finish(vec![column]))
    }
}
