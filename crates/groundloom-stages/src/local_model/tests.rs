#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, num::NonZeroUsize, path::PathBuf, sync::Arc};

use arrow::record_batch::RecordBatch;
use groundloom_llm::{AnswerSchema, Clients, Spending};
use groundloom_models::ModelPool;
use serde_json::{Value, json};

use crate::{
    Generate,
    fixtures::{self, failures, rows, texts},
    stage::{Outcome, Stage},
};

/// A folder that goes with the test.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("groundloom-local-model-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("ask.jinja"), "<<user>>\nSay something about {{ word }}.\n").unwrap();
        Self(path)
    }

    fn stage(&self, model: &str, more: Value) -> Generate {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../groundloom-models/tests/data/chat/");
        let mut config = json!({
            "prompt": self.0.join("ask.jinja"), "model": "tiny", "local": format!("{folder}{model}"),
            "store": self.0.join("answers"), "max_output_tokens": 12, "keep_cut": true,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a run over `rows` gives, and what it did.
fn run(stage: &Generate, rows: &RecordBatch, offline: bool) -> (Outcome, Spending) {
    let (clients, pool) = (Arc::new(Clients::new(offline)), Arc::new(ModelPool::new(NonZeroUsize::new(2).unwrap())));
    assert_eq!(stage.outputs(&rows.schema()).unwrap().len(), 2);
    let open = stage.open_with(rows.schema(), &pool, &clients).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(open.run(rows)).unwrap();
    runtime.block_on(clients.settled());
    let asked = pool.metrics().len();
    let spending = clients.spending();
    assert_eq!(
        asked == 0,
        spending.calls == 0 && outcome.failures.is_empty(),
        "the weights are loaded when needed only"
    );
    (outcome, spending)
}

fn words() -> RecordBatch {
    rows([("word", texts([Some("cats"), Some("dogs"), Some("cats"), Some("rain")]))])
}

#[test]
fn rows_are_answered_once_and_then_from_the_store() {
    let home = Home::new("store");
    let stage = home.stage("qwen2-0", json!({"temperature": 0.8, "seed": 5}));
    let (first, spent) = run(&stage, &words(), false);
    assert_eq!(first.failures, []);
    // Rows that ask the same are answered together.
    assert_eq!((spent.calls, spent.from_store, spent.unpriced, spent.cost.0), (3, 1, false, 0));
    assert!(spent.prompt_tokens > 60 && spent.completion_tokens > 3);
    let answers = fixtures::json(&first.columns[0]);
    assert_eq!(answers[0], answers[2]);
    assert_ne!(answers[0], answers[1]);
    let info = &fixtures::json(&first.columns[1])[0];
    assert_eq!(info["model"], "tiny");
    let (finish, tokens) = (info["finish"].as_str().unwrap(), info["completion_tokens"].as_i64().unwrap());
    assert!(finish == "length" && tokens == 12 || finish == "stop" && tokens <= 12, "{info}");
    for offline in [false, true] {
        let (again, spent) = run(&stage, &words(), offline);
        assert_eq!((spent.calls, spent.from_store), (0, 4));
        assert_eq!(fixtures::json(&again.columns[0]), answers);
    }
    // Rows in another order, asked one after the other: the same answers.
    let other = Home::new("order");
    let stage = other.stage("qwen2-0", json!({"temperature": 0.8, "seed": 5, "concurrency": 1}));
    let turned = rows([("word", texts([Some("rain"), Some("dogs"), Some("cats")]))]);
    let turned = fixtures::json(&run(&stage, &turned, false).0.columns[0]);
    assert_eq!(turned, [answers[3].clone(), answers[1].clone(), answers[0].clone()]);
}

#[test]
fn answers_of_other_weights_are_not_taken() {
    let home = Home::new("weights");
    let one = home.stage("qwen2-0", json!({}));
    let other = home.stage("qwen2-1", json!({}));
    assert_ne!(one.models().unwrap()[0].split('@').next_back(), other.models().unwrap()[0].split('@').next_back());
    let first = run(&one, &words(), false);
    let second = run(&other, &words(), false);
    assert_eq!((first.1.calls, second.1.calls), (3, 3));
    assert_ne!(fixtures::json(&first.0.columns[0]), fixtures::json(&second.0.columns[0]));
}

#[test]
fn rows_fail_by_themselves() {
    let home = Home::new("rows");
    let long = "long ".repeat(200);
    let two = rows([("word", texts([Some("cats"), Some(&long)]))]);
    let (outcome, _) = run(&home.stage("qwen2-0", json!({})), &two, false);
    let [(1, "llm_refused", message)] = failures(&outcome)[..] else { panic!("{:?}", outcome.failures) };
    assert!(message.contains("expected a prompt of at most 512 tokens, found"), "{message}");
}

/// Tiny models with random weights write nothing like JSON by themselves.
#[test]
fn answers_fit_the_schema_whatever_the_model_would_write() {
    let home = Home::new("form");
    let schemas = [
        (json!({"type": "object", "properties": {}, "additionalProperties": false}), 2),
        (
            json!({
                "type": "object", "additionalProperties": false, "required": ["turns", "kind"],
                "properties": {
                    "turns": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"$ref": "#/$defs/turn"}},
                    "kind": {"enum": ["conversation", "detail", null]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}, "sure": {"type": "boolean"},
                },
                "$defs": {"turn": {"type": "object", "required": ["question", "answer"], "additionalProperties": false, "properties": {
                    "question": {"type": "string", "minLength": 1, "maxLength": 40}, "answer": {"type": "string"}, "score": {"type": ["number", "null"]}}}},
            }),
            90,
        ),
        (
            json!({"type": "array", "minItems": 2, "items": {"anyOf": [{"type": "string", "minLength": 2}, {"type": "number"}]}}),
            20,
        ),
        (json!({"type": "integer"}), 3),
    ];
    let mut texts = std::collections::BTreeSet::new();
    for (i, (schema, least)) in schemas.iter().enumerate() {
        let file = home.0.join(format!("form{i}.json"));
        fs::write(&file, schema.to_string()).unwrap();
        let checked = AnswerSchema::new(schema.clone()).unwrap();
        for model in ["llama-0", "llama-1", "llama-fallback", "qwen2-0", "qwen2-1", "qwen3-2"] {
            // So few tokens that it has to end soon, and more.
            for (tokens, temperature) in [(*least, 0.0), (*least, 1.5), (least + 60, 1.5), (200, 0.7)] {
                let more = json!({"schema": file, "repairs": 0, "max_output_tokens": tokens, "temperature": temperature, "seed": 11, "keep_cut": false});
                let (outcome, spent) = run(&home.stage(model, more), &words(), false);
                assert_eq!(outcome.failures, [], "{schema} {model} {tokens} {temperature}");
                assert_eq!(spent.calls, 3);
                for answer in fixtures::json(&outcome.columns[0]) {
                    let text = answer.as_str().unwrap();
                    assert_eq!(checked.faults(&serde_json::from_str(text).unwrap()), Vec::<String>::new());
                    texts.insert(text.to_owned());
                }
            }
        }
    }
    assert!(texts.len() > 100, "random models write many things: {}", texts.len());

    let tight = json!({"schema": home.0.join("form1.json"), "max_output_tokens": 20});
    let (outcome, _) = run(&home.stage("qwen2-0", tight), &rows([("word", self::texts([Some("cats")]))]), false);
    let [(0, "llm_refused", message)] = failures(&outcome)[..] else { panic!("{:?}", outcome.failures) };
    assert!(message.contains("which the shortest answer in the form of the schema takes, found 20"), "{message}");
    let file = home.0.join("pattern.json");
    fs::write(&file, r#"{"type": "string", "pattern": "^a"}"#).unwrap();
    let error = home.stage("qwen2-0", json!({"schema": file})).outputs(&words().schema()).unwrap_err();
    assert!(
        error.key == "schema"
            && error.message.contains("pattern.json: the schema at #/pattern: a local model cannot follow"),
        "{error}"
    );
    assert!(
        home.stage("qwen2-0", json!({"schema": file, "local": null})).outputs(&words().schema()).is_ok(),
        "a server may"
    );
}

#[test]
fn what_only_servers_have_is_refused_by_name() {
    let home = Home::new("refused");
    let schema = words().schema();
    for (key, value) in [
        ("url", json!("http://localhost:8000/v1")),
        ("key_env", json!("KEY")),
        ("batch", json!(true)),
        ("api", json!("responses")),
        ("hedge_after", json!("10s")),
        ("images", json!(["image"])),
    ] {
        let error = home.stage("qwen2-0", json!({key: value})).outputs(&schema).unwrap_err();
        assert_eq!(error.key, key);
        assert!(error.message.contains("leave"), "{error}");
    }
    let top_k = home.stage("qwen2-0", json!({"extra": "{\"top_k\": 5}"})).request_maker().unwrap_err().to_string();
    assert!(top_k.contains("`extra`: a local model knows `chat_template_kwargs` only, found `top_k`"), "{top_k}");
    let missing = home.stage("nothing", json!({})).models().unwrap_err().to_string();
    assert!(missing.contains("no model is called"), "{missing}");
}

#[test]
fn templates_are_given_values() {
    let home = Home::new("template");
    let plain = run(&home.stage("qwen3-0", json!({})), &words(), false).0;
    let kwargs = json!({"extra": "{\"chat_template_kwargs\": {\"enable_thinking\": false}}"});
    let quick = run(&home.stage("qwen3-0", kwargs), &words(), false).0;
    let tokens = |outcome: &Outcome| fixtures::json(&outcome.columns[1])[0]["prompt_tokens"].as_i64().unwrap();
    assert_eq!(tokens(&quick) - tokens(&plain), 2 + 4);
}
