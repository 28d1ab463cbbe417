//! `generate`: asks a language model about every row.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{ArrayRef, Int64Builder, StringBuilder, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use groundloom_data::{MediaView, columns};
use groundloom_llm::{
    AnswerForm, AnswerSchema, Api, BatchOptions, Client, ClientConfig, Clients, Detail, Endpoint, Estimate, Finish,
    Hedge, Image, Key, KeyHeader, Limits, LlmError, Message, Money, Pace, Part, PriceTable, Prompt, Reply, Request,
    RequestHash, Retry, Sampling,
};
use groundloom_models::{JsonForm, ModelPool, describe_local_llm};
use groundloom_spec::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    inputs,
    local_model::{LocalModel, TEMPLATE_VALUES},
    row_values::RowValues,
    stage::{ColumnError, Outcome, RowWise, Stage, StageError},
    window::{Fault, Window},
};

/// Asks a language model about every row, through any OpenAI-compatible server (OpenAI, Azure, vLLM, llama.cpp, Ollama, TGI), or one in a local folder.
///
/// The prompt is a file of Jinja templates with few-shot examples; `groundloom prompt preview` shows the exact request for a row. Every answer lands in the store
/// before it is used, so that no answer that arrived is ever paid for again: not by this run after a kill, and not by any other that asks the same.
/// Rows that the server refuses, that get no answer after all attempts, or whose answer is cut, not in the form that was asked for or empty go to quarantine
/// (`llm_refused`, `llm_no_answer`, `llm_cut`, `llm_form`, `llm_empty`). Likewise rows whose prompt is longer than a local model takes.
/// A wrong key, a missing model, an empty account, a limit that is reached, or a server that stays away or refuses everything end the run, and no further request goes out.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// The prompt file: `<<system>>`, `<<examples FILE>>`, `<<user>>` and `<<assistant>>` lines, each followed by a template that sees the row's columns.
    #[schemars(length(min = 1))]
    pub prompt: String,
    /// The model's name on the server; with `local`, the name that its answers carry.
    #[schemars(length(min = 1))]
    pub model: String,
    /// The server's base URL with its version.
    #[serde(default = "default_url")]
    pub url: String,
    /// Ask a model in this process in place of a server: the path of a folder in Hugging Face layout (`config.json`, `model.safetensors` or its shards,
    /// `tokenizer.json`) with a Llama, Qwen2 or Qwen3; of a folder with one GGUF file of these and its `tokenizer.json`; or one of the hub that is in the cache
    /// (`hf://org/repo@revision`). Its chat template makes the prompt. The store keeps its answers under its weights, tokenizer and template, so no other
    /// model's answer is ever taken for its own. It costs nothing and takes no images. With `schema` it writes nothing
    /// that could not be part of a fitting answer, and ends in time for `max_output_tokens`; it is not shown the schema, so say in the prompt what you want.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub local: Option<String>,
    /// Name of the environment variable that holds the key, such as `OPENAI_API_KEY`. It is read when the first request is made: checking, planning and replaying offline
    /// need no key, and servers on your own machine want none. The key goes to `url` and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// How the key is sent.
    #[serde(default)]
    pub key_header: KeyStyle,
    /// Query parameters of every request: `{ api-version: "2024-10-21" }` for Azure.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// Which interface of the server is used.
    #[serde(default)]
    pub api: Interface,
    /// Image columns to send with the last turn, in front of its text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// How closely the model looks at images. Default: the server's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_detail: Option<ImageDetail>,
    /// The most tokens of an answer. It is what a call in flight reserves.
    #[serde(default = "default_max_output_tokens")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_output_tokens: u64,
    /// How freely words are chosen, from 0 to 2. Default: the server's; with `local` 0, which is the likeliest word each time, or 1 where `top_p` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f64>,
    /// Nucleus sampling. Default: the server's; with `local` 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub top_p: Option<f64>,
    /// Random seed, for servers that take one; with `local` it is 0 by default, and draws depend on it and on the prompt alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Texts that end an answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Further fields of the request as a JSON text, in the server's own words: `'{"top_k": 50}'`. With `local` only
    /// `chat_template_kwargs`, values for the chat template: `'{"chat_template_kwargs": {"enable_thinking": false}}'`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<String>,
    /// A file with a JSON Schema that answers must fit, of draft 2020-12 or the one that its `$schema` names. They are checked here, and asked for again when they do not.
    /// With `local` only words that can be followed while an answer is written: `type`, `enum`, `const`, `properties`, `required`, `items`, `anyOf`, `$ref` into the file itself, bounds of lengths and
    /// counts, and of integers on both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// How often an answer that does not fit the schema is asked for again.
    #[serde(default = "default_repairs")]
    #[schemars(range(max = 10))]
    pub repairs: u32,
    /// Column to write: the answer, text. Beside it `OUTPUT_info` says where it came from.
    #[serde(default = "default_output")]
    pub output: String,
    /// Keep answers that were cut (`finish` in the info column says so), refused in words or are empty, for a later stage to judge, instead of sending their rows to quarantine.
    #[serde(default)]
    pub keep_cut: bool,
    /// Folder of the answer store, on a local disk. Runs and pipelines may share it.
    #[serde(default = "default_store")]
    pub store: String,
    /// Price table (CSV). Default: the one that is built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<String>,
    /// The most money that may be spent, in the price table's currency. The run stops before the call that could pass it.
    /// It holds for this stage; give several stages one `budget` where it is to hold for all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub max_cost: Option<f64>,
    /// The most tokens, input and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// The most calls that are answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_calls: Option<u64>,
    /// The name under which is spent: what earlier runs spent under it counts against the limits. Stages with the same name and store share it, so that
    /// one `budget: run` with one `max_cost` in each of them limits the whole run. Default: server, model and prompt file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// The most calls at the same time. It starts lower and adapts to the server.
    #[serde(default = "default_concurrency")]
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: usize,
    /// The most calls a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u64>,
    /// The most tokens a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens_per_minute: Option<u64>,
    /// Ask through the server's Batch API: up to a day later, at a lower price. Batches of killed runs are gone on with. Rows go in batches of up to 8,192.
    #[serde(default)]
    pub batch: bool,
    /// How often the server is asked whether a batch is done.
    #[serde(default = "default_batch_poll")]
    #[schemars(range(min = 1, max = 86_400))]
    pub batch_poll_seconds: u64,
    /// The share of the list price that requests in a batch cost.
    #[serde(default = "default_batch_price")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub batch_price: f64,
    /// How long one request may take.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: u64,
    /// Requests per row at most, when they fail. Pauses that the server asks for do not count.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// Ask a second time when an answer is slower than this: a time such as `10s`, or `p95` for the time within which 95 of 100 of the latest answers came. The first answer is
    /// used; both are paid, kept and counted against the limits, and a second request that could pass one is not made. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge_after: Option<String>,
    /// The run ends when the server has failed for so long without a single success.
    #[serde(default = "default_give_up")]
    #[schemars(range(min = 1, max = 604_800))]
    pub give_up_seconds: u64,
    /// The run ends when the server has refused so many requests, all in the same words, and has answered none; 0: never. It is what all requests have in common, such as the model's name.
    #[serde(default = "default_give_up_refusals")]
    pub give_up_refusals: u32,
}

/// How the key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyStyle {
    /// `Authorization: Bearer KEY`.
    #[default]
    Bearer,
    /// `api-key: KEY`, as Azure has it.
    ApiKey,
}

/// An interface of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Interface {
    /// Chat completions, which every server has.
    #[default]
    ChatCompletions,
    /// OpenAI's responses.
    Responses,
}

/// How closely a model looks at an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageDetail {
    /// A small version.
    Low,
    /// The full image.
    High,
    /// The server decides.
    Auto,
}

fn default_url() -> String {
    "https://api.openai.com/v1".to_owned()
}
fn default_max_output_tokens() -> u64 {
    1024
}
fn default_repairs() -> u32 {
    1
}
fn default_output() -> String {
    "answer".to_owned()
}
fn default_store() -> String {
    ".groundloom/answers".to_owned()
}
fn default_concurrency() -> usize {
    64
}
fn default_batch_poll() -> u64 {
    60
}
fn default_batch_price() -> f64 {
    0.5
}
fn default_timeout() -> u64 {
    180
}
fn default_attempts() -> u32 {
    8
}
fn default_give_up() -> u64 {
    900
}
fn default_give_up_refusals() -> u32 {
    100
}

impl Config for Generate {
    const NAME: &'static str = "generate";
    const SUMMARY: &'static str = "Ask a language model about every row, and never pay twice";
    const EXAMPLE: &'static str = "replies: { type: generate, prompt: prompts/llava-conversation.jinja, model: gpt-4o-mini, key_env: OPENAI_API_KEY, max_cost: 5 }";
}

/// `OUTPUT_info`: where an answer came from.
fn info_fields() -> Fields {
    Fields::from(vec![
        Field::new("model", DataType::Utf8, true),
        Field::new("prompt", DataType::Utf8, true),
        Field::new("request", DataType::Utf8, true),
        Field::new("finish", DataType::Utf8, true),
        Field::new("prompt_tokens", DataType::Int64, true),
        Field::new("completion_tokens", DataType::Int64, true),
    ])
}

/// How requests are made from rows: everything of the stage that needs no server.
#[derive(Debug)]
pub struct RequestMaker {
    config: Generate,
    prompt: Prompt,
    schema: Option<AnswerSchema>,
    extra: Map<String, Value>,
}

impl Generate {
    /// Reads the files that the stage names.
    ///
    /// # Errors
    /// [`LlmError::Prompt`] or [`LlmError::Setup`] naming the file.
    pub fn request_maker(&self) -> Result<RequestMaker, LlmError> {
        let prompt = Prompt::read(Path::new(&self.prompt))?;
        let schema = self.answer_schema()?;
        let extra = self.settings().map_err(|(key, problem)| LlmError::Setup(format!("`{key}`: {problem}").into()))?;
        Ok(RequestMaker { config: self.clone(), prompt, schema, extra })
    }

    /// The fields of `extra`, if all that is set is of use together; else a key, what is wrong with it, and what to do.
    fn settings(&self) -> Result<Map<String, Value>, (&'static str, String)> {
        let told = |key| move |error: LlmError| (key, error.to_string());
        let extra: Map<String, Value> = match &self.extra {
            Some(text) => serde_json::from_str(text)
                .map_err(|e| ("extra", format!("expected a JSON object such as {{\"top_k\": 50}}: {e}")))?,
            None => Map::new(),
        };
        if let Some(conflict) = self.conflict_with_local(&extra) {
            return Err(conflict);
        }
        let of_chat = [("seed", self.seed.is_some()), ("stop", !self.stop.is_empty())];
        if let Some((key, _)) = of_chat.into_iter().find(|(_, set)| *set && self.api == Interface::Responses) {
            return Err((key, "the responses interface has no such field; use `api: chat_completions`".to_owned()));
        }
        self.hedge().map_err(|problem| ("hedge_after", problem))?;
        let limits = self.limits().map_err(told("max_cost"))?;
        let prices = self.price_table().map_err(told("prices"))?;
        if limits.max_cost.is_some() && !prices.price(&self.model).known {
            let problem =
                format!("a cost limit needs a price, and the price table has none for the model `{}`", self.model);
            let remedy = "name a table with one in `prices` (`groundloom prompt prices` prints the one that is built in), or leave `max_cost` out (null)";
            return Err(("max_cost", format!("{problem}; {remedy}")));
        }
        if self.local.is_none() {
            self.endpoint(None).base().map_err(told("url"))?;
        }
        Ok(extra)
    }

    /// The schema of the answers, if one is named, and nothing that a local model could not follow.
    fn answer_schema(&self) -> Result<Option<AnswerSchema>, LlmError> {
        let setup = |message: String| LlmError::Setup(message.into());
        let Some(path) = &self.schema else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|e| setup(format!("{path}: cannot be read: {e}")))?;
        let value = serde_json::from_str(&text).map_err(|e| setup(format!("{path}: no JSON: {e}")))?;
        let schema = AnswerSchema::new(value).map_err(|e| setup(format!("{path}: {e}")))?;
        if self.local.is_some() {
            JsonForm::new(schema.value()).map_err(|e| setup(format!("{path}: {e}")))?;
        }
        Ok(Some(schema))
    }

    /// A setting that only a server has, beside `local`: its key, and what to do.
    fn conflict_with_local(&self, extra: &Map<String, Value>) -> Option<(&'static str, String)> {
        self.local.as_ref()?;
        let of_servers = [
            ("url", self.url != default_url()),
            ("key_env", self.key_env.is_some()),
            ("query", !self.query.is_empty()),
            ("api", self.api != Interface::ChatCompletions),
            ("batch", self.batch),
            ("hedge_after", self.hedge_after.is_some()),
            ("image_detail", self.image_detail.is_some()),
        ];
        let told = |key| (key, "only a server has this, and `local` asks none; leave one of them out".to_owned());
        let images = (!self.images.is_empty())
            .then(|| ("images", "a local model takes no images; leave `local` out and ask a server".to_owned()));
        let other = extra.keys().find(|key| *key != TEMPLATE_VALUES);
        let unknown =
            other.map(|key| ("extra", format!("a local model knows `{TEMPLATE_VALUES}` only, found `{key}`")));
        let of_server = of_servers.into_iter().find(|(_, set)| *set).map(|(key, _)| told(key));
        of_server.or(images).or(unknown)
    }

    /// What tells the answers of this stage's model from those of others under the same name (see [`Request::hash`]): nothing of a server's, the fingerprint of
    /// a local model.
    ///
    /// # Errors
    /// [`StageError::Model`] where there is no such model.
    pub fn namespace(&self) -> Result<String, StageError> {
        let Some(folder) = &self.local else { return Ok(String::new()) };
        let fingerprint = describe_local_llm(folder)?.fingerprint;
        // Answers of old were not written in the form.
        Ok(if self.schema.is_some() { format!("{fingerprint} in form") } else { fingerprint })
    }

    /// The name under which is spent.
    pub fn budget_name(&self) -> String {
        self.budget.clone().unwrap_or_else(|| format!("{} {} {}", self.asked(), self.model, self.prompt))
    }

    /// The limits of this stage.
    ///
    /// # Errors
    /// [`LlmError::Setup`] where `max_cost` is no amount of money.
    pub fn limits(&self) -> Result<Limits, LlmError> {
        let max_cost = self.max_cost.map(|cost| format!("{cost:.6}").parse::<Money>()).transpose();
        Ok(Limits {
            max_cost: max_cost.map_err(|e| LlmError::Setup(format!("`max_cost`: {e}").into()))?,
            max_tokens: self.max_tokens,
            max_calls: self.max_calls,
        })
    }

    /// Who is asked, as errors and budgets name it.
    pub fn asked(&self) -> String {
        self.local.as_ref().map_or_else(|| self.url.clone(), |folder| format!("the local model {folder}"))
    }

    fn price_table(&self) -> Result<PriceTable, LlmError> {
        match (&self.prices, &self.local) {
            (Some(path), _) => PriceTable::read(Path::new(path)),
            (None, Some(_)) => Ok(PriceTable::free(&self.model)),
            (None, None) => PriceTable::built_in(),
        }
    }

    fn endpoint(&self, key: Option<Key>) -> Endpoint {
        Endpoint {
            url: self.asked(),
            key,
            key_header: match self.key_header {
                KeyStyle::Bearer => KeyHeader::Bearer,
                KeyStyle::ApiKey => KeyHeader::ApiKey,
            },
            query: self.query.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            timeout: Duration::from_secs(self.timeout_seconds),
        }
    }

    fn hedge(&self) -> Result<Option<Hedge>, String> {
        self.hedge_after.as_ref().map(|after| after.parse::<Hedge>()).transpose()
    }

    fn client_config(&self, key: Option<Key>) -> Result<ClientConfig, LlmError> {
        Ok(ClientConfig {
            endpoint: self.endpoint(key),
            namespace: String::new(),
            pace: Pace {
                max_concurrency: self.concurrency,
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                give_up_after: Duration::from_secs(self.give_up_seconds),
            },
            retry: Retry { attempts: self.attempts, refusals: self.give_up_refusals, ..Retry::default() },
            hedge: self.hedge().map_err(|e| LlmError::Setup(format!("`hedge_after`: {e}").into()))?,
            limits: self.limits()?,
            budget: self.budget_name(),
            offline: false,
        })
    }

    /// What a request may cost by the stage's price table.
    ///
    /// # Errors
    /// [`LlmError::Prices`].
    pub fn estimate(&self, request: &Request) -> Result<Estimate, LlmError> {
        Ok(Estimate::of(request, &self.price_table()?))
    }
}

impl RequestMaker {
    /// The requests of a window of rows, or why a row has none.
    fn requests(&self, rows: &RecordBatch) -> Result<Vec<Result<Request, Fault>>, StageError> {
        let values = RowValues::read(rows, &self.prompt.columns())?;
        let mut images = Vec::new();
        for name in &self.config.images {
            let view = MediaView::try_new(inputs::column(rows, name)?).map_err(inputs::type_changed(name))?;
            images.push((name, view));
        }
        let detail = self.config.image_detail.map(|d| match d {
            ImageDetail::Low => Detail::Low,
            ImageDetail::High => Detail::High,
            ImageDetail::Auto => Detail::Auto,
        });
        values
            .into_rows()
            .enumerate()
            .map(|(row, values)| {
                let mut messages = match self.prompt.messages(&values?) {
                    Ok(messages) => messages,
                    Err(error) => return Ok(Err(Fault { code: codes::PROMPT, message: error.to_string() })),
                };
                let mut parts = Vec::new();
                for (name, view) in &images {
                    let Some(bytes) = view.bytes(row) else {
                        return Ok(Err(Fault::missing(name, "give each row an image")));
                    };
                    match Image::new(bytes::Bytes::copy_from_slice(bytes), detail) {
                        Ok(image) => parts.push(Part::Image(image)),
                        Err(message) => return Ok(Err(Fault::invalid(name, message))),
                    }
                }
                if let Some(Message { parts: last, .. }) = messages.last_mut() {
                    parts.append(last);
                    *last = parts;
                }
                Ok(Ok(self.request(messages)))
            })
            .collect()
    }

    fn request(&self, messages: Vec<Message>) -> Request {
        let config = &self.config;
        Request {
            api: match config.api {
                Interface::ChatCompletions => Api::ChatCompletions,
                Interface::Responses => Api::Responses,
            },
            model: config.model.clone(),
            messages,
            sampling: Sampling {
                temperature: config.temperature,
                top_p: config.top_p,
                seed: config.seed,
                stop: config.stop.clone(),
            },
            max_output_tokens: config.max_output_tokens,
            form: self.schema.as_ref().map(|schema| AnswerForm {
                name: "answer".into(),
                schema: schema.value().clone(),
                strict: true,
            }),
            extra: self.extra.clone(),
        }
    }

    /// The requests of rows, for `prompt preview` and `plan`.
    ///
    /// # Errors
    /// A [`StageError`] when the rows lack a column.
    pub fn preview(&self, rows: &RecordBatch) -> Result<Vec<Result<Request, String>>, StageError> {
        Ok(self.requests(rows)?.into_iter().map(|r| r.map_err(|fault| fault.message)).collect())
    }
}

/// The codes of this stage.
mod codes {
    pub(super) const PROMPT: &str = "llm_prompt";
    pub(super) const REFUSED: &str = "llm_refused";
    pub(super) const NO_ANSWER: &str = "llm_no_answer";
    pub(super) const FORM: &str = "llm_form";
    pub(super) const CUT: &str = "llm_cut";
    pub(super) const EMPTY: &str = "llm_empty";
}

impl Stage for Generate {
    fn outputs(&self, input: &Schema) -> Result<Vec<FieldRef>, ColumnError> {
        self.settings().map_err(|(key, message)| ColumnError { key, column: String::new(), message })?;
        for name in &self.images {
            inputs::require(input, "images", name, MediaView::check_type)?;
        }
        let prompt = Prompt::read(Path::new(&self.prompt)).map_err(|e| ColumnError {
            key: "prompt",
            column: self.prompt.clone(),
            message: e.to_string(),
        })?;
        self.answer_schema().map_err(|e| ColumnError {
            key: "schema",
            column: String::new(),
            message: e.to_string(),
        })?;
        for column in prompt.columns() {
            inputs::require(input, "prompt", &column, |_| Ok(()))?;
        }
        Ok(vec![
            columns::column(&self.output, DataType::Utf8),
            columns::column(&format!("{}_info", self.output), DataType::Struct(info_fields())),
        ])
    }

    fn open(&self, input: SchemaRef, models: &Arc<ModelPool>) -> Result<Arc<dyn RowWise>, StageError> {
        self.open_with(input, models, &Arc::new(Clients::default()))
    }

    fn open_with(
        &self,
        _input: SchemaRef,
        models: &Arc<ModelPool>,
        clients: &Arc<Clients>,
    ) -> Result<Arc<dyn RowWise>, StageError> {
        let maker = self.request_maker()?;
        let store = Path::new(&self.store);
        if let Some(folder) = &self.local {
            let config = ClientConfig { namespace: self.namespace()?, ..self.client_config(None)? };
            let model = Arc::new(LocalModel::new(folder, models));
            let client = clients.client_of_model(config, model, store, self.price_table()?)?;
            return Ok(Arc::new(Asking { maker, client }));
        }
        // Without the variable the server is asked without a key: those on one's own machine want none, and others say so in their own words.
        let value = self.key_env.as_ref().and_then(|name| std::env::var(name).ok());
        let key = value.filter(|v| !v.trim().is_empty()).map(|v| Key::new(&v));
        let client = clients.client(self.client_config(key)?, store, self.price_table()?)?;
        Ok(Arc::new(Asking { maker, client }))
    }

    fn as_generate(&self) -> Option<&Generate> {
        Some(self)
    }

    fn window(&self) -> usize {
        // Images are copied into requests: fewer rows at a time.
        match (self.images.is_empty(), self.batch) {
            (true, false) => 1024,
            (true, true) => 8192,
            (false, false) => 128,
            (false, true) => 512,
        }
    }

    fn models(&self) -> Result<Vec<String>, StageError> {
        let maker = self.request_maker()?;
        let model = match &self.local {
            Some(folder) => format!("{folder}@{}", self.namespace()?),
            None => format!("{}@{}", self.model, self.url),
        };
        Ok(vec![model, format!("{}@{}", self.prompt, maker.prompt.version())])
    }

    fn notes(&self) -> Vec<String> {
        vec![format!("Answers of {} were generated by a language model and hold its mistakes.", self.model)]
    }
}

/// An answer, its text as it is written, and how often it was repaired.
type Asked = Result<(String, Reply, u32), LlmError>;

#[derive(Debug)]
struct Asking {
    maker: RequestMaker,
    client: Arc<Client>,
}

impl Asking {
    async fn ask(&self, request: &Request) -> Asked {
        match &self.maker.schema {
            Some(schema) => {
                let formed = self.client.ask_for(request, schema, self.maker.config.repairs).await?;
                Ok((formed.value.to_string(), formed.reply, formed.repairs))
            }
            None => {
                let reply = self.client.ask(request).await?;
                Ok((reply.answer.text.clone(), reply, 0))
            }
        }
    }

    /// The answer to a row's request, if it has one.
    fn call<'a>(
        &'a self,
        row: usize,
        request: &'a Result<Request, Fault>,
        unanswered: &HashMap<RequestHash, LlmError>,
    ) -> BoxFuture<'a, (usize, Option<Asked>)> {
        let Ok(request) = request else { return std::future::ready((row, None)).boxed() };
        // A hash reads all images of a row, and only batches leave rows without an answer.
        let left = if unanswered.is_empty() { None } else { unanswered.get(&self.client.hash(request)) };
        match left {
            Some(error) => std::future::ready((row, Some(Err(error.clone())))).boxed(),
            None => self.ask(request).map(move |asked| (row, Some(asked))).boxed(),
        }
    }

    /// In batch mode: sees to it that answers are in the store; why some are not.
    async fn batch(&self, requests: &[Result<Request, Fault>]) -> Result<HashMap<RequestHash, LlmError>, LlmError> {
        let config = &self.maker.config;
        if !config.batch {
            return Ok(HashMap::new());
        }
        let requests: Vec<&Request> = requests.iter().flatten().collect();
        let poll = Duration::from_secs(config.batch_poll_seconds);
        let options = BatchOptions { poll, price_share: config.batch_price };
        self.client.answer_in_batches(&requests, options).await
    }

    /// Why an answer that arrived is of no use.
    fn unusable(&self, text: &str, reply: &Reply) -> Option<Fault> {
        let (config, answer) = (&self.maker.config, &reply.answer);
        let cut = match answer.finish {
            Finish::Length => format!("cut at {} output tokens; allow more", config.max_output_tokens),
            Finish::ContentFilter => "cut by the server's content filter".to_owned(),
            _ => String::new(),
        };
        if config.keep_cut {
            return None;
        }
        if !cut.is_empty() {
            let message = format!("{cut}, or keep it with `keep_cut: true`; the answer: {}", start_of(text));
            return Some(Fault { code: codes::CUT, message });
        }
        if let Some(refusal) = &answer.refusal {
            return Some(Fault { code: codes::REFUSED, message: format!("the model refused: {}", start_of(refusal)) });
        }
        if !text.trim().is_empty() {
            return None;
        }
        let why = match (answer.reasoning, answer.finish.name()) {
            (0, finish) => format!("it ended with `{finish}`"),
            (characters, _) => format!(
                "all it wrote is {characters} characters of reasoning; allow more output tokens, or turn reasoning off in `extra`"
            ),
        };
        Some(Fault { code: codes::EMPTY, message: format!("the answer is empty: {why}") })
    }

    fn fault(&self, error: &LlmError) -> Fault {
        match error {
            LlmError::NoAnswer { .. } => Fault { code: codes::NO_ANSWER, message: error.to_string() },
            LlmError::Form { text, .. } => {
                Fault { code: codes::FORM, message: format!("{error}; the answer: {}", start_of(text)) }
            }
            _ => Fault { code: codes::REFUSED, message: error.to_string() },
        }
    }
}

fn start_of(text: &str) -> String {
    text.chars().take(2_000).collect()
}

#[derive(Default)]
struct Answers {
    text: StringBuilder,
    model: StringBuilder,
    prompt: StringBuilder,
    request: StringBuilder,
    finish: StringBuilder,
    prompt_tokens: Int64Builder,
    completion_tokens: Int64Builder,
    valid: Vec<bool>,
}

impl Answers {
    fn append(&mut self, answer: Option<(&str, &Reply)>, prompt: &str) {
        let reply = answer.map(|(_, reply)| reply);
        let tokens = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let usage = reply.and_then(|r| r.answer.usage);
        self.text.append_option(answer.map(|(text, _)| text));
        self.model.append_option(reply.map(|r| r.answer.model.as_str()));
        self.prompt.append_option(reply.map(|_| prompt));
        self.request.append_option(reply.map(|r| r.hash.to_string()));
        self.finish.append_option(reply.map(|r| r.answer.finish.name().to_owned()));
        self.prompt_tokens.append_option(usage.map(|u| tokens(u.prompt_tokens)));
        self.completion_tokens.append_option(usage.map(|u| tokens(u.completion_tokens)));
        self.valid.push(reply.is_some());
    }

    fn finish(mut self) -> Vec<ArrayRef> {
        let fields: Vec<ArrayRef> = vec![
            Arc::new(self.model.finish()),
            Arc::new(self.prompt.finish()),
            Arc::new(self.request.finish()),
            Arc::new(self.finish.finish()),
            Arc::new(self.prompt_tokens.finish()),
            Arc::new(self.completion_tokens.finish()),
        ];
        let info = StructArray::new(info_fields(), fields, Some(NullBuffer::from(self.valid)));
        vec![Arc::new(self.text.finish()), Arc::new(info)]
    }
}

#[async_trait]
impl RowWise for Asking {
    async fn run(&self, rows: &RecordBatch) -> Result<Outcome, StageError> {
        let config = &self.maker.config;
        let requests = self.maker.requests(rows)?;
        let unanswered = self.batch(&requests).await?;
        // Twice as many as the server is asked at once: answers that go to the disk, and one that is slow, keep no other row from being asked.
        let most = config.concurrency.max(1).saturating_mul(2);
        let (mut rest, mut under_way) = (requests.iter().enumerate(), FuturesUnordered::new());
        let mut asked: Vec<Option<Asked>> = Vec::new();
        asked.resize_with(requests.len(), || None);
        loop {
            under_way.extend(
                rest.by_ref().take(most - under_way.len()).map(|(row, request)| self.call(row, request, &unanswered)),
            );
            let Some((row, answer)) = under_way.next().await else { break };
            asked[row] = answer;
        }
        drop(under_way);
        let (mut window, mut answers) = (Window::default(), Answers::default());
        let version = self.maker.prompt.version();
        for (row, (request, answer)) in requests.into_iter().zip(asked).enumerate() {
            match (request, answer) {
                (_, Some(Ok((text, reply, repairs)))) => {
                    window.count("repairs", repairs as usize);
                    if let Some(fault) = self.unusable(&text, &reply) {
                        window.fail(row, fault);
                    }
                    window.count("answers", 1);
                    answers.append(Some((&text, &reply)), version);
                }
                (_, Some(Err(error))) if error.is_of_one_row() => {
                    window.fail(row, self.fault(&error));
                    answers.append(None, version);
                }
                (_, Some(Err(error))) => return Err(error.into()),
                (Err(fault), None) => {
                    window.fail(row, fault);
                    answers.append(None, version);
                }
                (Ok(_), None) => return Err(StageError::Other("a request was left out".into())),
            }
        }
        Ok(window.finish(answers.finish()))
    }
}
