//! Answers in a given form: checked here whatever the server promises, and asked for again, a bounded number of times, when they are not.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    answer::Finish,
    client::{Client, Reply},
    error::LlmError,
    request::{Message, Request, Role},
    schema::AnswerSchema,
};

/// Faults that are told to the model, at most.
const TOLD: usize = 10;

/// An answer in the form that was asked for.
#[derive(Debug, Clone)]
pub struct FormedReply {
    /// The value.
    pub value: Value,
    /// The reply that held it: the last one.
    pub reply: Reply,
    /// How often the model had to be asked again.
    pub repairs: u32,
}

/// The JSON value in a text: the text itself, or what stands between the fences that models like to put around it.
///
/// # Errors
/// A sentence when there is none.
pub fn read_value(text: &str) -> Result<Value, String> {
    let trimmed = text.trim();
    let inside = trimmed
        .strip_prefix("```json")
        .or_else(|| trimmed.strip_prefix("```"))
        .and_then(|t| t.strip_suffix("```"))
        .unwrap_or(trimmed);
    serde_json::from_str(inside.trim()).map_err(|e| format!("the answer is no JSON: {e}"))
}

impl Client {
    /// Asks for an answer in the form of `schema`, and shows the model what is wrong with it up to `repairs` times.
    ///
    /// Every repair is a request of its own (the wrong answer and its faults are turns of it), so it is stored, limited and replayed like any other.
    ///
    /// # Errors
    /// [`LlmError::Form`] when the last answer is still wrong, was cut or refused; else as [`Client::ask`].
    pub async fn ask_for(
        self: &Arc<Self>,
        request: &Request,
        schema: &AnswerSchema,
        repairs: u32,
    ) -> Result<FormedReply, LlmError> {
        let mut request = request.clone();
        let mut made = 0;
        loop {
            let reply = self.ask(&request).await?;
            let text = reply.answer.text.clone();
            let fail = |message: String| LlmError::Form { message, text: text.clone() };
            if let Some(refusal) = &reply.answer.refusal {
                return Err(fail(format!("the model refused: {refusal}")));
            }
            if reply.answer.finish == Finish::Length {
                return Err(fail(format!("cut at {} output tokens; allow more", request.max_output_tokens)));
            }
            let faults = match read_value(&text) {
                Ok(value) => {
                    let faults = schema.faults(&value);
                    if faults.is_empty() {
                        return Ok(FormedReply { value, reply, repairs: made });
                    }
                    faults
                }
                Err(fault) => vec![fault],
            };
            if made == repairs {
                return Err(fail(faults.join("; ")));
            }
            made += 1;
            let told: Vec<String> = faults.iter().take(TOLD).map(|f| format!("- {f}")).collect();
            request.messages.push(Message::text(Role::Assistant, text));
            request.messages.push(Message::text(
                Role::User,
                format!("That is not in the form that I need:\n{}\nGive the whole answer again as JSON, corrected, and nothing else.", told.join("\n")),
            ));
        }
    }
}
