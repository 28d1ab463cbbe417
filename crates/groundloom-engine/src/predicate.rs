//! Conditions in SQL on the rows of an index.

use std::sync::Arc;

use arrow::{
    array::{BooleanArray, RecordBatch},
    datatypes::{DataType, Schema},
};
use datafusion::{
    common::{DFSchema, cast::as_boolean_array},
    execution::context::SessionContext,
    physical_expr::PhysicalExpr,
};
use groundloom_index::{IndexError, Predicate};

/// A condition such as `width > 300 AND caption LIKE '%cat%'`, in DataFusion's SQL.
#[derive(Debug)]
pub struct SqlPredicate {
    text: String,
    columns: Vec<String>,
    expression: Arc<dyn PhysicalExpr>,
}

impl SqlPredicate {
    /// Reads the condition `text` on rows of `schema`.
    ///
    /// # Errors
    /// [`IndexError::BadPredicate`] for wrong syntax, unknown columns, and what is no condition.
    pub fn parse(text: &str, schema: &Schema) -> Result<Self, IndexError> {
        let bad = |problem: String| IndexError::BadPredicate { predicate: text.to_owned(), problem };
        let context = SessionContext::new();
        let all = DFSchema::try_from(schema.clone()).map_err(|e| bad(e.to_string()))?;
        let parse = |schema: &DFSchema| context.parse_sql_expr(text, schema).map_err(|e| bad(e.strip_backtrace()));
        let named = parse(&all)?;
        let named = named.column_refs();
        let fields: Vec<_> =
            schema.fields().iter().filter(|f| named.iter().any(|c| c.name == *f.name())).cloned().collect();
        let columns = fields.iter().map(|f| f.name().clone()).collect();
        // What is read are these columns alone, so places in rows are those of this schema.
        let read = DFSchema::try_from(Schema::new(fields)).map_err(|e| bad(e.to_string()))?;
        let expression = context.create_physical_expr(parse(&read)?, &read).map_err(|e| bad(e.strip_backtrace()))?;
        let found = expression.data_type(read.as_arrow()).map_err(|e| bad(e.strip_backtrace()))?;
        if found != DataType::Boolean {
            return Err(bad(format!("expected a condition, which is true or false, found {found}")));
        }
        Ok(Self { text: text.to_owned(), columns, expression })
    }
}

impl Predicate for SqlPredicate {
    fn columns(&self) -> Vec<String> {
        self.columns.clone()
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<BooleanArray, IndexError> {
        let bad = |e: datafusion::error::DataFusionError| IndexError::BadPredicate {
            predicate: self.text.clone(),
            problem: e.strip_backtrace(),
        };
        let found = self.expression.evaluate(batch).and_then(|v| v.into_array(batch.num_rows())).map_err(bad)?;
        as_boolean_array(&found).cloned().map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn rows() -> RecordBatch {
        RecordBatch::try_from_iter([
            ("caption", Arc::new(StringArray::from(vec![Some("a cat"), None, Some("a dog")])) as ArrayRef),
            ("spare", Arc::new(Int64Array::from(vec![0, 0, 0])) as ArrayRef),
            ("width", Arc::new(Int64Array::from(vec![Some(100), Some(400), None])) as ArrayRef),
        ])
        .unwrap()
    }

    #[test]
    fn conditions_are_evaluated_over_the_columns_they_name() {
        let batch = rows();
        for (text, columns, expected) in [
            ("width > 300", vec!["width"], vec![Some(false), Some(true), None]),
            (
                "width > 300 OR caption LIKE '%dog%'",
                vec!["caption", "width"],
                vec![Some(false), Some(true), Some(true)],
            ),
            ("1 = 1", vec![], vec![Some(true); 3]),
            ("width IS NULL", vec!["width"], vec![Some(false), Some(false), Some(true)]),
        ] {
            let predicate = SqlPredicate::parse(text, &batch.schema()).unwrap();
            assert_eq!(predicate.columns(), columns, "{text}");
            let places: Vec<usize> = columns.iter().map(|c| batch.schema().index_of(c).unwrap()).collect();
            let found = predicate.evaluate(&batch.project(&places).unwrap()).unwrap();
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        let schema = rows().schema();
        for (text, words) in [("widht > 3", "widht"), ("width +", "width +"), ("width + 1", "true or false"), ("", "")]
        {
            let error = SqlPredicate::parse(text, &schema).unwrap_err().to_string();
            assert!(error.contains(words) && error.starts_with("--where"), "{text}: {error}");
        }
    }
}
