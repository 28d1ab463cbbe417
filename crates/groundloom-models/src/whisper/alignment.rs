//! When tokens are said: where the decoder listens while it writes them.
//!
//! Reference: transformers' `_extract_token_timestamps`, which follows openai-whisper's `timing.py`: the attention of heads
//! that were found to follow the speech, normed and smoothed, and the cheapest path through it (Sakoe and Chiba, "Dynamic
//! Programming Algorithm Optimization for Spoken Word Recognition", 1978).

use super::prompt::STEP;

/// What one head attends to: `[tokens, frames]`, row-major.
pub(crate) type Attended = Vec<f32>;

/// When each of `tokens` tokens ends, in seconds from the first of `frames` frames of the encoder, from what heads attend to
/// while they are read; `width` frames are looked at for a median.
pub(crate) fn token_times(heads: &[Attended], tokens: usize, frames: usize, width: usize) -> Vec<f64> {
    if heads.is_empty() || tokens == 0 || frames == 0 {
        return vec![0.0; tokens];
    }
    let mut sum = vec![0.0_f32; tokens * frames];
    for head in heads {
        let mut normed = head.clone();
        norm(&mut normed, frames);
        for (sum, row) in sum.chunks_exact_mut(frames).zip(normed.chunks_exact(frames)) {
            sum.iter_mut().zip(smoothed(row, width)).for_each(|(sum, value)| *sum += value);
        }
    }
    let costs: Vec<f64> = sum.iter().map(|sum| -f64::from(sum / heads.len() as f32)).collect();
    first_frames(&costs, tokens, frames).into_iter().map(|frame| frame as f64 * STEP).collect()
}

/// Gives every frame the mean 0 and the deviation 1 over all tokens.
fn norm(values: &mut [f32], frames: usize) {
    let tokens = (values.len() / frames) as f64;
    for frame in 0..frames {
        let column = || values.iter().skip(frame).step_by(frames).map(|value| f64::from(*value));
        let mean = column().sum::<f64>() / tokens;
        let deviation = (column().map(|value| (value - mean).powi(2)).sum::<f64>() / tokens).sqrt();
        for value in values.iter_mut().skip(frame).step_by(frames) {
            // Not a number where all tokens attend alike, as in the reference.
            *value = (*value - mean as f32) / deviation as f32;
        }
    }
}

/// The median of `width` values around each; ends are mirrored. A row that is too short for it stays as it is.
fn smoothed(row: &[f32], width: usize) -> Vec<f32> {
    let (half, last) = (width / 2, row.len().saturating_sub(1));
    if row.len() <= half {
        return row.to_vec();
    }
    // Of places that begin `half` before the row.
    let mirrored = |place: usize| match place.checked_sub(half) {
        None => half - place,
        Some(at) if at > last => 2 * last - at,
        Some(at) => at,
    };
    let median = |i: usize| {
        let mut around: Vec<f32> = (i..i + width).map(|place| row[mirrored(place)]).collect();
        around.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
        around[half]
    };
    (0..row.len()).map(median).collect()
}

/// The first frame of each token on the cheapest path from the first token and frame to the last ones, on which one of both
/// or both go on by one. `costs` is `[tokens, frames]`.
fn first_frames(costs: &[f64], tokens: usize, frames: usize) -> Vec<usize> {
    let line = frames + 1;
    let mut cheapest = vec![f32::INFINITY; (tokens + 1) * line];
    let mut came_from = vec![Step::Frame; (tokens + 1) * line];
    cheapest[0] = 0.0;
    for frame in 1..=frames {
        for token in 1..=tokens {
            let at = token * line + frame;
            let (both, token_alone, frame_alone) = (cheapest[at - line - 1], cheapest[at - line], cheapest[at - 1]);
            // Equal costs, and those that are no number, go on along the frames.
            let (before, step) = if both < token_alone && both < frame_alone {
                (both, Step::Both)
            } else if token_alone < both && token_alone < frame_alone {
                (token_alone, Step::Token)
            } else {
                (frame_alone, Step::Frame)
            };
            cheapest[at] = (costs[(token - 1) * frames + frame - 1] + f64::from(before)) as f32;
            came_from[at] = step;
        }
    }
    let mut firsts = vec![0; tokens];
    let (mut token, mut frame) = (tokens, frames);
    while token > 0 {
        // The last one seen on the way back is the first.
        firsts[token - 1] = frame.saturating_sub(1);
        match (came_from[token * line + frame], frame) {
            (_, 0) | (Step::Token, _) => token -= 1,
            (Step::Both, _) => (token, frame) = (token - 1, frame - 1),
            (Step::Frame, _) => frame -= 1,
        }
    }
    firsts
}

/// What goes on by one.
#[derive(Debug, Clone, Copy)]
enum Step {
    Both,
    Token,
    Frame,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_passes_over_what_stands_alone() {
        assert_eq!(smoothed(&[1.0, 9.0, 2.0, 3.0, 4.0], 3), [9.0, 2.0, 3.0, 3.0, 3.0]);
        assert_eq!(smoothed(&[5.0, 1.0, 4.0, 2.0], 7), [2.0, 4.0, 2.0, 4.0]);
        assert_eq!(smoothed(&[5.0, 1.0, 4.0], 7), [5.0, 1.0, 4.0]);
        assert_eq!(smoothed(&[5.0], 1), [5.0]);
    }

    #[test]
    fn a_path_goes_where_it_is_cheap() {
        let cheap = |places: &[usize], frames: usize, tokens: usize| {
            let mut costs = vec![1.0; tokens * frames];
            places.iter().enumerate().for_each(|(frame, token)| costs[token * frames + frame] = 0.0);
            first_frames(&costs, tokens, frames)
        };
        assert_eq!(cheap(&[0, 0, 1, 1, 2], 5, 3), [0, 2, 4]);
        assert_eq!(cheap(&[0, 1, 1, 1, 2, 2], 6, 3), [0, 1, 4]);
        // More tokens than frames: some share one.
        assert_eq!(first_frames(&[0.0; 3], 3, 1), [0, 0, 0]);
        assert_eq!(token_times(&[vec![0.5; 8]], 1, 8, 7), [0.0]);
        assert_eq!(token_times(&[vec![]], 2, 0, 7), [0.0, 0.0]);
    }
}
