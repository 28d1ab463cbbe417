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
    insta::assert_snapshot!(page("image_folder"), @r"
    image_folder (source)
    Read images and captions from a folder.

    Reads a folder of images, and the captions beside them.

    Subfolders are read too.

    Fields
      path: text, required
          The folder; a glob or a URL.
      metadata: text, optional
          A file with one row of metadata for each image.

    Example
      sources:
        pairs: { type: image_folder, path: examples/photos }
    ");
    insta::assert_snapshot!(page("filter_boxes"), @r"
    filter_boxes (stage)
    Keep confident boxes.

    Keeps the boxes that a threshold and NMS leave.

    Fields
      min_score: number, 0 to 1, default 0.65
          The smallest score that is kept.
      nms_iou: number, 0 to 1, optional
          Above this overlap, the box with the smaller score goes.
      nms: `across_phrases`, `per_phrase` or `off`, default across_phrases
          Which boxes compete.
          across_phrases: Across all phrases.
          per_phrase: Within each phrase.
          off: All stay.
      limit: integer, at least 1, optional
          The most boxes of one image.
      keep_rejected: `true` or `false`, default false
          Whether boxes that go are kept in a column of their own.
      always: list of texts, default []
          Phrases whose boxes always stay.

    Example
      stages:
        confident:
          type: filter_boxes
          min_score: 0.5
    ");
    insta::assert_snapshot!(page("caption"), @r#"
    caption (stage)
    Write captions with a remote model.

    Writes captions with a remote model.

    Fields
      prompt: text, required
          The prompt; `{column}` stands for a column.
      api_key: secret like ${env:NAME}, required
          The key of the service.
      retries: map, optional
          What is repeated when the service fails.
          times: integer, 0 to 255, required
              At most so many times.
          wait: number, at least 0.1, default 1.0
              Seconds before the first repetition.
      store: map, optional
          Where answers are stored.
          kind: none: Nowhere.
          kind: folder: In a folder.
            path: text, required
                The folder.
          kind: bucket: In a bucket.
            url: text, required
                The bucket's URL.
            key: secret like ${env:NAME}, optional
                The access key.
      choice: `first`, optional
          Which answer is taken.
          first: The first answer.
          { best_of: … }: One of so many answers.
            best_of: integer, 0 to 255, required
          { scored: … }: By a model's score.
            scored: map with `model`, required
                model: text, required
                    The model.
      amount: integer or text, optional
          How many rows are captioned.
          integer: So many rows.
          text: A share like `1%`.
      size: list of integers with 2 items, optional
          The size that images are sent in.
      headers: map, default {}
          More HTTP headers.
      classes: map, default {}
          Names of classes by number.
      extra: map, default {}
          Anything else that the service takes.

    Example
      stages:
        captions: { type: caption, prompt: Describe it., api_key: "${env:API_KEY}" }
    "#);
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
    insta::assert_snapshot!(faults.join("\n"), @r"
    unknown keys are accepted: add #[serde(deny_unknown_fields)]
    `type` is reserved; give the field another name
    the field `type` has no doc comment
    the schema keyword /properties/zip/pattern is not checked
    the summary must be one line without a full stop
    the example: stage `a` has no `type`
    the example: `zip` of stage `a` must be text, found the number 5
    ");
}

#[test]
fn the_schema_of_pipeline_files() {
    let schema = pipeline_schema::<product::Settings>(&types());
    let defs = schema["$defs"].as_object().unwrap();
    insta::assert_snapshot!(defs.keys().cloned().collect::<Vec<_>>().join("\n"), @r"
    param
    name
    settings.Amount
    source.image_folder
    stage.noun_chunks
    stage.filter_boxes.Suppression
    stage.filter_boxes
    stage.caption.Retries
    stage.caption.Store
    stage.caption.Choice
    stage.caption.Amount
    stage.caption.Size
    stage.caption
    sink.parquet
    ");
    insta::assert_snapshot!(serde_json::to_string_pretty(&defs["stage.filter_boxes"]).unwrap(), @r##"
    {
      "type": "object",
      "description": "Keeps the boxes that a threshold and NMS leave.",
      "properties": {
        "type": {
          "const": "filter_boxes"
        },
        "input": {
          "description": "The sources or stages that are read; without it, the one above",
          "anyOf": [
            {
              "type": "string"
            },
            {
              "type": "array",
              "items": {
                "type": "string"
              },
              "minItems": 1,
              "uniqueItems": true
            }
          ]
        },
        "checkpoint": {
          "description": "Store the rows behind this stage, so that a later run can begin here",
          "anyOf": [
            {
              "type": "boolean"
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        },
        "min_score": {
          "description": "The smallest score that is kept.",
          "default": 0.65,
          "anyOf": [
            {
              "type": "number",
              "format": "float",
              "minimum": 0,
              "maximum": 1
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        },
        "nms_iou": {
          "description": "Above this overlap, the box with the smaller score goes.",
          "anyOf": [
            {
              "type": [
                "number",
                "null"
              ],
              "format": "double",
              "minimum": 0,
              "maximum": 1
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        },
        "nms": {
          "description": "Which boxes compete.",
          "default": "across_phrases",
          "anyOf": [
            {
              "$ref": "#/$defs/stage.filter_boxes.Suppression"
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        },
        "limit": {
          "description": "The most boxes of one image.",
          "anyOf": [
            {
              "type": [
                "integer",
                "null"
              ],
              "format": "uint32",
              "minimum": 1
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        },
        "keep_rejected": {
          "description": "Whether boxes that go are kept in a column of their own.",
          "default": false,
          "anyOf": [
            {
              "type": "boolean"
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        },
        "always": {
          "description": "Phrases whose boxes always stay.",
          "default": [],
          "anyOf": [
            {
              "type": "array",
              "items": {
                "type": "string"
              }
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        }
      },
      "additionalProperties": false
    }
    "##);
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema["properties"]["sinks"]).unwrap(), @r##"
    {
      "description": "Where rows go; a sink without `input` reads the last stage",
      "type": "object",
      "minProperties": 1,
      "propertyNames": {
        "$ref": "#/$defs/name"
      },
      "additionalProperties": {
        "type": "object",
        "properties": {
          "type": {
            "description": "The type of sink",
            "oneOf": [
              {
                "const": "parquet",
                "description": "Write Parquet files"
              }
            ]
          }
        },
        "required": [
          "type"
        ],
        "allOf": [
          {
            "if": {
              "properties": {
                "type": {
                  "const": "parquet"
                }
              },
              "required": [
                "type"
              ]
            },
            "then": {
              "$ref": "#/$defs/sink.parquet"
            }
          }
        ]
      }
    }
    "##);
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema["properties"]["settings"]).unwrap(), @r##"
    {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "max_bad": {
          "$ref": "#/$defs/settings.Amount",
          "description": "The most rows that may be bad.",
          "default": "1%"
        },
        "shard_rows": {
          "description": "Rows of one shard.",
          "default": 10000,
          "anyOf": [
            {
              "type": "integer",
              "format": "uint64",
              "minimum": 1
            },
            {
              "$ref": "#/$defs/param"
            }
          ]
        }
      },
      "description": "How a run behaves."
    }
    "##);
    let text = schema.to_string();
    for part in text.split("\"$ref\":\"#/$defs/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(defs.contains_key(name), "{name} is not defined");
    }
}
