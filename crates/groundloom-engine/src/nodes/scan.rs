//! Scans of shards: a plan is made once for a placeholder and retargeted to each shard.

use std::{any::Any, fmt, sync::Arc};

use arrow::{
    array::{Array, StringArray, StructArray},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use async_trait::async_trait;
use datafusion::{
    catalog::{Session, TableProvider},
    common::{
        DataFusionError, Result, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::{
        TableType,
        listing::PartitionedFile,
        physical_plan::{FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetSource},
        source::DataSourceExec,
        table_schema::TableSchema,
    },
    execution::{SendableRecordBatchStream, TaskContext, context::SessionContext, object_store::ObjectStoreUrl},
    logical_expr::Expr,
    physical_expr::{
        EquivalenceProperties, PhysicalExpr,
        utils::{collect_columns, reassign_expr_columns},
    },
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::StreamExt;
use groundloom_data::{
    columns::{ERROR, ROW_ID, error_type},
    row_id::file_hash,
};
use groundloom_formats::{BatchLimits, FormatError, Reader, Shard, ShardReader, store::Stores};
use parquet::arrow::RowNumber;

use super::filter::FilterExec;
use crate::counters::Counters;

/// The hash of a row's file, a column of Parquet scans that only the row id's expression sees.
pub const FILE_COLUMN: &str = "_file";
/// The kind of a source in the counts.
pub const SOURCE: &str = "source";
/// The row's number in its file, likewise.
pub const ROW_COLUMN: &str = "_row";

/// Where the row ids of a table come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// The rows carry theirs (a finished segment, or a reader that makes them).
    Carried,
    /// File and row number of a Parquet file.
    FileAndRow,
}

/// A table over the shards of a source or of a finished segment.
#[derive(Debug)]
pub struct ShardTable {
    name: Arc<str>,
    columns: SchemaRef,
    reader: Reader,
    ids: Ids,
    schema: SchemaRef,
    shards: Vec<Shard>,
}

impl ShardTable {
    /// A table named `name` with the user's `columns`; all `shards` together are one partition.
    pub fn new(name: &str, columns: SchemaRef, reader: Reader, ids: Ids, shards: Vec<Shard>) -> Self {
        let mut fields: Vec<FieldRef> = Vec::new();
        match (&reader, ids) {
            (Reader::Rows(_), _) => {
                fields.push(Arc::new(Field::new(ROW_ID, DataType::Utf8, false)));
                fields.extend(columns.fields().iter().cloned());
                fields.push(Arc::new(Field::new(ERROR, error_type(), true)));
            }
            (Reader::Parquet, Ids::Carried) => fields.extend(columns.fields().iter().cloned()),
            (Reader::Parquet, Ids::FileAndRow) => {
                fields.extend(parquet_schema(&columns).table_schema().fields().iter().cloned())
            }
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, columns.metadata().clone()));
        Self { name: name.into(), columns, reader, ids, schema, shards }
    }
}

fn parquet_schema(columns: &SchemaRef) -> TableSchema {
    let row = Field::new(ROW_COLUMN, DataType::Int64, false).with_extension_type(RowNumber);
    TableSchema::builder(Arc::clone(columns))
        .with_table_partition_cols(vec![Arc::new(Field::new(FILE_COLUMN, DataType::UInt64, false))])
        .with_virtual_columns(vec![Arc::new(row)])
        .build()
}

#[async_trait]
impl TableProvider for ShardTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match &self.reader {
            Reader::Parquet => {
                let schema = match self.ids {
                    Ids::Carried => TableSchema::builder(Arc::clone(&self.columns)).build(),
                    Ids::FileAndRow => parquet_schema(&self.columns),
                };
                let config = FileScanConfigBuilder::new(store_url(&self.shards)?, Arc::new(ParquetSource::new(schema)))
                    .with_file_groups(vec![file_group(&self.shards, self.ids)?])
                    .with_projection_indices(projection.cloned())?
                    .with_preserve_order(true)
                    .build();
                Ok(DataSourceExec::from_data_source(config))
            }
            Reader::Rows(reader) => Ok(Arc::new(ShardScanExec::try_new(
                Arc::clone(&self.name),
                Arc::clone(reader),
                &self.schema,
                projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect()),
                self.shards.clone(),
            )?)),
        }
    }
}

/// The store that holds the shards of a table: all files of a source stand in one.
fn store_url(shards: &[Shard]) -> Result<ObjectStoreUrl> {
    match shards.iter().flat_map(|s| s.files.iter()).next() {
        Some(file) if Stores::is_remote(&file.location).map_err(plain)? => {
            ObjectStoreUrl::parse(Stores::object_url(&file.location).map_err(plain)?.0)
        }
        _ => Ok(ObjectStoreUrl::local_filesystem()),
    }
}

fn plain(error: FormatError) -> DataFusionError {
    DataFusionError::Execution(error.to_string())
}

/// Makes the stores known in which a source's Parquet files stand.
///
/// # Errors
/// A location of an unknown kind, or credentials that are missing.
pub fn register_stores(context: &SessionContext, stores: &Stores, shards: &[Shard]) -> Result<()> {
    let url = store_url(shards)?;
    if let Some(file) = shards.iter().flat_map(|s| s.files.iter()).next()
        && url != ObjectStoreUrl::local_filesystem()
    {
        let (store, _) = stores.object(&file.location).map_err(plain)?;
        context.register_object_store(url.as_ref(), store);
    }
    Ok(())
}

fn file_group(shards: &[Shard], ids: Ids) -> Result<FileGroup> {
    let files = shards.iter().flat_map(|s| s.files.iter()).map(|file| {
        let path = if Stores::is_remote(&file.location).map_err(plain)? {
            Stores::object_url(&file.location).map_err(plain)?.1
        } else {
            object_store::path::Path::from_absolute_path(&file.location)
                .map_err(|e| DataFusionError::Execution(format!("{}: {e}", file.location)))?
        };
        let meta = object_store::ObjectMeta {
            location: path,
            last_modified: chrono_epoch(),
            size: file.size,
            e_tag: None,
            version: None,
        };
        let mut part = PartitionedFile::new_from_meta(meta);
        if ids == Ids::FileAndRow {
            part = part.with_partition_values(vec![ScalarValue::UInt64(Some(file_hash(&file.path)))]);
        }
        if let Some(range) = &file.range {
            part = part.with_range(range.start as i64, range.end as i64);
        }
        Ok(part)
    });
    Ok(FileGroup::new(files.collect::<Result<Vec<_>>>()?))
}

fn chrono_epoch() -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::<chrono::Utc>::UNIX_EPOCH
}

/// Reads shards with a format's own reader; one partition that reads its shards one after another.
#[derive(Debug)]
pub struct ShardScanExec {
    name: Arc<str>,
    reader: Arc<dyn ShardReader>,
    full: SchemaRef,
    /// Indices into the full schema (`row_id`, user columns, `_error`).
    projection: Vec<usize>,
    shards: Vec<Shard>,
    properties: Arc<PlanProperties>,
    counters: Arc<Counters>,
}

impl ShardScanExec {
    fn try_new(
        name: Arc<str>,
        reader: Arc<dyn ShardReader>,
        full: &SchemaRef,
        projection: Vec<usize>,
        shards: Vec<Shard>,
    ) -> Result<Self> {
        let schema = Arc::new(full.project(&projection)?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let counters = Arc::new(Counters::new(&name, SOURCE));
        Ok(Self { name, reader, full: Arc::clone(full), projection, shards, properties, counters })
    }

    fn retarget(&self, shards: Vec<Shard>) -> Result<Self> {
        Self::try_new(Arc::clone(&self.name), Arc::clone(&self.reader), &self.full, self.projection.clone(), shards)
    }

    /// What this very operator counted so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl DisplayAs for ShardScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "ShardScanExec: {} shards={}", self.name, self.shards.len())
    }
}

impl ExecutionPlan for ShardScanExec {
    fn name(&self) -> &str {
        "ShardScanExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let user = self.full.fields().len() - 2;
        let columns: Vec<usize> = self.projection.iter().filter(|i| (1..=user).contains(*i)).map(|i| i - 1).collect();
        // Where each projected column stands in what the reader gives: row id, the columns asked for, the error.
        let mut next = 0;
        let places: Vec<usize> = self
            .projection
            .iter()
            .map(|i| match *i {
                0 => 0,
                i if i <= user => {
                    next += 1;
                    next
                }
                _ => columns.len() + 1,
            })
            .collect();
        let (reader, counters, schema, name) =
            (Arc::clone(&self.reader), Arc::clone(&self.counters), self.schema(), Arc::clone(&self.name));
        let stream = futures::stream::iter(self.shards.clone())
            .flat_map(move |shard| reader.read(&shard, &columns, BatchLimits::default()))
            .map(move |batch| {
                let batch = batch.map_err(|e| DataFusionError::Execution(format!("source `{name}`: {e}")))?;
                count(&counters, &batch);
                let columns = places.iter().map(|p| Arc::clone(batch.column(*p))).collect();
                let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                Ok(RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)?)
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream)))
    }
}

fn count(counters: &Counters, batch: &RecordBatch) {
    counters.add_rows(batch.num_rows() as u64, batch.num_rows() as u64);
    let Some(errors) = batch.columns().last().and_then(|c| c.as_any().downcast_ref::<StructArray>()) else { return };
    if errors.null_count() == errors.len() {
        return;
    }
    let Some(codes) = errors.column_by_name("code").and_then(|c| c.as_any().downcast_ref::<StringArray>()) else {
        return;
    };
    for row in (0..errors.len()).filter(|row| errors.is_valid(*row)) {
        counters.add_failed(codes.value(row), 1);
    }
}

/// The template plan for these shards: fresh operators, fresh counters, the scan pointed at them. No optimizer run.
///
/// # Errors
/// A location that is no valid path.
pub fn retarget(template: &Arc<dyn ExecutionPlan>, shards: &[Shard], ids: Ids) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = Arc::clone(template).transform_up(|node| {
        if let Some(scan) = node.downcast_ref::<DataSourceExec>()
            && let Some(config) = (scan.data_source().as_ref() as &dyn Any).downcast_ref::<FileScanConfig>()
        {
            let config =
                FileScanConfigBuilder::from(config.clone()).with_file_groups(vec![file_group(shards, ids)?]).build();
            return Ok(Transformed::yes(DataSourceExec::from_data_source(config) as Arc<dyn ExecutionPlan>));
        }
        if let Some(scan) = node.downcast_ref::<ShardScanExec>() {
            return Ok(Transformed::yes(Arc::new(scan.retarget(shards.to_vec())?) as Arc<dyn ExecutionPlan>));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(plan.data)
}

/// Lets a filter that stands right above a Parquet scan skip row groups by their statistics.
///
/// Only the first filter of a chain prunes: rows that are never read are then rows that this filter would have dropped.
///
/// # Errors
/// A plan error when the scan cannot be rebuilt.
pub fn prune_by_first_filter(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let done = plan.transform_up(|node| {
        let pruned = node
            .downcast_ref::<FilterExec>()
            .filter(|filter| filter.drops())
            .and_then(|filter| pruned_scan(filter.predicate(), filter.children()[0]));
        match pruned {
            Some(scan) => Ok(Transformed::yes(
                node.replace_children(vec![scan], ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))?,
            )),
            None => Ok(Transformed::no(node)),
        }
    })?;
    Ok(done.data)
}

fn pruned_scan(predicate: &Arc<dyn PhysicalExpr>, scan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let scan = scan.downcast_ref::<DataSourceExec>()?;
    let config = (scan.data_source().as_ref() as &dyn Any).downcast_ref::<FileScanConfig>()?;
    let source = (config.file_source().as_ref() as &dyn Any).downcast_ref::<ParquetSource>()?;
    let file_schema = config.file_schema();
    if collect_columns(predicate).iter().any(|c| file_schema.index_of(c.name()).is_err()) {
        return None;
    }
    let predicate = reassign_expr_columns(Arc::clone(predicate), file_schema).ok()?;
    let config =
        FileScanConfigBuilder::from(config.clone()).with_source(Arc::new(source.with_predicate(predicate))).build();
    Some(DataSourceExec::from_data_source(config))
}
