//! Builds an index from a vector file and exports it for other tools; `scripts/check_exchange.py` proves the files.
//!
//! `exchange FILE METRIC FOLDER`: writes `FOLDER/index`, `FOLDER/img_emb.index`, `FOLDER/img_emb/`, `FOLDER/metadata/` and
//! `FOLDER/cc3m_embeddings.pkl`, whose paths are the keys of the rows or the paths of `FILE`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use groundloom_index::{ColumnSettings, ColumnSpec, Index, Writer, exchange};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, metric, folder] = arguments.as_slice() else { panic!("expected FILE METRIC FOLDER") };
    let vectors = match exchange::read_vectors(Path::new(file)) {
        Ok(vectors) => vectors,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    let folder = Path::new(folder);
    let spec = ColumnSpec {
        name: "vector".into(),
        dims: vectors.matrix.dims,
        metric: metric.parse().unwrap(),
        model: None,
        settings: ColumnSettings::default(),
    };
    let mut writer = Writer::create(&folder.join("index"), "row_id", vec![spec]).unwrap();
    writer.add(vectors.rows(None, "row_id", "vector").unwrap()).unwrap();
    let index = Index::open(&folder.join("index")).unwrap();
    index.export_faiss(0, "img_emb", folder).unwrap();
    index.export_npy(0, "img_emb", folder).unwrap();
    let paths = if vectors.paths.is_some() { "path" } else { "row_id" };
    index.export_fromage(0, paths, &folder.join("cc3m_embeddings.pkl")).unwrap();
}
