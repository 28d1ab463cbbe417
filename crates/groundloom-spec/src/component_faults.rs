//! What a config struct must have to be the reference of its component.

use serde_json::Value as Json;

use crate::component_page::{description, fields, indented};
use crate::component_type::{ComponentType, Role};
use crate::secret::SECRET_KEYWORD;
use crate::sections::parse_partial;
use crate::source::SourceFile;

impl ComponentType {
    /// What the config struct lacks to be a good reference: empty if nothing. A test over all types
    /// keeps them complete.
    ///
    /// Checked are: unknown keys are refused, every field has a doc comment, no field takes a
    /// reserved name, the schema asks for nothing that [`Component::decode`](crate::Component::decode)
    /// doesn't check, and the example is a component of this type that decodes.
    pub fn faults(&self) -> Vec<String> {
        let root = (self.schema)();
        let mut faults = Vec::new();
        let Some(schema) = root.as_object().filter(|schema| schema.contains_key("type")) else {
            return vec!["the config is not a struct with named fields".to_owned()];
        };
        let closed = |key: &str| schema.get(key) == Some(&Json::Bool(false));
        if !closed("additionalProperties") && !closed("unevaluatedProperties") {
            faults.push("unknown keys are accepted: add #[serde(deny_unknown_fields)]".to_owned());
        }
        for field in fields(&root, schema) {
            if matches!(field.name, "type" | "input" | "checkpoint") {
                faults.push(format!("`{}` is reserved; give the field another name", field.name));
            }
            if description(field.schema).is_none() {
                faults.push(format!("the field `{}` has no doc comment", field.name));
            }
        }
        for keyword in unsupported(&root) {
            faults.push(format!("the schema keyword {keyword} is not checked"));
        }
        if self.summary.is_empty() || self.summary.ends_with('.') {
            faults.push("the summary must be one line without a full stop".to_owned());
        }
        faults.extend(self.example_faults());
        faults
    }

    fn example_faults(&self) -> Vec<String> {
        let others: String = [Role::Source, Role::Sink]
            .into_iter()
            .filter(|role| *role != self.role)
            .map(|role| format!("{}: {{ other_{role}: {{ type: other }} }}\n", role.section()))
            .collect();
        let text = format!("{}:\n{}{others}", self.role.section(), indented(self.example, 1));
        let file = SourceFile::new("example", text);
        let (spec, mut diagnostics) = parse_partial(file, &[], &|_| Some(String::new()));
        let own: Vec<_> =
            spec.iter().flat_map(|spec| spec.components()).filter(|component| component.role == self.role).collect();
        match own.as_slice() {
            [component] if component.kind == self.name => {
                diagnostics.collect((self.decodes)(component));
            }
            _ => return vec![format!("the example must be one component of type {}", self.name)],
        }
        diagnostics.iter().map(|d| format!("the example: {}", d.message)).collect()
    }
}

/// The keywords of a schema that [`crate::Component::decode`] doesn't check, as paths.
fn unsupported(schema: &Json) -> Vec<String> {
    let mut found = Vec::new();
    unsupported_below(schema, "", &mut found);
    found
}

fn unsupported_below(schema: &Json, path: &str, found: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else {
        return;
    };
    for (keyword, value) in schema {
        let path = format!("{path}/{keyword}");
        match keyword.as_str() {
            "properties" | "$defs" | "patternProperties" => {
                for (key, schema) in value.as_object().into_iter().flatten() {
                    unsupported_below(schema, &format!("{path}/{key}"), found);
                }
            }
            "items" | "additionalProperties" => unsupported_below(value, &path, found),
            "allOf" | "anyOf" | "oneOf" | "prefixItems" => {
                for (index, schema) in value.as_array().into_iter().flatten().enumerate() {
                    unsupported_below(schema, &format!("{path}/{index}"), found);
                }
            }
            "pattern" if schema.contains_key(SECRET_KEYWORD) => {}
            "$ref"
            | "$schema"
            | "type"
            | "enum"
            | "const"
            | "format"
            | "minimum"
            | "maximum"
            | "exclusiveMinimum"
            | "exclusiveMaximum"
            | "minLength"
            | "maxLength"
            | "minItems"
            | "maxItems"
            | "uniqueItems"
            | "minProperties"
            | "maxProperties"
            | "required"
            | "unevaluatedProperties"
            | "title"
            | "description"
            | "default"
            | "examples"
            | "deprecated"
            | SECRET_KEYWORD => {}
            _ => found.push(path),
        }
    }
}
