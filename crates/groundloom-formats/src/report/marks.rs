//! What is drawn over a photograph and marked in its caption: phrases with their boxes, from whichever columns a data set has.

use arrow::{
    array::{Array, AsArray, Float64Array},
    datatypes::Float64Type,
    record_batch::RecordBatch,
};
use groundloom_data::{BoxesView, CharIndex, CharSpan, Chunk, ChunksView, Expression, ExpressionsView, GroundedBox};

use crate::grit;

/// A phrase and the boxes that it names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mark {
    /// Where the phrase stands in the caption; `None` for boxes of a phrase that is not in it.
    pub(super) span: Option<CharSpan>,
    /// The phrase, or the detector's label.
    pub(super) label: String,
    /// Boxes (`xyxy` in [0, 1]) and scores, best first.
    pub(super) boxes: Vec<([f32; 4], f32)>,
    /// A phrase with boxes that is no expression (any more): an expression contains it.
    pub(super) contained: bool,
}

impl Mark {
    /// The best score.
    pub(super) fn score(&self) -> Option<f32> {
        self.boxes.first().map(|(_, score)| *score)
    }
}

/// The marks of a row in text order, the contained ones last; or why its columns cannot be read.
pub(super) fn marks(rows: &RecordBatch, row: usize, caption: &str) -> Result<Vec<Mark>, String> {
    let column = |name: &str| rows.column_by_name(name);
    let chunks = column("chunks").and_then(|c| ChunksView::try_new(c).ok());
    let boxes = column("boxes").and_then(|c| BoxesView::try_new(c).ok());
    let expressions = column("expressions").and_then(|c| ExpressionsView::try_new(c).ok());
    let mut marks = match &boxes {
        Some(boxes) => {
            let boxes = boxes.row(row).map_err(|e| format!("boxes: {e}"))?.unwrap_or_default();
            let chunks = match &chunks {
                Some(view) => view.row(row).map_err(|e| format!("chunks: {e}"))?.unwrap_or_default(),
                None => Vec::new(),
            };
            let expressions = match &expressions {
                Some(view) => Some(view.row(row).map_err(|e| format!("expressions: {e}"))?.unwrap_or_default()),
                None => None,
            };
            from_typed(&chunks, &boxes, expressions.as_deref())
        }
        None => match column(grit::REF_EXPS).or_else(|| column(grit::NOUN_CHUNKS)) {
            Some(entries) => from_released(entries, row, caption),
            None => Vec::new(),
        },
    };
    marks.iter_mut().for_each(|m| m.boxes.sort_by(|(_, a), (_, b)| b.total_cmp(a)));
    marks.sort_by_key(|m| (m.contained, m.span.is_none(), m.span));
    Ok(marks)
}

fn from_typed(chunks: &[Chunk<'_>], boxes: &[GroundedBox<'_>], expressions: Option<&[Expression<'_>]>) -> Vec<Mark> {
    let of_chunk = |chunk: usize| boxes.iter().filter(|b| b.chunk == Some(chunk)).map(plain).collect::<Vec<_>>();
    let expressed = |chunk: usize| expressions.is_some_and(|all| all.iter().any(|e| e.chunk == chunk));
    let mut marks: Vec<Mark> = expressions
        .unwrap_or_default()
        .iter()
        .map(|e| Mark { span: Some(e.span), label: e.text.to_owned(), boxes: of_chunk(e.chunk), contained: false })
        .collect();
    for (i, chunk) in chunks.iter().enumerate() {
        let boxes = of_chunk(i);
        if !boxes.is_empty() && !expressed(i) {
            marks.push(Mark {
                span: Some(chunk.span),
                label: chunk.text.to_owned(),
                boxes,
                contained: expressions.is_some(),
            });
        }
    }
    for b in boxes.iter().filter(|b| b.chunk.is_none_or(|chunk| chunk >= chunks.len() && !expressed(chunk))) {
        let label = b.phrase.or(b.label).unwrap_or("box");
        match marks.iter_mut().find(|m| m.span == b.span && m.label == label) {
            Some(mark) => mark.boxes.push(plain(b)),
            None => marks.push(Mark { span: b.span, label: label.to_owned(), boxes: vec![plain(b)], contained: false }),
        }
    }
    marks
}

fn plain(b: &GroundedBox<'_>) -> ([f32; 4], f32) {
    (b.rect.xyxy(), b.score)
}

/// From `[start, end, x1, y1, x2, y2, score]` lists; entries of another shape are left out.
fn from_released(entries: &dyn Array, row: usize, caption: &str) -> Vec<Mark> {
    let index = CharIndex::new(caption);
    let mut marks: Vec<Mark> = Vec::new();
    let Some(lists) = entries.as_list_opt::<i32>() else { return marks };
    if lists.is_null(row) {
        return marks;
    }
    let lists = lists.value(row);
    let Some(lists) = lists.as_list_opt::<i32>() else { return marks };
    for entry in lists.iter().flatten() {
        let Some(numbers) = entry.as_primitive_opt::<Float64Type>().map(Float64Array::values) else { continue };
        let &[start, end, x1, y1, x2, y2, score] = numbers.as_ref() else { continue };
        if !numbers.iter().all(|n| n.is_finite()) || start < 0.0 {
            continue;
        }
        let Some(span) = CharSpan::new(start as usize, end as usize) else { continue };
        let Some(label) = index.slice(span) else { continue };
        let boxed = ([x1, y1, x2, y2].map(|v| v.clamp(0.0, 1.0) as f32), score as f32);
        match marks.iter_mut().find(|m| m.span == Some(span)) {
            Some(mark) => mark.boxes.push(boxed),
            None => {
                marks.push(Mark { span: Some(span), label: label.to_owned(), boxes: vec![boxed], contained: false })
            }
        }
    }
    marks
}

/// A stretch of the caption between two ends of phrases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// The text.
    pub(super) text: &'a str,
    /// Indices of the marks that cover it, the longest phrase first.
    pub(super) marks: Vec<usize>,
}

/// Cuts a caption at the ends of all phrases. The segments' texts together are the caption; a span that reaches beyond it marks nothing.
pub(super) fn segments<'a>(caption: &'a str, marks: &[Mark]) -> Vec<Segment<'a>> {
    let index = CharIndex::new(caption);
    let spans: Vec<(usize, CharSpan)> = marks
        .iter()
        .enumerate()
        .filter(|(_, m)| !m.contained)
        .filter_map(|(i, m)| m.span.filter(|s| s.end <= index.len() && !s.is_empty()).map(|s| (i, s)))
        .collect();
    let mut ends: Vec<usize> = spans.iter().flat_map(|(_, s)| [s.start, s.end]).chain([0, index.len()]).collect();
    ends.sort_unstable();
    ends.dedup();
    let segment = |ends: &[usize]| {
        let here = CharSpan::new(ends[0], ends[1])?;
        let mut covering: Vec<(usize, CharSpan)> = spans.iter().filter(|(_, s)| s.contains(&here)).copied().collect();
        covering.sort_by_key(|(i, s)| (std::cmp::Reverse(s.len()), *i));
        Some(Segment { text: index.slice(here)?, marks: covering.into_iter().map(|(i, _)| i).collect() })
    };
    ends.windows(2).filter_map(segment).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use groundloom_data::Box2d;
    use proptest::prelude::*;

    fn mark(start: usize, end: usize) -> Mark {
        Mark { span: Some(CharSpan { start, end }), label: String::new(), boxes: Vec::new(), contained: false }
    }

    #[test]
    fn nested_phrases_give_nested_segments() {
        let caption = "a dog in a field";
        let shown: Vec<_> =
            segments(caption, &[mark(0, 16), mark(9, 16)]).into_iter().map(|s| (s.text, s.marks)).collect();
        assert_eq!(shown, [("a dog in ", vec![0]), ("a field", vec![0, 1])]);
    }

    #[test]
    fn phrases_without_an_expression_are_contained() {
        let chunk = |start, end, text| {
            let span = CharSpan { start, end };
            Chunk { span, text, root: text, lemma: text, subtree: span, has_conjunct: false, has_children: false }
        };
        let boxed = |chunk, x2, score| GroundedBox {
            chunk: Some(chunk),
            span: None,
            phrase: None,
            label: None,
            score,
            rect: Box2d::new(0.0, 0.0, x2, 1.0).unwrap(),
        };
        let chunks = [chunk(0, 5, "a dog"), chunk(9, 16, "a field")];
        let boxes = [boxed(0, 0.5, 0.6), boxed(1, 1.0, 0.5), boxed(0, 0.25, 0.8)];
        let whole = [Expression { span: CharSpan { start: 0, end: 16 }, text: "a dog in a field", chunk: 0 }];
        let marks = from_typed(&chunks, &boxes, Some(&whole));
        let shown: Vec<_> = marks.iter().map(|m| (m.label.as_str(), m.boxes.len(), m.contained)).collect();
        assert_eq!(shown, [("a dog in a field", 2, false), ("a field", 1, true)]);
        let marks = from_typed(&chunks, &boxes, None);
        assert!(marks.iter().all(|m| !m.contained), "without expressions the chunks are what is shown");
    }

    proptest! {
        #[test]
        fn segments_make_up_the_caption(
            caption in ".{0,30}",
            spans in prop::collection::vec((0usize..35, 0usize..35), 0..6),
        ) {
            let marks: Vec<Mark> = spans.iter().map(|(a, b)| mark(*a.min(b), *a.max(b))).collect();
            let whole: String = segments(&caption, &marks).iter().map(|s| s.text).collect();
            prop_assert_eq!(whole, caption);
        }
    }
}
