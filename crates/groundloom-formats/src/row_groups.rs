//! A Parquet file that is written row group by row group, with text columns of alike neighbours encoded by [`DeltaTexts`] and all others by the `parquet` crate.

use std::{fs::File, io::BufWriter};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{DataType, Schema, SchemaRef},
};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
    },
    errors::{ParquetError, Result},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
};

use crate::delta_texts::DeltaTexts;

/// Bytes that are gathered before they are written to the file.
pub(crate) const WRITE_BYTES: usize = 1 << 20;
/// Most rows of a row group.
const MOST_ROWS: usize = 1 << 20;

/// How a column is encoded that [`DeltaTexts`] takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AlikeTexts {
    /// Index among the fields of the schema.
    pub(crate) field: usize,
    /// Whether its least and greatest texts are noted.
    pub(crate) bounded: bool,
}

/// A file under way.
pub(crate) struct RowGroups {
    file: SerializedFileWriter<BufWriter<File>>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    alike: Vec<AlikeTexts>,
    zstd_level: Option<i32>,
    open: Option<RowGroup>,
}

struct RowGroup {
    /// By field.
    columns: Vec<Column>,
    rows: usize,
}

enum Column {
    /// Its leaves.
    Arrow(Vec<ArrowColumnWriter>),
    Alike(Box<DeltaTexts>),
}

impl RowGroups {
    /// Starts a file. The columns `alike` are required texts (see [`takes`]); `zstd_level` is how they are compressed, if at all.
    pub(crate) fn new(
        file: File,
        schema: SchemaRef,
        properties: WriterProperties,
        alike: Vec<AlikeTexts>,
        zstd_level: Option<i32>,
    ) -> Result<Self> {
        let file = BufWriter::with_capacity(WRITE_BYTES, file);
        let writer = ArrowWriter::try_new(file, SchemaRef::clone(&schema), Some(properties))?;
        let (file, factory) = writer.into_serialized_writer()?;
        Ok(Self { file, factory, schema, alike, zstd_level, open: None })
    }

    /// Adds rows, and closes the row group if it has `most_bytes` then.
    pub(crate) fn write(&mut self, rows: &RecordBatch, most_bytes: usize) -> Result<()> {
        if self.open.as_ref().is_some_and(|open| open.rows + rows.num_rows() > MOST_ROWS) {
            self.close_group()?;
        }
        let group = match &mut self.open {
            Some(group) => group,
            none => none.insert(RowGroup {
                columns: columns(&self.file, &self.factory, &self.schema, &self.alike, self.zstd_level)?,
                rows: 0,
            }),
        };
        for ((column, array), field) in group.columns.iter_mut().zip(rows.columns()).zip(self.schema.fields()) {
            match column {
                Column::Alike(texts) => texts.write(array.as_string::<i32>())?,
                Column::Arrow(writers) => {
                    for (leaf, writer) in compute_leaves(field, array)?.iter().zip(writers) {
                        writer.write(leaf)?;
                    }
                }
            }
        }
        group.rows += rows.num_rows();
        if group.encoded_bytes() >= most_bytes { self.close_group() } else { Ok(()) }
    }

    /// Completes the file.
    pub(crate) fn close(mut self) -> Result<File> {
        self.close_group()?;
        let file = self.file.into_inner()?;
        file.into_inner().map_err(|e| ParquetError::External(Box::new(e.into_error())))
    }

    fn close_group(&mut self) -> Result<()> {
        let Some(group) = self.open.take() else { return Ok(()) };
        let mut out = self.file.next_row_group()?;
        for column in group.columns {
            match column {
                Column::Alike(texts) => {
                    let (pages, close) = texts.close()?;
                    out.append_column(&pages, close)?;
                }
                Column::Arrow(writers) => {
                    for writer in writers {
                        writer.close()?.append_to_row_group(&mut out)?;
                    }
                }
            }
        }
        out.close()?;
        Ok(())
    }
}

impl RowGroup {
    fn encoded_bytes(&self) -> usize {
        let of = |column: &Column| match column {
            Column::Alike(texts) => texts.encoded_bytes(),
            Column::Arrow(writers) => writers.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum(),
        };
        self.columns.iter().map(of).sum()
    }
}

/// Whether [`DeltaTexts`] can write the field.
pub(crate) fn takes(schema: &Schema, field: usize) -> bool {
    let field = schema.field(field);
    *field.data_type() == DataType::Utf8 && !field.is_nullable()
}

fn columns(
    file: &SerializedFileWriter<BufWriter<File>>,
    factory: &ArrowRowGroupWriterFactory,
    schema: &Schema,
    alike: &[AlikeTexts],
    zstd_level: Option<i32>,
) -> Result<Vec<Column>> {
    let descriptor = file.schema_descr();
    let mut columns: Vec<Column> = (0..schema.fields().len()).map(|_| Column::Arrow(Vec::new())).collect();
    for (leaf, writer) in factory.create_column_writers(file.flushed_row_groups().len())?.into_iter().enumerate() {
        let field = descriptor.get_column_root_idx(leaf);
        match (&mut columns[field], alike.iter().find(|a| a.field == field)) {
            (column, Some(how)) => {
                let texts = DeltaTexts::new(descriptor.column(leaf), how.bounded, zstd_level);
                *column = Column::Alike(Box::new(texts));
            }
            (Column::Arrow(writers), None) => writers.push(writer),
            (Column::Alike(_), None) => {}
        }
    }
    Ok(columns)
}
