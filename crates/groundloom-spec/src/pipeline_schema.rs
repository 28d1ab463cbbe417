//! The JSON Schema of pipeline files, for editors.

use schemars::JsonSchema;
use serde_json::{Map, Value as Json, json};

use crate::component_page::tidy_default;
use crate::component_type::{ComponentType, Role, schema_of};
use crate::schema_words::{branches, kinds, resolve};

type Schema = Map<String, Json>;

/// The JSON Schema (draft 2020-12) of a pipeline file whose components are `types` and whose
/// `settings` section is an `S`.
///
/// Each component's schema is chosen by its `type`. Where a value isn't text anyway, the text
/// `${param}` is accepted too, since a param may stand for any value. Definitions of the types are
/// renamed to `stage.ground.Model`, so that equal names of different types don't meet.
pub fn pipeline_schema<S: JsonSchema>(types: &[ComponentType]) -> Json {
    let mut defs = Schema::new();
    defs.insert(
        "param".to_owned(),
        json!({
            "description": "A param of the pipeline, with the param's own type",
            "type": "string",
            "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*\}$",
        }),
    );
    defs.insert("name".to_owned(), json!({ "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" }));
    let mut settings = adopt(schema_of::<S>(), "settings", &mut defs);
    settings.shift_remove("title");
    let mut properties = Schema::new();
    properties.insert("name".to_owned(), json!({ "description": "The pipeline's name", "type": "string" }));
    properties.insert("description".to_owned(), json!({ "description": "What the pipeline is for", "type": "string" }));
    properties.insert(
        "params".to_owned(),
        json!({
            "description": "Values that `${name}` stands for and `--set name=value` replaces; a param without a value has to be set",
            "type": ["object", "null"],
            "propertyNames": { "$ref": "#/$defs/name" },
        }),
    );
    for (role, text) in [
        (Role::Source, "Where rows come from"),
        (Role::Stage, "What is done to rows; a stage without `input` reads the one above it"),
        (Role::Sink, "Where rows go; a sink without `input` reads the last stage"),
    ] {
        properties.insert(role.section().to_owned(), section(role, text, types, &mut defs));
    }
    properties.insert("settings".to_owned(), Json::Object(settings));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Groundloom pipeline",
        "type": "object",
        "properties": properties,
        "required": ["sources", "sinks"],
        "additionalProperties": false,
        "$defs": defs,
    })
}

fn section(role: Role, text: &str, types: &[ComponentType], defs: &mut Schema) -> Json {
    let of_role: Vec<&ComponentType> = types.iter().filter(|known| known.role == role).collect();
    let names: Vec<Json> =
        of_role.iter().map(|known| json!({ "const": known.name, "description": known.summary })).collect();
    let choices: Vec<Json> = of_role
        .iter()
        .map(|known| {
            let name = format!("{role}.{}", known.name);
            let schema = component(known, &name, defs);
            defs.insert(name.clone(), Json::Object(schema));
            json!({
                "if": { "properties": { "type": { "const": known.name } }, "required": ["type"] },
                "then": { "$ref": format!("#/$defs/{name}") },
            })
        })
        .collect();
    let mut type_schema = Schema::new();
    type_schema.insert("description".to_owned(), json!(format!("The type of {role}")));
    // An empty `oneOf` would be no valid schema.
    if names.is_empty() {
        type_schema.insert("type".to_owned(), json!("string"));
    } else {
        type_schema.insert("oneOf".to_owned(), json!(names));
    }
    let mut one = Schema::new();
    one.insert("type".to_owned(), json!("object"));
    one.insert("properties".to_owned(), json!({ "type": type_schema }));
    one.insert("required".to_owned(), json!(["type"]));
    if !choices.is_empty() {
        one.insert("allOf".to_owned(), json!(choices));
    }
    let map = if role == Role::Stage { json!(["object", "null"]) } else { json!("object") };
    let mut section = Schema::new();
    section.insert("description".to_owned(), json!(text));
    section.insert("type".to_owned(), map);
    if role != Role::Stage {
        section.insert("minProperties".to_owned(), json!(1));
    }
    section.insert("propertyNames".to_owned(), json!({ "$ref": "#/$defs/name" }));
    section.insert("additionalProperties".to_owned(), Json::Object(one));
    Json::Object(section)
}

/// The schema of a component: its config's, with the keys that every component of its role has.
fn component(known: &ComponentType, name: &str, defs: &mut Schema) -> Schema {
    let mut config = adopt((known.schema)(), name, defs);
    config.shift_remove("title");
    let closed = |config: &mut Schema, key: &str| config.shift_remove(key) == Some(Json::Bool(false));
    let by_properties = closed(&mut config, "additionalProperties");
    let by_evaluation = closed(&mut config, "unevaluatedProperties");
    let own = config
        .shift_remove("properties")
        .and_then(|properties| match properties {
            Json::Object(properties) => Some(properties),
            _ => None,
        })
        .unwrap_or_default();
    let mut properties = Schema::new();
    properties.insert("type".to_owned(), json!({ "const": known.name }));
    if known.role != Role::Source {
        properties.insert(
            "input".to_owned(),
            json!({
                "description": "The sources or stages that are read; without it, the one above",
                "anyOf": [
                    { "type": "string" },
                    { "type": "array", "items": { "type": "string" }, "minItems": 1, "uniqueItems": true },
                ],
            }),
        );
    }
    if known.role == Role::Stage {
        properties.insert(
            "checkpoint".to_owned(),
            json!({
                "description": "Store the rows behind this stage, so that a later run can begin here",
                "anyOf": [{ "type": "boolean" }, { "$ref": "#/$defs/param" }],
            }),
        );
    }
    properties.extend(own);
    config.insert("type".to_owned(), json!("object"));
    config.insert("properties".to_owned(), Json::Object(properties));
    if by_evaluation {
        config.insert("unevaluatedProperties".to_owned(), json!(false));
    } else if by_properties {
        config.insert("additionalProperties".to_owned(), json!(false));
    }
    config
}

/// Takes a root schema into a larger one: its definitions move to `defs` under `prefix`, and params
/// are allowed for its values.
fn adopt(mut root: Json, prefix: &str, defs: &mut Schema) -> Schema {
    let original = root.clone();
    accept_params(&original, &mut root);
    rename_refs(&mut root, prefix);
    let Json::Object(mut schema) = root else {
        return Schema::new();
    };
    schema.shift_remove("$schema");
    if let Some(Json::Object(own)) = schema.shift_remove("$defs") {
        for (name, definition) in own {
            defs.insert(format!("{prefix}.{name}"), definition);
        }
    }
    schema
}

fn rename_refs(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(schema) => {
            for (key, value) in schema {
                match value {
                    Json::String(target) if key == "$ref" => {
                        if let Some(name) = target.strip_prefix("#/$defs/").filter(|name| *name != "param") {
                            *target = format!("#/$defs/{prefix}.{name}");
                        }
                    }
                    value => rename_refs(value, prefix),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| rename_refs(item, prefix)),
        _ => {}
    }
}

/// Lets `${param}` stand for the values inside a schema, and tidies their defaults.
fn accept_params(root: &Json, schema: &mut Json) {
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(default) = tidy_default(object) {
        object.insert("default".to_owned(), default);
    }
    for key in ["properties", "$defs", "patternProperties"] {
        for (_, inner) in object.get_mut(key).and_then(Json::as_object_mut).into_iter().flatten() {
            accept_params(root, inner);
            if key != "$defs" {
                or_param(root, inner);
            }
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            accept_params(root, inner);
            or_param(root, inner);
        }
    }
    for inner in object.get_mut("prefixItems").and_then(Json::as_array_mut).into_iter().flatten() {
        accept_params(root, inner);
        or_param(root, inner);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for inner in object.get_mut(key).and_then(Json::as_array_mut).into_iter().flatten() {
            accept_params(root, inner);
        }
    }
}

/// Makes a schema accept `${param}`, unless it takes any text already or is the tag of a variant,
/// which editors tell variants apart by.
fn or_param(root: &Json, schema: &mut Json) {
    if takes_any_text(root, schema) || schema.get("const").is_some() {
        return;
    }
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    let mut inner = std::mem::take(object);
    for key in ["description", "default"] {
        if let Some(value) = inner.shift_remove(key) {
            object.insert(key.to_owned(), value);
        }
    }
    object.insert("anyOf".to_owned(), json!([inner, { "$ref": "#/$defs/param" }]));
}

fn takes_any_text(root: &Json, schema: &Json) -> bool {
    let Some(schema) = schema.as_object() else {
        // `true` takes anything; nothing should make `false` take something.
        return true;
    };
    if let Some(target) = resolve(root, schema) {
        return takes_any_text(root, target);
    }
    if let Some(branches) = branches(schema) {
        return branches.iter().any(|branch| takes_any_text(root, branch));
    }
    let narrowed = ["enum", "const", "pattern"].iter().any(|key| schema.contains_key(*key));
    !narrowed && schema.get("type").is_none_or(|types| kinds(types).any(|kind| kind == "string"))
}
