#![doc = include_str!("../README.md")]

mod bert;
mod blip;
mod blip2;
mod classifier;
mod clip;
mod coca;
mod config;
mod convolution;
mod ctc;
mod decoder;
mod detector;
mod embedder;
mod embedders;
mod error;
mod family;
mod folder;
mod gpt2;
mod grounding_dino;
mod hub;
mod image_processor;
mod kernels;
mod language_model;
mod layers;
mod llama;
mod llava;
mod naflex;
mod opt;
mod owl;
mod pool;
mod registry;
mod relative_position;
mod resample;
mod sentence;
mod siglip;
mod speech;
pub mod ssd;
mod swin;
mod t5;
mod text_tokenizer;
mod transformer;
mod verify;
mod vit;
mod vocabulary;
mod wav2vec2;
mod weights;
mod writers;
mod writing;

pub use classifier::Classifier;
pub use detector::{Classes, DetectOptions, Detection, Detector, ModelInfo, suppress};
pub use embedder::{Embedder, EmbedderInfo};
pub use error::ModelError;
pub use family::ARCHITECTURES;
pub use hub::{Hub, PullProgress, Pulling};
pub use kernels::KernelClass;
pub use pool::{DetectRequest, DetectorWork, EmbedRequest, EmbedderWork, ModelMetrics, ModelPool, PooledModel, Work};
pub use registry::{
    DEFAULT_DETECTOR, DEFAULT_SENTENCE_ENCODER, describe_detector, describe_embedder, embedded_names, resolve,
    resolve_classifier, resolve_embedder, resolve_plain_ssd, resolve_ssd,
};
pub use registry::{describe_model, resolve_captioner, resolve_generator, resolve_matcher, resolve_scorer};
pub use registry::{resolve_audio_encoder, resolve_transcriber};
pub use speech::{AudioEncoder, Features, SAMPLE_RATE, Transcriber};
pub use verify::{Comparison, HIDDEN_TOLERANCE, LOGIT_TOLERANCE, Outcome, verify};
pub use vocabulary::Vocabulary;
pub use writers::{CaptionOptions, Captioner, Generator, Matcher, ModelIdentity, TextScore, TextScorer, WrittenText};
pub use writing::{Sampling, Writing};
