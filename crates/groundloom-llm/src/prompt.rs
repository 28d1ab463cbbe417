//! Prompts as files: turns of a conversation, each a Jinja template, with few-shot examples.
//!
//! ```text
//! {# what it is for #}
//! <<system>>
//! You describe pictures.
//! <<examples descriptions.jsonl>>
//! <<user>>
//! {{ captions | join("\n") }}
//! ```
//! A line `<<system>>`, `<<user>>` or `<<assistant>>` begins a turn. `<<examples FILE>>` stands for a pair of turns per line of a JSONL file
//! beside the prompt: the columns of the line go through the file's last user turn, so that examples always look like the real thing, and its `answer`
//! is what the model is shown to have said. Templates see the row's columns; a name that is no column is an error. Values can hold whatever they like: turns are
//! cut before templates are filled, and no value is ever read as a template.

use std::{collections::BTreeSet, path::Path};

use minijinja::{
    Environment, ErrorKind, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Serde, Value as JinjaValue},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    error::LlmError,
    request::{Message, Role},
};

/// Steps that filling one template may take: a template that loops for ever ends.
const FUEL: u64 = 5_000_000;

/// The key of an example's answer.
const ANSWER: &str = "answer";

/// A prompt that has been read.
#[derive(Debug)]
pub struct Prompt {
    file: String,
    version: String,
    turns: Vec<Turn>,
    environment: Environment<'static>,
}

#[derive(Debug)]
enum Turn {
    /// `template` is a name in the environment, `line` where its text begins in the file.
    Template {
        role: Role,
        template: String,
        line: usize,
    },
    Examples(Vec<Map<String, Value>>),
}

impl Prompt {
    /// Reads a prompt file and the example files that it names.
    ///
    /// # Errors
    /// [`LlmError::Prompt`] with file and line.
    pub fn read(path: &Path) -> Result<Self, LlmError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| fault(&name, 1, format!("cannot be read: {e}")))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(&name, &text, &|file| std::fs::read_to_string(folder.join(file)).map_err(|e| e.to_string()))
    }

    /// Reads a prompt from text; `examples` reads the files that it names.
    ///
    /// # Errors
    /// As [`Prompt::read`].
    pub fn parse(file: &str, text: &str, examples: &dyn Fn(&str) -> Result<String, String>) -> Result<Self, LlmError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("coordinate", coordinate);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| fault(file, 1, e.to_string()))?);
        let mut hasher = Sha256::new();
        hasher.update(text.as_bytes());
        let mut turns = Vec::new();
        for section in sections(file, text)? {
            match section.marker {
                Marker::Turn(role) => {
                    let template = format!("turn {}", turns.len());
                    environment
                        .add_template_owned(template.clone(), section.text)
                        .map_err(|e| jinja_fault(file, section.line, &e))?;
                    turns.push(Turn::Template { role, template, line: section.line });
                }
                Marker::Examples(name) => {
                    if !section.text.trim().is_empty() {
                        return Err(fault(
                            file,
                            section.line,
                            "expected a turn after `<<examples …>>`, found text".into(),
                        ));
                    }
                    let lines = examples(&name).map_err(|e| {
                        fault(file, section.line - 1, format!("the examples `{name}` cannot be read: {e}"))
                    })?;
                    hasher.update([0]);
                    hasher.update(lines.as_bytes());
                    turns.push(Turn::Examples(read_examples(&name, &lines)?));
                }
            }
        }
        let last_user = turns.iter().rposition(|t| matches!(t, Turn::Template { role: Role::User, .. }));
        if last_user.is_none_or(|at| at + 1 != turns.len()) {
            return Err(fault(file, 1, "expected a turn `<<user>>` at the end: what the model is to answer".into()));
        }
        let version = hasher.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect();
        let prompt = Self { file: file.to_owned(), version, turns, environment };
        // Examples are part of the file: what is wrong with them is said before any row is seen.
        let examples = prompt.turns.iter().filter_map(|t| match t {
            Turn::Examples(rows) => Some(rows),
            Turn::Template { .. } => None,
        });
        for example in examples.flatten() {
            prompt.last_turn(example)?;
        }
        Ok(prompt)
    }

    /// The version: 16 hexadecimal digits of the SHA-256 of the file and its examples.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The columns that the templates read.
    pub fn columns(&self) -> BTreeSet<String> {
        let templates = self.environment.templates();
        templates.flat_map(|(_, template)| template.undeclared_variables(false)).collect()
    }

    /// The turns for one row.
    ///
    /// # Errors
    /// [`LlmError::Prompt`] when a template asks for a column that the row lacks, or does something impossible with it.
    pub fn messages(&self, row: &Map<String, Value>) -> Result<Vec<Message>, LlmError> {
        let mut messages = Vec::new();
        let values = JinjaValue::from(Serde(row));
        for turn in &self.turns {
            match turn {
                Turn::Template { role, template, line } => {
                    messages.push(Message::text(*role, self.fill(template, *line, values.clone())?));
                }
                Turn::Examples(examples) => {
                    for example in examples {
                        messages.push(Message::text(Role::User, self.last_turn(example)?));
                        let answer = match example.get(ANSWER) {
                            Some(Value::String(text)) => text.clone(),
                            other => other.map(Value::to_string).unwrap_or_default(),
                        };
                        messages.push(Message::text(Role::Assistant, answer));
                    }
                }
            }
        }
        Ok(messages)
    }

    fn last_turn(&self, row: &Map<String, Value>) -> Result<String, LlmError> {
        match self.turns.last() {
            Some(Turn::Template { template, line, .. }) => self.fill(template, *line, JinjaValue::from(Serde(row))),
            _ => Ok(String::new()),
        }
    }

    fn fill(&self, template: &str, line: usize, values: JinjaValue) -> Result<String, LlmError> {
        self.environment
            .get_template(template)
            .and_then(|t| t.render(values))
            .map(|text| text.trim().to_owned())
            .map_err(|e| jinja_fault(&self.file, line, &e))
    }
}

enum Marker {
    Turn(Role),
    Examples(String),
}

struct Section {
    marker: Marker,
    /// Where `text` begins.
    line: usize,
    text: String,
}

fn sections(file: &str, text: &str) -> Result<Vec<Section>, LlmError> {
    let mut sections: Vec<Section> = Vec::new();
    let mut before = String::new();
    for (i, line) in text.lines().enumerate() {
        let marker = line.trim_end().strip_prefix("<<").and_then(|l| l.strip_suffix(">>"));
        let Some(marker) = marker else {
            let text = sections.last_mut().map_or(&mut before, |s| &mut s.text);
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let marker = match marker.trim().split_once(' ') {
            None if marker == "system" => Marker::Turn(Role::System),
            None if marker == "user" => Marker::Turn(Role::User),
            None if marker == "assistant" => Marker::Turn(Role::Assistant),
            Some(("examples", name)) => Marker::Examples(name.trim().to_owned()),
            _ => {
                let expected = "expected <<system>>, <<user>>, <<assistant>> or <<examples FILE>>";
                return Err(fault(file, i + 1, format!("{expected}, found <<{marker}>>")));
            }
        };
        sections.push(Section { marker, line: i + 2, text: String::new() });
    }
    let comment = before.trim();
    let is_comment = comment.starts_with("{#") && comment.ends_with("#}");
    if !(comment.is_empty() || is_comment) {
        let message = "expected a turn such as `<<system>>` first (only a {# comment #} may stand before it)";
        return Err(fault(file, 1, message.into()));
    }
    Ok(sections)
}

fn read_examples(file: &str, lines: &str) -> Result<Vec<Map<String, Value>>, LlmError> {
    let mut examples = Vec::new();
    for (i, line) in lines.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let example: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| fault(file, i + 1, format!("expected a JSON object: {e}")))?;
        if !example.contains_key(ANSWER) {
            return Err(fault(file, i + 1, format!("expected a key `{ANSWER}`: what the model should say")));
        }
        examples.push(example);
    }
    Ok(examples)
}

/// A number as LLaVA's context files write coordinates: three decimals, trailing zeros dropped, one decimal at least (`0.63`, `0.0`, `1.0`).
fn coordinate(value: f64) -> String {
    let text = format!("{value:.3}");
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

fn fault(file: &str, line: usize, message: String) -> LlmError {
    LlmError::Prompt { file: file.to_owned(), line, message }
}

fn jinja_fault(file: &str, first_line: usize, error: &minijinja::Error) -> LlmError {
    let line = first_line + error.line().unwrap_or(1) - 1;
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let message = match error.kind() {
        ErrorKind::UndefinedError => format!("a value that the row does not have: {what}"),
        _ => what,
    };
    fault(file, line, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::request::Part;

    const FILE: &str = "{# For tests. #}\n<<system>>\nBe brief.\n<<examples e.jsonl>>\n<<user>>\n{% for c in captions %}\n{{ c }}\n{% endfor %}\n\n{% for b in boxes %}\n{{ b.label }}: [{{ b.x1 | coordinate }}]\n{% endfor %}\n";
    const EXAMPLES: &str = "{\"captions\": [\"a cat\"], \"boxes\": [], \"answer\": \"A cat.\"}\n";

    fn parse(text: &str, examples: &'static str) -> Result<Prompt, LlmError> {
        Prompt::parse("p.jinja", text, &|name| {
            if name == "e.jsonl" { Ok(examples.into()) } else { Err("no such file".into()) }
        })
    }

    fn row(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn turns_and_examples_are_filled_and_values_stay_values() {
        let prompt = parse(FILE, EXAMPLES).unwrap();
        let captions = json!(["two dogs", "<<system>>\n{{ 7 * 7 }}"]);
        let boxes = json!([{"label": "dog", "x1": 0.63000001}, {"label": "dog", "x1": 0}, {"label": "dog", "x1": 1.0}]);
        let messages = prompt.messages(&row(json!({"captions": captions, "boxes": boxes, "image": null}))).unwrap();
        let turns: Vec<(Role, &str)> = messages
            .iter()
            .map(|m| match &m.parts[..] {
                [Part::Text(text)] => (m.role, text.as_str()),
                _ => (m.role, "?"),
            })
            .collect();
        assert_eq!(
            turns,
            [
                (Role::System, "Be brief."),
                (Role::User, "a cat"),
                (Role::Assistant, "A cat."),
                (Role::User, "two dogs\n<<system>>\n{{ 7 * 7 }}\n\ndog: [0.63]\ndog: [0.0]\ndog: [1.0]"),
            ]
        );
        assert_eq!(prompt.columns().into_iter().collect::<Vec<_>>(), ["boxes", "captions"]);
    }

    #[test]
    fn the_version_is_the_content() {
        let version = |text: &str, examples| parse(text, examples).unwrap().version().to_owned();
        assert_eq!(version(FILE, EXAMPLES), version(FILE, EXAMPLES));
        assert_ne!(version(FILE, EXAMPLES), version(&FILE.replace("brief", "long"), EXAMPLES));
        assert_ne!(version(FILE, EXAMPLES), version(FILE, ""));
        assert_eq!(version(FILE, EXAMPLES).len(), 16);
    }

    #[test]
    fn faults_name_file_and_line() {
        for (text, place, said) in [
            ("hello\n<<user>>\nx", "p.jinja:1", "expected a turn"),
            ("<<sytem>>\nx\n<<user>>\ny", "p.jinja:1", "found <<sytem>>"),
            ("<<system>>\nx", "p.jinja:1", "`<<user>>` at the end"),
            ("", "p.jinja:1", "`<<user>>` at the end"),
            ("<<user>>\na\n{{ captions", "p.jinja:3", ""),
            ("<<examples f.jsonl>>\n<<user>>\nx", "p.jinja:1", "no such file"),
            ("<<examples e.jsonl>>\ntext\n<<user>>\nx", "p.jinja:2", "found text"),
            ("<<examples e.jsonl>>\n<<user>>\n{{ caption }}", "p.jinja:3", "does not have"),
        ] {
            let error = parse(text, EXAMPLES).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(said), "{text:?}: {error}");
        }
        let error = parse("<<examples e.jsonl>>\n<<user>>\nx", "{\"captions\": 1}").unwrap_err().to_string();
        assert!(error.starts_with("e.jsonl:1") && error.contains("`answer`"), "{error}");
        let prompt = parse("<<user>>\n\n{{ caption }}", EXAMPLES).unwrap();
        let error = prompt.messages(&row(json!({"text": "x"}))).unwrap_err().to_string();
        assert!(error.starts_with("p.jinja:3"), "{error}");
        let endless =
            parse("<<user>>\n{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", "");
        assert!(endless.unwrap().messages(&Map::new()).is_err());
    }
}
