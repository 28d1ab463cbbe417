//! Non-maximum suppression over all boxes of an image, whichever phrase they answer.

use groundloom_data::Box2d;

/// The boxes that stay, by index and by descending score: each in turn stays unless its intersection over union with one that stays is above `iou`.
///
/// Equal scores go in the order given. `scores` is as long as `boxes`. The work is `boxes.len()` times what stays.
///
/// GrIT suppresses across phrases (Kosmos-2, arXiv 2306.14824, §2.1), so two phrases that a class detector answers with the same box ("a man" and "the player", both
/// *Person*) share one box with one score, and the first phrase keeps it. The IoU limit of the authors is unpublished.
pub fn suppress(boxes: &[Box2d], scores: &[f32], iou: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len().min(scores.len())).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut kept: Vec<usize> = Vec::new();
    for at in order {
        if kept.iter().all(|&other| boxes[at].iou(&boxes[other]) <= iou) {
            kept.push(at);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    fn boxed(x1: f32, y1: f32, x2: f32, y2: f32) -> Box2d {
        Box2d::new(x1, y1, x2, y2).expect("a box")
    }

    #[test]
    fn the_best_of_overlapping_boxes_stays() {
        let left = boxed(0.0, 0.0, 0.5, 1.0);
        let shifted = boxed(0.1, 0.0, 0.6, 1.0); // IoU with left 0.4 / 0.6
        let right = boxed(0.5, 0.0, 1.0, 1.0);
        type Case<'a> = (&'a [Box2d], &'a [f32], f32, &'a [usize]);
        let cases: &[Case<'_>] = &[
            (&[], &[], 0.5, &[]),
            (&[left, shifted, right], &[0.6, 0.9, 0.7], 0.5, &[1, 2]),
            (&[left, shifted, right], &[0.6, 0.9, 0.7], 0.7, &[1, 2, 0]),
            (&[left, left, right], &[0.8, 0.8, 0.9], 0.5, &[2, 0]), // equal boxes and scores: the first
            (&[left, left], &[0.8, 0.8], 1.0, &[0, 1]),             // 1 suppresses nothing
        ];
        for (boxes, scores, iou, expected) in cases {
            assert_eq!(suppress(boxes, scores, *iou), *expected, "{scores:?} at {iou}");
        }
    }

    fn any_box() -> impl Strategy<Value = Box2d> {
        (0.0_f32..0.9, 0.0_f32..0.9, 0.05_f32..1.0, 0.05_f32..1.0)
            .prop_map(|(x, y, w, h)| boxed(x, y, (x + w).min(1.0), (y + h).min(1.0)))
    }

    proptest! {
        #[test]
        fn what_stays_is_an_ordered_subset_without_overlap(given in prop::collection::vec((any_box(), 0_u8..6), 0..24), iou in 0.0_f32..1.0) {
            let boxes: Vec<Box2d> = given.iter().map(|(b, _)| *b).collect();
            let scores: Vec<f32> = given.iter().map(|(_, s)| f32::from(*s) / 5.0).collect();
            let kept = suppress(&boxes, &scores, iou);
            prop_assert!(kept.windows(2).all(|w| scores[w[0]] > scores[w[1]] || (scores[w[0]] == scores[w[1]] && w[0] < w[1])));
            for (n, &a) in kept.iter().enumerate() {
                prop_assert!(kept[n + 1..].iter().all(|&b| boxes[a].iou(&boxes[b]) <= iou));
            }
            for at in (0..boxes.len()).filter(|at| !kept.contains(at)) {
                prop_assert!(kept.iter().any(|&b| scores[b] >= scores[at] && boxes[at].iou(&boxes[b]) > iou), "only an overlap with a better box removes one");
            }
        }
    }
}
