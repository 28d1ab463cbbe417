//! What a text begins with, which tokens may follow, and where its stretches begin and end.
//!
//! Reference: transformers' `generation_whisper.py` and `WhisperTimeStampLogitsProcessor`.

use serde_json::Value;

use crate::{
    ModelError,
    config::Config,
    folder::ModelFolder,
    generation::{FILE, Generation},
    speech::Transcribing,
    text_tokenizer::TextTokenizer,
    writing::log_sum,
};

use super::STRIDE;

/// Seconds from one timestamp, and from one vector of the encoder, to the next.
pub(super) const STEP: f64 = 0.02;

/// What `generation_config.json` says of texts, and where it is silent, the tokenizer.
#[derive(Debug)]
pub(crate) struct Prompts {
    start: u32,
    /// The token that ends texts.
    pub(crate) end: u32,
    /// The token that says that there are no timestamps; these are the tokens behind it.
    no_timestamps: Option<u32>,
    /// Languages and their tokens, in the order of these; none in a model of English alone.
    languages: Vec<(String, u32)>,
    /// The tokens for writing down and for translating into English.
    tasks: Option<[u32; 2]>,
    /// What stands behind the start in a model of English alone.
    forced: Vec<u32>,
    /// The language that is spoken, where the folder says so.
    language: Option<String>,
    suppressed: Vec<u32>,
    suppressed_first: Vec<u32>,
    /// The last timestamp that a text may begin with, counted from 0.
    latest_first: Option<u32>,
    /// Tokens of the longest text, those of the prompt not counted.
    longest: usize,
    /// How texts are written.
    pub(crate) generation: Generation,
    /// Heads that follow the speech, a block of the decoder and one of its heads each, where the folder names them.
    pub(crate) alignment_heads: Option<Vec<[usize; 2]>>,
}

/// A stretch of speech: when, and the tokens of what is said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stretch {
    /// In seconds.
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) ids: Vec<u32>,
    /// The place of the first of them among the window's.
    pub(crate) from: usize,
}

impl Prompts {
    /// Reads `generation_config.json`, or what older folders hold of it in `config.json`, for a network of `vocabulary` tokens.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`].
    pub(crate) fn open(folder: &ModelFolder, tokenizer: &TextTokenizer, vocabulary: usize) -> Result<Self, ModelError> {
        let network = Config::read(folder, "config.json")?;
        let own = folder.has(FILE);
        let options = if own { Config::read(folder, FILE)? } else { Config::read(folder, "config.json")? };
        let token = |name: &str| tokenizer.inner().token_to_id(name);
        let id = |key: &str, default: u32| -> Result<u32, ModelError> {
            Ok(options.id_if_there(key)?.or(network.id_if_there(key)?).unwrap_or(default))
        };
        let (start, end) = (id("decoder_start_token_id", 50_257)?, id("eos_token_id", 50_256)?);
        let forced = match forced(&options)? {
            Some(forced) => Some(forced),
            None => forced(&network)?,
        };
        let named = named_ids(&options, "lang_to_id")?;
        // Where the language is left open, there are several.
        let open = forced.as_ref().is_none_or(|forced| forced.contains(&None));
        let several = options.flag_or("is_multilingual", named.is_some() || open)?;
        let tasks = named_ids(&options, "task_to_id")?.unwrap_or_default();
        let task = |name: &str| {
            let known = tasks.iter().find(|(task, _)| task == name).map(|(_, id)| *id);
            known.or_else(|| token(&format!("<|{name}|>")))
        };
        let both = task("transcribe").zip(task("translate"));
        let mut languages = match (several, named) {
            (false, _) => Vec::new(),
            (true, Some(named)) => named,
            // They lie between the start and the tasks.
            (true, None) => {
                let last = both.map_or(start, |(a, b)| a.min(b));
                let name = |id: u32| Some((tokenizer.inner().id_to_token(id)?, id));
                (start.saturating_add(1)..last.min(vocabulary as u32)).filter_map(name).collect()
            }
        };
        for (name, _) in &mut languages {
            *name = plain(name).to_owned();
        }
        languages.sort_by_key(|(_, id)| *id);
        let latest_first = options.id_if_there("max_initial_timestamp_index")?;
        let this = Self {
            start,
            end,
            no_timestamps: options.id_if_there("no_timestamps_token_id")?.or_else(|| token("<|notimestamps|>")),
            languages,
            tasks: both.filter(|_| several).map(|(transcribe, translate)| [transcribe, translate]),
            forced: forced.into_iter().flatten().flatten().collect(),
            language: options.text("language")?.map(str::to_owned),
            suppressed: ids(&options, "suppress_tokens")?,
            suppressed_first: ids(&options, "begin_suppress_tokens")?,
            latest_first,
            longest: options
                .size_if_there("max_new_tokens")?
                .or(options.size_if_there("max_length")?)
                .unwrap_or(usize::MAX),
            generation: Generation::read(&options)?,
            alignment_heads: alignment_heads(&options)?,
        };
        // Texts of windows before, what is asked for in each call.
        for inert in ["_from_model_config", "prev_sot_token_id", "return_timestamps"] {
            options.value(inert);
        }
        if own {
            options.only("task", "transcribe")?;
            options.finish()?;
        }
        let named = this.languages.iter().map(|(_, id)| *id).chain(this.tasks.into_iter().flatten());
        let named = named.chain(this.forced.iter().copied()).chain(this.no_timestamps).chain([start, end]);
        match named.into_iter().find(|&id| id as usize >= vocabulary) {
            Some(id) => Err(ModelError::BadConfig {
                origin: folder.file_name(if own { FILE } else { "config.json" }),
                problem: format!("expected tokens below {vocabulary} as vocab_size of config.json, found {id}"),
            }),
            None => Ok(this),
        }
    }

    /// The token of the language that a text is in: asked for, or known of the folder; `None` where it has to be heard.
    ///
    /// # Errors
    /// [`ModelError::UnknownLanguage`].
    pub(crate) fn language(&self, model: &str, asked: &Transcribing) -> Result<Option<u32>, ModelError> {
        let Some(wanted) = asked.language.as_ref().or(self.language.as_ref()) else { return Ok(None) };
        let wanted = plain(wanted);
        match self.languages.iter().find(|(name, _)| name == wanted) {
            Some((_, id)) => Ok(Some(*id)),
            None => Err(ModelError::UnknownLanguage {
                model: model.to_owned(),
                language: wanted.to_owned(),
                known: self.languages.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The likeliest language, from a value for each token behind the start alone; `None` in a model of English alone.
    pub(crate) fn heard(&self, values: &[f32]) -> Option<u32> {
        let value = |id: u32| values.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let ids = self.languages.iter().map(|(_, id)| *id);
        ids.reduce(|best, id| if value(id) > value(best) { id } else { best })
    }

    /// The name of a language's token.
    pub(crate) fn language_name(&self, id: u32) -> Option<&str> {
        self.languages.iter().find(|(_, known)| *known == id).map(|(name, _)| name.as_str())
    }

    /// Whether there are several languages.
    pub(crate) fn has_languages(&self) -> bool {
        !self.languages.is_empty()
    }

    /// Whether it can translate.
    pub(crate) fn translates(&self) -> bool {
        self.tasks.is_some()
    }

    /// Whether it knows timestamps.
    pub(crate) fn tells_times(&self) -> bool {
        self.no_timestamps.is_some()
    }

    /// The token that every text begins with.
    pub(crate) fn start(&self) -> u32 {
        self.start
    }

    /// What a text begins with.
    pub(crate) fn prompt(&self, language: Option<u32>, translate: bool, timed: bool) -> Vec<u32> {
        let mut prompt = vec![self.start];
        match (language, self.tasks) {
            (Some(language), tasks) => {
                prompt.push(language);
                prompt.extend(tasks.map(|[transcribe, translated]| if translate { translated } else { transcribe }));
            }
            (None, _) => prompt.extend(&self.forced),
        }
        let stated = prompt.last().copied() == self.no_timestamps;
        if timed && stated {
            prompt.pop();
        } else if !timed && !stated {
            prompt.extend(self.no_timestamps);
        }
        prompt
    }

    /// How many tokens may follow a prompt of `prompt`, in a model that takes `longest`.
    pub(crate) fn room(&self, prompt: usize, longest: usize) -> usize {
        self.longest.min(longest.saturating_sub(prompt))
    }

    /// Takes their value from the tokens that may not follow `written`.
    pub(crate) fn forbid(&self, values: &mut [f32], written: &[u32], timed: bool) {
        let first = if written.is_empty() { self.suppressed_first.as_slice() } else { &[] };
        for &id in self.suppressed.iter().chain(first) {
            if let Some(value) = values.get_mut(id as usize) {
                *value = f32::NEG_INFINITY;
            }
        }
        if let Some(no_timestamps) = self.no_timestamps.filter(|&id| timed && (id as usize) < values.len()) {
            self.time(values, written, no_timestamps);
        }
    }

    /// The rules of timestamps: they come in pairs, an end and a beginning, except before the end of the text; none lies
    /// before another; the text begins with one; and where all of them together are likelier than any other token, one
    /// of them follows.
    fn time(&self, values: &mut [f32], written: &[u32], no_timestamps: u32) {
        let first = no_timestamps + 1;
        let count = values.len();
        let mut without = |from: usize, to: usize| {
            values[from.min(count)..to.min(count)].fill(f32::NEG_INFINITY);
        };
        without(no_timestamps as usize, first as usize);
        let is_time = |id: &&u32| **id >= first;
        let ends_timed = written.last().as_ref().is_some_and(is_time);
        let pair = written.len() < 2 || written.get(written.len() - 2).as_ref().is_some_and(is_time);
        match (ends_timed, pair) {
            (true, true) => without(first as usize, count),
            (true, false) => without(0, self.end as usize),
            (false, _) => (),
        }
        if let Some(&latest) = written.iter().rev().find(is_time) {
            let next = if ends_timed && !pair { latest } else { latest + 1 };
            without(first as usize, next as usize);
        }
        if written.is_empty() {
            without(0, first as usize);
            if let Some(latest) = self.latest_first {
                without(first as usize + latest as usize + 1, count);
            }
        }
        let (others, times) = values.split_at_mut((first as usize).min(count));
        let all = log_sum(times);
        if others.iter().all(|&value| f64::from(value) < all) {
            others.fill(f32::NEG_INFINITY);
        }
    }

    /// The tokens of a text without those that are timestamps, and without the one that ended it.
    pub(crate) fn words(&self, ids: &[u32]) -> Vec<u32> {
        let first = self.first_time();
        ids.iter().copied().filter(|&id| id < first && id != self.end).collect()
    }

    /// The first token that is a timestamp.
    pub(crate) fn first_time(&self) -> u32 {
        self.no_timestamps.map_or(u32::MAX, |id| id + 1)
    }

    /// Cuts the text of a window of `frames`, which begins at the frame `start`, where timestamps come in pairs: the
    /// stretches, and how many frames further the next window begins. What follows the last pair is heard again there.
    pub(crate) fn cut(&self, ids: &[u32], start: usize, frames: usize) -> (Vec<Stretch>, usize) {
        let ids = ids.strip_suffix(&[self.end]).unwrap_or(ids);
        let first = self.first_time();
        let is_time = |id: u32| id >= first;
        let offset = start as f64 * STEP / STRIDE as f64;
        let time = |id: u32| offset + (f64::from(id) - f64::from(first)) * STEP;
        let mut ends: Vec<usize> = (1..ids.len()).filter(|&i| is_time(ids[i - 1]) && is_time(ids[i])).collect();
        let ends_with_one = matches!(ids, [.., a, b] if !is_time(*a) && is_time(*b));
        let Some(last) = ends.last_mut() else {
            // The times of the reference, rounded as it rounds them.
            let whole = (frames as f64 * (STEP / STRIDE as f64) / STEP).floor();
            let stated = ids.iter().copied().rfind(|&id| is_time(id)).filter(|&id| id != first);
            let steps = stated.map_or(whole, |id| f64::from(id - first));
            let stretch = Stretch { start: offset, end: offset + steps * STEP, ids: ids.to_vec(), from: 0 };
            return (vec![stretch], frames);
        };
        if ends_with_one {
            ends.push(ids.len());
        } else {
            // With the beginning of the stretch that is not finished.
            *last += 1;
        }
        let mut stretches = Vec::with_capacity(ends.len());
        let mut begin = 0;
        for (i, &end) in ends.iter().enumerate() {
            let unfinished = i + 1 == ends.len() && !ends_with_one;
            let part = &ids[begin..end];
            let stop = if unfinished { part.len().checked_sub(2) } else { part.len().checked_sub(1) };
            if let (Some(&from), Some(&to)) = (part.first(), stop.and_then(|stop| part.get(stop))) {
                stretches.push(Stretch { start: time(from), end: time(to), ids: part.to_vec(), from: begin });
            }
            begin = end;
        }
        let heard = match (ends_with_one, begin.checked_sub(2).and_then(|i| ids.get(i))) {
            (false, Some(&last)) => last.saturating_sub(first) as usize * STRIDE,
            _ => frames,
        };
        // A window that begins where this one does would give the same text for ever.
        (stretches, if heard == 0 { frames } else { heard })
    }
}

/// `en` of `<|en|>`.
fn plain(language: &str) -> &str {
    language.trim_start_matches("<|").trim_end_matches("|>")
}

/// A list of token ids.
fn ids(config: &Config, key: &str) -> Result<Vec<u32>, ModelError> {
    let Some(value) = config.value(key) else { return Ok(Vec::new()) };
    let list = value.as_array().and_then(|list| list.iter().map(id).collect());
    list.ok_or_else(|| config.bad(key, "a list of token ids", value))
}

/// Pairs of a block and a head.
fn alignment_heads(config: &Config) -> Result<Option<Vec<[usize; 2]>>, ModelError> {
    let Some(value) = config.value("alignment_heads") else { return Ok(None) };
    let pair = |pair: &Value| {
        let [block, head] = pair.as_array()?.as_slice() else { return None };
        Some([block.as_u64()? as usize, head.as_u64()? as usize])
    };
    let list = value.as_array().filter(|list| !list.is_empty()).and_then(|list| list.iter().map(pair).collect());
    list.map(Some).ok_or_else(|| config.bad("alignment_heads", "pairs of a layer and a head", value))
}

/// Token ids by name.
fn named_ids(config: &Config, key: &str) -> Result<Option<Vec<(String, u32)>>, ModelError> {
    let Some(value) = config.value(key) else { return Ok(None) };
    let named = |(name, value): (&String, &Value)| Some((name.clone(), id(value)?));
    let list = value.as_object().and_then(|object| object.iter().map(named).collect());
    list.map(Some).ok_or_else(|| config.bad(key, "token ids by name", value))
}

/// The tokens behind the start, as pairs of a place from 1 on and a token; null where a language is left open.
fn forced(config: &Config) -> Result<Option<Vec<Option<u32>>>, ModelError> {
    let Some(value) = config.value("forced_decoder_ids") else { return Ok(None) };
    let pair = |(i, pair): (usize, &Value)| {
        let [place, token] = pair.as_array()?.as_slice() else { return None };
        let in_order = place.as_u64() == Some(i as u64 + 1);
        if in_order { Some(if token.is_null() { None } else { Some(id(token)?) }) } else { None }
    };
    let list = value.as_array().and_then(|list| list.iter().enumerate().map(pair).collect());
    let expected = "pairs of the places 1, 2, … and a token id or null";
    list.map(Some).ok_or_else(|| config.bad("forced_decoder_ids", expected, value))
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two words, the end (2), the start (3), `<|notimestamps|>` (4), and timestamps from 5 on.
    fn prompts() -> Prompts {
        Prompts {
            start: 3,
            end: 2,
            no_timestamps: Some(4),
            languages: Vec::new(),
            tasks: None,
            forced: vec![4],
            language: None,
            suppressed: vec![1],
            suppressed_first: vec![0],
            latest_first: Some(3),
            longest: usize::MAX,
            generation: Generation::default(),
            alignment_heads: None,
        }
    }

    /// Which of 12 tokens, of which each is as likely as `likeliest` says, may follow `written`.
    fn allowed(likeliest: usize, written: &[u32], timed: bool) -> Vec<usize> {
        let mut values = vec![0.0; 12];
        values[likeliest] = 9.0;
        prompts().forbid(&mut values, written, timed);
        (0..12).filter(|&id| values[id] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn tokens_follow_by_the_rules_of_timestamps() {
        assert_eq!(allowed(0, &[], false), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(allowed(0, &[3], false), [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        // A text begins with a timestamp, the fourth at the latest.
        assert_eq!(allowed(0, &[], true), [5, 6, 7, 8]);
        // Behind the one that begins a stretch, no other; behind the end of one, the next beginning or the text's end.
        assert_eq!(allowed(0, &[6], true), [0, 2, 3]);
        assert_eq!(allowed(2, &[6, 0, 8], true), [2, 3, 8, 9, 10, 11]);
        assert_eq!(allowed(0, &[6, 0, 8, 8], true), [0, 2, 3]);
        // None lies before another, nor at the place of a stretch's own beginning.
        assert_eq!(allowed(0, &[6, 0], true), [0, 2, 3, 7, 8, 9, 10, 11]);
        // Five timestamps of which none is likely, but all together are: 5 is more than each other token's 1.
        assert_eq!(allowed(4, &[6, 0], true), [7, 8, 9, 10, 11]);
    }

    #[test]
    fn a_text_is_cut_where_timestamps_meet() {
        let cut = |ids: &[u32]| {
            let (stretches, further) = prompts().cut(ids, 100, 300);
            let steps = |time: f64| ((time - 1.0) / STEP).round() as i32;
            (stretches.iter().map(|it| (steps(it.start), steps(it.end), it.ids.len())).collect::<Vec<_>>(), further)
        };
        // The window begins at 1 s; timestamps are steps of two frames.
        assert_eq!(cut(&[5, 0, 15, 15, 0, 25, 2]), (vec![(0, 10, 3), (10, 20, 3)], 300));
        assert_eq!(cut(&[5, 0, 15, 15, 0]), (vec![(0, 10, 4)], 20));
        assert_eq!(cut(&[5, 0, 15, 16, 0, 30, 31, 2]), (vec![(0, 10, 3), (11, 25, 4)], 50));
        // No two meet.
        assert_eq!(cut(&[5, 0, 15, 2]), (vec![(0, 10, 3)], 300));
        assert_eq!(cut(&[5, 0, 2]), (vec![(0, 150, 2)], 300));
        assert_eq!(cut(&[0, 2]), (vec![(0, 150, 1)], 300));
        assert_eq!(cut(&[2]), (vec![(0, 150, 0)], 300));
        // Nothing is heard twice for ever.
        assert_eq!(cut(&[5, 5]).1, 300);
    }

    #[test]
    fn a_prompt_says_whether_there_are_timestamps() {
        let english = prompts();
        assert_eq!([english.prompt(None, false, false), english.prompt(None, false, true)], [vec![3, 4], vec![3]]);
        let several = Prompts { languages: vec![("en".to_owned(), 7)], tasks: Some([8, 9]), ..prompts() };
        assert_eq!(several.prompt(Some(7), true, false), [3, 7, 9, 4]);
        assert_eq!(several.prompt(Some(7), false, true), [3, 7, 8]);
        assert_eq!((several.room(3, 10), several.room(12, 10)), (7, 0));
    }
}
