//! What a model answered.

use serde::{Deserialize, Serialize};

/// An answer as the rest of the program sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text; empty when the model refused or said nothing.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// The model's words when it refused.
    pub refusal: Option<String>,
    /// The server's count of tokens, where it gives one.
    pub usage: Option<Usage>,
    /// The model that answered, in the server's words.
    pub model: String,
    /// Characters of reasoning that came beside the text, where the server shows it.
    pub reasoning: usize,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model was done.
    Stop,
    /// Cut at the limit of output tokens.
    Length,
    /// Cut by the server's content filter.
    ContentFilter,
    /// Anything else, in the server's words.
    Other(String),
}

impl Finish {
    /// The name in OpenAI's terms.
    pub fn name(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::Other(name) => name,
        }
    }
}

/// Tokens as the server counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Output tokens, reasoning included.
    pub completion_tokens: u64,
    /// Input tokens that came from the server's cache.
    pub cached_prompt_tokens: u64,
}

impl Usage {
    /// Input and output together.
    pub const fn total(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}
