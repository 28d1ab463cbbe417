//! The questions that stand before an answer which was not asked for: ours, to the demands of LLaVA's lists (11 for a brief description, 16 for a detailed one).

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Asks for a sentence.
pub const BRIEF: [&str; 11] = [
    "Describe the image in one short sentence.",
    "What does this picture show, in brief?",
    "Sum up the content of the image.",
    "Say in a few words what can be seen here.",
    "Write a short caption for this photo.",
    "Give a compact description of the image.",
    "What is in this picture? Keep it short.",
    "State briefly what the photo is about.",
    "Provide a one-line summary of this image.",
    "In short, what is going on in the image?",
    "Put the main content of the picture into a single sentence.",
];

/// Asks for all that can be seen.
pub const DETAILED: [&str; 16] = [
    "Describe this image in detail.",
    "Please give a thorough account of what the picture shows.",
    "What can you see here? Leave nothing out.",
    "Walk me through the scene, detail by detail.",
    "Write a rich description of this photo.",
    "Explain what is shown, with all the particulars.",
    "Take a close look at the image and tell me everything about it.",
    "How would you describe this picture to someone who cannot see it?",
    "Give me the full picture: objects, people, places and how they relate.",
    "Describe the scene as completely as you can.",
    "I would like a long and careful description of this image.",
    "What are the elements of this photo, and how are they arranged?",
    "Analyse the image and report its contents at length.",
    "Can you describe all aspects of what is seen here?",
    "Paint this image in words, down to the small things.",
    "Tell me in depth what this photograph contains.",
];

/// Where the image stands in the first question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImagePlace {
    /// Before or after the question, drawn for every row, as LLaVA's paper has it (equation 4). Its trainer moves it to the front.
    #[default]
    Random,
    /// `<image>` and a line break before the question.
    First,
    /// A line break and `<image>` after the question.
    Last,
    /// Nowhere: rows of text only.
    None,
}

/// A number below `n` for this row: the same whatever shard, thread or order.
pub(crate) fn draw(row_id: &str, seed: u64, purpose: &str, n: usize) -> usize {
    (row_seed(row_id, seed, purpose) % n.max(1) as u64) as usize
}

/// A seed of this row's own for `purpose`: the same whatever shard, thread or order.
pub(crate) fn row_seed(row_id: &str, seed: u64, purpose: &str) -> u64 {
    xxh3_64_with_seed(format!("{purpose}\0{row_id}").as_bytes(), seed)
}

/// The question with its image.
pub(crate) fn with_image(question: &str, place: ImagePlace, row_id: &str, seed: u64) -> String {
    let first = match place {
        ImagePlace::First => true,
        ImagePlace::Last => false,
        ImagePlace::Random => draw(row_id, seed, "image place", 2) == 0,
        ImagePlace::None => return question.to_owned(),
    };
    if first { format!("<image>\n{question}") } else { format!("{question}\n<image>") }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    #[test]
    fn draws_are_even_and_depend_on_row_and_seed_alone() {
        let mut counts = BTreeMap::new();
        for i in 0..16_000 {
            *counts.entry(draw(&format!("{i:032x}"), 3, "instruction", 16)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 16);
        assert!(counts.values().all(|n| (850..1150).contains(n)), "{counts:?}");
        assert_eq!(draw("a", 1, "p", 1000), draw("a", 1, "p", 1000));
        assert_ne!(draw("a", 1, "p", 1000), draw("a", 2, "p", 1000));
        assert_eq!(BRIEF.iter().chain(&DETAILED).collect::<HashSet<_>>().len(), 27);
    }

    #[test]
    fn the_image_stands_where_it_is_told() {
        assert_eq!(with_image("Who?", ImagePlace::First, "r", 0), "<image>\nWho?");
        assert_eq!(with_image("Who?", ImagePlace::Last, "r", 0), "Who?\n<image>");
        assert_eq!(with_image("Who?", ImagePlace::None, "r", 0), "Who?");
        let first = (0..1000).filter(|i| with_image("Who?", ImagePlace::Random, &i.to_string(), 5).starts_with('<'));
        assert!((400..600).contains(&first.count()));
    }
}
