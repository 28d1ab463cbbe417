//! `perplexity`: how surprising a text is to a language model.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Builder},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use groundloom_data::columns;
use groundloom_models::{Ability, ModelError, ModelOn, ModelPool, TextScore, TextScorer, Work, resolve_scorer};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    embeddable,
    inputs::{self, Texts},
    noun_chunks::default_text,
    opened::Opened,
    pictures::answered,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Adds the perplexity of each row's text: the inverse of a token's probability, in the geometric mean, as a language model gives it. Fluent text has a low one; lists of
/// keywords, mark-up and noise have a high one, and `filter` drops them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Perplexity {
    /// Column with the text. Of a text beyond the model's longest, the beginning is judged.
    #[serde(default = "default_text")]
    #[schemars(length(min = 1))]
    pub text: String,
    /// The path of a model folder in Hugging Face layout: GPT-2 or OPT.
    #[schemars(length(min = 1))]
    pub model: String,
    /// Column to write: `float64`, at least 1.
    #[serde(default = "default_output")]
    #[schemars(length(min = 1))]
    pub output: String,
}

fn default_output() -> String {
    "perplexity".to_owned()
}

impl Config for Perplexity {
    const NAME: &'static str = "perplexity";
    const SUMMARY: &'static str = "Add how surprising each row's text is to a language model";
    const EXAMPLE: &'static str = "fluent: { type: perplexity, text: caption, model: models/gpt2 }";
}

impl Stage for Perplexity {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        inputs::require(input, "text", &self.text, Texts::check_type)?;
        embeddable::require_ability(&self.model, Ability::Score)?;
        Ok(vec![columns::column(&self.output, DataType::Float64)])
    }

    fn open(&self, _input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        Ok(Opened::new(self, models))
    }

    /// A few of the pool's batches, so that its threads share them.
    fn window(&self) -> usize {
        256
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        embeddable::identity(&self.model)
    }
}

/// The text of a row of a window.
struct Item {
    texts: Arc<Texts>,
    row: usize,
}

struct Scores {
    scorer: Arc<dyn TextScorer>,
}

impl Work for Scores {
    type Item = Item;
    type Output = TextScore;

    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(32).unwrap() }
    }

    fn weights_bytes(&self) -> u64 {
        self.scorer.info().weights_bytes
    }

    fn run(&self, items: &[Item]) -> Vec<Result<TextScore, ModelError>> {
        let texts: Vec<&str> = items.iter().map(|item| item.texts.get(item.row).unwrap_or_default()).collect();
        self.scorer.score(&texts)
    }
}

#[async_trait]
impl RowWise for Opened<Perplexity> {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let Perplexity { text, model: name, .. } = &self.config;
        let texts = Arc::new(Texts::try_new(inputs::column(rows, text)?).map_err(inputs::type_changed(text))?);
        let load = |model: ModelOn<'_>| resolve_scorer(model).map(|scorer| Scores { scorer });
        let model = self.model("scorer", name, load).await?;
        let there = (0..rows.num_rows()).filter(|&row| texts.get(row).is_some());
        let items = there.map(|row| Item { texts: Arc::clone(&texts), row }).collect();
        let mut answers = model.submit(items).await.into_iter();

        let mut window = Window::default();
        let mut output = Float64Builder::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let score = match texts.get(row) {
                None => Err(Fault::missing(text, "drop rows without a text before with `filter`")),
                Some(_) => match answers.next() {
                    Some(Err(ModelError::EmptyText)) => Err(Fault::invalid(text, ModelError::EmptyText)),
                    answer => answered(answer.map(|answer| answer.map(Ok)), None, name)?,
                },
            };
            let score = window.settle(row, score);
            window.count("scored", usize::from(score.is_some()));
            output.append_option(score.map(|s| s.perplexity));
        }
        Ok(window.finish(vec![Arc::new(output.finish()) as ArrayRef]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::{fixtures, stage::codes};

    #[test]
    fn texts_are_scored_by_themselves() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../groundloom-models/tests/data/fixtures");
        let texts = [Some("a man riding a horse"), None, Some(""), Some("a dog"), Some("a man riding a horse")];
        let rows = fixtures::rows([("caption", fixtures::texts(texts))]);
        for model in ["gpt2", "opt"] {
            let stage: Perplexity = serde_json::from_value(json!({"model": folder.join(model)})).unwrap();
            let outcome = fixtures::run(&stage, &rows);
            let scores = fixtures::json(&outcome.columns[0]);
            assert!(
                scores[0].as_f64().unwrap() > 1.0 && scores[0] == scores[4] && scores[0] != scores[3],
                "{scores:?}"
            );
            let failures: Vec<_> = fixtures::failures(&outcome).iter().map(|f| (f.0, f.1)).collect();
            assert_eq!(failures, [(1, codes::MISSING_VALUE), (2, codes::INVALID_VALUE)]);
            assert_eq!(fixtures::counts(&outcome), [("scored", 3)]);
            // The pool's key is the model's folder, and the fingerprint names its weights.
            assert!(stage.models().unwrap()[0].contains('@'));
        }
        let wrong: Perplexity = serde_json::from_value(json!({"model": folder.join("bert")})).unwrap();
        let pool = Arc::new(ModelPool::new(NonZeroUsize::MIN));
        let open = wrong.open(rows.schema(), &pool).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let error = runtime.block_on(open.run(&rows)).unwrap_err().to_string();
        assert!(error.contains("cannot score texts; expected GPT-2 or OPT"), "{error}");
    }
}
