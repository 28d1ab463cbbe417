//! Rows as the GrIT pipeline delivers them to a sink.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs::File, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, Int32Array, StringArray},
    record_batch::RecordBatch,
};
use groundloom_data::{
    Box2d, BoxesBuilder, CharIndex, CharSpan, Chunk, ChunksBuilder, Expression, ExpressionsBuilder, GroundedBox,
    MediaBuilder,
};
use groundloom_formats::Sink;

/// One pair: what the pipeline made of an image and its caption.
pub struct Pair {
    pub caption: Option<String>,
    pub image: Option<Vec<u8>>,
    /// Phrase, box and score; the phrase occurs in the caption.
    pub boxes: Vec<(&'static str, [f32; 4], f32)>,
    /// Expression and the chunk that it grew from; none: every chunk with a box is its own.
    pub expressions: Vec<(&'static str, &'static str)>,
}

/// The seed's example and a few awkward companions.
pub fn pairs() -> Vec<Pair> {
    let pair = |caption: &str, boxes, expressions| Pair {
        caption: Some(caption.to_owned()),
        image: Some(picture(12, 8, caption.len() as u8)),
        boxes,
        expressions,
    };
    vec![
        pair(
            "a dog in a field of flowers",
            vec![
                ("a dog", [0.25, 0.25, 0.75, 0.875], 0.75),
                ("a field", [0.0, 0.5, 1.0, 1.0], 0.5),
                ("flowers", [0.0, 0.625, 0.5, 1.0], 0.625),
            ],
            vec![("a dog in a field of flowers", "a dog")],
        ),
        pair(
            "two cats",
            vec![("two cats", [0.0, 0.0, 0.5, 1.0], 0.9), ("two cats", [0.5, 0.0, 1.0, 1.0], 0.8)],
            vec![],
        ),
        pair("nothing to see here", vec![], vec![]),
        pair(
            "line one\nline\ttwo \u{0} </script> \"quoted\" 🐕 שלום 'single' \\ back",
            vec![("🐕", [0.0, 0.0, 1.0, 1.0], 0.5)],
            vec![],
        ),
    ]
}

/// A PNG of that size and shade.
pub fn picture(width: u32, height: u32, shade: u8) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([shade, (x * 20) as u8, (y * 30) as u8]));
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

fn span_of(caption: &str, phrase: &str) -> CharSpan {
    let start = caption.find(phrase).unwrap();
    CharIndex::new(caption).span(start, start + phrase.len()).unwrap()
}

/// The batch of `pairs`, `row_id`s counting up from `first`.
pub fn batch(pairs: &[Pair], first: usize) -> RecordBatch {
    let mut images = MediaBuilder::new();
    let (mut chunks, mut boxes, mut expressions) =
        (ChunksBuilder::new(), BoxesBuilder::new(), ExpressionsBuilder::new());
    for (i, pair) in pairs.iter().enumerate() {
        images.append(pair.image.as_deref(), Some(&format!("photos/{i}.png")));
        let caption = pair.caption.as_deref().unwrap_or_default();
        let mut phrases: Vec<&str> = pair.boxes.iter().map(|(phrase, ..)| *phrase).collect();
        phrases.dedup();
        let row_chunks: Vec<Chunk<'_>> = phrases
            .iter()
            .map(|text| {
                let span = span_of(caption, text);
                Chunk { span, text, root: text, lemma: text, subtree: span, has_conjunct: false, has_children: false }
            })
            .collect();
        let chunk = |phrase: &str| phrases.iter().position(|p| *p == phrase).unwrap();
        let row_boxes: Vec<GroundedBox<'_>> = pair
            .boxes
            .iter()
            .map(|(phrase, [x1, y1, x2, y2], score)| GroundedBox {
                chunk: Some(chunk(phrase)),
                span: None,
                phrase: None,
                label: Some("Thing"),
                score: *score,
                rect: Box2d::new(*x1, *y1, *x2, *y2).unwrap(),
            })
            .collect();
        let row_expressions: Vec<Expression<'_>> = match pair.expressions.as_slice() {
            [] => row_chunks
                .iter()
                .enumerate()
                .map(|(i, c)| Expression { span: c.span, text: c.text, chunk: i })
                .collect(),
            all => all
                .iter()
                .map(|(text, from)| Expression { span: span_of(caption, text), text, chunk: chunk(from) })
                .collect(),
        };
        chunks.append_row(&row_chunks);
        boxes.append_row(&row_boxes);
        expressions.append_row(&row_expressions);
    }
    let ids: StringArray = (first..first + pairs.len()).map(|i| Some(format!("{:032x}", i * 7919))).collect();
    let captions: StringArray = pairs.iter().map(|p| p.caption.as_deref()).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("row_id", Arc::new(ids) as ArrayRef, false),
        ("image", Arc::new(images.finish()) as ArrayRef, true),
        ("caption", Arc::new(captions) as ArrayRef, true),
        ("width", Arc::new(Int32Array::from(vec![12; pairs.len()])) as ArrayRef, true),
        ("height", Arc::new(Int32Array::from(vec![8; pairs.len()])) as ArrayRef, true),
        ("chunks", Arc::new(chunks.finish()) as ArrayRef, true),
        ("boxes", Arc::new(boxes.finish()) as ArrayRef, true),
        ("expressions", Arc::new(expressions.finish()) as ArrayRef, true),
    ])
    .unwrap()
}

/// Writes a part file of the batches.
pub fn write_part(sink: &dyn Sink, path: &Path, batches: &[RecordBatch]) {
    let file = File::create(path).unwrap();
    let mut writer = sink.writer(batches[0].schema(), file, &[("groundloom".into(), "a test".into())]).unwrap();
    for rows in batches {
        writer.write(rows).unwrap();
    }
    writer.finish().unwrap().sync_all().unwrap();
}

/// A sink from the YAML of its settings.
pub fn sink(yaml: &str) -> Arc<dyn Sink> {
    let text = format!("sources: {{ s: {{ type: none }} }}\nsinks: {{ out: {yaml} }}\n");
    let file = groundloom_spec::SourceFile::new("test.yaml", text);
    let spec = groundloom_spec::parse(file.clone(), &[], &|_| None)
        .unwrap_or_else(|e| panic!("{}", groundloom_spec::render(&file, &e, false)));
    let component = &spec.sinks[0];
    let sink_type = groundloom_formats::sink::sink_types()
        .into_iter()
        .find(|t| t.component.name == component.kind)
        .unwrap_or_else(|| panic!("no sink {}", component.kind));
    (sink_type.decode)(component).unwrap_or_else(|e| panic!("{}", groundloom_spec::render(&file, &e, false))).0
}
