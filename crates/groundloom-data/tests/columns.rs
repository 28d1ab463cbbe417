//! The typed columns: what builders write, views read; and what outside files bring.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, BinaryViewArray, BooleanArray, Float64Array, Int64Array, LargeListArray, LargeStringArray,
        ListArray, StringViewArray, StructArray, UInt32Array,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, Fields},
};
use groundloom_data::{
    Box2d, BoxesBuilder, BoxesView, CharSpan, Chunk, ChunksBuilder, ChunksView, Expression, ExpressionsBuilder,
    ExpressionsView, GroundedBox, MediaBuilder, MediaView, columns,
};
use proptest::prelude::*;

fn list(lengths: &[usize], fields: Vec<(&str, ArrayRef)>) -> ArrayRef {
    let names: Fields = fields.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), true)).collect();
    let entries = StructArray::new(names.clone(), fields.into_iter().map(|(_, a)| a).collect(), None);
    let item = Arc::new(Field::new("element", DataType::Struct(names), true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths.iter().copied()), Arc::new(entries), None))
}

fn floats(values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

#[test]
fn chunks_as_another_tool_writes_them() {
    let fields: Vec<(&str, ArrayRef)> = vec![
        ("has_children", Arc::new(BooleanArray::from(vec![true, false]))),
        ("has_conjunct", Arc::new(BooleanArray::from(vec![false, false]))),
        ("subtree_end", Arc::new(UInt32Array::from(vec![26, 18]))),
        ("subtree_start", Arc::new(UInt32Array::from(vec![0, 9]))),
        ("lemma", Arc::new(LargeStringArray::from(vec!["dog", "field"]))),
        ("root", Arc::new(StringViewArray::from(vec!["dog", "field"]))),
        ("text", Arc::new(StringViewArray::from(vec!["a dog", "a field"]))),
        ("end", Arc::new(Int64Array::from(vec![5, 16]))),
        ("start", Arc::new(Int64Array::from(vec![0, 9]))),
        ("confidence", floats(&[0.5, 0.5])),
    ];
    let column = list(&[2, 0], fields);
    let view = ChunksView::try_new(&column).unwrap();
    assert_eq!((view.len(), view.is_empty()), (2, false));
    let row = view.row(0).unwrap().unwrap();
    assert_eq!(row[1].span, CharSpan { start: 9, end: 16 });
    assert_eq!((row[0].lemma, row[0].subtree.end, row[0].has_children), ("dog", 26, true));
    assert_eq!(view.row(1).unwrap(), Some(vec![]));
    assert_eq!(view.row(2).unwrap(), None, "beyond the last row");

    let large =
        arrow::compute::cast(&column, &DataType::LargeList(Arc::new(Field::new("item", element(&column), true))))
            .unwrap();
    assert!(large.as_any().is::<LargeListArray>());
    assert_eq!(ChunksView::try_new(&large).unwrap().row(0).unwrap().unwrap(), row);
    let sliced = column.slice(1, 1);
    assert_eq!(ChunksView::try_new(&sliced).unwrap().row(0).unwrap(), Some(vec![]));
}

fn element(column: &ArrayRef) -> DataType {
    let DataType::List(item) = column.data_type() else { panic!("a list") };
    item.data_type().clone()
}

#[test]
fn boxes_of_outside_detectors_name_their_phrase_in_three_ways() {
    let corners = |mut fields: Vec<(&'static str, ArrayRef)>| {
        for (name, value) in [("x1", 0.1), ("y1", 0.2), ("x2", 0.6), ("y2", 0.9)] {
            fields.push((name, floats(&[value])));
        }
        list(&[1], fields)
    };
    let by_chunk = corners(vec![("chunk", Arc::new(Int64Array::from(vec![3])))]);
    let by_span =
        corners(vec![("start", Arc::new(Int64Array::from(vec![2]))), ("end", Arc::new(Int64Array::from(vec![5])))]);
    let by_phrase =
        corners(vec![("phrase", Arc::new(StringViewArray::from(vec!["a dog"]))), ("score", floats(&[0.25]))]);
    let first = |column: &ArrayRef| {
        let view = BoxesView::try_new(column).unwrap();
        let b = view.row(0).unwrap().unwrap()[0];
        (b.chunk, b.span, b.phrase.map(str::to_owned), b.score, b.rect)
    };
    let rect = Box2d::new(0.1, 0.2, 0.6, 0.9).unwrap();
    assert_eq!(first(&by_chunk), (Some(3), None, None, 1.0, rect));
    assert_eq!(first(&by_span), (None, CharSpan::new(2, 5), None, 1.0, rect));
    assert_eq!(first(&by_phrase), (None, None, Some("a dog".to_owned()), 0.25, rect));
    assert!(BoxesView::try_new(&by_chunk).unwrap().has_chunk() && !BoxesView::try_new(&by_span).unwrap().has_chunk());
}

#[test]
fn wrong_types_are_named() {
    let cases: [(Result<(), _>, &str); 5] = [
        (ChunksView::check_type(&DataType::Utf8), "expected chunks: list<struct<"),
        (
            ChunksView::check_type(&columns::expressions_type()),
            "with a field `root`, found a list of struct<start: Int32, ",
        ),
        (BoxesView::check_type(&columns::expressions_type()), "with a field `x1`"),
        (ExpressionsView::check_type(&columns::boxes_type()), "with a field `start`"),
        (
            MediaView::check_type(&DataType::Binary),
            "expected a media column, struct<bytes: binary, path: utf8>, found Binary",
        ),
    ];
    for (result, message) in cases {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let text = list(&[1], vec![("start", Arc::new(StringViewArray::from(vec!["0"])))]);
    let error = ExpressionsView::try_new(&text).unwrap_err().to_string();
    assert!(error.contains("`start` that can be read as Int32"), "{error}");
    for (check, data_type) in [
        (ChunksView::check_type as fn(&DataType) -> _, columns::chunks_type()),
        (BoxesView::check_type, columns::boxes_type()),
        (ExpressionsView::check_type, columns::expressions_type()),
        (MediaView::check_type, columns::media_type()),
    ] {
        check(&data_type).unwrap();
    }
}

#[test]
fn wrong_values_are_errors_of_their_row() {
    let boxes = |x2: f64, score: f64| {
        let fields = vec![
            ("chunk", Arc::new(Int64Array::from(vec![0])) as ArrayRef),
            ("score", floats(&[score])),
            ("x1", floats(&[0.0])),
            ("y1", floats(&[0.0])),
            ("x2", floats(&[x2])),
            ("y2", floats(&[1.0])),
        ];
        BoxesView::try_new(&list(&[1], fields)).unwrap().row(0).unwrap_err().to_string()
    };
    assert!(boxes(640.0, 0.5).starts_with("entry 0: expected box coordinates in [0, 1]"));
    assert!(boxes(f64::NAN, 0.5).contains("x2 = NaN"));
    assert!(boxes(1.0, 7.0).contains("expected a score in [0, 1], found 7"));
    let spans = |start: Option<i64>, end: i64| {
        let fields: Vec<(&str, ArrayRef)> = vec![
            ("start", Arc::new(Int64Array::from(vec![start]))),
            ("end", Arc::new(Int64Array::from(vec![end]))),
            ("text", Arc::new(StringViewArray::from(vec!["x"]))),
            ("chunk", Arc::new(Int64Array::from(vec![0]))),
        ];
        ExpressionsView::try_new(&list(&[1], fields)).unwrap().row(0).unwrap_err().to_string()
    };
    assert!(spans(Some(5), 2).contains("expected `start` <= `end`, found 5 and 2"));
    assert!(spans(Some(-1), 2).contains("found -1"));
    assert!(spans(None, 2).contains("found null"));
    assert!(spans(Some(1 << 40), 2).contains("found null"), "a number beyond 32 bits");
}

#[test]
fn media_borrows_what_outside_files_bring() {
    let fields = Fields::from(vec![
        Field::new("path", DataType::Utf8View, true),
        Field::new("bytes", DataType::BinaryView, true),
    ]);
    let bytes: ArrayRef = Arc::new(BinaryViewArray::from(vec![Some(b"abc".as_slice()), None]));
    let path: ArrayRef = Arc::new(StringViewArray::from(vec![None, Some("x.jpg")]));
    let column: ArrayRef = Arc::new(StructArray::new(fields, vec![path, bytes], None));
    let view = MediaView::try_new(&column).unwrap();
    assert_eq!((view.bytes(0), view.path(0)), (Some(b"abc".as_slice()), None));
    assert_eq!((view.bytes(1), view.path(1)), (None, Some("x.jpg")));
    assert_eq!((view.bytes(2), view.path(2)), (None, None));
    let mut builder = MediaBuilder::new();
    builder.append(Some(b"z"), Some("z.png"));
    builder.append_null();
    let built: ArrayRef = Arc::new(builder.finish());
    assert_eq!(*built.data_type(), columns::media_type());
    let view = MediaView::try_new(&built).unwrap();
    assert_eq!(
        (view.bytes(0), view.path(0), view.bytes(1), built.null_count()),
        (Some(b"z".as_slice()), Some("z.png"), None, 1)
    );
}

prop_compose! {
    fn span()(start in 0usize..5000, length in 0usize..5000) -> CharSpan {
        CharSpan { start, end: start + length }
    }
}

proptest! {
    #[test]
    fn what_is_built_is_read(rows in prop::collection::vec(prop::option::of(prop::collection::vec((span(), span(), ".{0,8}", any::<bool>(), 0f32..=1.0), 0..4)), 0..6)) {
        let (mut chunks, mut boxes, mut expressions) = (ChunksBuilder::new(), BoxesBuilder::new(), ExpressionsBuilder::new());
        type Row<'a> = Option<(Vec<Chunk<'a>>, Vec<GroundedBox<'a>>, Vec<Expression<'a>>)>;
        let rows: Vec<Row<'_>> = rows.iter().map(|row| row.as_ref().map(|entries| {
            let entries = entries.iter().enumerate();
            let chunk = entries.clone().map(|(_, (span, subtree, text, flag, _))| Chunk { span: *span, text, root: text, lemma: "x", subtree: *subtree, has_conjunct: *flag, has_children: !flag });
            let boxes = entries.clone().map(|(i, (_, _, text, flag, score))| GroundedBox { chunk: flag.then_some(i), span: None, phrase: None, label: (!flag).then_some(text.as_str()), score: *score, rect: Box2d::new(0.0, 0.0, *score, 1.0).unwrap() });
            let expressions = entries.clone().map(|(i, (span, _, text, _, _))| Expression { span: *span, text, chunk: i });
            (chunk.collect(), boxes.collect(), expressions.collect())
        })).collect();
        for row in &rows {
            match row {
                Some((c, b, e)) => { chunks.append_row(c); boxes.append_row(b); expressions.append_row(e); }
                None => { chunks.append_null(); boxes.append_null(); expressions.append_null(); }
            }
        }
        let columns: [ArrayRef; 3] = [Arc::new(chunks.finish()), Arc::new(boxes.finish()), Arc::new(expressions.finish())];
        prop_assert_eq!(columns[0].data_type(), &columns::chunks_type());
        prop_assert_eq!(columns[1].data_type(), &columns::boxes_type());
        prop_assert_eq!(columns[2].data_type(), &columns::expressions_type());
        let views = (ChunksView::try_new(&columns[0]).unwrap(), BoxesView::try_new(&columns[1]).unwrap(), ExpressionsView::try_new(&columns[2]).unwrap());
        prop_assert_eq!(views.0.len(), rows.len());
        for (i, row) in rows.iter().enumerate() {
            prop_assert_eq!(views.0.row(i).unwrap(), row.as_ref().map(|r| r.0.clone()));
            prop_assert_eq!(views.1.row(i).unwrap(), row.as_ref().map(|r| r.1.clone()));
            prop_assert_eq!(views.2.row(i).unwrap(), row.as_ref().map(|r| r.2.clone()));
        }
    }
}
