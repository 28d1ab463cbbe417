//! Beam search: several texts are written side by side, and the likeliest of those that ended is taken.
//!
//! Reference: transformers 5's `GenerationMixin._beam_search`, step by step and in its single precision, so that its
//! marks for what must not be chosen are here too: a score of −10⁹ swallows what is added to it.

use crate::{
    ModelError,
    top_k::top_k,
    writing::{EarlyStopping, Ending, Next, Texts, Writing, Written, log_softmax},
};

/// The score of a text that must not be chosen.
const BARRED: f32 = -1e9;

/// A text that may go on.
#[derive(Debug, Clone, Default)]
struct Open {
    text: Written,
    /// The sum of the logarithms of its tokens' probabilities, after penalties.
    score: f32,
}

/// A text that has ended, or stands in the place of one.
#[derive(Debug, Clone)]
struct Ended {
    text: Written,
    /// As of an open one, over its length to the power of the length penalty.
    score: f32,
    /// Whether it has ended.
    really: bool,
}

/// An open text with one more token.
#[derive(Debug, Clone, Copy)]
struct Longer {
    from: usize,
    id: u32,
    score: f32,
    /// Natural logarithm of the newest token's probability under the model itself.
    logarithm: f64,
    /// Whether it ends here: with a token that ends texts, or at the greatest length.
    ends: bool,
}

/// Writes up to `most` tokens behind `context`. Of [`crate::writing::write`]'s ending, the tokens end a text and some may
/// be forbidden.
///
/// # Errors
/// Those of `next`.
pub(crate) fn search(
    writing: &Writing,
    context: &[u32],
    ending: &Ending<'_>,
    most: usize,
    next: Next<'_>,
) -> Result<Written, ModelError> {
    let beams = writing.beams();
    if most == 0 {
        return Ok(Written::default());
    }
    // So many that as many as there are beams go on, whatever ends.
    let kept = (1 + ending.tokens.len()).max(2) * beams;
    let mut search = Search::new(writing, most);
    let mut values = next(Texts::Begun)?;
    loop {
        let longer = search.lengthened(&values, context, ending, kept);
        let chosen = search.advance(&longer);
        if search.is_over(longer.iter().all(|text| text.ends)) {
            return Ok(search.ended.into_iter().next().map(|ended| ended.text).unwrap_or_default());
        }
        // Where the texts are still alike, one stands for all.
        let alike = values.len() == 1;
        let from: Vec<usize> = chosen.iter().map(|text| if alike { 0 } else { text.from }).collect();
        let ids: Vec<u32> = chosen.iter().map(|text| text.id).collect();
        values = next(Texts::Grown { from: &from, ids: &ids })?;
    }
}

/// The texts of a search.
struct Search<'a> {
    writing: &'a Writing,
    most: usize,
    penalty: f64,
    stopping: EarlyStopping,
    open: Vec<Open>,
    /// The best first.
    ended: Vec<Ended>,
    /// Tokens of each open text.
    length: usize,
    /// Whether an open text may still become better than one that ended.
    hopeful: bool,
}

impl<'a> Search<'a> {
    fn new(writing: &'a Writing, most: usize) -> Self {
        let beams = writing.beams();
        // All begin alike: only the first of them goes on.
        let open = |beam: usize| Open { score: if beam == 0 { 0.0 } else { BARRED }, ..Open::default() };
        Self {
            writing,
            most,
            penalty: writing.length_penalty.unwrap_or(1.0),
            stopping: writing.early_stopping.unwrap_or(EarlyStopping::False),
            open: (0..beams).map(open).collect(),
            ended: vec![Ended { text: Written::default(), score: BARRED, really: false }; beams],
            length: 0,
            hopeful: true,
        }
    }

    /// What scores are divided by at a length.
    fn divisor(&self, length: usize) -> f32 {
        (length as f64).powf(self.penalty) as f32
    }

    fn is_full(&self) -> bool {
        self.ended.iter().all(|ended| ended.really)
    }

    /// The `kept` likeliest texts of one more token, the likeliest first. Of `values` there is one list where all open
    /// texts are alike.
    fn lengthened(&self, values: &[Vec<f32>], context: &[u32], ending: &Ending<'_>, kept: usize) -> Vec<Longer> {
        let vocabulary = values.first().map_or(0, Vec::len);
        let (mut scores, mut own) = (Vec::new(), Vec::new());
        for (i, open) in self.open.iter().enumerate() {
            let Some(values) = values.get(i).or(values.first()) else { continue };
            let logarithms = log_softmax(values);
            let mut adapted: Vec<f32> = logarithms.iter().map(|logarithm| *logarithm as f32).collect();
            self.writing.adapt(&mut adapted, context, &open.text.ids, ending.tokens);
            if let Some(forbid) = ending.forbid {
                forbid(&mut adapted, &open.text.ids);
            }
            scores.extend(adapted.iter().map(|logarithm| logarithm + open.score));
            own.extend(logarithms);
        }
        let longer = |place: usize| {
            let (from, id) = (place / vocabulary, (place % vocabulary) as u32);
            let ends = ending.tokens.contains(&id) || self.length + 1 >= self.most;
            Longer { from, id, score: scores[place], logarithm: own[place], ends }
        };
        top_k(&scores, kept).into_iter().map(longer).collect()
    }

    /// Takes the open texts of the next step and the ended ones from `longer`, and gives the open ones as they are there.
    fn advance(&mut self, longer: &[Longer]) -> Vec<Longer> {
        let beams = self.open.len();
        let barred = |bar: bool| if bar { BARRED } else { 0.0 };
        let texts: Vec<Written> = longer.iter().map(|text| self.text(text)).collect();
        self.length += 1;

        let divisor = self.divisor(self.length);
        let late = self.is_full() && self.stopping == EarlyStopping::True;
        let ended = longer.iter().zip(&texts).enumerate().map(|(i, (text, written))| {
            // Those behind the first are only there to go on.
            let really = text.ends && i < beams;
            let score = text.score / divisor + barred(late) + barred(!self.hopeful) + barred(!really);
            Ended { text: written.clone(), score, really }
        });
        let all: Vec<Ended> = self.ended.iter().cloned().chain(ended).collect();
        let scores: Vec<f32> = all.iter().map(|ended| ended.score).collect();
        self.ended = top_k(&scores, beams).into_iter().map(|i| all[i].clone()).collect();

        let scores: Vec<f32> = longer.iter().map(|text| text.score + barred(text.ends)).collect();
        let chosen = top_k(&scores, beams);
        self.open = chosen.iter().map(|&i| Open { text: texts[i].clone(), score: scores[i] }).collect();
        chosen.into_iter().map(|i| longer[i]).collect()
    }

    /// What `longer` is, as a whole.
    fn text(&self, longer: &Longer) -> Written {
        let mut text = self.open[longer.from].text.clone();
        text.ids.push(longer.id);
        text.log_probability += longer.logarithm;
        text
    }

    /// Whether nothing is left to find, where `all_end` says that no text of this step can go on.
    fn is_over(&mut self, all_end: bool) -> bool {
        let at_most = self.stopping == EarlyStopping::Never && self.penalty > 0.0;
        let length = if at_most { self.most } else { self.length };
        let best = self.open.first().map_or(BARRED, |open| open.score / self.divisor(length));
        let worst = self.ended.iter().map(|ended| ended.score).fold(f32::INFINITY, f32::min);
        self.hopeful &= self.ended.iter().any(|ended| best > if ended.really { worst } else { BARRED });
        all_end || !self.hopeful || (self.is_full() && self.stopping == EarlyStopping::True)
    }
}

#[cfg(test)]
mod tests;
