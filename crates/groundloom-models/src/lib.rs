#![doc = include_str!("../README.md")]

mod detector;
mod error;
mod folder;
mod kernels;
mod pool;
mod registry;
pub mod ssd;
mod vocabulary;

pub use detector::{Classes, DetectOptions, Detection, Detector, ModelInfo, suppress};
pub use error::ModelError;
pub use kernels::KernelClass;
pub use pool::{DetectRequest, DetectorWork, ModelMetrics, ModelPool, PooledModel, Work};
pub use registry::{DEFAULT_DETECTOR, embedded_names, resolve, resolve_plain_ssd, resolve_ssd};
pub use vocabulary::Vocabulary;
