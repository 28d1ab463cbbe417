//! Answers beside those of the definition, on distributions that differ, at every selectivity.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod vectors;

use std::collections::HashSet;

use groundloom_index::{
    Bitmap, Builder, Coding, ColumnSettings, GraphSettings, Index, IndexError, Metric, Plan, Search, Writer, exchange,
};
use proptest::prelude::*;
use vectors::{Numbers, Random, clustered, column, distance, key, nearest, rows};

fn build(folder: &std::path::Path, all: &[Vec<f32>], metric: Metric, settings: ColumnSettings) -> Index {
    let dims = all[0].len();
    let mut writer = Writer::create(folder, "row_id", vec![column(dims, metric, settings)]).unwrap();
    let changed = writer.add([Ok(rows(0, all, dims))]).unwrap();
    assert_eq!((changed.added, changed.replaced), (all.len(), 0));
    let index = Index::open(folder).unwrap();
    index.verify().unwrap();
    index
}

fn search(k: usize) -> Search<'static> {
    Search { column: 0, k, ef: None, exact: false, filter: None }
}

/// Rows of one segment are their own numbers.
fn numbers(answer: &groundloom_index::Answer) -> Vec<usize> {
    answer.hits.iter().map(|h| h.position.row as usize).collect()
}

/// Questions beside some of the vectors.
fn near(all: &[Vec<f32>], random: &mut Random) -> Vec<Vec<f32>> {
    (0..40).map(|i| all[i * 100].iter().map(|x| x + 0.4 * random.normal()).collect()).collect()
}

/// Share of the `k` nearest that are found; equal distances are equally right.
fn recall(
    index: &Index,
    metric: Metric,
    all: &[Vec<f32>],
    queries: &[Vec<f32>],
    keep: Option<&Bitmap>,
    ef: Option<usize>,
) -> f64 {
    let filter = keep.map(|keep| index.filter(&Numbers(keep.clone())).unwrap());
    let (mut hits, mut wanted) = (0, 0);
    for query in queries {
        let truth = nearest(metric, all, query, 10, |i| keep.is_none_or(|k| k.contains(i)));
        let found = index.search(query, &Search { filter: filter.as_ref(), ef, ..search(10) }).unwrap();
        assert!(ef.is_none() || found.plans == [Plan::Graph]);
        assert_eq!(found.hits.len(), truth.len(), "k answers whenever k rows match");
        let worst = truth.last().map_or(0.0, |t| t.0);
        for (hit, row) in found.hits.iter().zip(numbers(&found)) {
            assert!(keep.is_none_or(|k| k.contains(row)));
            let expected = distance(metric, &all[row], query);
            let score = f64::from(metric.distance(hit.score));
            assert!((score - expected).abs() < 1e-3 * expected.abs().max(1.0), "{score} for {expected}");
            hits += usize::from(expected <= worst + 1e-5 * worst.abs());
        }
        wanted += truth.len();
    }
    hits as f64 / wanted as f64
}

#[test]
fn walks_reach_the_target_on_every_distribution_metric_and_coding() {
    let spread = |seed| clustered(4000, 48, 60, 0.5, seed);
    let mut far = Random(3);
    let cases: [(&str, Vec<Vec<f32>>); 4] = [
        ("random", (0..4000).map(|_| far.vector(24)).collect()),
        ("clustered", spread(1)),
        (
            "scaled",
            spread(2).iter().enumerate().map(|(i, v)| v.iter().map(|x| x * (1.0 + (i % 7) as f32)).collect()).collect(),
        ),
        ("duplicates", clustered(4000, 16, 300, 0.0, 9)),
    ];
    for (name, all) in cases {
        let mut random = Random(77);
        let queries: Vec<Vec<f32>> = (0..100)
            .map(|_| all[random.below(all.len())].iter().map(|x| x + 0.4 * random.normal()).collect())
            .collect();
        for metric in [Metric::Cosine, Metric::L2, Metric::Ip] {
            for coding in [Coding::F32, Coding::Int8, Coding::Binary] {
                if coding == Coding::Binary && metric != Metric::Cosine {
                    continue;
                }
                let folder = tempfile::tempdir().unwrap();
                let settings = ColumnSettings { coding, graph_from: 200, ..ColumnSettings::default() };
                let index = build(folder.path(), &all, metric, settings);
                let tuning = index.manifest().segments[0].columns[0].tuning.unwrap();
                let found = recall(&index, metric, &all, &queries, None, Some(tuning.ef));
                // The inner product of vectors of unlike lengths is no metric: the walk is tuned for the data's own
                // vectors and may miss more for others.
                let floor = if metric == Metric::Ip { 0.85 } else { 0.93 };
                assert!(found >= floor, "{name} {metric:?} {coding:?}: recall {found}, tuned {tuning:?}");
                assert!(tuning.recall >= 0.95 || tuning.ef == 1024, "{name} {metric:?} {coding:?}: {tuning:?}");
            }
        }
    }
}

#[test]
fn filters_are_exact_in_number_at_every_selectivity() {
    let all = clustered(6000, 32, 40, 0.6, 5);
    let mut random = Random(8);
    let queries = near(&all, &mut random);
    let folder = tempfile::tempdir().unwrap();
    let settings = ColumnSettings { graph_from: 500, ..ColumnSettings::default() };
    let index = build(folder.path(), &all, Metric::Cosine, settings);
    for share in [0.0, 0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0] {
        let mut keep = Bitmap::none(all.len());
        (0..all.len()).filter(|_| f64::from(random.unit()) < share).for_each(|i| keep.insert(i));
        if share == 1.0 {
            keep = Bitmap::all(all.len());
        }
        if keep.count() == 0 {
            let none = index.filter(&Numbers(keep)).unwrap();
            assert!(index.search(&queries[0], &Search { filter: Some(&none), ..search(10) }).unwrap().hits.is_empty());
            continue;
        }
        let found = recall(&index, Metric::Cosine, &all, &queries, Some(&keep), None);
        assert!(found >= 0.93, "{share}: recall {found}");
    }
}

#[test]
fn filters_that_know_the_vectors_are_walked_well() {
    let all = clustered(30_000, 16, 40, 0.6, 5);
    let queries = near(&all, &mut Random(8));
    let folder = tempfile::tempdir().unwrap();
    let settings = ColumnSettings { graph_from: 500, ..ColumnSettings::default() };
    let index = build(folder.path(), &all, Metric::Cosine, settings);
    let tuning = index.manifest().segments[0].columns[0].tuning;
    let ranked: Vec<usize> =
        nearest(Metric::Cosine, &all, &queries[0], all.len(), |_| true).iter().map(|n| n.1).collect();
    // The third that lies farthest from one of the questions, and the nearest: far from some of the others and around some.
    for (name, part) in [("far", &ranked[20_000..]), ("near", &ranked[..10_000])] {
        let mut keep = Bitmap::none(all.len());
        part.iter().for_each(|row| keep.insert(*row));
        let filter = index.filter(&Numbers(keep.clone())).unwrap();
        let plan = index.search(&queries[1], &Search { filter: Some(&filter), ..search(10) }).unwrap().plans;
        assert_eq!(plan, [Plan::FilteredGraph]);
        let found = recall(&index, Metric::Cosine, &all, &queries, Some(&keep), None);
        assert!(found >= 0.93, "{name}: recall {found}, tuned {tuning:?}");
    }
}

#[test]
fn one_graph_whatever_the_threads() {
    let all = clustered(3000, 24, 30, 0.5, 4);
    for builder in [Builder::Batches, Builder::HnswRs] {
        let graph = GraphSettings { builder, ..GraphSettings::default() };
        let settings = ColumnSettings { graph_from: 100, graph, ..ColumnSettings::default() };
        let files: Vec<Vec<u8>> = [1, 2, 5]
            .into_iter()
            .map(|threads| {
                let folder = tempfile::tempdir().unwrap();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| build(folder.path(), &all, Metric::L2, settings));
                let mut bytes = std::fs::read(folder.path().join("vectors-000000-0.glv")).unwrap();
                bytes.extend(std::fs::read(folder.path().join("index.json")).unwrap());
                bytes.extend(std::fs::read(folder.path().join("rows-000000.parquet")).unwrap());
                bytes
            })
            .collect();
        assert!(files[0] == files[1] && files[1] == files[2], "{builder:?}: the bytes depend on threads");
    }
}

#[test]
fn graphs_of_hnsw_rs_reach_the_target_on_every_metric_and_coding() {
    // Lengths differ, so that inner products go past 1 and below 0; some vectors stand in several rows.
    let mut all: Vec<Vec<f32>> = clustered(2000, 24, 40, 0.5, 11);
    all.iter_mut().enumerate().for_each(|(i, v)| v.iter_mut().for_each(|x| *x *= 1.0 + (i % 5) as f32));
    all.extend_from_within(..100);
    let mut random = Random(5);
    let queries: Vec<Vec<f32>> =
        (0..60).map(|_| all[random.below(all.len())].iter().map(|x| x + 0.4 * random.normal()).collect()).collect();
    let graph = GraphSettings { builder: Builder::HnswRs, ..GraphSettings::default() };
    for (metric, coding) in [
        (Metric::Cosine, Coding::F32),
        (Metric::Cosine, Coding::Binary),
        (Metric::L2, Coding::F32),
        (Metric::L2, Coding::Int8),
        (Metric::Ip, Coding::F32),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let settings = ColumnSettings { coding, graph_from: 200, graph, ..ColumnSettings::default() };
        let index = build(folder.path(), &all, metric, settings);
        assert_eq!(index.manifest().columns[0].settings.graph.builder, Builder::HnswRs);
        let tuning = index.manifest().segments[0].columns[0].tuning.unwrap();
        let found = recall(&index, metric, &all, &queries, None, Some(tuning.ef));
        let floor = if metric == Metric::Ip { 0.85 } else { 0.93 };
        assert!(found >= floor, "{metric:?} {coding:?}: recall {found}, tuned {tuning:?}");
        let keep = Bitmap::from_fn(all.len(), |i| i % 3 == 0);
        assert!(recall(&index, metric, &all, &queries, Some(&keep), None) >= floor, "{metric:?} {coding:?}");
    }
}

#[test]
fn indices_from_before_the_choice_of_a_builder_open() {
    let settings = serde_json::json!({ "m": 16, "ef_construction": 128, "seed": 7 });
    let graph: GraphSettings = serde_json::from_value(settings).unwrap();
    assert_eq!(graph.builder, Builder::Batches);
    assert_eq!(serde_json::to_value(Builder::HnswRs).unwrap(), Builder::HnswRs.name());
    assert_eq!("hnsw_rs".parse::<Builder>().unwrap(), Builder::HnswRs);
    assert!("hnswlib".parse::<Builder>().unwrap_err().to_string().contains("`batches` or `hnsw_rs`"));
}

#[test]
fn bad_vectors_are_refused_with_the_row_named() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ColumnSettings::default();
    let mut writer = Writer::create(folder.path(), "row_id", vec![column(3, Metric::Cosine, settings)]).unwrap();
    for (bad, words) in [
        ([0.0, 0.0, 0.0], "the vector is zero"),
        ([1.0, f32::NAN, 0.0], "component 1 of the vector is NaN"),
        ([f32::INFINITY, 0.0, 0.0], "component 0"),
    ] {
        let error = writer.add([Ok(rows(0, &[vec![1.0; 3], bad.to_vec()], 3))]).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("row-000001") && error.contains("embedding"), "{error}");
    }
    let error = writer.add([Ok(rows(0, &[vec![1.0; 4]], 4))]).unwrap_err().to_string();
    assert!(error.contains("expected a vector of 3 dimensions, found 4"), "{error}");
    let twice = writer.add([Ok(rows(0, &[vec![1.0; 3]], 3)), Ok(rows(0, &[vec![2.0; 3]], 3))]).unwrap_err();
    assert!(twice.to_string().contains("\"row-000000\" twice"), "{twice}");
    assert!(matches!(Index::open(folder.path()), Err(IndexError::NoIndex { .. })), "nothing was published");
    writer.add([Ok(rows(0, &[vec![1.0; 3]], 3))]).unwrap();
    let index = Index::open(folder.path()).unwrap();
    assert!(matches!(index.search(&[0.0; 3], &search(1)), Err(IndexError::ZeroVector { .. })));
    assert!(matches!(index.search(&[0.0; 2], &search(1)), Err(IndexError::WrongDimensions { .. })));
    assert!(matches!(index.search(&[1.0; 3], &search(0)), Err(IndexError::BadSetting { setting: "k", .. })));
}

/// What can be done to an index.
#[derive(Debug, Clone)]
enum Step {
    Add(Vec<u8>),
    Delete(Vec<u8>),
    Compact,
    Merge(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::btree_set(any::<u8>(), 1..40).prop_map(|s| s.into_iter().collect::<Vec<u8>>());
    prop_oneof![3 => some().prop_map(Step::Add), 2 => some().prop_map(Step::Delete), 1 => Just(Step::Compact), 1 => some().prop_map(Step::Merge)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is added, replaced, deleted, merged and compacted: answers are those of a map from keys to vectors.
    #[test]
    fn changes_behave_as_a_map_does(steps in prop::collection::vec(step(), 1..8), seed: u64, graph in any::<bool>()) {
        let dims = 5;
        let folder = tempfile::tempdir().unwrap();
        let settings = ColumnSettings { graph_from: if graph { 2 } else { 1000 }, ..ColumnSettings::default() };
        let spec = column(dims, Metric::L2, settings);
        let mut writer = Writer::create(folder.path(), "row_id", vec![spec.clone()]).unwrap();
        writer.publish_empty().unwrap();
        let mut model = std::collections::BTreeMap::new();
        let mut random = Random(seed);
        for step in steps {
            match step {
                Step::Add(keys) | Step::Merge(keys) if keys.is_empty() => {}
                Step::Add(keys) => {
                    let (batch, new) = keyed(&keys, dims, &mut random);
                    let replaced = new.iter().filter(|n| model.contains_key(&n.0)).count();
                    let changed = writer.add([Ok(batch)]).unwrap();
                    prop_assert_eq!((changed.added, changed.replaced), (new.len(), replaced));
                    model.extend(new);
                }
                Step::Delete(keys) => {
                    let keys: HashSet<String> = keys.iter().map(|k| key(usize::from(*k))).collect();
                    let there = keys.iter().filter(|k| model.remove(*k).is_some()).count();
                    prop_assert_eq!(writer.delete(&keys).unwrap(), there);
                }
                Step::Compact => {
                    writer.compact().unwrap();
                    prop_assert!(writer.manifest().segments.len() <= 1);
                    prop_assert!(writer.manifest().segments.iter().all(|s| s.deleted.is_none()));
                }
                Step::Merge(keys) => {
                    let other = tempfile::tempdir().unwrap();
                    let mut builder = Writer::create(other.path(), "row_id", vec![spec.clone()]).unwrap();
                    let (batch, new) = keyed(&keys, dims, &mut random);
                    builder.add([Ok(batch)]).unwrap();
                    let gone = key(usize::from(keys[0]));
                    builder.delete(&HashSet::from([gone.clone()])).unwrap();
                    writer.merge(&Index::open(other.path()).unwrap()).unwrap();
                    model.extend(new.into_iter().filter(|n| n.0 != gone));
                }
            }
            let index = Index::open(folder.path()).unwrap();
            index.verify().unwrap();
            prop_assert_eq!(index.rows(), model.len());
            let query = random.vector(dims);
            let found = index.search(&query, &Search { exact: true, ..search(300) }).unwrap();
            prop_assert_eq!(found.hits.len(), model.len());
            let walked = index.search(&query, &Search { ef: Some(300), ..search(300) }).unwrap();
            prop_assert_eq!(walked.hits.len(), model.len(), "the graph reaches every row");
            let positions: Vec<_> = found.hits.iter().map(|h| h.position).collect();
            let table = if positions.is_empty() { None } else { Some(index.rows_at(&positions, None).unwrap()) };
            let mut last = f64::NEG_INFINITY;
            for (i, hit) in found.hits.iter().enumerate() {
                let keys = table.as_ref().unwrap().column(0).as_any().downcast_ref::<arrow::array::StringArray>().unwrap();
                let expected = distance(Metric::L2, &model[keys.value(i)], &query);
                prop_assert!((f64::from(hit.score) - expected).abs() < 1e-3);
                prop_assert!(expected >= last - 1e-3);
                last = expected;
            }
        }
    }
}

fn keyed(keys: &[u8], dims: usize, random: &mut Random) -> (arrow::array::RecordBatch, Vec<(String, Vec<f32>)>) {
    let all: Vec<(String, Vec<f32>)> = keys.iter().map(|k| (key(usize::from(*k)), random.vector(dims))).collect();
    let plain = rows(0, &all.iter().map(|a| a.1.clone()).collect::<Vec<_>>(), dims);
    let names: arrow::array::StringArray = all.iter().map(|a| Some(a.0.as_str())).collect();
    let mut columns = plain.columns().to_vec();
    columns[0] = std::sync::Arc::new(names);
    (arrow::array::RecordBatch::try_new(plain.schema(), columns).unwrap(), all)
}

#[test]
fn exported_vectors_stand_beside_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let all = clustered(500, 12, 10, 0.5, 6);
    let index = build(&folder.path().join("index"), &all, Metric::L2, ColumnSettings::default());
    assert_eq!(index.export_npy(0, "img_emb", folder.path()).unwrap(), 500);
    let matrix = exchange::read_npy(&folder.path().join("img_emb/img_emb_0.npy")).unwrap();
    assert!(matrix.rows().eq(all.iter().map(Vec::as_slice)));
    let file = std::fs::File::open(folder.path().join("metadata/metadata_0.parquet")).unwrap();
    let rows = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let names: Vec<String> = rows
        .flat_map(|batch| {
            let keys = batch.unwrap().column(0).as_any().downcast_ref::<arrow::array::StringArray>().unwrap().clone();
            keys.iter().map(|k| k.unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    assert!(names.iter().enumerate().all(|(i, name)| *name == key(i)) && names.len() == 500);
}

#[test]
fn exported_files_of_faiss_and_fromage_hold_the_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let all = clustered(300, 12, 10, 0.5, 6);
    let index = build(&folder.path().join("index"), &all, Metric::L2, ColumnSettings::default());
    assert_eq!(index.export_faiss(0, "img_emb", folder.path()).unwrap(), 300);
    let (matrix, metric) = exchange::read_faiss(&folder.path().join("img_emb.index")).unwrap();
    assert_eq!(metric, Metric::L2);
    assert!(matrix.rows().eq(all.iter().map(Vec::as_slice)));
    assert!(folder.path().join("metadata/metadata_0.parquet").exists());
    let pickle = folder.path().join("cc3m_embeddings.pkl");
    assert_eq!(index.export_fromage(0, "row_id", &pickle).unwrap(), 300);
    let read = exchange::read_fromage(&pickle).unwrap();
    assert_eq!(read.embeddings, matrix);
    assert!(read.paths.iter().enumerate().all(|(i, path)| *path == key(i)));
    let error = index.export_fromage(0, "number", &pickle).unwrap_err().to_string();
    assert!(error.contains("expected texts, found Int64"), "{error}");
}

#[test]
fn vector_files_become_rows_beside_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let all = clustered(100, 12, 10, 0.5, 6);
    let index = build(&folder.path().join("index"), &all, Metric::L2, ColumnSettings::default());
    index.export_npy(0, "img_emb", folder.path()).unwrap();
    let table = folder.path().join("metadata/metadata_0.parquet");
    let vectors = exchange::read_vectors(&folder.path().join("img_emb/img_emb_0.npy")).unwrap();
    let spec = column(12, Metric::L2, ColumnSettings::default());
    for (table, name) in [(Some(table.as_path()), key(7)), (None, "7".to_owned())] {
        let again = folder.path().join(&name);
        let mut writer = Writer::create(&again, "row_id", vec![spec.clone()]).unwrap();
        let changed = writer.add(vectors.rows(table, "row_id", "embedding").unwrap()).unwrap();
        assert_eq!(changed.added, 100);
        let again = Index::open(&again).unwrap();
        let (found, position) = again.find(&HashSet::from([name.clone()])).unwrap().remove(0);
        assert_eq!((found, again.vector(position, 0).unwrap()), (name, Some(&all[7][..])));
    }
    let few = exchange::Vectors { matrix: exchange::Matrix { dims: 12, values: all[0].clone() }, ..vectors };
    let error = few.rows(Some(&table), "row_id", "embedding").err().unwrap().to_string();
    assert!(error.contains("each of 1 vectors, found 100 rows"), "{error}");
    let error = exchange::read_vectors(&table).unwrap_err().to_string();
    assert!(error.contains(".fvecs") && error.contains("metadata_0.parquet"), "{error}");
}
