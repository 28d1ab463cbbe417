//! The `groundloom stages NAME` page of a component type.

use serde_json::{Map, Value as Json};

use crate::component_type::ComponentType;
use crate::schema_words::{branches, expectations, only_key, properties, resolve};
use crate::spelling::joined;

type Schema = Map<String, Json>;

/// Fields are shown to this depth of indentation; those of a recursive type would go on.
const MAX_NESTING: usize = 10;

/// The reference page of a type as plain text: what it does, its fields with type, default and
/// description, and an example. Made from the config struct's schema alone.
pub fn describe(component: &ComponentType) -> String {
    let root = (component.schema)();
    let mut page = format!("{} ({})\n{}.\n", component.name, component.role, component.summary);
    let Some(schema) = root.as_object() else {
        return page;
    };
    let summary = format!("{}.", component.summary);
    if let Some(text) = description(schema).filter(|text| *text != summary) {
        page.push('\n');
        for line in text.lines() {
            page.push_str(line);
            page.push('\n');
        }
    }
    let fields = fields(&root, schema);
    if fields.is_empty() {
        page.push_str("\nNo fields.\n");
    } else {
        page.push_str("\nFields\n");
        for field in fields {
            write_field(&root, &field, 1, &mut page);
        }
    }
    page.push_str("\nExample\n");
    for line in format!("{}:\n{}", component.role.section(), indented(component.example, 1)).lines() {
        page.push_str("  ");
        page.push_str(line);
        page.push('\n');
    }
    page
}

/// A key that a map may have.
pub(crate) struct Field<'s> {
    pub name: &'s str,
    pub schema: &'s Schema,
    required: bool,
}

pub(crate) fn fields<'s>(root: &'s Json, schema: &'s Schema) -> Vec<Field<'s>> {
    let required: Vec<&str> =
        schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
    properties(root, schema)
        .into_iter()
        .filter_map(|(name, schema)| {
            Some(Field { name, schema: schema.as_object()?, required: required.contains(&name) })
        })
        .collect()
}

fn write_field(root: &Json, field: &Field<'_>, depth: usize, page: &mut String) {
    let indent = "  ".repeat(depth);
    let mut line = format!("{indent}{}: {}", field.name, type_phrase(root, field.schema));
    if let Some(range) = range_phrase(field.schema) {
        line.push_str(&format!(", {range}"));
    }
    match default_of(field.schema) {
        _ if field.required => line.push_str(", required"),
        Some(default) => line.push_str(&format!(", default {default}")),
        None => line.push_str(", optional"),
    }
    page.push_str(&line);
    page.push('\n');
    let target = resolve(root, field.schema).and_then(Json::as_object);
    let text = description(field.schema).or_else(|| target.and_then(description));
    for line in text.unwrap_or_default().lines() {
        page.push_str(format!("{indent}    {line}").trim_end());
        page.push('\n');
    }
    if depth >= MAX_NESTING {
        return;
    }
    let inner = without_option(root, field.schema);
    match branches(inner) {
        Some(branches) => write_variants(root, branches, depth + 2, page),
        None => {
            let inner = inner.get("items").and_then(Json::as_object).unwrap_or(inner);
            let inner = resolve(root, inner).and_then(Json::as_object).unwrap_or(inner);
            for field in fields(root, inner) {
                write_field(root, &field, depth + 2, page);
            }
        }
    }
}

/// The variants of an enum: names with their descriptions, those with data with their fields below.
fn write_variants(root: &Json, branches: &[Json], depth: usize, page: &mut String) {
    let indent = "  ".repeat(depth);
    for branch in branches.iter().filter_map(Json::as_object) {
        let target = resolve(root, branch).and_then(Json::as_object).unwrap_or(branch);
        let text = description(branch)
            .or_else(|| description(target))
            .map_or(String::new(), |text| format!(": {}", text.replace('\n', " ")));
        let tag =
            fields(root, target).into_iter().find_map(|field| Some((field.name, field.schema.get("const")?.as_str()?)));
        if let Some((tag, name)) = tag {
            page.push_str(&format!("{indent}{tag}: {name}{text}\n"));
            for field in fields(root, target).iter().filter(|field| field.name != tag) {
                write_field(root, field, depth + 1, page);
            }
        } else if let Some(key) = only_key(target) {
            page.push_str(&format!("{indent}{{ {key}: … }}{text}\n"));
            for field in fields(root, target) {
                write_field(root, &field, depth + 1, page);
            }
        } else if let Some(name) = target.get("const").and_then(Json::as_str) {
            page.push_str(&format!("{indent}{name}{text}\n"));
        } else if !text.is_empty() {
            let phrase = type_phrase(root, target);
            page.push_str(&format!("{indent}{phrase}{text}\n"));
        }
    }
}

/// The schema itself, or the one of `Some`; references followed.
fn without_option<'s>(root: &'s Json, schema: &'s Schema) -> &'s Schema {
    let schema = resolve(root, schema).and_then(Json::as_object).unwrap_or(schema);
    let some = branches(schema).and_then(|branches| {
        let is_null = |branch: &&Json| branch.get("type").and_then(Json::as_str) == Some("null");
        let mut others = branches.iter().filter(|branch| !is_null(branch));
        match (others.next(), others.next()) {
            (Some(only), None) => only.as_object(),
            _ => None,
        }
    });
    match some {
        Some(some) => resolve(root, some).and_then(Json::as_object).unwrap_or(some),
        None => schema,
    }
}

pub(crate) fn description(schema: &Schema) -> Option<&str> {
    schema.get("description").and_then(Json::as_str)
}

fn type_phrase(root: &Json, schema: &Schema) -> String {
    let phrases = expectations(root, schema);
    if phrases.is_empty() {
        return "any value".to_owned();
    }
    let phrases: Vec<String> = phrases
        .into_iter()
        .map(|phrase| match phrase.strip_prefix("a ").or(phrase.strip_prefix("an ")) {
            Some(bare) => bare.to_owned(),
            None => phrase,
        })
        .collect();
    joined(&phrases, "or")
}

fn range_phrase(schema: &Schema) -> Option<String> {
    let bound = |key: &str| schema.get(key).and_then(Json::as_f64);
    let low = bound("minimum")
        // Every unsigned type has this one.
        .filter(|low| *low != 0.0 || schema.contains_key("maximum") || !schema.contains_key("format"));
    match (low, bound("maximum")) {
        (Some(low), Some(high)) => Some(format!("{low} to {high}")),
        (Some(low), None) => Some(format!("at least {low}")),
        (None, Some(high)) => Some(format!("at most {high}")),
        (None, None) => match (bound("exclusiveMinimum"), bound("exclusiveMaximum")) {
            (Some(low), Some(high)) => Some(format!("between {low} and {high}")),
            (Some(low), None) => Some(format!("greater than {low}")),
            (None, Some(high)) => Some(format!("less than {high}")),
            (None, None) => None,
        },
    }
}

/// The default as it would be written; an absent value is no default worth naming.
fn default_of(schema: &Schema) -> Option<String> {
    let default = tidy_default(schema)?;
    match default {
        Json::Null => None,
        Json::String(text) if text.is_empty() => Some("\"\"".to_owned()),
        Json::String(text) => Some(text),
        default => Some(default.to_string()),
    }
}

/// The default, where a 32-bit float is the decimal it was written as: 0.45 and not
/// 0.44999998807907104.
pub(crate) fn tidy_default(schema: &Schema) -> Option<Json> {
    let default = schema.get("default")?;
    let is_f32 = schema.get("format").and_then(Json::as_str) == Some("float");
    match default.as_f64() {
        Some(wide) if is_f32 => {
            let short: f64 = (wide as f32).to_string().parse().ok()?;
            serde_json::Number::from_f64(short).map(Json::Number)
        }
        _ => Some(default.clone()),
    }
}

pub(crate) fn indented(text: &str, depth: usize) -> String {
    text.lines().map(|line| format!("{}{line}\n", "  ".repeat(depth))).collect()
}
