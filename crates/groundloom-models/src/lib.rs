#![doc = include_str!("../README.md")]

mod config;
mod detector;
mod error;
mod folder;
mod image_processor;
mod kernels;
mod layers;
mod pool;
mod registry;
pub mod ssd;
mod text_tokenizer;
mod vocabulary;
mod weights;

pub use detector::{Classes, DetectOptions, Detection, Detector, ModelInfo, suppress};
pub use error::ModelError;
pub use kernels::KernelClass;
pub use pool::{DetectRequest, DetectorWork, ModelMetrics, ModelPool, PooledModel, Work};
pub use registry::{DEFAULT_DETECTOR, embedded_names, resolve, resolve_plain_ssd, resolve_ssd};
pub use vocabulary::Vocabulary;
