#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::writing::write;

/// Values for four tokens behind every text, of which the last ends one: a text decides them, and nothing else.
fn values(ids: &[u32]) -> Vec<f32> {
    let mixed = ids.iter().fold(17_u32, |all, id| all.wrapping_mul(31).wrapping_add(*id + 1));
    (0..4).map(|i| ((mixed.wrapping_mul(2 * i + 3) >> 7) % 97) as f32 / 24.0).collect()
}

/// Searches with [`values`], and checks that the texts that it is asked about are those that it names.
fn search_with(writing: &Writing) -> Written {
    let mut texts: Vec<Vec<u32>> = vec![Vec::new()];
    let mut next = |asked: Texts<'_>| {
        if let Texts::Grown { from, ids } = asked {
            texts = from.iter().zip(ids).map(|(&from, &id)| [&texts[from][..], &[id]].concat()).collect();
        }
        Ok(texts.iter().map(|text| values(text)).collect())
    };
    write(writing, 0, &[], Ending::at(&[3]), usize::MAX, &mut next, &mut |_| ()).unwrap()
}

/// Logarithm of a text's probability.
fn logarithm(ids: &[u32]) -> f64 {
    (0..ids.len()).map(|i| log_softmax(&values(&ids[..i]))[ids[i] as usize]).sum()
}

/// All texts of up to `most` tokens that end with token 3 or at that length.
fn all(most: usize) -> Vec<Vec<u32>> {
    let mut open = vec![Vec::new()];
    let mut ended = Vec::new();
    for length in 1..=most {
        let longer: Vec<Vec<u32>> = open.iter().flat_map(|text| (0..4).map(|id| [&text[..], &[id]].concat())).collect();
        let is_over = |text: &Vec<u32>| text.ends_with(&[3]) || length == most;
        ended.extend(longer.iter().filter(|text| is_over(text)).cloned());
        open = longer.into_iter().filter(|text| !is_over(text)).collect();
    }
    ended
}

#[test]
fn as_many_beams_as_texts_find_the_best_of_all() {
    for most in 1..=4 {
        for penalty in [0.0, 1.0, -0.5, 2.0] {
            let writing = Writing {
                max_new_tokens: most,
                beams: Some(200),
                length_penalty: Some(penalty),
                early_stopping: Some(EarlyStopping::Never),
                ..Writing::default()
            };
            let found = search_with(&writing);
            let score = |ids: &[u32]| logarithm(ids) / (ids.len() as f64).powf(penalty);
            let best = all(most).into_iter().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap();
            // Several may be as good as each other.
            assert!((score(&found.ids) - score(&best)).abs() < 1e-6, "{most} {penalty}: {found:?}, {best:?}");
            assert!((found.log_probability - logarithm(&found.ids)).abs() < 1e-9);
        }
    }
}

#[test]
fn one_beam_is_the_likeliest_token_each_time() {
    let greedy = search_with(&Writing { max_new_tokens: 6, ..Writing::default() });
    assert_eq!(search_with(&Writing { max_new_tokens: 6, beams: Some(1), ..Writing::default() }), greedy);
    // More beams find nothing less likely.
    let writing = Writing { max_new_tokens: 6, beams: Some(4), length_penalty: Some(0.0), ..Writing::default() };
    let found = search_with(&writing);
    assert!(found.log_probability >= greedy.log_probability, "{found:?} {greedy:?}");
}

#[test]
fn what_holds_for_one_text_holds_for_beams() {
    let beams = Writing { max_new_tokens: 5, beams: Some(3), ..Writing::default() };
    let late = search_with(&Writing { min_new_tokens: 5, ..beams.clone() });
    assert!(late.ids.len() == 5 && !late.ids[..4].contains(&3), "{late:?}");
    let once = search_with(&Writing { no_repeat_ngram_size: Some(1), min_new_tokens: 3, ..beams.clone() });
    let different: std::collections::BTreeSet<_> = once.ids.iter().collect();
    assert_eq!(different.len(), once.ids.len(), "{once:?}");
    assert_eq!(search_with(&Writing { max_new_tokens: 0, ..beams }), Written::default());
}

#[test]
fn conditions_that_look_at_every_token_take_no_beams() {
    let writing = Writing { beams: Some(2), ..Writing::default() };
    let mut never = |_: &[u32]| Ok(false);
    let ending = Ending::at_or_when(&[3], &mut never);
    let mut next = |_: Texts<'_>| Ok(vec![vec![0.0; 4]; 2]);
    let error = write(&writing, 0, &[], ending, 9, &mut next, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("beams to be 1 where stop texts or a form end a text, found 2"), "{error}");
}
