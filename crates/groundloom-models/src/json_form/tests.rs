#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;

use super::*;

fn form(schema: Value) -> JsonForm {
    JsonForm::new(&schema).unwrap()
}

/// Whether a text fits to its end, and how much of it does.
fn follow(form: &JsonForm, text: &str) -> (bool, usize) {
    let mut state = initial(form);
    for (i, byte) in text.bytes().enumerate() {
        match state.behind(form, byte) {
            Some(next) => state = next,
            None => return (false, i),
        }
    }
    (state.left(form) == 0, text.len())
}

#[test]
fn texts_are_followed_as_far_as_they_fit() {
    let turns = form(json!({
        "type": "object", "required": ["turns"], "additionalProperties": false,
        "properties": {
            "note": {"type": ["string", "null"], "maxLength": 3},
            "turns": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/turn"}},
            "score": {"type": "number"}, "stars": {"type": "integer", "minimum": 1, "maximum": 12},
        },
        "$defs": {"turn": {"type": "object", "required": ["q"], "properties": {"q": {"type": "string", "minLength": 2}, "kind": {"enum": ["a", "ab", 7]}}}},
    }));
    for text in [
        r#"{"turns":[{"q":"ab"}]}"#,
        r#"{"note": null, "turns": [{"q": "\u00e9é", "kind": "ab"}, {"q":"\\\"","kind":7}], "score":-0.5e+10, "stars":12}"#,
        r#"{"note":"\ud7ff🎉€","turns":[{"q":"ab"}],"stars":1}"#,
    ] {
        assert_eq!(follow(&turns, text), (true, text.len()), "{text}");
        serde_json::from_str::<Value>(text).unwrap();
    }
    for (text, until) in [
        (r#"{}"#, 1),
        (r#"{"turns":[]}"#, 10),
        (r#"{"turns":[{"q":"a"}]}"#, 17),
        (r#"{"turns":[{"kind":7}]}"#, 12),
        (r#"{"turns":[{"q":"ab"},{"q":"ab"},{"q":"ab"}]}"#, 31),
        (r#"{"turns":[{"q":"ab","kind":"abc"}]}"#, 30),
        (r#"{"note":"abcd"#, 12),
        (r#"{"note":"\ud800"#, 12),
        (r#"{"turns":[{"q":"ab"}],"score":01"#, 31),
        (r#"{"turns":[{"q":"ab"}],"score":-,"#, 31),
        (r#"{"turns":[{"q":"ab"}],"stars":13"#, 31),
        (r#"{"turns":[{"q":"ab"}],"note":null"#, 23),
        (r#"{"turns":[{"q":"ab"}],}"#, 22),
        (r#"{"turns":[{"q":"ab"}]} "#, 22),
        ("{\"turns\":[{\"q\":\"a\nb\"", 17),
        (r#"{  "turns""#, 1),
    ] {
        assert_eq!(follow(&turns, text), (false, until), "{text}");
    }
    assert_eq!(initial(&turns).left(&turns), r#"{"turns":[{"q":"ab"}]}"#.len());
    // Bytes that are no UTF-8.
    let text = form(json!({"type": "string"}));
    for wrong in [&[0x80_u8][..], &[0xc0], &[0xc3, b'a'], &[0xed, 0xa0], &[0xf4, 0x90], &[0xff]] {
        let inside = initial(&text).behind(&text, b'"').unwrap();
        assert_eq!(inside.behind_all(&text, wrong), None, "{wrong:x?}");
    }
}

#[test]
fn what_is_left_is_what_the_shortest_end_takes() {
    // From everywhere a byte that lies on the shortest way makes the way one shorter.
    let schemas = [
        json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 3}, "b": {"type": "array", "minItems": 2, "items": {"type": ["number", "null"]}}, "c": {"enum": [1, 22]}}, "required": ["b"]}),
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "name": {"type": "string"}}, "required": ["name"]}}}),
        json!({"anyOf": [{"type": "array", "items": {"type": "boolean"}, "minItems": 1}, {"type": "object", "properties": {"x": {"type": "integer"}}}]}),
        json!({"type": "number"}),
    ];
    let mut seed = 7_u64;
    let mut draw = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    for schema in schemas {
        let form = form(schema.clone());
        for _ in 0..300 {
            let (mut state, mut text) = (initial(&form), Vec::new());
            let wander = draw(40);
            while !(state.is_over(&form) || text.len() >= wander && state.left(&form) == 0) {
                let next: Vec<(u8, State)> =
                    (0..=255).filter_map(|byte| Some((byte, state.behind(&form, byte)?))).collect();
                let left = state.left(&form);
                let shortest = next.iter().map(|(_, state)| state.left(&form)).min().unwrap();
                assert!(
                    left == 0 || shortest + 1 == left,
                    "{schema} {:?}: {left}, then {shortest}",
                    String::from_utf8_lossy(&text)
                );
                let chosen = match text.len() < wander {
                    true => draw(next.len()),
                    false => next.iter().position(|(_, state)| state.left(&form) == shortest).unwrap(),
                };
                text.push(next[chosen].0);
                state = next[chosen].1.clone();
            }
            let text = String::from_utf8(text).unwrap();
            serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{schema} {text}: {e}"));
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    for (schema, place, words) in [
        (json!({"type": "string", "pattern": "a"}), "#/pattern", "cannot follow this word"),
        (json!({"type": "object", "properties": {"a/b": {"oneOf": []}}}), "#/properties/a~1b/oneOf", "cannot follow"),
        (json!({"type": "array"}), "#", "say `items`"),
        (json!({"type": "array", "items": true}), "#/items", "says `type`"),
        (json!({}), "#", "say `type`"),
        (json!({"type": "object", "required": ["a"]}), "#/required", "\"a\""),
        (json!({"type": "integer", "minimum": 3}), "#", "together"),
        (json!({"type": "number", "minimum": 3}), "#/minimum", "cannot follow"),
        (json!({"$ref": "other.json"}), "#/$ref", "in this schema"),
        (json!({"$ref": "#/$defs/a", "type": "string", "$defs": {"a": {"type": "null"}}}), "#/type", "beside `$ref`"),
        (json!({"enum": ["a"], "type": "null"}), "#/enum", "no value"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}}),
            "#",
            "no text that ends",
        ),
        (json!({"type": "string", "minLength": 3, "maxLength": 2}), "#", "no text that ends"),
    ] {
        let error = JsonForm::new(&schema).unwrap_err();
        assert!(error.place == place && error.message.contains(words), "{schema}: {error}");
    }
}
