//! LLaVA's two data sets through the binary: balanced captions offline, and dialogues by a language model served by a test server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../crates/groundloom-llm/tests/server/mod.rs"]
mod server;
mod support;

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use server::{Behaviour, Server};
use support::{Bench, root, texts};

/// A folder that sees the repository's pipelines, prompts and examples.
fn folder() -> Bench {
    let bench = Bench::new();
    for name in ["pipelines", "prompts", "examples"] {
        std::os::unix::fs::symlink(root().join(name), bench.path(name)).unwrap();
    }
    bench
}

fn read(folder: &Bench, path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.path(path)).unwrap()).unwrap()
}

const TRAINING: &str = "out/llava/data/train-00000-of-00001.json";

#[test]
fn captions_are_balanced_and_become_training_rows_offline() {
    let folder = folder();
    let ended = folder.run(&["run", "pipelines/llava-pretrain.yaml"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let rows = read(&folder, "out/llava-pretrain/data/train-00000-of-00001.json");
    assert_eq!(rows.as_array().unwrap().len(), 18);
    let captions: Vec<String> = std::fs::read_to_string(folder.path("examples/photos/captions.jsonl"))
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["caption"].as_str().unwrap().to_owned())
        .collect();
    for row in rows.as_array().unwrap() {
        let [human, gpt] = row["conversations"].as_array().unwrap().as_slice() else { panic!("{row}") };
        assert_eq!((human["from"].as_str(), gpt["from"].as_str()), (Some("human"), Some("gpt")));
        assert_eq!(human["value"].as_str().unwrap().matches("<image>").count(), 1);
        assert!(captions.iter().any(|c| gpt["value"] == c.as_str()), "{row}");
        assert!(folder.path("examples/photos").join(row["image"].as_str().unwrap()).is_file(), "{row}");
    }
}

#[test]
fn rare_and_common_phrases_are_balanced_as_the_recipe_says() {
    let folder = folder();
    // 40 captions with a dog, 12 with a cat, 2 with a zebra, 1 with both an ox and a dog.
    let caption = |i: usize| match i {
        0..40 => format!("a dog and thing{i}x"),
        40..52 => "a cat".to_owned(),
        52..54 => "a zebra".to_owned(),
        _ => "an ox and a dog".to_owned(),
    };
    let lines: String = (0..55).map(|i| format!("{}\n", json!({"id": i.to_string(), "caption": caption(i)}))).collect();
    std::fs::write(folder.path("rows.jsonl"), lines).unwrap();
    let pipeline = std::fs::read_to_string(folder.path("pipelines/llava-pretrain.yaml")).unwrap();
    let pipeline = pipeline.replace(
        r#"{ type: image_folder, path: "${input}", metadata: captions.jsonl }"#,
        "{ type: jsonl, path: rows.jsonl, key: id }",
    );
    let pipeline = pipeline.replace("instructions: brief }", "image_place: none }");
    std::fs::write(folder.path("balanced.yaml"), pipeline).unwrap();
    let run = |most: &str| {
        let out = format!("out{most}");
        let most = format!("most={most}");
        let args = ["run", "balanced.yaml", "--set", "least=3", "--set", &most, "--set", &format!("output={out}")]
            .map(str::to_owned);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ended = folder.run(&args);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let mut counts = BTreeMap::new();
        for row in read(&folder, &format!("{out}/data/train-00000-of-00001.json")).as_array().unwrap() {
            let answer = row["conversations"][1]["value"].as_str().unwrap().to_owned();
            let animal = ["ox", "dog", "cat", "zebra"].into_iter().find(|a| answer.contains(a)).unwrap();
            *counts.entry(animal).or_insert(0) += 1;
        }
        counts
    };
    // The zebra and the ox are too rare to bring a caption; the ox comes with its dog when the draw takes it.
    let all = run("100");
    assert_eq!(all, BTreeMap::from([("cat", 12), ("dog", 40), ("ox", 1)]));
    let few = run("10");
    assert_eq!(few["cat"], 10);
    assert_eq!(few["dog"] + few.get("ox").copied().unwrap_or(0), 10);
    assert!(!few.contains_key("zebra"));
}

/// What the language model of the test says: good replies, and one of every bad kind.
fn reply(last: &str) -> Option<String> {
    let seed = last.bytes().map(u64::from).sum::<u64>();
    Some(match last {
        t if t.contains("REJECT-leak") => "Question:\nWhat?\n===\nAnswer:\nThe caption says a dog.".into(),
        t if t.contains("REJECT-order") => "Answer:\na\n===\nQuestion:\nb".into(),
        t if t.contains("REJECT-coordinates") => "Question:\nWhere?\n===\nAnswer:\nAt [0.1, 0.2, 0.3, 0.4].".into(),
        t if t.contains("REJECT-empty") => "  \n".into(),
        t if t.contains("REJECT-refusal") => "I'm sorry, but I can't see it.".into(),
        t if t.contains("REJECT-twice") => {
            "Question:\nWho?\n===\nAnswer:\nA.\n===\nQuestion:\nwho\n===\nAnswer:\nB.".into()
        }
        _ => format!("Question:\nWhat is number {seed}?\n===\nAnswer:\nA thing."),
    })
}

const PIPELINE: &str = r#"
params: { url: "", max_calls: 100000 }
sources: { scenes: { type: jsonl, path: scenes.jsonl, key: id } }
stages:
  replies: { type: generate, prompt: prompts/llava-conversation.jinja, model: test, url: "${url}", key_env: OPENAI_API_KEY, max_calls: "${max_calls}", max_output_tokens: 50, keep_cut: true, timeout_seconds: 1 }
  talk: { type: dialogue, kind: conversation }
sinks:
  training: { type: llava, path: out/llava, id: id }
"#;

fn scenes(folder: &Bench, texts: &[String]) {
    let line = |(i, t): (usize, &String)| {
        format!("{}\n", json!({"id": format!("s{i}"), "image": format!("{i}.jpg"), "captions": [t]}))
    };
    let lines: String = texts.iter().enumerate().map(line).collect();
    folder.write("scenes.jsonl", lines);
    folder.write("p.yaml", PIPELINE);
}

#[test]
fn bad_replies_are_named_and_kept_with_their_text() {
    let server = Server::start(Behaviour { answers: reply, ..Behaviour::default() });
    let folder = folder();
    let bad = [
        ("REJECT-leak", "source_leak"),
        ("REJECT-order", "turn_order"),
        ("REJECT-coordinates", "coordinate_leak"),
        ("REJECT-empty", "empty_answer"),
        ("REJECT-refusal", "refused_answer"),
        ("REJECT-twice", "repeated_question"),
        ("REFUSE", "llm_refused"),
    ];
    let mut texts: Vec<String> = (0..20).map(|i| format!("scene {i}")).collect();
    texts.extend(bad.iter().map(|(text, _)| (*text).to_owned()));
    scenes(&folder, &texts);
    let url = format!("url={}", server.url);
    let ended = folder.run(&["run", "p.yaml", "--set", &url]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let manifest = read(&folder, "out/llava/_manifest/manifest.json");
    for (_, code) in bad {
        assert_eq!(manifest["quarantined"][code], json!(1), "{code}: {}", manifest["quarantined"]);
    }
    assert!(ended.err.contains("26 calls") && ended.err.contains("1 requests failed"), "{}", ended.err);
    let text = format!("{:?}", folder.rows("out/llava/_quarantine"));
    assert!(text.contains("The caption says a dog."), "the reply is kept: {text}");

    let rows = read(&folder, TRAINING);
    let ids: Vec<&str> = rows.as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids, (0..20).map(|i| format!("s{i}")).collect::<Vec<_>>(), "rows keep their order");
}

#[test]
fn a_run_says_that_its_server_is_down_and_back() {
    let server = Server::start(Behaviour { answers: reply, ..Behaviour::default() });
    let folder = folder();
    scenes(&folder, &(0..30).map(|i| format!("scene {i}")).collect::<Vec<_>>());
    let url = format!("url={}", server.url);
    server.set_down(true);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            server.set_down(false);
        });
        folder.run(&["run", "p.yaml", "--set", &url])
    });
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    for words in ["counts as down after 10 failures in a row, the last one: ", "is back", "30  kept"] {
        assert!(ended.err.contains(words), "{words}: {}", ended.err);
    }
    assert!(!ended.err.contains('\x1b'), "no colours where nobody looks: {}", ended.err);
}

#[test]
fn settings_of_no_use_are_found_before_any_work() {
    let folder = folder();
    scenes(&folder, &["one".to_owned()]);
    let cases = [
        ("hedge_after: soon", "expected a time such as 10s or a percentile such as p95"),
        ("prices: nowhere.csv", "nowhere.csv: cannot be read"),
        ("max_cost: 1", "a cost limit needs a price, and the price table has none for the model `test`"),
        ("api: responses, stop: [x]", "the responses interface has no such field"),
        ("extra: '{'", "expected a JSON object"),
        ("url: localhost:8000", "expected a URL such as https://api.openai.com/v1, found `localhost:8000`"),
    ];
    for (setting, problem) in cases {
        let key = setting.rsplit(", ").next().unwrap();
        let base = if key.starts_with("url") { "" } else { "url: \"http://127.0.0.1:9/v1\", " };
        let line = format!(
            "  replies: {{ type: generate, prompt: prompts/llava-conversation.jinja, model: test, {base}{setting} }}"
        );
        let value = line.find(key).unwrap() + key.find(' ').unwrap() + 2;
        let pipeline = format!(
            "sources: {{ scenes: {{ type: jsonl, path: scenes.jsonl, key: id }} }}\nstages:\n{line}\nsinks:\n  out: {{ type: jsonl, path: out }}\n"
        );
        folder.write("p.yaml", pipeline);
        let ended = folder.run(&["run", "p.yaml"]);
        assert!(ended.code == Some(2) && ended.err.contains(problem), "{setting}: {}", ended.err);
        assert!(ended.err.starts_with(&format!("p.yaml:3:{value}: error")), "{setting}: {}", ended.err);
        assert!(ended.err.contains("nothing was started"), "{setting}: {}", ended.err);
    }
}

/// What a server sends for answers that are of no use, by what is asked.
fn useless(last: &str) -> Option<Value> {
    let chat = |finish: &str, message: Value, completion: u64| {
        json!({"model": "test", "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": 9, "completion_tokens": completion, "total_tokens": 9 + completion}})
    };
    Some(match last.trim() {
        "white" => chat("stop", json!({"content": " \n "}), 2),
        "thoughts" => chat("length", json!({"content": null, "reasoning_content": "Hm."}), 50),
        "only thoughts" => chat("stop", json!({"content": "", "reasoning": "Hm."}), 5),
        "declined" => chat("stop", json!({"content": null, "refusal": "I can't help with that."}), 7),
        "filtered" => chat("content_filter", json!({"content": "One"}), 1),
        "nothing" => chat("stop", json!({"content": ""}), 0),
        "broken off" => chat("abort", json!({"content": "One"}), 1),
        "no choice" => json!({"object": "list", "data": []}),
        "refused inside" => json!({"error": {"code": 400, "message": "not with this model"}}),
        _ => return None,
    })
}

#[test]
fn answers_of_no_use_have_the_same_reason_alone_and_in_a_batch() {
    let server = Server::start(Behaviour { bodies: useless, ..Behaviour::default() });
    let folder = folder();
    let expected = [
        ("white", "llm_empty", "it ended with `stop`"),
        ("thoughts", "llm_cut", "cut at 50 output tokens"),
        ("only thoughts", "llm_empty", "all it wrote is 3 characters of reasoning"),
        ("declined", "llm_refused", "the model refused: I can't help with that."),
        ("filtered", "llm_cut", "content filter"),
        ("REFUSE", "llm_refused", "(400): This request is against the rules"),
        ("refused inside", "llm_refused", "(400): not with this model"),
        ("nothing", "llm_no_answer", "after 2 attempts; the last one: an answer without a word"),
        ("broken off", "llm_no_answer", "the server broke off (`abort`)"),
        ("no choice", "llm_no_answer", "expected `choices` with one answer"),
    ];
    let asked = expected.iter().map(|(text, ..)| *text).chain(["a cat", "a dog"]);
    let lines: String = asked.map(|text| format!("{}\n", json!({"id": text, "text": text}))).collect();
    folder.write("rows.jsonl", lines);
    folder.write("ask.jinja", "<<user>>\n{{ text }}\n");
    for (name, batch) in [("alone", false), ("together", true)] {
        let pipeline = format!(
            "sources: {{ rows: {{ type: jsonl, path: rows.jsonl, key: id }} }}
stages: {{ said: {{ type: generate, prompt: ask.jinja, model: test, url: '{}', max_output_tokens: 50, attempts: 2, store: {name}-answers, batch: {batch}, batch_poll_seconds: 1 }} }}
sinks: {{ out: {{ type: parquet, path: {name} }} }}
",
            server.url
        );
        folder.write(&format!("{name}.yaml"), pipeline);
        folder.ok(&["run", &format!("{name}.yaml")]);
        let good = folder.rows(&format!("{name}/data"));
        assert_eq!(texts(&good, "text"), ["a cat", "a dog"], "{name}");
        let bad = folder.rows(&format!("{name}/_quarantine"));
        let found = texts(&bad, "text").into_iter().zip(texts(&bad, "code")).zip(texts(&bad, "message"));
        let found: BTreeMap<String, (String, String)> =
            found.map(|((text, code), message)| (text, (code, message))).collect();
        assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
        for (text, code, words) in expected {
            let (found, message) = &found[text];
            assert!(found == code && message.contains(words), "{name}, {text}: {found}: {message}");
        }
    }
}

#[test]
fn a_run_that_is_killed_or_stopped_by_its_cap_goes_on_and_replays_offline() {
    let server = Server::start(Behaviour {
        answers: reply,
        fault_share: 0.2,
        latency: (5, 40),
        slow: Duration::from_millis(1500),
        ..Behaviour::default()
    });
    let folder = folder();
    let texts: Vec<String> = (0..120).map(|i| format!("scene number {i}")).collect();
    scenes(&folder, &texts);
    let url = format!("url={}", server.url);

    let ended = folder.run(&["run", "p.yaml", "--set", &url, "--set", "max_calls=40"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains("stopped before a call that could pass `max_calls: 40`"), "{}", ended.err);
    assert!(server.counts(|c| c.charged_calls) <= 40);

    for more in [20, 20] {
        let until = server.requests() + more;
        let mut child = folder.command(&["run", "p.yaml", "--set", &url]).spawn().unwrap();
        while server.requests() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(3));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let ended = folder.run(&["run", "p.yaml", "--set", &url]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let first = std::fs::read(folder.path(TRAINING)).unwrap();
    let rows: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 120);
    let (requests, failed) = server.counts(|c| (c.requests(), c.failed));
    assert!(requests <= 120 + failed + 2 * 64, "{requests}, {failed}");
    drop(server);

    // The store alone gives the same bytes.
    std::fs::remove_dir_all(folder.path("out")).unwrap();
    let ended = folder.run(&["run", "p.yaml", "--set", &url, "--offline"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(std::fs::read(folder.path(TRAINING)).unwrap(), first);
    assert!(ended.err.contains("0 calls") && ended.err.contains("120 answers from the store"), "{}", ended.err);
}

#[test]
fn previews_and_plans_say_what_will_be_asked() {
    let folder = folder();
    let shown =
        folder.run(&["prompt", "preview", "pipelines/llava-instruct.yaml", "--stage", "reason_reply", "--rows", "2"]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let lines: Vec<Value> = shown.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let body = &lines[0]["body"];
    assert_eq!((body["model"].as_str(), body["max_tokens"].as_u64()), (Some("gpt-4o-mini"), Some(1000)));
    assert_eq!(body["messages"].as_array().unwrap().len(), 1 + 2 * 3 + 1);
    assert_eq!(lines[0]["request_hash"].as_str().unwrap().len(), 64);
    assert!(lines[0]["prompt_tokens"].as_u64().unwrap() > 500);

    let plan = folder.run(&["plan", "pipelines/llava-instruct.yaml", "--json"]);
    assert_eq!(plan.code, Some(0), "{}", plan.err);
    let plan: Value = serde_json::from_str(&plan.out).unwrap();
    let calls = plan["language_models"].as_array().unwrap();
    assert_eq!(calls.len(), 3);
    assert!(calls.iter().all(|c| c["prompt_tokens"].as_u64().unwrap() > 300), "{calls:?}");
    let numbers: Vec<u64> = calls.iter().map(|c| c["calls"].as_u64().unwrap()).collect();
    assert!(numbers.iter().all(|n| *n <= 8) && numbers.iter().sum::<u64>() > 8, "{numbers:?}");
    assert!(calls.iter().all(|c| c["max_cost"].as_str().unwrap().starts_with("0.0")), "{calls:?}");
    let none = folder.run(&["prompt", "preview", "pipelines/grit.yaml"]);
    assert_eq!(none.code, Some(2), "{}", none.err);
}

#[test]
fn one_budget_caps_the_three_kinds_together() {
    let server = Server::start(Behaviour { answers: reply, ..Behaviour::default() });
    let folder = folder();
    let (url, cap) = (format!("url={}", server.url), 0.0012);
    let set = ["--set", &url, "--set", "max_cost=0.0012", "--set", "concurrency=3"];
    let ended = folder.run(&[&["run", "pipelines/llava-instruct.yaml"][..], &set].concat());
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains("`max_cost: 0.0012`"), "{}", ended.err);
    let (calls, cost) = server.counts(|c| {
        let micros = c.charged_prompt_tokens as f64 * 0.15 + c.charged_completion_tokens as f64 * 0.6;
        (c.charged_calls, micros / 1e6)
    });
    assert!(calls > 2 && cost <= cap && cost > cap / 10.0, "{calls} calls for {cost}");
    assert!(ended.err.contains("budget \"llava-instruct\": 0.0"), "{}", ended.err);

    // Each stage for itself would have stayed below the cap, and all together not.
    let plan = folder.run(&[&["plan", "pipelines/llava-instruct.yaml", "--json"][..], &set].concat());
    assert_eq!(plan.code, Some(0), "{}", plan.err);
    let plan: Value = serde_json::from_str(&plan.out).unwrap();
    let [budget] = plan["budgets"].as_array().unwrap().as_slice() else { panic!("{}", plan["budgets"]) };
    assert_eq!(budget["stages"], json!(["talk_reply", "detail_reply", "reason_reply"]));
    let spent: f64 = budget["spent"]["cost"].as_str().unwrap().parse().unwrap();
    assert!((spent - cost).abs() < 1e-6 && budget["spent"]["calls"] == calls, "{budget} {cost}");
    let told = folder.run(&[&["plan", "pipelines/llava-instruct.yaml"][..], &set].concat()).out;
    assert!(
        told.contains(
            "of max_cost 0.0012 spent, by all runs so far; for talk_reply, detail_reply, reason_reply together"
        ),
        "{told}"
    );

    // More money: the answers that are there are not asked for again, and all rows come through.
    let set = ["--set", &url, "--set", "max_cost=1", "--set", "concurrency=3"];
    let ended = folder.run(&[&["run", "pipelines/llava-instruct.yaml"][..], &set].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains(&format!("{calls} answers from the store")), "{}", ended.err);
    assert!(server.counts(|c| c.asked.values().all(|times| *times == 1)));
}
