//! The columns that a data set promises its readers: written with it, and checked before a run adds to it.

use arrow::datatypes::Schema;
use groundloom_formats::card::type_name;
use serde::{Deserialize, Serialize};

use crate::{error::EngineError, generation::Manifest, segment::Fingerprint};

/// A column of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as the card writes it.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Whether it may hold nulls.
    pub nullable: bool,
}

/// The columns of a schema.
pub fn columns(schema: &Schema) -> Vec<Column> {
    let column = |f: &std::sync::Arc<arrow::datatypes::Field>| Column {
        name: f.name().clone(),
        data_type: type_name(f),
        nullable: f.is_nullable(),
    };
    schema.fields().iter().map(column).collect()
}

/// Refuses a run whose inputs alone have changed a data set's columns. A changed pipeline may change them: that is what it was changed for.
///
/// # Errors
/// [`EngineError::Contract`], with the first difference.
pub fn check(published: &Manifest, declared: &Fingerprint, schema: &Schema, shown: &str) -> Result<(), EngineError> {
    let now = columns(schema);
    if published.declared.as_ref() != Some(declared) || published.columns == now {
        return Ok(());
    }
    let find = |columns: &[Column], name: &str| columns.iter().find(|c| c.name == name).cloned();
    let lost = published.columns.iter().find_map(|old| match find(&now, &old.name) {
        None => Some(format!("the column `{}` ({}) is gone", old.name, old.data_type)),
        Some(new) if new != *old => Some(format!(
            "the column `{}` was {}{} and would be {}{}",
            old.name,
            old.data_type,
            if old.nullable { ", nullable" } else { "" },
            new.data_type,
            if new.nullable { ", nullable" } else { "" },
        )),
        Some(_) => None,
    });
    let gained = || {
        let new = now.iter().find(|c| find(&published.columns, &c.name).is_none())?;
        Some(format!("there would be a new column `{}` ({})", new.name, new.data_type))
    };
    let difference = lost.or_else(gained).unwrap_or_else(|| "the columns would stand in another order".to_owned());
    Err(EngineError::Contract { target: shown.to_owned(), difference })
}
