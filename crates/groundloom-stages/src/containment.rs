//! Which of several overlapping expressions stay: the outermost, or as many boxes as possible.

use std::cmp::Ordering;

use groundloom_data::CharSpan;

/// For each span, whether no *other* span covers it: the rule of Kosmos-2's training loader in `expression` mode (microsoft/unilm, `kosmos-2/unilm/data/vl/obj_utils.py`).
///
/// A span `a` is covered by `b` when `b.start <= a.start`, `a.end <= b.end` and they are not equal; equal spans (one phrase with two boxes) do not cover each other.
/// The loader compares every pair; sorting gives the same answer in `n log n`.
pub fn outermost(spans: &[CharSpan]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_unstable_by(|&a, &b| by_start_widest_first(&spans[a], &spans[b]));
    let mut kept = vec![false; spans.len()];
    let mut furthest: Option<usize> = None; // end reached by the distinct spans before this one
    for group in order.chunk_by(|&a, &b| spans[a] == spans[b]) {
        let end = spans[group[0]].end;
        if furthest.is_none_or(|reached| reached < end) {
            for &at in group {
                kept[at] = true;
            }
            furthest = Some(end);
        }
    }
    kept
}

fn by_start_widest_first(a: &CharSpan, b: &CharSpan) -> Ordering {
    a.start.cmp(&b.start).then(b.end.cmp(&a.end))
}

/// A phrase that could be kept, and what it brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Character span in the caption, not empty.
    pub span: CharSpan,
    /// How many boxes it carries.
    pub boxes: u64,
}

/// The candidates, by index and in text order, that overlap nowhere and carry the most boxes together; among equals the longest texts.
///
/// Qwen-VL cleans GrIT that way, the opposite of Kosmos-2 (QwenLM/Qwen-VL issue 24: from *a dog*, *a field* and *a dog in a field of flowers* it keeps the first two).
/// They call it greedy and publish no code; this is the exact optimum (weighted interval scheduling), which greedy choice approaches. Which of equals wins is ours.
pub fn most_boxes(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).filter(|&at| !candidates[at].span.is_empty()).collect();
    order.sort_by_key(|&at| (candidates[at].span.end, candidates[at].span.start));
    // best[n]: value of the best choice among the first n of `order`; taken[n]: whether it holds the n-th.
    let mut best: Vec<(u64, usize)> = vec![(0, 0)];
    let mut taken: Vec<bool> = Vec::with_capacity(order.len());
    let before = |n: usize| {
        let start = candidates[order[n]].span.start;
        order[..n].partition_point(|&at| candidates[at].span.end <= start)
    };
    for (n, &at) in order.iter().enumerate() {
        let Candidate { span, boxes } = &candidates[at];
        let (base_boxes, base_characters) = best[before(n)];
        let with = (base_boxes + boxes, base_characters + span.len());
        taken.push(with > best[n]);
        best.push(with.max(best[n]));
    }
    let mut kept = Vec::new();
    let mut n = order.len();
    while n > 0 {
        if taken[n - 1] {
            kept.push(order[n - 1]);
            n = before(n - 1);
        } else {
            n -= 1;
        }
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::ops::Range;

    use super::*;
    use proptest::prelude::*;

    fn span(range: &Range<usize>) -> CharSpan {
        CharSpan::new(range.start, range.end).unwrap()
    }

    #[test]
    fn only_spans_without_a_cover_stay() {
        let cases: &[(&[Range<usize>], &[bool])] = &[
            (&[], &[]),
            (&[0..28, 9..28, 20..28], &[true, false, false]), // a dog in a field of flowers / a field of flowers / flowers
            (&[0..66, 19..66], &[true, false]),               // the sample in GrIT's README
            (&[0..5, 0..5], &[true, true]),                   // one phrase, two boxes
            (&[0..5, 0..5, 0..6], &[false, false, true]),
            (&[3..9, 0..5, 5..9], &[true, true, false]), // overlap is no containment; a shared end is
            (&[0..4, 0..9, 0..9], &[false, true, true]),
        ];
        for (ranges, expected) in cases {
            let spans: Vec<_> = ranges.iter().map(span).collect();
            assert_eq!(outermost(&spans), *expected, "{ranges:?}");
        }
    }

    #[test]
    fn most_boxes_takes_what_qwen_takes() {
        let dog_field = [(0..5, 1), (9..16, 1), (0..27, 1)];
        assert_eq!(most_boxes(&candidates(&dog_field)), [0, 1]);
    }

    #[test]
    fn most_boxes_prefers_boxes_then_length() {
        type Case<'a> = (&'a [(Range<usize>, u64)], &'a [usize]);
        let cases: &[Case<'_>] = &[
            (&[], &[]),
            (&[(0..5, 1), (0..20, 1)], &[1]),
            (&[(0..5, 1), (9..12, 1), (0..20, 2)], &[2]),
            (&[(0..5, 1), (9..12, 1), (0..20, 3)], &[2]),
            (&[(9..12, 1), (0..5, 2), (0..20, 2)], &[1, 0]),
            (&[(4..4, 9)], &[]),
        ];
        for (given, expected) in cases {
            assert_eq!(most_boxes(&candidates(given)), *expected, "{given:?}");
        }
    }

    fn candidates(given: &[(Range<usize>, u64)]) -> Vec<Candidate> {
        given.iter().map(|(range, boxes)| Candidate { span: span(range), boxes: *boxes }).collect()
    }

    fn spans(at_most: usize) -> impl Strategy<Value = Vec<CharSpan>> {
        prop::collection::vec((0_usize..12, 0_usize..12).prop_map(|(a, b)| span(&(a.min(b)..a.max(b)))), 0..at_most)
    }

    /// The loader's own comparison of every pair.
    fn pairwise(spans: &[CharSpan]) -> Vec<bool> {
        spans.iter().map(|a| !spans.iter().any(|b| a != b && b.start <= a.start && b.end >= a.end)).collect()
    }

    proptest! {
        #[test]
        fn sorting_equals_comparing_every_pair(spans in spans(16)) {
            prop_assert_eq!(outermost(&spans), pairwise(&spans));
        }

        #[test]
        fn containment_is_idempotent(spans in spans(16)) {
            let kept: Vec<_> = spans.iter().zip(outermost(&spans)).filter(|(_, keep)| *keep).map(|(span, _)| *span).collect();
            prop_assert!(outermost(&kept).iter().all(|keep| *keep));
        }

        #[test]
        fn most_boxes_is_the_optimum(spans in spans(9), boxes in prop::collection::vec(0_u64..4, 9)) {
            let given: Vec<_> = spans.into_iter().zip(boxes).map(|(span, boxes)| Candidate { span, boxes }).collect();
            let value = |chosen: &[usize]| (
                chosen.iter().map(|&at| given[at].boxes).sum::<u64>(),
                chosen.iter().map(|&at| given[at].span.len()).sum::<usize>(),
            );
            let apart = |chosen: &[usize]| chosen.iter().enumerate().all(|(n, &a)| chosen[n + 1..].iter()
                .all(|&b| !given[a].span.overlaps(&given[b].span)));
            let chosen = most_boxes(&given);
            prop_assert!(apart(&chosen));
            prop_assert!(chosen.is_sorted_by_key(|&at| given[at].span.start));
            let optimum = (0_usize..1 << given.len())
                .map(|bits| (0..given.len()).filter(|at| bits >> at & 1 == 1 && !given[*at].span.is_empty()).collect::<Vec<_>>())
                .filter(|choice| apart(choice)).map(|choice| value(&choice)).max();
            prop_assert_eq!(Some(value(&chosen)), optimum);
        }
    }
}
