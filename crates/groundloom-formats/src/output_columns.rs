//! The columns that a sink writes: which of those that arrive, in what types, and those that a form adds.

use std::sync::Arc;

use arrow::{
    array::ArrayRef,
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use groundloom_data::columns::ROW_ID;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FormatError, grit};

/// A data set's released form: columns that are rendered from the typed ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// GrIT's released form: `noun_chunks` and `ref_exps` as lists of [start, end, x1, y1, x2, y2, score], beside the typed columns they are made from
    /// (`chunks`, `boxes`, `expressions`).
    Grit,
}

/// Where an output column comes from.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// The input column of that index, cast to the output type where they differ.
    Input(usize),
    NounChunks,
    RefExps,
}

/// Turns the batches that arrive into the batches that are written.
#[derive(Debug)]
pub(crate) struct OutputColumns {
    schema: SchemaRef,
    origins: Vec<Origin>,
    form: Option<Form>,
}

impl OutputColumns {
    /// `only` names the columns to write, in that order (`row_id` is always written, and first); without it all are.
    pub(crate) fn new(input: &Schema, form: Option<Form>, only: Option<&[String]>) -> Result<Self, FormatError> {
        let mut all: Vec<(FieldRef, Origin)> =
            input.fields().iter().enumerate().map(|(i, field)| (plain_field(field), Origin::Input(i))).collect();
        if form == Some(Form::Grit) {
            grit::check(input)?;
            let [noun_chunks, ref_exps] = grit::fields();
            all.retain(|(field, _)| field.name() != grit::NOUN_CHUNKS && field.name() != grit::REF_EXPS);
            all.extend([(noun_chunks, Origin::NounChunks), (ref_exps, Origin::RefExps)]);
        }
        if let Some(only) = only {
            all = pick(&all, only)?;
        }
        let (fields, origins): (Vec<FieldRef>, Vec<Origin>) = all.into_iter().unzip();
        Ok(Self { schema: Arc::new(Schema::new(fields)), origins, form })
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(crate) fn apply(&self, rows: &RecordBatch) -> Result<RecordBatch, FormatError> {
        let rendered = match self.form {
            Some(Form::Grit) => Some(grit::columns(rows)?),
            None => None,
        };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.origins.len());
        for (origin, field) in self.origins.iter().zip(self.schema.fields()) {
            columns.push(match (origin, &rendered) {
                (Origin::Input(index), _) => {
                    let column = rows.column(*index);
                    if column.data_type() == field.data_type() {
                        column.clone()
                    } else {
                        cast(column, field.data_type()).map_err(|e| refused(field.name(), e))?
                    }
                }
                (Origin::NounChunks, Some([noun_chunks, _])) => noun_chunks.clone(),
                (Origin::RefExps, Some([_, ref_exps])) => ref_exps.clone(),
                (_, None) => {
                    return Err(FormatError::Column {
                        column: field.name().clone(),
                        message: format!("the column `{}` needs `form: grit`", field.name()),
                    });
                }
            });
        }
        RecordBatch::try_new(self.schema.clone(), columns).map_err(|e| refused("row", e))
    }
}

fn pick(all: &[(FieldRef, Origin)], only: &[String]) -> Result<Vec<(FieldRef, Origin)>, FormatError> {
    let mut picked: Vec<(FieldRef, Origin)> = all.iter().filter(|(f, _)| f.name() == ROW_ID).cloned().collect();
    for name in only {
        let Some(column) = all.iter().find(|(field, _)| field.name() == name) else {
            let names: Vec<&str> = all.iter().map(|(f, _)| f.name().as_str()).collect();
            return Err(FormatError::Column {
                column: name.clone(),
                message: format!(
                    "`columns` names `{name}`, and there is no such column here; there are {}",
                    names.join(", ")
                ),
            });
        };
        if picked.iter().all(|(field, _)| field.name() != name) {
            picked.push(column.clone());
        }
    }
    Ok(picked)
}

fn refused(column: &str, error: arrow::error::ArrowError) -> FormatError {
    FormatError::Column {
        column: column.to_owned(),
        message: format!("the column `{column}` cannot be written: {error}"),
    }
}

/// The field without the encodings that readers of the formats do not all know: string and binary views and dictionaries become plain arrays.
fn plain_field(field: &Field) -> FieldRef {
    Arc::new(Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()))
}

fn plain_type(data_type: &DataType) -> DataType {
    let item = |field: &FieldRef| plain_field(field);
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::List(field) | DataType::ListView(field) => DataType::List(item(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(item(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(item(field), *size),
        DataType::Map(field, sorted) => DataType::Map(item(field), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(item).collect::<Fields>()),
        other => other.clone(),
    }
}
