//! How a schema looks to Hugging Face `datasets`: the features of a data set, in the two spellings that the library reads.
//!
//! Parquet files carry them as JSON under the schema key `huggingface`; a data-set card carries them as YAML in its front matter. Both are what makes
//! `load_dataset` decode an `image` column into pictures. Lists are written in the spelling that every release since 2.0 reads (`[item]` in JSON, `sequence`/`list` in YAML).

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde_json::{Value, json};

/// The schema metadata key that `datasets` reads.
pub const METADATA_KEY: &str = "huggingface";

/// A feature of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feature {
    /// A plain value, with the library's name for its type (`int32`, `string`, …).
    Value(String),
    /// Encoded media: `Image`, `Audio` or `Video`.
    Media(&'static str),
    /// A list.
    List(Box<Feature>),
    /// A list with 64-bit offsets.
    LargeList(Box<Feature>),
    /// Named fields.
    Struct(Vec<(String, Feature)>),
}

/// The features of a schema; `None` where a type has no counterpart in the library (maps, unions, intervals).
pub fn features(schema: &Schema) -> Option<Vec<(String, Feature)>> {
    schema.fields().iter().map(|f| Some((f.name().clone(), feature(f)?))).collect()
}

/// The value of [`METADATA_KEY`]; `None` as for [`features`].
pub fn metadata(schema: &Schema) -> Option<String> {
    let features = Feature::Struct(features(schema)?);
    Some(json!({ "info": { "features": features.to_json() } }).to_string())
}

/// What a media column holds, judged by its name as Hugging Face's own folder loaders name them: `audio…`/`video…`, else pictures.
pub fn media_kind(name: &str) -> &'static str {
    let name = name.to_ascii_lowercase();
    match () {
        () if name.contains("audio") => "Audio",
        () if name.contains("video") => "Video",
        () => "Image",
    }
}

fn feature(field: &Field) -> Option<Feature> {
    use DataType as T;
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    Some(match field.data_type() {
        T::Struct(fields) if is_media_exactly(field.data_type()) && fields.len() == 2 => {
            Feature::Media(media_kind(field.name()))
        }
        T::Struct(fields) => {
            Feature::Struct(fields.iter().map(|f| Some((f.name().clone(), feature(f)?))).collect::<Option<_>>()?)
        }
        // A list of pictures is named by its column, not by its item.
        T::List(item) => Feature::List(Box::new(feature(&item.as_ref().clone().with_name(field.name()))?)),
        T::LargeList(item) => Feature::LargeList(Box::new(feature(&item.as_ref().clone().with_name(field.name()))?)),
        T::Null => Feature::Value("null".into()),
        T::Boolean => Feature::Value("bool".into()),
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => {
            Feature::Value(field.data_type().to_string().to_ascii_lowercase())
        }
        T::Float16 => Feature::Value("float16".into()),
        T::Float32 => Feature::Value("float32".into()),
        T::Float64 => Feature::Value("float64".into()),
        T::Utf8 => Feature::Value("string".into()),
        T::LargeUtf8 => Feature::Value("large_string".into()),
        T::Binary => Feature::Value("binary".into()),
        T::LargeBinary => Feature::Value("large_binary".into()),
        T::Date32 => Feature::Value("date32".into()),
        T::Date64 => Feature::Value("date64".into()),
        T::Time32(u) => Feature::Value(format!("time32[{}]", unit(u))),
        T::Time64(u) => Feature::Value(format!("time64[{}]", unit(u))),
        T::Timestamp(u, None) => Feature::Value(format!("timestamp[{}]", unit(u))),
        T::Timestamp(u, Some(zone)) => Feature::Value(format!("timestamp[{}, tz={zone}]", unit(u))),
        T::Duration(u) => Feature::Value(format!("duration[{}]", unit(u))),
        T::Decimal128(precision, scale) => Feature::Value(format!("decimal128({precision}, {scale})")),
        T::Decimal256(precision, scale) => Feature::Value(format!("decimal256({precision}, {scale})")),
        _ => return None,
    })
}

/// The library casts a media column to `struct<bytes: binary, path: string>`; only that very type passes without loss.
fn is_media_exactly(data_type: &DataType) -> bool {
    *data_type == groundloom_data::columns::media_type()
}

impl Feature {
    /// The JSON spelling (`Features.from_dict`).
    pub fn to_json(&self) -> Value {
        match self {
            Feature::Value(dtype) => json!({ "dtype": dtype, "_type": "Value" }),
            Feature::Media(kind) => json!({ "_type": kind }),
            Feature::List(item) => json!([item.to_json()]),
            Feature::LargeList(item) => json!({ "feature": item.to_json(), "_type": "LargeList" }),
            Feature::Struct(fields) => {
                Value::Object(fields.iter().map(|(name, f)| (name.clone(), f.to_json())).collect())
            }
        }
    }

    /// The YAML spelling of the front matter, as the value that follows a field's `name`: `dtype: int32`, `list: …`, `struct: …`.
    pub fn to_yaml(&self) -> Value {
        match self {
            Feature::Value(dtype) => json!({ "dtype": dtype }),
            Feature::Media(kind) => json!({ "dtype": kind.to_ascii_lowercase() }),
            Feature::List(item) => Self::list_to_yaml("sequence", "list", item),
            Feature::LargeList(item) => Self::list_to_yaml("large_list", "large_list", item),
            Feature::Struct(fields) => json!({ "struct": Self::fields_to_yaml(fields) }),
        }
    }

    /// The YAML spelling of named fields: a list of `name` and type.
    pub fn fields_to_yaml(fields: &[(String, Feature)]) -> Value {
        let field = |(name, feature): &(String, Feature)| {
            let mut entry = serde_json::Map::from_iter([("name".to_owned(), json!(name))]);
            if let Value::Object(kind) = feature.to_yaml() {
                entry.extend(kind);
            }
            Value::Object(entry)
        };
        fields.iter().map(field).collect()
    }

    /// Lists of structs have a key of their own: `sequence` would turn them into a struct of lists.
    fn list_to_yaml(of_values: &str, of_structs: &str, item: &Feature) -> Value {
        match item {
            Feature::Value(dtype) => json!({ of_values: dtype }),
            Feature::Struct(fields) => json!({ of_structs: Self::fields_to_yaml(fields) }),
            other => json!({ of_values: other.to_yaml() }),
        }
    }
}
