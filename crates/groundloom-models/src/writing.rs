//! Writing a text token by token: which token comes next, and when the text ends.

use candle_core::{Device, Tensor};

use crate::{ModelError, beams, decoder::Past};

/// How a text is written. What is `None` is as `generation_config.json` in the model's folder says.
#[derive(Debug, Clone, PartialEq)]
pub struct Writing {
    /// The text ends after so many tokens, or where the model ends it before.
    pub max_new_tokens: usize,
    /// Before so many tokens it does not end.
    pub min_new_tokens: usize,
    /// Above 1, a token that is there already becomes less likely: a positive value for it is divided by this, a negative
    /// one multiplied (Keskar et al., "CTRL", 2019); with beams the values are logarithms of probabilities. 1 leaves the
    /// model as it is, and is what holds where the folder says nothing.
    pub repetition_penalty: Option<f32>,
    /// No run of so many tokens comes twice in a text, what it is written behind included (Paulus et al., "A Deep
    /// Reinforced Model for Abstractive Summarization", 2018, section 2.5). 0 lets all come, and holds where the folder
    /// says nothing.
    pub no_repeat_ngram_size: Option<usize>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// So many texts are written side by side, and the likeliest is taken: a beam search, as transformers' `generate`
    /// does it. 1 holds where the folder says nothing, and where tokens are drawn.
    pub beams: Option<usize>,
    /// The logarithm of a text's probability is divided by its length, in tokens, to the power of this before texts of a
    /// beam search are compared: above 0 long texts gain, below 0 short ones. 1 holds where the folder says nothing.
    pub length_penalty: Option<f64>,
    /// When a beam search ends. [`EarlyStopping::False`] holds where the folder says nothing.
    pub early_stopping: Option<EarlyStopping>,
}

/// When a beam search ends before every text has its most tokens, by the names that transformers gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as as many texts have ended as there are beams.
    True,
    /// When the likeliest open text, compared at the length that it has, is no better than the worst of those.
    False,
    /// As `False`, but where a length penalty above 0 lets texts gain, the open text is compared at the greatest length.
    Never,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The likeliest; of several the first in the vocabulary.
    Greedy,
    /// Drawn from the likeliest tokens that together have the probability `p` (Holtzman et al., "The Curious Case of
    /// Neural Text Degeneration", 2020).
    TopP {
        /// Above 0, at most 1.
        p: f32,
        /// Above 0: what the values are divided by before they become probabilities.
        temperature: f32,
    },
}

impl Default for Writing {
    /// The likeliest token each time, up to 30, unless the model's folder says otherwise.
    fn default() -> Self {
        Self {
            max_new_tokens: 30,
            min_new_tokens: 0,
            repetition_penalty: None,
            no_repeat_ngram_size: None,
            sampling: Sampling::Greedy,
            beams: None,
            length_penalty: None,
            early_stopping: None,
        }
    }
}

impl Writing {
    /// Refuses numbers out of their range, and beams where tokens are drawn.
    ///
    /// # Errors
    /// [`ModelError::BadWriting`] names the option.
    pub fn check(&self) -> Result<(), ModelError> {
        let refuse = |option: &'static str, expected: &'static str, found: f32| {
            Err(ModelError::BadWriting { option, expected, found })
        };
        let above_zero = |option: &'static str, found: f32| match found > 0.0 && found.is_finite() {
            true => Ok(()),
            false => refuse(option, "above 0", found),
        };
        above_zero("repetition_penalty", self.repetition_penalty.unwrap_or(1.0))?;
        if self.beams == Some(0) {
            return refuse("beams", "at least 1", 0.0);
        }
        if let Some(found) = self.length_penalty.filter(|found| !found.is_finite()) {
            return refuse("length_penalty", "a finite number", found as f32);
        }
        let Sampling::TopP { p, temperature } = self.sampling else { return Ok(()) };
        above_zero("temperature", temperature)?;
        if !(p > 0.0 && p <= 1.0) {
            return refuse("top_p", "above 0 and at most 1", p);
        }
        match self.beams {
            None | Some(1) => Ok(()),
            Some(beams) => refuse("beams", "1 where tokens are drawn (top_p)", beams as f32),
        }
    }

    /// Texts that are written side by side.
    pub(crate) fn beams(&self) -> usize {
        self.beams.unwrap_or(1)
    }

    /// Changes the values of the tokens behind `written`, which stands behind `context`: by the penalty of repetitions,
    /// by the runs that may not come again, and by the least length, before which none of `ends` may come.
    pub(crate) fn adapt(&self, values: &mut [f32], context: &[u32], written: &[u32], ends: &[u32]) {
        penalise(values, context.iter().chain(written), self.repetition_penalty.unwrap_or(1.0));
        let early = if written.len() < self.min_new_tokens { ends } else { &[] };
        let again = self.no_repeat_ngram_size.filter(|&size| size > 0);
        let again = again.map_or_else(Vec::new, |size| repeating(&[context, written].concat(), size));
        for &id in again.iter().chain(early) {
            if let Some(value) = values.get_mut(id as usize) {
                *value = f32::NEG_INFINITY;
            }
        }
    }
}

/// The texts whose next tokens are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Texts<'a> {
    /// One, which has nothing behind the context yet.
    Begun,
    /// As many as there are `ids`: text `i` is text `from[i]` of those before, with `ids[i]` behind it.
    Grown { from: &'a [usize], ids: &'a [u32] },
}

impl Texts<'_> {
    /// Brings `pasts`, in each of which every text has its place, to these texts, and gives their newest tokens, `[n, 1]`;
    /// none where nothing stands behind the context.
    pub(crate) fn follow<const N: usize>(self, pasts: [&mut Past; N]) -> candle_core::Result<Option<Tensor>> {
        let Self::Grown { from, ids } = self else { return Ok(None) };
        pasts.into_iter().try_for_each(|past| past.keep(from))?;
        Tensor::from_slice(ids, (ids.len(), 1), &Device::Cpu).map(Some)
    }
}

/// Gives, for each of the texts, a value for each token of the vocabulary that may come next.
pub(crate) type Next<'a> = &'a mut dyn FnMut(Texts<'_>) -> Result<Vec<Vec<f32>>, ModelError>;

/// A text that was written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Written {
    /// The tokens, the one that ended the text among them.
    pub(crate) ids: Vec<u32>,
    /// Natural logarithm of the probability that the model itself, before penalty, temperature and the choice of the
    /// likeliest, gives all of them.
    pub(crate) log_probability: f64,
}

impl Written {
    /// The tokens without the one that ended the text.
    pub(crate) fn words(&self, end: u32) -> &[u32] {
        self.ids.strip_suffix(&[end]).unwrap_or(&self.ids)
    }
}

/// Where a text ends, short of its limit, and what may come before.
pub(crate) struct Ending<'a> {
    /// Behind any of these tokens.
    pub(crate) tokens: &'a [u32],
    /// Behind what it is true of; its errors end the writing as well.
    when: Option<Condition<'a>>,
    /// Where it says so, and it says what may come before.
    guide: Option<&'a mut dyn Guide>,
    /// Makes the values of tokens that may not come behind what is written negatively infinite.
    pub(crate) forbid: Option<Forbidding<'a>>,
}

/// Says which tokens may come next.
pub(crate) trait Guide {
    /// Makes the values of tokens that may not come next negatively infinite; `room` tokens may still come, this one among them.
    ///
    /// # Errors
    /// Where none may come.
    fn allow(&mut self, values: &mut [f32], room: usize) -> Result<(), ModelError>;

    /// Is told what came; whether nothing can follow.
    fn chosen(&mut self, id: u32) -> bool;
}

/// Is asked about everything that is written so far.
pub(crate) type Condition<'a> = &'a mut dyn FnMut(&[u32]) -> Result<bool, ModelError>;

/// Is given values for what may come behind what is written, and that.
pub(crate) type Forbidding<'a> = &'a dyn Fn(&mut [f32], &[u32]);

impl<'a> Ending<'a> {
    /// Behind any of `tokens`.
    pub(crate) fn at(tokens: &'a [u32]) -> Self {
        Self { tokens, when: None, guide: None, forbid: None }
    }

    /// Behind any of `tokens`, or where `when` says so.
    pub(crate) fn at_or_when(tokens: &'a [u32], when: Condition<'a>) -> Self {
        Self { when: Some(when), ..Self::at(tokens) }
    }

    /// The same, by a guide too.
    pub(crate) fn guided(self, guide: Option<&'a mut dyn Guide>) -> Self {
        Self { guide, ..self }
    }

    /// The same, where tokens may be forbidden.
    pub(crate) fn forbidding(self, forbid: Forbidding<'a>) -> Self {
        Self { forbid: Some(forbid), ..self }
    }
}

/// Writes behind `context` until `ending` or a limit; `room` is how many tokens the model can still take. `each` sees the
/// values behind the context and behind every token, where there is one beam.
///
/// # Errors
/// Those of `next` and of the ending, and [`Writing::check`]'s; [`ModelError::BadWriting`] for beams where a condition or a
/// guide looks at every token.
pub(crate) fn write(
    writing: &Writing,
    seed: u64,
    context: &[u32],
    mut ending: Ending<'_>,
    room: usize,
    next: Next<'_>,
    each: &mut dyn FnMut(&[f32]),
) -> Result<Written, ModelError> {
    writing.check()?;
    let most = writing.max_new_tokens.min(room);
    if writing.beams() > 1 {
        if ending.when.is_some() || ending.guide.is_some() {
            let (expected, found) = ("1 where stop texts or a form end a text", writing.beams() as f32);
            return Err(ModelError::BadWriting { option: "beams", expected, found });
        }
        return beams::search(writing, context, &ending, most, next);
    }
    let mut draws = Draws(seed);
    let mut written = Written::default();
    while written.ids.len() < most {
        let texts = match written.ids.last() {
            None => Texts::Begun,
            Some(last) => Texts::Grown { from: &[0], ids: std::slice::from_ref(last) },
        };
        let own = next(texts)?.pop().unwrap_or_default();
        each(&own);
        let mut values = own.clone();
        writing.adapt(&mut values, context, &written.ids, ending.tokens);
        if let Some(forbid) = ending.forbid {
            forbid(&mut values, &written.ids);
        }
        if let Some(guide) = &mut ending.guide {
            guide.allow(&mut values, most - written.ids.len())?;
        }
        let chosen = match writing.sampling {
            Sampling::Greedy => likeliest(&values),
            Sampling::TopP { p, temperature } => draws.nucleus(&values, p, temperature),
        };
        written.log_probability += log_probability(&own, chosen);
        written.ids.push(chosen as u32);
        if ending.tokens.contains(&(chosen as u32)) {
            break;
        }
        if let Some(guide) = &mut ending.guide
            && guide.chosen(chosen as u32)
        {
            break;
        }
        if let Some(when) = &mut ending.when
            && when(&written.ids)?
        {
            break;
        }
    }
    Ok(written)
}

/// Makes tokens that are there already less likely, each once.
fn penalise<'a>(values: &mut [f32], known: impl Iterator<Item = &'a u32>, penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let known: std::collections::BTreeSet<u32> = known.copied().collect();
    for id in known {
        if let Some(value) = values.get_mut(id as usize) {
            *value = if *value < 0.0 { *value * penalty } else { *value / penalty };
        }
    }
}

/// The tokens that would end a run of `size` tokens which `ids` holds already.
fn repeating(ids: &[u32], size: usize) -> Vec<u32> {
    let Some(from) = (ids.len() + 1).checked_sub(size) else { return Vec::new() };
    let newest = &ids[from..];
    let runs = ids.windows(size).filter_map(|run| run.split_last());
    runs.filter(|(_, before)| *before == newest).map(|(last, _)| *last).collect()
}

/// The place of the greatest value, the first of several.
fn likeliest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// The natural logarithm of the probability of the token `id`, from a value for each.
pub(crate) fn log_probability(values: &[f32], id: usize) -> f64 {
    let (greatest, whole) = log_parts(values);
    values.get(id).map_or(f64::NEG_INFINITY, |value| f64::from(value - greatest) - whole)
}

/// The same of every token.
pub(crate) fn log_softmax(values: &[f32]) -> Vec<f64> {
    let (greatest, whole) = log_parts(values);
    values.iter().map(|value| f64::from(value - greatest) - whole).collect()
}

/// The logarithm of the sum of what `values` are the logarithms of.
pub(crate) fn log_sum(values: &[f32]) -> f64 {
    match log_parts(values) {
        (f32::NEG_INFINITY, _) => f64::NEG_INFINITY,
        (greatest, whole) => f64::from(greatest) + whole,
    }
}

/// The greatest of `values`, and the logarithm of the sum of what they are the logarithms of over that of the greatest.
fn log_parts(values: &[f32]) -> (f32, f64) {
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let whole: f64 = values.iter().map(|value| f64::from(value - greatest).exp()).sum();
    (greatest, whole.ln())
}

/// Numbers that a seed decides: SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
/// 2014).
struct Draws(u64);

impl Draws {
    /// Evenly from 0 to below 1.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The 53 bits that a double holds.
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The place of a value, drawn by probability among the likeliest that together have the probability `p`.
    fn nucleus(&mut self, values: &[f32], p: f32, temperature: f32) -> usize {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        let greatest = order.first().map_or(0.0, |&first| values[first]);
        let odds: Vec<f64> =
            order.iter().map(|&i| (f64::from(values[i] - greatest) / f64::from(temperature)).exp()).collect();
        let whole: f64 = odds.iter().sum();
        let mut kept = 0.0;
        let mut count = 0;
        // The token that passes the mark is kept: so there is always one.
        while count < odds.len() && kept < f64::from(p) * whole {
            kept += odds[count];
            count += 1;
        }
        let mut mark = self.unit() * kept;
        for (&i, odds) in order[..count].iter().zip(&odds) {
            mark -= odds;
            if mark < 0.0 {
                return i;
            }
        }
        order.get(count.saturating_sub(1)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    /// A vocabulary of four tokens of which the last ends a text; behind token `i` the values are `table[i]`, and
    /// `table[4]` behind the context.
    fn run(table: [[f32; 4]; 5], writing: &Writing, seed: u64) -> Written {
        let mut next = |texts: Texts<'_>| {
            let row = |id: usize| table[id].to_vec();
            Ok(match texts {
                Texts::Begun => vec![row(4)],
                Texts::Grown { ids, .. } => ids.iter().map(|&id| row(id as usize)).collect(),
            })
        };
        write(writing, seed, &[], Ending::at(&[3]), usize::MAX, &mut next, &mut |_| ()).unwrap()
    }

    const CYCLE: [[f32; 4]; 5] =
        [[0.0, 9.0, 1.0, 2.0], [0.0, 1.0, 9.0, 2.0], [2.0, 0.0, 1.0, 9.0], [0.0; 4], [9.0, 0.0, 0.0, 8.0]];

    #[test]
    fn greedy_texts_end_where_the_model_or_a_limit_ends_them() {
        let ids = |writing: Writing| run(CYCLE, &writing, 0).ids;
        assert_eq!(ids(Writing::default()), [0, 1, 2, 3]);
        assert_eq!(ids(Writing { max_new_tokens: 2, ..Writing::default() }), [0, 1]);
        assert_eq!(ids(Writing { min_new_tokens: 5, max_new_tokens: 5, ..Writing::default() }), [0, 1, 2, 0, 1]);
        // Each token that is there is penalised once, whatever its sign.
        let mut values = [2.0, -2.0, 1.0];
        penalise(&mut values, [0, 1, 0, 9].iter(), 2.0);
        assert_eq!(values, [1.0, -4.0, 1.0]);
        // No pair of tokens comes twice, nor any token that is there.
        let without = |size: usize| Writing { no_repeat_ngram_size: Some(size), ..Writing::default() };
        assert_eq!(ids(Writing { min_new_tokens: 9, max_new_tokens: 6, ..without(2) }), [0, 1, 2, 0, 2, 2]);
        assert_eq!(ids(Writing { min_new_tokens: 3, ..without(1) }), [0, 1, 2, 3]);
        assert_eq!(repeating(&[4, 5, 6, 4, 5, 7, 4, 5], 3), [6, 7]);
        assert_eq!((repeating(&[4, 5], 3), repeating(&[4, 5], 1)), (vec![], vec![4, 5]));
        let written = run(CYCLE, &Writing { max_new_tokens: 1, ..Writing::default() }, 0);
        let expected = -(1.0 + (-1.0_f64).exp() + 2.0 * (-9.0_f64).exp()).ln();
        assert!((written.log_probability - expected).abs() < 1e-6, "{}", written.log_probability);
        assert_eq!(run(CYCLE, &Writing::default(), 0).words(3), [0, 1, 2]);
    }

    #[test]
    fn a_nucleus_is_drawn_from_by_probability_and_by_seed_alone() {
        // Probabilities 0.5, 0.25, 0.15, 0.1.
        let values = [0.5_f32.ln(), 0.25_f32.ln(), 0.15_f32.ln(), 0.1_f32.ln()];
        let writing = |p: f32, temperature: f32| Writing {
            max_new_tokens: 1,
            sampling: Sampling::TopP { p, temperature },
            ..Writing::default()
        };
        let mut counts = [0_u32; 4];
        for seed in 0..4000 {
            counts[run([values; 5], &writing(0.74, 1.0), seed).ids[0] as usize] += 1;
        }
        assert_eq!(counts[2..], [0, 0]);
        // Two thirds of 4000, with a deviation of 30.
        assert!((2520..2820).contains(&counts[0]), "{counts:?}");
        let mut all = [0_u32; 4];
        for seed in 0..4000 {
            all[run([values; 5], &writing(1.0, 1.0), seed).ids[0] as usize] += 1;
        }
        assert!(all.iter().all(|&count| count > 300) && (1850..2150).contains(&all[0]), "{all:?}");
        // Cold draws are the likeliest.
        assert!((0..100).all(|seed| run([values; 5], &writing(1.0, 0.01), seed).ids == [0]));
        assert_eq!(run(CYCLE, &writing(0.9, 1.0), 7), run(CYCLE, &writing(0.9, 1.0), 7));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        for (writing, message) in [
            (
                Writing { repetition_penalty: Some(0.0), ..Writing::default() },
                "repetition_penalty to be above 0, found 0",
            ),
            (Writing { beams: Some(0), ..Writing::default() }, "beams to be at least 1, found 0"),
            (
                Writing { length_penalty: Some(f64::INFINITY), ..Writing::default() },
                "length_penalty to be a finite number, found inf",
            ),
            (
                Writing { sampling: Sampling::TopP { p: 0.5, temperature: 1.0 }, beams: Some(3), ..Writing::default() },
                "beams to be 1 where tokens are drawn (top_p), found 3",
            ),
            (
                Writing { sampling: Sampling::TopP { p: 1.5, temperature: 1.0 }, ..Writing::default() },
                "top_p to be above 0 and at most 1, found 1.5",
            ),
            (
                Writing { sampling: Sampling::TopP { p: 0.5, temperature: f32::NAN }, ..Writing::default() },
                "temperature to be above 0, found NaN",
            ),
        ] {
            let error = writing.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
