//! Cost of the engine: Parquet → filter → Parquet as a pipeline, beside DataFusion alone on the same rows, which writes with the codec of our sink (snappy) and with
//! the one that it takes by itself (zstd). The pipeline also makes row ids, notes every dropped row with the values that the condition saw, and syncs its files.
//!
//! `cargo bench --bench filter` (`ROWS=1000000` for a quick look). Rounds alternate; medians and their ratios are printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    config::TableParquetOptions,
    dataframe::DataFrameWriteOptions,
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use support::{median, random_numbers, run_pipeline, timed};

const ROUNDS: usize = 5;
const PREDICATE: &str = "length(caption) between 12 and 40 and score > 0.3";

fn main() {
    let rows: usize = std::env::var("ROWS").ok().and_then(|r| r.parse().ok()).unwrap_or(10_000_000);
    let folder = tempfile::tempdir().unwrap();
    generate(&folder.path().join("in.parquet"), rows);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (mut ours, mut alone, mut by_itself, mut kept) = (Vec::new(), Vec::new(), Vec::new(), (0, 0));
    for round in 0..=ROUNDS {
        for path in ["alone", "by_itself", "ours", ".ours.groundloom"] {
            let _ = std::fs::remove_dir_all(folder.path().join(path));
        }
        let (b, kept_alone) = timed(|| runtime.block_on(datafusion(folder.path(), "alone", Some("snappy"))));
        let (c, _) = timed(|| runtime.block_on(datafusion(folder.path(), "by_itself", None)));
        let (a, kept_ours) = timed(|| runtime.block_on(groundloom(folder.path())));
        kept = (kept_ours, kept_alone);
        // The first round warms the page cache.
        if round > 0 {
            ours.push(a.as_secs_f64());
            alone.push(b.as_secs_f64());
            by_itself.push(c.as_secs_f64());
        }
    }
    assert_eq!(kept.0, kept.1, "both keep the same rows");
    let a = median(ours);
    println!("{rows} rows, {} kept", kept.0);
    let say = |what: &str, seconds: f64| {
        println!(
            "{what}  {seconds:6.2} s  {:6.2} M rows/s  {:5.2} (pipeline's speed / this)",
            rows as f64 / seconds / 1e6,
            seconds / a
        );
    };
    say("pipeline, snappy        ", a);
    say("DataFusion alone, snappy", median(alone));
    say("DataFusion alone, zstd  ", median(by_itself));
}

fn generate(path: &Path, rows: usize) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("caption", DataType::Utf8, false),
        Field::new("score", DataType::Float64, false),
    ]));
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(500_000))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema.clone(), Some(properties)).unwrap();
    let words = ["a", "dog", "cat", "red", "field", "of", "flowers", "in", "the", "city", "two", "boats"];
    let mut random = random_numbers();
    for first in (0..rows).step_by(8_192) {
        let n = 8_192.min(rows - first);
        let captions: Vec<String> = (0..n)
            .map(|_| (0..2 + random() % 9).map(|_| words[random() % words.len()]).collect::<Vec<_>>().join(" "))
            .collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new((first..first + n).map(|i| i as i64).collect::<Int64Array>()),
            Arc::new(StringArray::from(captions)),
            Arc::new((0..n).map(|_| (random() % 1_000) as f64 / 1_000.0).collect::<Float64Array>()),
        ];
        writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
}

async fn datafusion(folder: &Path, to: &str, codec: Option<&str>) -> u64 {
    let threads = std::thread::available_parallelism().unwrap().get();
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(threads));
    let input = folder.join("in.parquet");
    context.register_parquet("rows", input.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    let frame = context.sql(&format!("select * from rows where {PREDICATE}")).await.unwrap();
    let output = folder.join(format!("{to}/"));
    let mut options = TableParquetOptions::new();
    if codec.is_some() {
        options.global.compression = codec.map(str::to_owned);
    }
    let writing = DataFrameWriteOptions::new();
    let written = frame.write_parquet(output.to_str().unwrap(), writing, Some(options)).await.unwrap();
    let count = written[0].column(0);
    arrow::array::AsArray::as_primitive::<arrow::datatypes::UInt64Type>(count).value(0)
}

async fn groundloom(folder: &Path) -> u64 {
    let text = format!(
        "sources: {{ rows: {{ type: parquet, path: '{0}/in.parquet' }} }}
stages: {{ kept: {{ type: filter, where: '{PREDICATE}' }} }}
sinks: {{ out: {{ type: parquet, path: '{0}/ours' }} }}",
        folder.display()
    );
    run_pipeline(text).await
}
