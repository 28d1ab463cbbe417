#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{cell::Cell, collections::HashMap, fs, path::Path};

use candle_core::{
    DType, Device,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use serde_json::json;

use super::*;
use crate::{Sampling, decoder::Past};

const FOLDERS: [&str; 10] = [
    "llama-0",
    "llama-1",
    "llama-2",
    "llama-fallback",
    "qwen2-0",
    "qwen2-1",
    "qwen2-2",
    "qwen3-0",
    "qwen3-1",
    "qwen3-2",
];
/// Tokens that the fixtures hold, at most.
const STEPS: usize = 24;

#[derive(Deserialize)]
struct Expected {
    conversations: Vec<Conversation>,
    greedy: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<HashMap<String, String>>,
    kwargs: Map<String, Value>,
    rendered: String,
    ids: Vec<u32>,
}

impl Conversation {
    fn messages(&self) -> Vec<ChatMessage> {
        let turn = |turn: &HashMap<String, String>| message(&turn["role"], &turn["content"]);
        self.messages.iter().map(turn).collect()
    }
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned() }
}

fn path(folder: &str) -> String {
    format!("{}/tests/data/chat/{folder}", env!("CARGO_MANIFEST_DIR"))
}

fn expected(folder: &str) -> Expected {
    serde_json::from_slice(&fs::read(format!("{}/expected.json", path(folder))).unwrap()).unwrap()
}

fn asked(messages: Vec<ChatMessage>) -> ChatRequest {
    ChatRequest {
        messages,
        writing: Writing { max_new_tokens: STEPS, ..Writing::default() },
        seed: 0,
        stop: Vec::new(),
        form: None,
        template_values: Map::new(),
    }
}

/// The greedy tokens behind the first conversation.
fn greedy(model: &LocalLlm, ids: &[u32]) -> Vec<u32> {
    let writing = Writing { max_new_tokens: STEPS, ..Writing::default() };
    let ending = Ending::at(&model.ends);
    let written = match &model.network {
        Network::Whole(network) => whole(network, ids, &writing, 0, ending),
        Network::Quantized(network) => network.write(ids, &writing, 0, ending, &|| Ok(())),
    };
    written.unwrap().ids
}

/// A copy of a fixture's files that are no weights.
fn copy(folder: &str, to: &Path) {
    for entry in fs::read_dir(path(folder)).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|kind| kind != "safetensors") {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn prompts_logits_and_greedy_tokens_are_those_of_transformers() {
    for folder in FOLDERS {
        let (model, expected) = (LocalLlm::load(&path(folder)).unwrap(), expected(folder));
        assert_eq!(model.info(), &describe_local_llm(&path(folder)).unwrap());
        assert_eq!(model.info().model.architecture, folder.split('-').next().unwrap());
        for conversation in &expected.conversations {
            let (rendered, ids) = model.prompt(&conversation.messages(), &conversation.kwargs).unwrap();
            assert_eq!(rendered, conversation.rendered, "{folder}");
            assert_eq!(ids, conversation.ids, "{folder}");
        }
        let first = &expected.conversations[0];
        let Network::Whole(network) = &model.network else { panic!("{folder}") };
        let vectors = network.embed(&row(&first.ids).unwrap()).unwrap();
        let hidden = network.forward(vectors, None, &mut Past::default(), &mut |_| ()).unwrap();
        let found = network.logits(&hidden.narrow(1, first.ids.len() - 2, 2).unwrap()).unwrap();
        let tensors =
            candle_core::safetensors::load(format!("{}/expected.safetensors", path(folder)), &Device::Cpu).unwrap();
        let wanted: Vec<f32> = tensors["logits"].flatten_all().unwrap().to_vec1().unwrap();
        let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(wanted.len(), found.len());
        let apart = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-4, "{folder}: {apart}");
        assert_eq!(greedy(&model, &first.ids), expected.greedy, "{folder}");
        let answer = model.answer(&asked(first.messages()), &|| true).unwrap();
        assert_eq!(answer.text, expected.text, "{folder}");
        assert_eq!(answer.cut, expected.greedy.len() == STEPS, "{folder}");
        assert_eq!((answer.prompt_tokens, answer.answer_tokens), (first.ids.len(), expected.greedy.len()));
    }
}

/// A fixture's weights as llama.cpp names and turns them, matrices stored as `kind`; positions as the `config.json` in `to` scales them.
fn write_gguf(folder: &str, kind: GgmlDType, to: &Path) {
    let config: Value = serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
    let number = |key: &str| u32::try_from(config[key].as_u64().unwrap()).unwrap();
    let architecture = config["model_type"].as_str().unwrap();
    let tensors = candle_core::safetensors::load(format!("{}/model.safetensors", path(folder)), &Device::Cpu).unwrap();
    let (heads, shared) = (number("num_attention_heads") as usize, number("num_key_value_heads") as usize);
    let head = config["head_dim"].as_u64().map_or(number("hidden_size") as usize / heads, |width| width as usize);
    let renames = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    let mut written = Vec::new();
    for (name, tensor) in &tensors {
        let mut tensor = tensor.to_dtype(DType::F32).unwrap();
        // Points of llama.cpp's Llama are neighbours.
        let turned = [("q_proj", heads), ("k_proj", shared)].into_iter().find(|(part, _)| name.contains(part));
        if let Some((_, heads)) = turned.filter(|_| architecture == "llama") {
            let width = tensor.dim(1).unwrap();
            let points = tensor.reshape((heads, 2, head / 2, width)).unwrap().transpose(1, 2).unwrap();
            tensor = points.contiguous().unwrap().reshape((heads * head, width)).unwrap();
        }
        let name = renames.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
        let kind = if tensor.rank() == 2 { kind } else { GgmlDType::F32 };
        written.push((name, QTensor::quantize(&tensor, kind).unwrap()));
    }
    let rope = |key: &str| config["rope_parameters"][key].as_f64().unwrap_or(f64::NAN) as f32;
    let mut scaling = Vec::new();
    match config["rope_parameters"]["rope_type"].as_str().unwrap() {
        "llama3" => {
            // As llama.cpp's `convert_hf_to_gguf.py` makes them from the same options.
            let factors: Vec<f32> = (0..head / 2)
                .map(|i| {
                    let wave = 2.0 * std::f32::consts::PI * rope("rope_theta").powf(2.0 * i as f32 / head as f32);
                    let turns = rope("original_max_position_embeddings") / wave;
                    let (low, high) = (rope("low_freq_factor"), rope("high_freq_factor"));
                    match turns {
                        turns if turns > high => 1.0,
                        turns if turns < low => rope("factor"),
                        turns => {
                            let smooth = (turns - low) / (high - low);
                            1.0 / ((1.0 - smooth) / rope("factor") + smooth)
                        }
                    }
                })
                .collect();
            assert!(factors[0] == 1.0 && factors.iter().any(|factor| *factor > 1.0), "{factors:?}");
            let factors = Tensor::new(factors, &Device::Cpu).unwrap();
            written.push(("rope_freqs.weight".to_owned(), QTensor::quantize(&factors, GgmlDType::F32).unwrap()));
        }
        "default" => {}
        kind => {
            scaling.push(("rope.scaling.type", gguf_file::Value::String(kind.to_owned())));
            scaling.push(("rope.scaling.factor", gguf_file::Value::F32(rope("factor"))));
            if kind == "yarn" {
                let original = rope("original_max_position_embeddings") as u32;
                scaling.push(("rope.scaling.original_context_length", gguf_file::Value::U32(original)));
            }
        }
    }
    let value = |name: &str, value: gguf_file::Value| (format!("{architecture}.{name}"), value);
    let u32 = gguf_file::Value::U32;
    let theta = config["rope_parameters"]["rope_theta"].as_f64().unwrap();
    let metadata = [
        ("general.architecture".to_owned(), gguf_file::Value::String(architecture.to_owned())),
        value("attention.head_count", u32(heads as u32)),
        value("attention.head_count_kv", u32(shared as u32)),
        value("attention.key_length", u32(head as u32)),
        value("block_count", u32(number("num_hidden_layers"))),
        value("embedding_length", u32(number("hidden_size"))),
        value("context_length", u32(number("max_position_embeddings"))),
        value("rope.dimension_count", u32(head as u32)),
        value("rope.freq_base", gguf_file::Value::F32(theta as f32)),
        value(
            "attention.layer_norm_rms_epsilon",
            gguf_file::Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
    ];
    let scaling = scaling.into_iter().map(|(name, found)| value(name, found));
    let metadata: Vec<_> = metadata.into_iter().chain(scaling).collect();
    let metadata: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = written.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = fs::File::create(to.join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
}

/// What transformers writes with positions that are scaled by YaRN.
#[test]
fn yarn_scales_positions_as_transformers_does() {
    let cases: Vec<Value> = serde_json::from_slice(&fs::read(path("yarn.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let folder = case["folder"].as_str().unwrap();
        let home = tempfile::tempdir().unwrap();
        copy(folder, home.path());
        let file = home.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["rope_parameters"] = case["rope_parameters"].clone();
        fs::write(&file, config.to_string()).unwrap();
        let wanted: Vec<u32> = serde_json::from_value(case["greedy"].clone()).unwrap();
        let plain = expected(folder);
        assert_ne!(wanted, plain.greedy);
        let ids = &plain.conversations[0].ids;
        let name = home.path().to_str().unwrap();
        for gguf in [false, true] {
            match gguf {
                false => drop(
                    fs::copy(format!("{}/model.safetensors", path(folder)), home.path().join("model.safetensors"))
                        .unwrap(),
                ),
                true => {
                    fs::remove_file(home.path().join("model.safetensors")).unwrap();
                    write_gguf(folder, GgmlDType::F32, home.path());
                }
            }
            let model = LocalLlm::load(name).unwrap();
            assert_eq!(greedy(&model, ids), wanted, "{folder} {gguf}");
        }
    }
}

/// A network whose positions are scaled is ours; its values are those of the weights in safetensors.
#[test]
fn networks_of_gguf_files_with_scaled_positions_give_the_same_values() {
    for folder in ["llama-1", "llama-2"] {
        let home = tempfile::tempdir().unwrap();
        copy(folder, home.path());
        write_gguf(folder, GgmlDType::F32, home.path());
        let model = LocalLlm::load(home.path().to_str().unwrap()).unwrap();
        let Network::Quantized(network) = &model.network else { panic!("{folder}") };
        let tensors =
            candle_core::safetensors::load(format!("{}/expected.safetensors", path(folder)), &Device::Cpu).unwrap();
        let wanted: Vec<f32> = tensors["logits"].get(1).unwrap().to_vec1().unwrap();
        let ids = &expected(folder).conversations[0].ids;
        // Whole, and in pieces.
        for piece in [ids.len(), 64, 7, 1] {
            let found = network.values(ids, piece);
            let apart = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{folder} {piece}: {apart}");
        }
        assert_eq!(greedy(&model, ids), expected(folder).greedy, "{folder}");
        for kind in [GgmlDType::Q8_0, GgmlDType::Q4_0] {
            let wide = expected("llama-0").conversations[0].ids.clone();
            let home = tempfile::tempdir().unwrap();
            copy("llama-0", home.path());
            let file = home.path().join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            config["rope_parameters"]["rope_type"] = json!("linear");
            // A scaling that changes nothing: candle's network and ours read the same weights.
            config["rope_parameters"]["factor"] = json!(1.0);
            write_gguf("llama-0", kind, home.path());
            let theirs = LocalLlm::load(home.path().to_str().unwrap()).unwrap();
            fs::write(&file, config.to_string()).unwrap();
            write_gguf("llama-0", kind, home.path());
            let ours = LocalLlm::load(home.path().to_str().unwrap()).unwrap();
            let [theirs, ours] = [&theirs, &ours].map(|model| {
                let Network::Quantized(network) = &model.network else { panic!() };
                network.values(&wide, 64)
            });
            let apart = theirs.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{kind:?}: {apart}");
        }
    }
}

#[test]
fn gguf_files_answer_as_the_weights_that_they_hold() {
    for folder in ["llama-0", "llama-1", "llama-2", "qwen2-0", "qwen2-2", "qwen3-0", "qwen3-1"] {
        let expected = expected(folder);
        let home = tempfile::tempdir().unwrap();
        copy(folder, home.path());
        write_gguf(folder, GgmlDType::F32, home.path());
        let name = home.path().to_str().unwrap().to_owned();
        let model = LocalLlm::load(&name).unwrap();
        assert_eq!(model.info(), &describe_local_llm(&name).unwrap());
        let ids = &expected.conversations[0].ids;
        assert!(ids.len() > 64 && ids.len() % 64 > 2, "the prompt is read in several parts");
        for _ in 0..2 {
            assert_eq!(greedy(&model, ids), expected.greedy, "{folder}");
        }
        let whole = LocalLlm::load(&path(folder)).unwrap();
        let (Network::Whole(whole), Network::Quantized(network)) = (&whole.network, &model.network) else { panic!() };
        // As far from the start as the positions of the fixtures go, where a turn that is a little off has added up.
        let far: Vec<u32> = (0..500).map(|i| i * 7919 % 256).collect();
        let vectors = whole.embed(&row(&far).unwrap()).unwrap();
        let hidden = whole.forward(vectors, None, &mut Past::default(), &mut |_| ()).unwrap();
        let wanted = whole.logits(&hidden.narrow(1, far.len() - 1, 1).unwrap()).unwrap();
        let wanted: Vec<f32> = wanted.flatten_all().unwrap().to_vec1().unwrap();
        for piece in [64, 1] {
            let found = network.values(&far, piece);
            let apart = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == wanted.len() && apart < 1e-4, "{folder}: {apart}");
        }
        if folder.ends_with("-0") {
            write_gguf(folder, GgmlDType::Q8_0, home.path());
            let smaller = LocalLlm::load(&name).unwrap();
            assert_ne!(smaller.info().fingerprint, model.info().fingerprint);
            assert_eq!(greedy(&smaller, ids), greedy(&smaller, ids));
        }
    }
}

#[test]
fn draws_depend_on_the_prompt_and_the_seed_alone() {
    let model = LocalLlm::load(&path("qwen2-1")).unwrap();
    let drawn = |text: &str, seed: u64| {
        let sampling = Sampling::TopP { p: 0.95, temperature: 1.2 };
        let writing = Writing { max_new_tokens: 12, sampling, ..Writing::default() };
        let request = ChatRequest { writing, seed, ..asked(vec![message("user", text)]) };
        model.answer(&request, &|| true).unwrap()
    };
    let first = drawn("hi", 7);
    assert_ne!(drawn("hi", 8), first);
    assert_ne!(drawn("ho", 7).text, first.text);
    assert_eq!(drawn("hi", 7), first);
}

/// A tokenizer of SentencePiece's kind: some characters are pieces, a space is ▁, and what no piece has is written byte by byte.
#[test]
fn texts_beyond_ascii_fit_a_form_by_pieces_and_by_bytes() {
    let model = LocalLlm::load(&path("llama-fallback")).unwrap();
    let mut beyond = std::collections::BTreeSet::new();
    for place in ["Zürich, für dich", "京都", "🎉 é\u{7f}", "a▁b", "<0x41>", "\n"] {
        let schema = json!({
            "type": "object", "required": ["place", "text"],
            "properties": {"place": {"const": place}, "text": {"type": "string", "minLength": 6, "maxLength": 30}},
        });
        let least = json!({"place": place, "text": "123456"}).to_string().len();
        let form = JsonForm::new(&schema).unwrap();
        for seed in 0..20 {
            // So few tokens that it has to end at once, and enough.
            let max_new_tokens = if seed % 2 == 0 { least } else { least + 120 };
            let sampling = Sampling::TopP { p: 1.0, temperature: 1.5 };
            let writing = Writing { max_new_tokens, sampling, ..Writing::default() };
            let request =
                ChatRequest { writing, seed, form: Some(form.clone()), ..asked(vec![message("user", "où?")]) };
            let answer = model.answer(&request, &|| true).unwrap();
            let value: Value = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{}: {e}", answer.text));
            let text = value["text"].as_str().unwrap();
            assert!(value["place"] == place && (6..=30).contains(&text.chars().count()), "{}", answer.text);
            assert!(!answer.cut && answer.answer_tokens <= max_new_tokens, "{}", answer.text);
            beyond.extend(text.chars().filter(|c| !c.is_ascii()));
        }
    }
    assert!(beyond.contains(&'ü') && beyond.len() > 20, "by pieces and by bytes: {beyond:?}");
}

#[test]
fn answers_end_at_a_stop_text_at_the_limit_or_when_given_up() {
    let model = LocalLlm::load(&path("qwen3-0")).unwrap();
    let request = asked(expected("qwen3-0").conversations[0].messages());
    let whole = model.answer(&request, &|| true).unwrap();
    let text = "D\u{2}";
    assert!(whole.text.contains(text) && whole.cut);
    let stopped = model.answer(&ChatRequest { stop: vec!["nowhere".into(), text.into()], ..request.clone() }, &|| true);
    let stopped = stopped.unwrap();
    assert_eq!(stopped.text, whole.text[..whole.text.find(text).unwrap()]);
    assert!(!stopped.cut && stopped.answer_tokens < whole.answer_tokens);
    let short = Writing { max_new_tokens: 3, ..Writing::default() };
    let short = model.answer(&ChatRequest { writing: short, ..request.clone() }, &|| true).unwrap();
    assert!(short.cut && short.answer_tokens == 3);
    let asked_for = Cell::new(0);
    let patience = || {
        asked_for.set(asked_for.get() + 1);
        asked_for.get() < 5
    };
    assert_eq!(model.answer(&request, &patience).unwrap_err(), ModelError::GivenUp);
    assert_eq!(asked_for.get(), 5);
    let long = asked(vec![message("user", &"a".repeat(600))]);
    let error = model.answer(&long, &|| true).unwrap_err();
    assert!(matches!(error, ModelError::NoRoom { longest: 512, .. }), "{error}");
}

#[test]
fn what_cannot_be_answered_is_refused_with_a_remedy() {
    let model = LocalLlm::load(&path("llama-0")).unwrap();
    let error = model.answer(&asked(vec![message("assistant", "hi")]), &|| true).unwrap_err().to_string();
    assert!(error.contains("refuses the conversation: Roles must take turns"), "{error}");

    let home = tempfile::tempdir().unwrap();
    let name = home.path().to_str().unwrap().to_owned();
    copy("llama-0", home.path());
    fs::copy(format!("{}/model.safetensors", path("llama-0")), home.path().join("model.safetensors")).unwrap();
    let refusal = || LocalLlm::load(&name).map(|_| ()).unwrap_err().to_string();
    let before = describe_local_llm(&name).unwrap();
    fs::write(home.path().join("tokenizer_config.json"), "{}").unwrap();
    assert_ne!(describe_local_llm(&name).unwrap().fingerprint, before.fingerprint);
    assert_eq!(describe_local_llm(&name).unwrap().model, before.model);
    assert!(refusal().contains("put the template of its model card into chat_template.jinja"), "{}", refusal());
    let templates = json!({"chat_template": [{"name": "tool_use", "template": ""}]}).to_string();
    fs::write(home.path().join("tokenizer_config.json"), templates).unwrap();
    assert!(refusal().contains("expected a chat template named \"default\", found tool_use"), "{}", refusal());
    fs::write(home.path().join("chat_template.jinja"), "{{ strftime_now('%d') }}").unwrap();
    let model = LocalLlm::load(&name).unwrap();
    let error = model.answer(&asked(vec![message("user", "hi")]), &|| true).unwrap_err().to_string();
    assert!(error.contains("it asks for today's date"), "{error}");
    fs::write(home.path().join("chat_template.jinja"), "{% if %}").unwrap();
    assert!(refusal().contains("expected a Jinja template, found:"), "{}", refusal());

    let config = fs::read_to_string(home.path().join("config.json")).unwrap();
    let mut changed: Value = serde_json::from_str(&config).unwrap();
    changed["rope_parameters"]["rope_type"] = json!("longrope");
    fs::write(home.path().join("config.json"), changed.to_string()).unwrap();
    fs::write(home.path().join("chat_template.jinja"), "hi").unwrap();
    assert!(refusal().contains("rope_type to be default, linear, llama3 or yarn, found longrope"), "{}", refusal());

    fs::remove_file(home.path().join("model.safetensors")).unwrap();
    write_gguf("llama-0", GgmlDType::F32, home.path());
    assert!(refusal().contains("scaled by linear, yarn or rope_freqs.weight, found longrope"), "{}", refusal());
    fs::remove_file(home.path().join("model.gguf")).unwrap();
    fs::write(home.path().join("a.gguf"), "none").unwrap();
    assert!(refusal().contains("expected a GGUF file"), "{}", refusal());
    fs::write(home.path().join("b.gguf"), "none").unwrap();
    assert!(refusal().contains("expected one GGUF file, found a.gguf, b.gguf"), "{}", refusal());
    let error = describe_local_llm(&format!("{}/../fixtures/gpt2", path("."))).unwrap_err().to_string();
    assert!(error.contains("supported: llama, qwen2, qwen3"), "{error}");
}

#[test]
fn templates_have_the_methods_of_python() {
    let home = tempfile::tempdir().unwrap();
    let rendered = |template: &str| {
        fs::write(home.path().join("chat_template.jinja"), template).unwrap();
        let settings = ChatSettings::default();
        let folder = ModelFolder::OnDisk(home.path().to_owned());
        ChatTemplate::open(&folder, &settings, None).unwrap().render(&[message("user", " a=b=c ")], &Map::new())
    };
    // Each text is what Python's own method, or json.dumps, gives.
    for (template, expected) in [
        ("{{ messages[0].content.strip() }}|", "a=b=c|"),
        ("{{ messages[0].content.strip(' a').rstrip('c') }}|", "=b=|"),
        ("{{ messages[0].content.lstrip() }}|", "a=b=c |"),
        ("{{ messages[0].content.split('=', 1)[1] }}|", "b=c |"),
        ("{{ 'x  y'.split()|length }}", "2"),
        ("{{ 'aXa'.replace('a', 'b').upper() }}", "BXB"),
        ("{% for k, v in messages[0].items() %}{{ k }},{% endfor %}", "role,content,"),
        ("{{ messages[0].get('tool', 'none') }}", "none"),
        ("{{ {'a': [1, '<é>'], 'b': none} | tojson }}", "{\"a\": [1, \"<é>\"], \"b\": null}"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% if tools %}x{% endif %}{% if documents is none %}none{% endif %}", "none"),
    ] {
        assert_eq!(rendered(template).unwrap(), expected, "{template}");
    }
    let error = rendered("{{ 'a'.zfill(3) }}").unwrap_err().to_string();
    assert!(error.contains("the method zfill of a string"), "{error}");
}
