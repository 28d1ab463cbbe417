//! The greatest of many values, equal ones in the order in which `torch.topk` gives them on the CPU.
//!
//! torch promises no order of equal values. It sorts pairs of value and place with the C++ library's `partial_sort` where
//! few of many are asked for, else with `nth_element` and `sort`; with GNU's library these are a heap (Williams, "Algorithm
//! 232: Heapsort", 1964), a selection by partition (Hoare, "Algorithm 65: Find", 1961) and an introspective sort (Musser,
//! "Introspective Sorting and Selection Algorithms", 1997). Their steps are repeated here, so that a search that meets
//! equal values goes on where its reference goes on.

/// Where fewer than one of so many values is asked for, a heap finds them.
const FEW: usize = 64;
/// A stretch of so many pairs is sorted by insertion.
const SHORT: usize = 16;

/// A value and its place.
type Pair = (f32, usize);

/// The places of the `count` greatest of `values`, the greatest first; all places where there are no more.
pub(crate) fn top_k(values: &[f32], count: usize) -> Vec<usize> {
    let mut pairs: Vec<Pair> = values.iter().copied().zip(0..).collect();
    let count = count.min(pairs.len());
    if count == 0 {
        return Vec::new();
    }
    if count.saturating_mul(FEW) <= pairs.len() {
        partial_sort(&mut pairs, count);
    } else {
        select(&mut pairs, count - 1);
        sort(&mut pairs[..count - 1]);
    }
    pairs.iter().take(count).map(|(_, place)| *place).collect()
}

/// Whether `a` comes before `b`: what is no number comes first.
fn before(a: Pair, b: Pair) -> bool {
    (a.0.is_nan() && !b.0.is_nan()) || a.0 > b.0
}

/// The first `count` pairs become the first of all, in order.
fn partial_sort(pairs: &mut [Pair], count: usize) {
    gather(pairs, count);
    for end in (1..count).rev() {
        let lowest = pairs[end];
        pairs[end] = pairs[0];
        sink(&mut pairs[..end], 0, lowest);
    }
}

/// The first `count` pairs become the first of all, as a heap whose root is the last of them.
fn gather(pairs: &mut [Pair], count: usize) {
    let (heap, rest) = pairs.split_at_mut(count);
    for place in (0..count / 2).rev() {
        let pair = heap[place];
        sink(heap, place, pair);
    }
    for other in rest {
        if before(*other, heap[0]) {
            let pair = std::mem::replace(other, heap[0]);
            sink(heap, 0, pair);
        }
    }
}

/// Puts `pair` into the heap whose place `top` is free: the hole goes down to a leaf first, then the pair comes up from it.
fn sink(heap: &mut [Pair], top: usize, pair: Pair) {
    let mut hole = top;
    while 2 * hole + 2 < heap.len() {
        let (left, right) = (2 * hole + 1, 2 * hole + 2);
        let child = if before(heap[right], heap[left]) { left } else { right };
        heap[hole] = heap[child];
        hole = child;
    }
    if 2 * hole + 2 == heap.len() {
        heap[hole] = heap[2 * hole + 1];
        hole = 2 * hole + 1;
    }
    while hole > top {
        let parent = (hole - 1) / 2;
        if !before(heap[parent], pair) {
            break;
        }
        heap[hole] = heap[parent];
        hole = parent;
    }
    heap[hole] = pair;
}

/// Puts that pair at `place` that belongs there, and no pair behind it that belongs before it.
fn select(pairs: &mut [Pair], place: usize) {
    let (mut from, mut to) = (0, pairs.len());
    for _ in 0..2 * pairs.len().ilog2() {
        if to - from <= 3 {
            break;
        }
        let cut = from + partition(&mut pairs[from..to]);
        if cut <= place {
            from = cut;
        } else {
            to = cut;
        }
    }
    if to - from > 3 {
        // Too many bad cuts.
        gather(&mut pairs[from..to], place + 1 - from);
        pairs.swap(from, place);
    } else {
        insert(&mut pairs[from..to]);
    }
}

fn sort(pairs: &mut [Pair]) {
    if let Some(depth) = pairs.len().checked_ilog2() {
        sort_roughly(pairs, 2 * depth);
    }
    insert(pairs);
}

/// Sorts down to short stretches, each of which belongs where it is.
fn sort_roughly(mut pairs: &mut [Pair], mut depth: u32) {
    while pairs.len() > SHORT {
        if depth == 0 {
            let count = pairs.len();
            return partial_sort(pairs, count);
        }
        depth -= 1;
        let cut = partition(pairs);
        let (first, second) = pairs.split_at_mut(cut);
        sort_roughly(second, depth);
        pairs = first;
    }
}

/// Parts at least four pairs around one of them, which comes first: none from the place that is given on comes before one
/// before it.
fn partition(pairs: &mut [Pair]) -> usize {
    let (second, middle, last) = (1, pairs.len() / 2, pairs.len() - 1);
    let comes = |a: usize, b: usize| before(pairs[a], pairs[b]);
    // The one in the middle of three.
    let pivot = match (comes(second, middle), comes(middle, last), comes(second, last)) {
        (true, true, _) | (false, false, false) => middle,
        (true, false, true) | (false, true, false) => last,
        (true, false, false) | (false, _, true) => second,
    };
    pairs.swap(0, pivot);
    let pivot = pairs[0];
    let (mut low, mut high) = (1, pairs.len());
    loop {
        while before(pairs[low], pivot) {
            low += 1;
        }
        high -= 1;
        while before(pivot, pairs[high]) {
            high -= 1;
        }
        if low >= high {
            return low;
        }
        pairs.swap(low, high);
        low += 1;
    }
}

/// Sorts, equal pairs staying in their order.
fn insert(pairs: &mut [Pair]) {
    for i in 1..pairs.len() {
        let at = pairs[..i].iter().rposition(|other| !before(pairs[i], *other)).map_or(0, |before| before + 1);
        pairs[at..=i].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `torch.topk` of torch 2.15 gives on a CPU, of values most of which come many times.
    #[test]
    fn equal_values_come_in_torchs_order() {
        let cases: [(usize, usize, &[usize]); 8] = [
            (1, 2, &[0]),
            (7, 2, &[5, 4, 3]),
            (12, 3, &[1, 7, 4, 11, 9, 10]),
            (40, 4, &[33, 32, 29, 28, 14, 10, 11, 15, 39, 3, 6, 7, 2, 21, 24, 25, 38, 20, 35, 12]),
            (
                50,
                3,
                &[
                    1, 23, 24, 21, 20, 18, 26, 28, 31, 34, 7, 45, 4, 47, 48, 14, 9, 12, 11, 15, 17, 22, 19, 25, 49, 36,
                    38, 39, 41, 42, 44, 46, 43, 0, 10, 8, 3, 6, 5, 2,
                ],
            ),
            (300, 3, &[7, 1, 18, 4]),
            (1000, 7, &[8, 9, 24, 1, 16, 48, 56, 64, 40, 32]),
            (
                2000,
                11,
                &[
                    69, 4, 115, 16, 12, 272, 101, 249, 193, 174, 273, 51, 292, 267, 299, 94, 150, 75, 301, 200, 202,
                    173, 210, 2, 111, 309, 214, 168, 103, 74,
                ],
            ),
        ];
        for (count, modulus, expected) in cases {
            let values: Vec<f32> = (0..count).map(|i| ((i * i * 7 + i * 13 + i / 9) % modulus) as f32).collect();
            assert_eq!(top_k(&values, expected.len()), expected, "{count}");
        }
        let odd = [f32::NAN, 1.0, f32::NEG_INFINITY, 2.0, f32::NAN, 2.0];
        assert_eq!(top_k(&odd, 5), [4, 0, 3, 5, 1]);
    }

    #[test]
    fn the_greatest_come_in_order() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32
        };
        for count in [0, 1, 2, 3, 5, 17, 64, 300, 2000] {
            let values: Vec<f32> = (0..count).map(|_| next()).collect();
            let mut sorted: Vec<usize> = (0..count).collect();
            sorted.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
            for wanted in [0, 1, 2, 4, 31, count / 2, count, count + 1] {
                assert_eq!(top_k(&values, wanted), sorted[..wanted.min(count)], "{wanted} of {count}");
            }
        }
        // Rising and falling values, and one value alone, are as good as any.
        let rising: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        assert_eq!(top_k(&rising, 4000)[..3], [4999, 4998, 4997]);
        assert_eq!(top_k(&vec![0.0; 5000], 4000).len(), 4000);
    }
}
