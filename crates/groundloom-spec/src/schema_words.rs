//! Reading JSON Schemas: what they expect, in words and as lists.

use std::ops::RangeInclusive;

use serde_json::{Map, Value as Json};

use crate::secret::SECRET_KEYWORD;

type Schema = Map<String, Json>;

/// The schema that a `$ref` into the root's `$defs` means; nothing without `$ref`. References to
/// references are followed, a circle of them ends in nothing.
pub(crate) fn resolve<'s>(root: &'s Json, schema: &Schema) -> Option<&'s Json> {
    let mut target = root.pointer(schema.get("$ref")?.as_str()?.strip_prefix('#')?)?;
    for _ in 0..16 {
        match target.get("$ref").and_then(Json::as_str) {
            Some(next) if target.as_object().is_some_and(|target| target.len() == 1) => {
                target = root.pointer(next.strip_prefix('#')?)?;
            }
            _ => return Some(target),
        }
    }
    None
}

/// The alternatives of a schema: `anyOf` or `oneOf`.
pub(crate) fn branches(schema: &Schema) -> Option<&[Json]> {
    let branches = schema.get("anyOf").or(schema.get("oneOf"))?;
    branches.as_array().map(Vec::as_slice)
}

/// The names in `type`, which is one or a list.
pub(crate) fn kinds(types: &Json) -> impl Iterator<Item = &str> {
    let one = types.as_str();
    let many = types.as_array().into_iter().flatten().filter_map(Json::as_str);
    one.into_iter().chain(many)
}

/// All properties that a map of this schema may have, through references and alternatives, each
/// once.
pub(crate) fn properties<'s>(root: &'s Json, schema: &'s Schema) -> Vec<(&'s str, &'s Json)> {
    let mut found = Vec::new();
    properties_below(root, schema, 0, &mut found);
    found
}

fn properties_below<'s>(root: &'s Json, schema: &'s Schema, depth: usize, found: &mut Vec<(&'s str, &'s Json)>) {
    if depth > 16 {
        return;
    }
    for (key, property) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
        if !found.iter().any(|(known, _)| known == key) {
            found.push((key, property));
        }
    }
    let all = schema.get("allOf").and_then(Json::as_array).into_iter().flatten();
    let parts = all.chain(branches(schema).unwrap_or_default()).filter_map(Json::as_object);
    let target = resolve(root, schema).and_then(Json::as_object);
    for part in parts.chain(target) {
        properties_below(root, part, depth + 1, found);
    }
}

/// The names that a schema allows as text: of `const`, `enum` and alternatives of them.
pub(crate) fn strings<'s>(root: &'s Json, schema: &'s Json) -> Vec<&'s str> {
    let Some(schema) = schema.as_object() else {
        return Vec::new();
    };
    if let Some(target) = resolve(root, schema) {
        return strings(root, target);
    }
    let single = schema.get("const").and_then(Json::as_str);
    let listed = schema.get("enum").and_then(Json::as_array).into_iter().flatten();
    let below = branches(schema).unwrap_or_default().iter();
    single
        .into_iter()
        .chain(listed.filter_map(Json::as_str))
        .chain(below.flat_map(|branch| strings(root, branch)))
        .collect()
}

/// What a schema expects, as phrases that stand behind "must be" and are joined by "or". Nothing
/// (`null`) isn't named: leaving the key out is the way to say it.
pub(crate) fn expectations(root: &Json, schema: &Schema) -> Vec<String> {
    if schema.contains_key(SECRET_KEYWORD) {
        return vec!["a secret like ${env:NAME}".to_owned()];
    }
    if let Some(target) = resolve(root, schema).and_then(Json::as_object) {
        return expectations(root, target);
    }
    let names: Vec<String> =
        strings(root, &Json::Object(schema.clone())).into_iter().map(|name| format!("`{name}`")).collect();
    let mut phrases = names;
    if let Some(branches) = branches(schema) {
        let with_data = branches.iter().filter(|branch| strings(root, branch).is_empty());
        for phrase in with_data.filter_map(Json::as_object).flat_map(|branch| expectations(root, branch)) {
            if !phrases.contains(&phrase) {
                phrases.push(phrase);
            }
        }
        return phrases;
    }
    if !phrases.is_empty() {
        return phrases;
    }
    schema
        .get("type")
        .into_iter()
        .flat_map(kinds)
        .filter_map(|kind| match kind {
            "string" => Some("text".to_owned()),
            "number" => Some("a number".to_owned()),
            "integer" => Some("an integer".to_owned()),
            "boolean" => Some("`true` or `false`".to_owned()),
            "array" => Some(list_phrase(root, schema)),
            "object" => Some(match only_key(schema) {
                Some(key) => format!("a map with `{key}`"),
                None => "a map".to_owned(),
            }),
            _ => None,
        })
        .collect()
}

/// The key of an enum variant with data, which is a map of this one key.
pub(crate) fn only_key(schema: &Schema) -> Option<&str> {
    let required = schema.get("required")?.as_array()?;
    let properties = schema.get("properties")?.as_object()?;
    let closed = schema.get("additionalProperties") == Some(&Json::Bool(false));
    match required.as_slice() {
        // A `const` is the tag of a variant without data.
        [Json::String(key)] if closed && properties.len() == 1 => {
            properties.get(key)?.get("const").is_none().then_some(key.as_str())
        }
        _ => None,
    }
}

fn list_phrase(root: &Json, schema: &Schema) -> String {
    let prefix = schema.get("prefixItems").and_then(Json::as_array);
    let item = schema.get("items").or(prefix.and_then(|prefix| prefix.first()));
    let of = match item.and_then(Json::as_object).map(|item| expectations(root, item)) {
        Some(phrases) if phrases == ["text"] => " of texts",
        Some(phrases) if phrases == ["a number"] => " of numbers",
        Some(phrases) if phrases == ["an integer"] => " of integers",
        Some(phrases) if phrases == ["a map"] => " of maps",
        Some(phrases) if !phrases.is_empty() && phrases.iter().all(|phrase| phrase.starts_with('`')) => " of names",
        _ => "",
    };
    match prefix {
        Some(prefix) => format!("a list{of} with {} items", prefix.len()),
        None => format!("a list{of}"),
    }
}

/// The integers that a `format` like `uint32` has room for.
pub(crate) fn int_range(schema: &Schema) -> Option<RangeInclusive<i128>> {
    let range = match schema.get("format")?.as_str()? {
        "uint8" => 0..=u8::MAX.into(),
        "uint16" => 0..=u16::MAX.into(),
        "uint32" => 0..=u32::MAX.into(),
        "uint" | "uint64" => 0..=u64::MAX.into(),
        "int8" => i8::MIN.into()..=i8::MAX.into(),
        "int16" => i16::MIN.into()..=i16::MAX.into(),
        "int32" => i32::MIN.into()..=i32::MAX.into(),
        "int" | "int64" => i64::MIN.into()..=i64::MAX.into(),
        _ => return None,
    };
    Some(range)
}
