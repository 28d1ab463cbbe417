//! "Did you mean …?", and how names and values are quoted in messages.

/// The candidate that `word` was probably meant to be, if one is near enough.
///
/// Case and the difference between `-` and `_` don't count; besides, up to a third of the characters
/// may be mistyped (Damerau–Levenshtein).
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = folded(word);
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &folded(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn folded(word: &str) -> String {
    // A mistyped key is short; a long one isn't worth the quadratic comparison.
    word.chars().take(64).collect::<String>().to_lowercase().replace('-', "_")
}

/// What to do about a name that isn't known, as the help of a [`Diagnostic`](crate::Diagnostic).
///
/// "did you mean `text`?" if a candidate is near (case and `-` for `_` don't count, up to a third of
/// the characters may differ by Damerau–Levenshtein), else `what` and all candidates: "the columns
/// are: `image` and `text`". Nothing if there are no candidates.
pub fn did_you_mean<'a>(
    word: &str,
    what: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<String> {
    if let Some(candidate) = nearest(word, candidates.clone()) {
        return Some(format!("did you mean `{candidate}`?"));
    }
    let list = listed(candidates, "and");
    (!list.is_empty()).then(|| format!("{what}: {list}"))
}

/// `` `a`, `b` and `c` ``, with the given last conjunction.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>, conjunction: &str) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    joined(&quoted, conjunction)
}

/// `a, b and c`, with the given last conjunction.
pub(crate) fn joined(items: &[String], conjunction: &str) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [init @ .., last] => format!("{} {conjunction} {last}", init.join(", ")),
    }
}

/// The text as it's shown inside a message: cut when long, in straight quotes.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    let shown = crate::render::printable(&text.chars().take(SHOWN).collect::<String>());
    if text.chars().nth(SHOWN).is_some() { format!("\"{shown}…\"") } else { format!("\"{shown}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["noun_chunks", "ground", "filter", "sql", "drop"];
        for (word, expected) in [
            ("noun_chunk", Some("noun_chunks")),
            ("noun-chunks", Some("noun_chunks")),
            ("NounChunks", Some("noun_chunks")),
            ("Ground", Some("ground")),
            ("fliter", Some("filter")),
            ("sq", Some("sql")),
            ("detect", None),
            ("", None),
            ("xyz", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }
}
