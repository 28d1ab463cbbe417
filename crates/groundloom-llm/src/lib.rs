#![doc = include_str!("../README.md")]

mod answer;
mod backend;
mod batch;
mod budget;
mod client;
mod clients;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod hedge;
mod http_date;
mod money;
mod prices;
mod prompt;
mod request;
mod schema;
mod spending;
mod store;
mod structured;
mod tokens;
mod transport;
mod wire;

pub use answer::{Answer, Finish, Usage};
pub use backend::{Backend, Outcome, chat_completion};
pub use batch::BatchOptions;
pub use budget::{BudgetState, Limits, Spent};
pub use client::{Client, ClientConfig, Estimate, Reply, Retry};
pub use clients::Clients;
pub use error::LlmError;
pub use gate::Pace;
pub use hedge::Hedge;
pub use money::Money;
pub use prices::{BUILT_IN as BUILT_IN_PRICES, Price, PriceTable};
pub use prompt::Prompt;
pub use request::{AnswerForm, Api, Detail, Image, Message, Part, Request, RequestHash, Role, Sampling};
pub use schema::AnswerSchema;
pub use spending::Spending;
pub use store::{Archived, Store, Stored};
pub use structured::{FormedReply, read_value};
pub use tokens::{Tokenizer, tokenizer_of};
pub use transport::{Endpoint, Key, KeyHeader};
pub use wire::read_answer;
