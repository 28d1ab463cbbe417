//! The neural network: token vectors, tag scores and the parser's scores.
//!
//! Layers: six hash embeddings → mix (maxout, layer norm) → four residual blocks over
//! windows of three tokens (thinc's `MaxoutWindowEncoder`) → linear tag scores, and for
//! the parser a linear reduction with a precomputed first layer per feature slot
//! (`spacy/ml/parser_model.pyx`).
//!
//! There are two ways through it. [`fast`] reuses what depends on one word alone, saves a
//! third of the convolutions' products and fuses operations; its sums differ from spaCy's
//! in the last digits. [`exact`] repeats spaCy's own order of operations. A document is
//! first parsed fast; if any of its decisions was closer than rounding can explain, it is
//! parsed again exactly. So the answer never depends on the shortcut.

mod aligned;
pub(crate) mod exact;
pub(crate) mod fast;
mod kernels;
mod packed;
mod simd;
pub(crate) mod words;

pub use kernels::KernelClass;
pub(crate) use packed::Network;
