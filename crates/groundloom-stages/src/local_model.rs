//! A language model in this process, as what `generate` asks.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use groundloom_llm::{Backend, Finish, LlmError, Outcome, Part, Request, Usage, chat_completion};
use groundloom_models::{
    ChatAnswer, ChatMessage, ChatRequest, JsonForm, LocalLlm, ModelError, ModelOn, ModelPool, Sampling, Work, Writing,
};
use serde_json::Value;

/// The one field of a request's `extra` that such a model knows: values for its chat template, as vLLM names them.
pub(crate) const TEMPLATE_VALUES: &str = "chat_template_kwargs";

/// A model of the pool that answers requests. It is loaded when the first of them is made.
pub(crate) struct LocalModel {
    folder: String,
    models: Arc<ModelPool>,
}

impl LocalModel {
    /// The model in `folder`.
    pub(crate) fn new(folder: &str, models: &Arc<ModelPool>) -> Self {
        Self { folder: folder.to_owned(), models: Arc::clone(models) }
    }

    /// Why a request gets no answer: it is lost by itself where another might be answered, else the run is.
    fn refusal(&self, error: ModelError) -> Outcome {
        match error {
            ModelError::GivenUp => Outcome::Failed { what: error.to_string(), pause: None, away: false },
            ModelError::NoRoom { .. }
            | ModelError::NoRoomForForm { .. }
            | ModelError::Untellable { .. }
            | ModelError::Untokenized { .. }
            | ModelError::Panicked { .. } => Outcome::Refused(self.unanswerable(error.to_string())),
            _ => Outcome::Refused(LlmError::Setup(error.to_string().into())),
        }
    }

    fn unanswerable(&self, message: String) -> LlmError {
        LlmError::Unanswerable { model: self.folder.clone(), message }
    }
}

impl fmt::Debug for LocalModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalModel").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A request in the model's terms.
///
/// # Errors
/// Says what the model does not take.
fn chat_request(request: &Request) -> Result<ChatRequest, String> {
    let text = |part: &Part| match part {
        Part::Text(text) => Ok(text.clone()),
        Part::Image(_) => Err("expected texts only, found an image; ask a server that takes images".to_owned()),
    };
    let message = |message: &groundloom_llm::Message| {
        let texts = message.parts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, String>(ChatMessage { role: message.role.name().to_owned(), content: texts.join("\n") })
    };
    let sampling = &request.sampling;
    // Without either the likeliest word is taken; who names a nucleus wants draws.
    let temperature = sampling.temperature.unwrap_or(if sampling.top_p.is_some() { 1.0 } else { 0.0 });
    let top_p = sampling.top_p.unwrap_or(1.0);
    Ok(ChatRequest {
        messages: request.messages.iter().map(message).collect::<Result<_, _>>()?,
        writing: Writing {
            max_new_tokens: usize::try_from(request.max_output_tokens).unwrap_or(usize::MAX),
            sampling: match temperature > 0.0 && top_p > 0.0 {
                true => Sampling::TopP { p: top_p as f32, temperature: temperature as f32 },
                false => Sampling::Greedy,
            },
            ..Writing::default()
        },
        seed: sampling.seed.unwrap_or(0).cast_unsigned(),
        stop: sampling.stop.clone(),
        form: match &request.form {
            Some(form) => Some(JsonForm::new(&form.schema).map_err(|e| e.to_string())?),
            None => None,
        },
        template_values: match request.extra.get(TEMPLATE_VALUES) {
            None => serde_json::Map::new(),
            Some(Value::Object(values)) => values.clone(),
            Some(other) => return Err(format!("expected {TEMPLATE_VALUES} to be an object, found {other}")),
        },
    })
}

/// A request, and whether anybody still waits for its answer.
struct Question {
    request: ChatRequest,
    waited_for: Arc<AtomicBool>,
}

/// Says that nobody waits any more.
struct GiveUpOnDrop(Arc<AtomicBool>);

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The model on the pool's threads.
struct Answering(LocalLlm);

impl Work for Answering {
    type Item = Question;
    type Output = ChatAnswer;

    fn weights_bytes(&self) -> u64 {
        self.0.info().model.weights_bytes
    }

    fn stays_on_cpu(&self) -> bool {
        self.0.stays_on_cpu()
    }

    fn run(&self, items: &[Question]) -> Vec<Result<ChatAnswer, ModelError>> {
        let answer = |item: &Question| self.0.answer(&item.request, &|| item.waited_for.load(Ordering::Acquire));
        items.iter().map(answer).collect()
    }
}

impl Backend for LocalModel {
    fn answer<'a>(&'a self, request: &'a Request, _body: &'a Bytes) -> BoxFuture<'a, Outcome> {
        async move {
            let asked = match chat_request(request) {
                Ok(asked) => asked,
                Err(message) => return Outcome::Refused(self.unanswerable(message)),
            };
            let folder = self.folder.clone();
            let load = move |device| LocalLlm::load(ModelOn::new(&folder, device)).map(Answering);
            let model = match self.models.get_on_devices(&format!("language model {}", self.folder), load).await {
                Ok(model) => model,
                Err(error) => return self.refusal(error),
            };
            let waited_for = Arc::new(AtomicBool::new(true));
            let _asker = GiveUpOnDrop(Arc::clone(&waited_for));
            match model.submit(vec![Question { request: asked, waited_for }]).await.pop() {
                Some(Ok(answer)) => {
                    let usage = Usage {
                        prompt_tokens: answer.prompt_tokens as u64,
                        completion_tokens: answer.answer_tokens as u64,
                        cached_prompt_tokens: 0,
                    };
                    let finish = if answer.cut { Finish::Length } else { Finish::Stop };
                    Outcome::Answered {
                        body: chat_completion(&request.model, answer.text, &finish, usage),
                        pause: None,
                    }
                }
                Some(Err(error)) => self.refusal(error),
                None => Outcome::Refused(LlmError::Setup("the pool answered nothing".into())),
            }
        }
        .boxed()
    }

    /// Its work costs time only: with nobody to read the answer it ends at the next token.
    fn outlives_its_asker(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
