//! Reference pages and the JSON Schema of pipeline files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod product;

use groundloom_spec::{ComponentType, Config, Role, describe, pipeline_schema};
use product::types;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[test]
fn pages() {
    let page = |name: &str| describe(types().iter().find(|known| known.name == name).unwrap());
    insta::assert_snapshot!(page("image_folder"), @"");
    insta::assert_snapshot!(page("filter_boxes"), @"");
    insta::assert_snapshot!(page("caption"), @"");
}

#[test]
fn the_types_have_no_faults() {
    for known in types() {
        assert_eq!(known.faults(), Vec::<String>::new(), "{known:?}");
    }
}

#[derive(Deserialize, Serialize, JsonSchema)]
struct Careless {
    #[serde(rename = "type")]
    kind: String,
    /// A zip code.
    #[schemars(regex(pattern = "^[0-9]+$"))]
    zip: String,
}

impl Config for Careless {
    const NAME: &'static str = "careless";
    const SUMMARY: &'static str = "Does it.";
    const EXAMPLE: &'static str = "a: { type: careless, zip: 5 }";
}

#[test]
fn faults_are_found() {
    let faults = ComponentType::of::<Careless>(Role::Stage).faults();
    insta::assert_snapshot!(faults.join("\n"), @"");
}

#[test]
fn the_schema_of_pipeline_files() {
    let schema = pipeline_schema::<product::Settings>(&types());
    let defs = schema["$defs"].as_object().unwrap();
    insta::assert_snapshot!(defs.keys().cloned().collect::<Vec<_>>().join("\n"), @"");
    insta::assert_snapshot!(serde_json::to_string_pretty(&defs["stage.filter_boxes"]).unwrap(), @"");
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema["properties"]["sinks"]).unwrap(), @"");
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema["properties"]["settings"]).unwrap(), @"");
    let text = schema.to_string();
    for part in text.split("\"$ref\":\"#/$defs/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(defs.contains_key(name), "{name} is not defined");
    }
}
