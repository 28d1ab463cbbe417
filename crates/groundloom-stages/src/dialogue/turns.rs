//! From a model's reply to turns, in the reply grammar of LLaVA: `Question:` and `Answer:` blocks with `===` lines between them.

use super::checks::Fault;

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What the person asks.
    pub question: String,
    /// What the model says.
    pub answer: String,
}

/// Reads `Question:` / `===` / `Answer:` / `===` / `Question:` …: every question has its answer, in that order.
///
/// # Errors
/// The first [`Fault`] of the grammar.
pub fn read_exchanges(reply: &str) -> Result<Vec<Exchange>, Fault> {
    let mut exchanges = Vec::new();
    let mut open: Option<String> = None;
    for block in blocks(reply) {
        let block = block.trim();
        if block.is_empty() {
            continue;
        }
        if let Some(question) = block.strip_prefix("Question:") {
            if open.is_some() {
                return Err(Fault::new("turn_order", "two questions follow each other"));
            }
            open = Some(side("question", question)?);
        } else if let Some(answer) = block.strip_prefix("Answer:") {
            let Some(question) = open.take() else {
                return Err(Fault::new("turn_order", "an answer comes before its question"));
            };
            exchanges.push(Exchange { question, answer: side("answer", answer)? });
        } else {
            let start: String = block.chars().take(40).collect();
            return Err(Fault::new(
                "broken_turns",
                format!("expected a block that begins with `Question:` or `Answer:`, found `{start}`"),
            ));
        }
    }
    if open.is_some() {
        return Err(Fault::new("turn_order", "the last question has no answer"));
    }
    if exchanges.is_empty() {
        return Err(Fault::new("empty_answer", "the reply holds no turns"));
    }
    Ok(exchanges)
}

/// What stands between lines of three or more `=`.
fn blocks(reply: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in reply.lines() {
        let bare = line.trim();
        if bare.len() >= 3 && bare.bytes().all(|b| b == b'=') {
            blocks.push(String::new());
        } else if let Some(block) = blocks.last_mut() {
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks
}

fn side(what: &str, text: &str) -> Result<String, Fault> {
    let text = text.trim();
    if text.is_empty() {
        return Err(Fault::new("empty_turn", format!("the {what} is empty")));
    }
    if text.contains("===") || text.contains("\nQuestion:") || text.contains("\nAnswer:") {
        return Err(Fault::new("broken_turns", format!("the {what} holds a mark that should stand between turns")));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies_are_read_or_refused_by_name() {
        let exchange = |q: &str, a: &str| Exchange { question: q.into(), answer: a.into() };
        let good = "Question:\nHow many dogs?\n===\nAnswer:\nTwo.\n===\nQuestion: Where?\n===\nAnswer: On the\n\nbeach.\n===\n";
        assert_eq!(
            read_exchanges(good).unwrap(),
            [exchange("How many dogs?", "Two."), exchange("Where?", "On the\n\nbeach.")]
        );
        for (reply, code) in [
            ("", "empty_answer"),
            ("===\n===", "empty_answer"),
            ("Answer:\nTwo.\n===\nQuestion:\nHow many?", "turn_order"),
            ("Question:\na\n===\nQuestion:\nb\n===\nAnswer:\nc", "turn_order"),
            ("Question:\na\n===\nAnswer:\nb\n===\nQuestion:\nc", "turn_order"),
            ("Question:\n\n===\nAnswer:\nb", "empty_turn"),
            ("Question:\na\n===\nAnswer:", "empty_turn"),
            ("Question:\na\nAnswer:\nb", "broken_turns"),
            ("Question:\na === b\n===\nAnswer:\nc", "broken_turns"),
            ("Sure! Here it is:\n===\nQuestion:\na\n===\nAnswer:\nb", "broken_turns"),
            ("Question:\na\n===\nAnswer:\nb\n===\nHope it helps", "broken_turns"),
        ] {
            assert_eq!(read_exchanges(reply).unwrap_err().code, code, "{reply:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_in_the_grammar_comes_back(turns in prop::collection::vec(("[a-z?é 🐕]{0,12}[a-z?]", "[a-z. \n]{0,20}[a-z.]"), 1..6)) {
            let clean = |s: &str| s.trim().to_owned();
            let exchanges: Vec<Exchange> = turns.iter().map(|(q, a)| Exchange { question: clean(q), answer: clean(a) }).collect();
            let reply: Vec<String> = exchanges.iter().map(|e| format!("Question:\n{}\n===\nAnswer:\n{}", e.question, e.answer)).collect();
            prop_assert_eq!(read_exchanges(&reply.join("\n===\n")).unwrap(), exchanges);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(Question:|Answer:|===|\n|a| ){0,30}") {
            let _ = read_exchanges(&text);
        }
    }
}
