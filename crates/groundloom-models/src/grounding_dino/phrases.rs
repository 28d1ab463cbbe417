//! Phrases as a prompt, and which tokens are whose.

use std::ops::Range;

use crate::{ModelError, folder::ModelFolder, text_tokenizer::TextTokenizer};

use super::text::DELIMITERS;

// `[CLS]`, `[SEP]` and `.`.
const BEGIN: u32 = DELIMITERS[0];
const END: u32 = DELIMITERS[1];
const STOP: u32 = DELIMITERS[2];

/// Phrases that the network reads at once: `[CLS] a cat . a dog . [SEP]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// Of each phrase in it: its place among those given, and its tokens.
    pub(crate) spans: Vec<(usize, Range<usize>)>,
}

/// The tokenizer of a folder, which must have the delimiters at the ids that the network was trained with.
///
/// # Errors
/// [`ModelError::BadConfig`].
pub(crate) fn check_delimiters(folder: &ModelFolder, tokenizer: &TextTokenizer) -> Result<(), ModelError> {
    for (token, expected) in [("[CLS]", BEGIN), ("[SEP]", END), (".", STOP), ("?", DELIMITERS[3])] {
        let found = tokenizer.inner().token_to_id(token);
        if found != Some(expected) {
            let found = found.map_or("nothing".to_owned(), |id| id.to_string());
            return Err(ModelError::BadConfig {
                origin: folder.file_name("tokenizer.json"),
                problem: format!(
                    "expected {token:?} to be token {expected}, by which phrases are told apart, found {found}"
                ),
            });
        }
    }
    Ok(())
}

/// As few prompts of at most `max` tokens as hold all of `phrases`, in their order. The text of a prompt is what
/// transformers' processor makes of a list of labels: lower case, each ended by a full stop. Full stops and question
/// marks inside a phrase are left out, since they would cut it in two; a phrase that is too long for a prompt by itself
/// is cut; one without a token is in none.
///
/// # Errors
/// [`ModelError::Untokenized`].
pub(crate) fn prompts(tokenizer: &TextTokenizer, phrases: &[&str], max: usize) -> Result<Vec<Prompt>, ModelError> {
    let mut prompts: Vec<Prompt> = Vec::new();
    for (number, phrase) in phrases.iter().enumerate() {
        let mut ids = tokenizer.encode(&phrase.trim().to_lowercase())?.ids;
        ids.retain(|id| !DELIMITERS.contains(id));
        ids.truncate(max.saturating_sub(3));
        if ids.is_empty() {
            continue;
        }
        // The phrase, its stop, and the prompt's end.
        let fits = |prompt: &Prompt| prompt.ids.len() + ids.len() + 2 <= max;
        if !prompts.last().is_some_and(fits) {
            prompts.push(Prompt { ids: vec![BEGIN], spans: Vec::new() });
        }
        let Some(prompt) = prompts.last_mut() else { continue };
        let start = prompt.ids.len();
        prompt.ids.extend_from_slice(&ids);
        prompt.spans.push((number, start..prompt.ids.len()));
        prompt.ids.push(STOP);
    }
    for prompt in &mut prompts {
        prompt.ids.push(END);
    }
    Ok(prompts)
}
