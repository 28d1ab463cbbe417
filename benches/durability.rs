//! Cost of never losing a row: a text pipeline (Parquet → noun chunks → filter → Parquet) as Groundloom runs it, with ledger, row ids, a note of every dropped row,
//! quarantine, card, report and every file synced, beside a loop of the same parts without any of them: Parquet's own reader, the same stage, the same
//! condition, Parquet's own writer with the same codec, a file a thread at a time. One caption in a thousand is missing: a row for the quarantine, and one that the loop leaves out.
//!
//! `cargo bench --bench durability` (`ROWS=16000` for a quick look). Which goes first alternates; medians, and the median of each round's ratio, are printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::HashSet,
    fs::{self, File},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray},
    compute::filter_record_batch,
    datatypes::{DataType, Field, Float64Type, Schema, SchemaRef},
};
use groundloom_models::ModelPool;
use groundloom_stages::{NounChunks, RowWise, Stage};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    file::properties::WriterProperties,
};
use support::{median, random_numbers, run_pipeline, timed};

const ROUNDS: usize = 5;
const FILES: usize = 16;

fn main() {
    let rows: usize = std::env::var("ROWS").ok().and_then(|r| r.parse().ok()).unwrap_or(480_000);
    let folder = tempfile::tempdir().unwrap();
    generate(&folder.path().join("in"), rows);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for path in ["plain", "ours", ".ours.groundloom"] {
            let _ = fs::remove_dir_all(folder.path().join(path));
        }
        let ours = || timed(|| runtime.block_on(groundloom(folder.path())));
        let loops = || timed(|| plain(folder.path(), &runtime));
        let ((a, kept), (b, kept_plain)) = match round % 2 {
            0 => {
                let first = loops();
                (ours(), first)
            }
            _ => (ours(), loops()),
        };
        assert_eq!(kept, kept_plain, "both keep the same rows");
        // The first round warms the page cache, and loads the parser.
        if round > 0 {
            println!("round {round}: {:.2} s, {:.2} s without", a.as_secs_f64(), b.as_secs_f64());
            with.push(a.as_secs_f64());
            without.push(b.as_secs_f64());
        } else {
            println!("{rows} captions, {kept} kept");
        }
    }
    let costs = with.iter().zip(&without).map(|(a, b)| 100.0 * (a / b - 1.0)).collect();
    let (a, b) = (median(with), median(without));
    println!("pipeline            {a:6.2} s  {:8.0} rows/s", rows as f64 / a);
    println!("without durability  {b:6.2} s  {:8.0} rows/s", rows as f64 / b);
    println!("cost                {:6.1} %", median(costs));
}

fn properties() -> WriterProperties {
    WriterProperties::builder().set_compression(Compression::SNAPPY).build()
}

fn generate(folder: &Path, rows: usize) {
    fs::create_dir_all(folder).unwrap();
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("caption", DataType::Utf8, true),
        Field::new("score", DataType::Float64, false),
    ]));
    let parts = [
        ["A man in a black coat", "Two children", "The old dog", "A red cup of coffee", "Somebody"],
        ["looks at", "runs along", "stands beside", "is far from", "plays with"],
        ["a field of yellow flowers", "the river", "an empty street in the city", "it", "the boats on the lake"],
        ["in the morning.", "while the sun sets behind the hills", "", "with a friend", "and smiles"],
    ];
    let mut random = random_numbers();
    for file in 0..FILES {
        let path = folder.join(format!("{file:02}.parquet"));
        let mut writer =
            ArrowWriter::try_new(File::create(path).unwrap(), Arc::clone(&schema), Some(properties())).unwrap();
        let n = rows / FILES;
        let captions =
            (0..n).map(|i| (i % 1_000 != 999).then(|| parts.map(|choice| choice[random() % choice.len()]).join(" ")));
        let columns: Vec<ArrayRef> = vec![
            Arc::new((file * n..(file + 1) * n).map(|i| i as i64).collect::<Int64Array>()),
            Arc::new(captions.collect::<StringArray>()),
            Arc::new((0..n).map(|_| (random() % 1_000) as f64 / 1_000.0).collect::<Float64Array>()),
        ];
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
        writer.close().unwrap();
    }
}

/// The loop that somebody writes for one evening: nothing of it is left when the process dies.
fn plain(folder: &Path, runtime: &tokio::runtime::Runtime) -> u64 {
    let stage: NounChunks = serde_json::from_str("{}").unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(folder.join("in")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    files.reverse();
    fs::create_dir(folder.join("plain")).unwrap();
    let queue = Mutex::new(files);
    let threads = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut kept = 0;
                    loop {
                        let next = queue.lock().unwrap().pop();
                        let Some(path) = next else { return kept };
                        kept += one_file(&path, &folder.join("plain").join(path.file_name().unwrap()), &stage, runtime);
                    }
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).sum()
    })
}

fn one_file(from: &Path, to: &Path, stage: &NounChunks, runtime: &tokio::runtime::Runtime) -> u64 {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(from).unwrap()).unwrap();
    let input: SchemaRef = Arc::clone(builder.schema());
    let reader = builder.with_batch_size(stage.window()).build().unwrap();
    let work: Arc<dyn RowWise> = stage.open(Arc::clone(&input), &Arc::new(ModelPool::new(NonZeroUsize::MIN))).unwrap();
    let fields: Vec<_> = input.fields().iter().cloned().chain(stage.outputs(&input).unwrap()).collect();
    let schema = Arc::new(Schema::new(fields));
    let mut writer = ArrowWriter::try_new(File::create(to).unwrap(), Arc::clone(&schema), Some(properties())).unwrap();
    let mut kept = 0;
    for batch in reader {
        let batch = batch.unwrap();
        let outcome = runtime.block_on(work.run(&batch)).unwrap();
        let columns = batch.columns().iter().cloned().chain(outcome.columns).collect();
        let whole = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
        let chunks = whole.column_by_name("chunks").unwrap().as_list::<i32>();
        let scores = whole.column_by_name("score").unwrap().as_primitive::<Float64Type>();
        let failed: HashSet<usize> = outcome.failures.iter().map(|failure| failure.row).collect();
        let keep: BooleanArray = (0..whole.num_rows())
            .map(|row| Some(chunks.value_length(row) >= 2 && scores.value(row) > 0.3 && !failed.contains(&row)))
            .collect();
        let some = filter_record_batch(&whole, &keep).unwrap();
        kept += some.num_rows() as u64;
        writer.write(&some).unwrap();
    }
    writer.close().unwrap();
    kept
}

async fn groundloom(folder: &Path) -> u64 {
    let text = format!(
        "sources: {{ rows: {{ type: parquet, path: '{0}/in' }} }}
stages:
  chunked: {{ type: noun_chunks }}
  kept: {{ type: filter, where: 'cardinality(chunks) >= 2 and score > 0.3' }}
sinks: {{ out: {{ type: parquet, path: '{0}/ours' }} }}
settings: {{ shard_mib: 1 }}",
        folder.display()
    );
    run_pipeline(text).await
}
