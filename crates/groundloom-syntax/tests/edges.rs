//! Texts at the edge of what a text is, and inputs that are refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use groundloom_syntax::{DEFAULT_MAX_CHARS, Pipeline, SyntaxError};
use proptest::prelude::*;

thread_local! {
    static PIPELINE: Pipeline = Pipeline::embedded().unwrap();
}

#[test]
fn empty_text_has_no_tokens() {
    let doc = PIPELINE.with(|p| p.parse("").unwrap());
    assert!(doc.is_empty() && doc.noun_chunks().is_empty());
    assert!(doc.sentences().is_empty() && doc.token(0).is_none() && doc.subtree_span(0).is_empty());
    assert_eq!(doc.span_text(0..1), "");
    assert_eq!((doc.char_span(0..1), doc.span_root(0..1)), (None, None));
    assert!(!doc.has_conjunct(3) && doc.conjuncts(3).is_empty());
    assert!(PIPELINE.with(|p| p.parse_batch::<&str>(&[])).is_empty());
}

#[test]
fn spaces_are_one_token() {
    for text in [" ", "   ", "\n", " \t\n ", "\u{3000}\u{2028}"] {
        let doc = PIPELINE.with(|p| p.parse(text).unwrap());
        let tokens: Vec<_> = doc.tokens().map(|t| (t.text(), t.tag(), t.pos())).collect();
        assert_eq!(tokens, [(text, "_SP", "SPACE")]);
        assert!(doc.noun_chunks().is_empty());
    }
}

#[test]
fn offsets_count_characters() {
    let doc = PIPELINE.with(|p| p.parse("Zoë’s 👩‍🌾 grows naïve 🍅 at home").unwrap());
    let home = doc.tokens().last().unwrap();
    assert_eq!((home.text(), home.idx(), home.end_idx()), ("home", 27, 31));
    for chunk in doc.noun_chunks() {
        let chars = chunk.start_char..chunk.end_char;
        let text: String = doc.text().chars().skip(chars.start).take(chars.len()).collect();
        assert_eq!(text, chunk.text(&doc));
    }
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let error = PIPELINE.with(|p| p.parse_bytes(b"a dog\xff").unwrap_err());
    assert!(matches!(error, SyntaxError::NotUtf8 { valid_up_to: 5 }), "{error}");
    assert_eq!(PIPELINE.with(|p| p.parse_bytes(b"a dog").unwrap()).len(), 2);
}

#[test]
fn long_texts_are_refused_one_by_one() {
    let pipeline = PIPELINE.with(|p| p.clone().with_max_chars(5));
    let docs = pipeline.parse_batch(&["a dog", "a dogs", "ééééé"]);
    assert!(docs[0].is_ok() && docs[2].is_ok(), "the limit counts characters");
    assert!(matches!(docs[1], Err(SyntaxError::TextTooLong { found: 6, limit: 5 })));
    let long = "a".repeat(DEFAULT_MAX_CHARS + 1);
    assert!(PIPELINE.with(|p| p.parse(&long).is_err()));
}

#[test]
fn a_megabyte_of_prose_parses_like_its_parts() {
    let part = "The old man's two brown dogs, which he'd bought in 1984, chase a cat (or a rat) up the tree. ";
    let text = part.repeat(1_000_000 / part.len());
    let doc = PIPELINE.with(|p| p.parse(&text).unwrap());
    let sentences = doc.sentences();
    assert_eq!(sentences.len(), 1_000_000 / part.len());
    // Far from the edges every sentence is parsed alike.
    let heads = |s: &std::ops::Range<usize>| -> Vec<usize> {
        s.clone().map(|i| doc.token(i).unwrap().head() - s.start).collect()
    };
    assert_eq!(heads(&sentences[5000]), heads(&sentences[100]));
    assert_eq!(doc.tokens().next_back().unwrap().end_idx(), text.chars().count() - 1);
}

#[test]
fn hostile_runs_take_linear_time() {
    for unit in ["(", ")", ".", "a", "@", "a.", "'s", "-", "\u{301}", "👍", "http://", "\n", "a\n"] {
        let text = unit.repeat(60_000 / unit.len());
        let doc = PIPELINE.with(|p| p.parse(&text).unwrap());
        assert_eq!(doc.tokens().map(|t| t.byte_range().len()).sum::<usize>(), text.len(), "{unit:?}");
    }
}

#[test]
fn folders_that_are_no_model_are_refused() {
    let error = Pipeline::load("no/such/folder").unwrap_err();
    assert!(error.to_string().contains("meta.json"), "{error}");
    let folder = std::env::temp_dir().join(format!("groundloom-syntax-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (meta, hint) in [
        (r#"{"lang":"de","name":"core_news_sm","version":"3.8.0","pipeline":[]}"#, "English"),
        (r#"{"lang":"en","name":"core_web_sm","version":"3.1.0","pipeline":[]}"#, "3.7 or 3.8"),
        (r#"{"lang":"en","name":"core_web_sm","version":"3.8.0","pipeline":["tok2vec"]}"#, "tagger"),
        ("[]", "meta.json"),
    ] {
        std::fs::write(folder.join("meta.json"), meta).unwrap();
        let error = Pipeline::load(&folder).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    let meta = r#"{"lang":"en","name":"core_web_md","version":"3.8.0","pipeline":["tok2vec","tagger","parser","attribute_ruler"]}"#;
    std::fs::write(folder.join("meta.json"), meta).unwrap();
    let attrs = r#"attrs = ["NORM","PREFIX","SUFFIX","SHAPE","SPACY","IS_SPACE"]"#;
    let config = format!("[components.tok2vec.model.embed]\n{attrs}\ninclude_static_vectors = true\n");
    std::fs::write(folder.join("config.cfg"), config).unwrap();
    let error = Pipeline::load(&folder).unwrap_err().to_string();
    assert!(error.contains("include_static_vectors"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn tokens_make_up_the_text(text in any::<String>(), filler in "[ a-z.,'’()\\-0-9$€é👍\n]{0,40}") {
        let text = text + &filler;
        let doc = PIPELINE.with(|p| p.parse(&text).unwrap());
        let mut joined = String::new();
        let mut chars = 0;
        for (i, token) in doc.tokens().enumerate() {
            prop_assert_eq!(token.i(), i);
            prop_assert_eq!(token.idx(), chars);
            joined.push_str(token.text());
            chars += token.text().chars().count();
            prop_assert_eq!(token.end_idx(), chars);
            if token.space_after() {
                joined.push(' ');
                chars += 1;
            }
            prop_assert!(token.left_edge() <= i && i <= token.right_edge() && token.head() < doc.len());
        }
        prop_assert_eq!(&joined, &text);
        let mut end = 0;
        for chunk in doc.noun_chunks() {
            prop_assert!(chunk.start_token >= end && chunk.tokens().contains(&chunk.root));
            end = chunk.end_token;
        }
    }
}
