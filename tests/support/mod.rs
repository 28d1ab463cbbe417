//! Runs the binary in a folder of its own and reads what it wrote.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use arrow::{array::AsArray, compute::concat_batches, record_batch::RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A folder in which a test runs, and the binary in it.
pub struct Bench {
    folder: tempfile::TempDir,
}

/// What the binary said.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Bench {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_groundloom"));
        command.current_dir(self.folder.path()).args(arguments);
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    /// Runs and expects success.
    pub fn ok(&self, arguments: &[&str]) -> Said {
        let said = self.run(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}\n{}", said.err);
        said
    }

    /// The rows of every Parquet file in a folder, in order of the names.
    pub fn rows(&self, folder: &str) -> RecordBatch {
        let mut files: Vec<PathBuf> = fs::read_dir(self.path(folder)).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        let mut batches = Vec::new();
        for file in &files {
            let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file).unwrap()).unwrap();
            batches.push((reader.schema().clone(), reader.build().unwrap().map(Result::unwrap).collect::<Vec<_>>()));
        }
        let schema = batches.first().unwrap_or_else(|| panic!("no file in {folder}")).0.clone();
        concat_batches(&schema, batches.iter().flat_map(|(_, b)| b)).unwrap()
    }

    /// Every file below a folder with its bytes, by relative path.
    pub fn bytes(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        collect(&self.path(folder), "", &mut all);
        all
    }
}

fn collect(folder: &Path, prefix: &str, all: &mut BTreeMap<String, Vec<u8>>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), all);
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// A text column's values.
pub fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let column = batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}"));
    let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|v| v.unwrap_or("∅").to_owned()).collect()
}

/// An integer column's values.
pub fn integers(batch: &RecordBatch, column: &str) -> Vec<i64> {
    let column = batch.column_by_name(column).unwrap_or_else(|| panic!("no column {column}"));
    let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Int64).unwrap();
    column.as_primitive::<arrow::datatypes::Int64Type>().iter().map(|v| v.unwrap_or(i64::MIN)).collect()
}
