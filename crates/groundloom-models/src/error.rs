//! What can go wrong with a model.

use std::path::PathBuf;

/// An error of this crate. Every message says what was expected, what was found and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// No model answers to the name.
    #[error(
        "no model is called {name:?}: expected an embedded model ({embedded}), a folder with a config.json (open_clip: \
         open_clip_config.json; FROMAGe: model_args.json), \
         or hf://org/repo@revision"
    )]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// The embedded names.
        embedded: String,
    },
    /// A model of the hub that is not in the cache, or not all of it. Only a pull fetches.
    #[error(
        "{name} is not in the cache of models {cache}, or not all of it: fetch it with `groundloom models pull {name}`, or \
         put its files into a folder and give the folder's path as the model's name"
    )]
    NotFetched {
        /// The name asked for.
        name: String,
        /// The folder looked in.
        cache: String,
    },
    /// A model of the hub could not be fetched.
    #[error("{name}: {problem}")]
    Hub {
        /// The name asked for.
        name: String,
        /// What happened, remedy.
        problem: String,
    },
    /// A file of a model folder is missing or unreadable.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// `config.json` asks for an architecture that this crate lacks.
    #[error("{origin}: architecture {found:?} is not supported; supported: {supported}")]
    UnsupportedArchitecture {
        /// The model's name or folder.
        origin: String,
        /// What `config.json` says.
        found: String,
        /// What this crate has.
        supported: String,
    },
    /// `config.json` or a file it names does not hold what it should.
    #[error("{origin}: {problem}")]
    BadConfig {
        /// The file.
        origin: String,
        /// Expected, found, remedy.
        problem: String,
    },
    /// `model.safetensors` lacks a tensor, or one has the wrong shape or cannot be read.
    #[error("{origin}: {problem}")]
    BadWeights {
        /// The file.
        origin: String,
        /// Expected, found, remedy.
        problem: String,
    },
    /// A detection option is out of its range.
    #[error("expected {option} in [0, 1], found {found}")]
    BadOption {
        /// `min_score` or `nms_iou`.
        option: &'static str,
        /// The value given.
        found: f32,
    },
    /// An option of writing a text is out of its range.
    #[error("expected {option} to be {expected}, found {found}")]
    BadWriting {
        /// The option.
        option: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        found: f32,
    },
    /// A chat template refuses a conversation.
    #[error("the chat template {template} refuses the conversation: {reason}")]
    Untellable {
        /// The file.
        template: String,
        /// The template's words.
        reason: String,
    },
    /// Nobody waits for the answer any more.
    #[error("the answer was given up before it was written")]
    GivenUp,
    /// What a text is to be written behind is longer than the model can take.
    #[error("expected a prompt of at most {longest} tokens, found {tokens}; shorten it")]
    NoRoom {
        /// Tokens, those in the place of an image among them.
        tokens: usize,
        /// What the model takes.
        longest: usize,
    },
    /// An answer in the form of a schema takes more tokens than it may have.
    #[error(
        "expected room for {needed} tokens, which the shortest answer in the form of the schema takes, found {room}; allow more output tokens"
    )]
    NoRoomForForm {
        /// Tokens, of one byte each.
        needed: usize,
        /// Tokens that the answer may still have.
        room: usize,
    },
    /// A text without tokens has no probability.
    #[error("expected a text of at least one token, found an empty one")]
    EmptyText,
    /// A model was asked for what its checkpoint has no part for.
    #[error("the model {model} ({architecture}) cannot {what}; expected {supported}")]
    Unable {
        /// The model's name.
        model: String,
        /// What `config.json` says.
        architecture: String,
        /// What was asked for, as a verb.
        what: &'static str,
        /// What can do it.
        supported: &'static str,
    },
    /// A language that a transcriber does not know.
    #[error("the model {model} knows no language {language:?}; expected one of: {known}")]
    UnknownLanguage {
        /// The model's name.
        model: String,
        /// The language asked for.
        language: String,
        /// Those it knows; empty for a model of English alone.
        known: String,
    },
    /// A model of open vocabulary was asked for everything that it knows.
    #[error("{model} looks for phrases and has no classes of its own: name the phrases to look for")]
    NeedsPhrases {
        /// The model's name.
        model: String,
    },
    /// A model of fixed classes was given phrases.
    #[error(
        "{model} knows fixed classes and takes no phrases: look for its classes, or use a model of open vocabulary"
    )]
    TakesNoPhrases {
        /// The model's name.
        model: String,
    },
    /// A waveform too short for a single frame.
    #[error("expected a waveform of at least {least} samples, found {samples}")]
    ShortWaveform {
        /// Samples given.
        samples: usize,
        /// What the model's first frame sees.
        least: usize,
    },
    /// A waveform, a plane or a recording with a value that is no finite number.
    #[error("expected finite numbers, found {found} at sample {place}; the data are damaged")]
    BadSample {
        /// Which sample, from 0 on.
        place: usize,
        /// The sample.
        found: String,
    },
    /// A recording of another length than the model takes.
    #[error("expected {expected}, found {found}")]
    WrongCount {
        /// How many of what.
        expected: String,
        /// How many there are.
        found: usize,
    },
    /// A layer that the model does not have.
    #[error("expected a layer from 0 to {layers} of the model {model}, found {layer}")]
    NoLayer {
        /// The model's name.
        model: String,
        /// The layer asked for.
        layer: usize,
        /// The last.
        layers: usize,
    },
    /// A model that compares no images was given one to look for.
    #[error("{model} cannot look for what an example image shows: use an OWL-ViT or OWLv2 model")]
    TakesNoExample {
        /// The model's name.
        model: String,
    },
    /// An image without pixels.
    #[error("expected an image of at least 1×1 pixels, found {width}×{height}")]
    EmptyImage {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// An image that should have gone through a model's preprocessing first.
    #[error("expected an image preprocessed to {expected}×{expected} pixels, found {width}×{height}")]
    WrongImageSize {
        /// Pixels along a side.
        expected: u32,
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// An image so long and thin that the model's resize would make it enormous.
    #[error(
        "an image of {width}×{height} pixels would be resized to {to_width}×{to_height}; expected an aspect ratio that \
         leaves it below 67 million pixels"
    )]
    ImageTooLong {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Pixels after the resize.
        to_width: u32,
        /// Pixels after the resize.
        to_height: u32,
    },
    /// A tokenizer refused a text.
    #[error("the tokenizer cannot read this text: {reason}")]
    Untokenized {
        /// The tokenizer's words.
        reason: String,
    },
    /// A model was given what it does not take.
    #[error("the model {model} does not take {what}")]
    NoModality {
        /// The model's name.
        model: String,
        /// `texts`, `images`, `audio`, …
        what: &'static str,
    },
    /// A model without classes was asked for some.
    #[error(
        "the model {model} ({architecture}) has no classes; expected a folder with a ViT, DINOv2 or BEiT for image \
         classification"
    )]
    NoClasses {
        /// The model's name.
        model: String,
        /// What `config.json` says.
        architecture: String,
    },
    /// Candle refused an operation. The shapes of a loaded model fit, so this is a defect.
    #[error("candle could not compute {operation}: {reason}")]
    Compute {
        /// Where in the network.
        operation: &'static str,
        /// Candle's words.
        reason: String,
    },
    /// A device that this program was not built for.
    #[error(
        "{device} cannot be used: this program was built without it; build it with `cargo build --release --features \
         {feature}`, or choose among what is there: {available}"
    )]
    NotBuiltIn {
        /// The device asked for.
        device: String,
        /// The cargo feature that builds it in.
        feature: &'static str,
        /// The devices that can be used.
        available: String,
    },
    /// A device that is not there, or does not work.
    #[error("{device} cannot be used ({reason}); expected a device that is there: {available}")]
    NoDevice {
        /// The device asked for.
        device: String,
        /// The driver's words.
        reason: String,
        /// The devices that can be used.
        available: String,
    },
    /// Devices that would not compute the same, so that it would matter which of them a row meets.
    #[error("expected devices of one kind and model, each once, found {found}; run on some of them only")]
    UnlikeDevices {
        /// The devices.
        found: String,
    },
    /// What a network computed, or its weights, did not fit into its device's memory. From a model of the pool: not even
    /// one item at a time.
    #[error(
        "the device has no memory left for {operation} ({reason}): free what other models and programs take there, give \
         fewer or smaller items at a time, or run on a device with more memory"
    )]
    DeviceMemory {
        /// Where in the network.
        operation: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// A model's code panicked on one item. The other items are not concerned.
    #[error("the model {model} panicked on this item: {message}")]
    Panicked {
        /// The model's key in the pool.
        model: String,
        /// The panic's message.
        message: String,
    },
    /// A model answered another number of items than it was given.
    #[error("the model {model} answered {found} items, expected {expected}; this is a defect of the model's code")]
    WrongAnswerCount {
        /// The model's key in the pool.
        model: String,
        /// Items given.
        expected: usize,
        /// Answers returned.
        found: usize,
    },
    /// The pool was asked for one key with two kinds of work.
    #[error("the pool already holds a model under the key {key:?} that does other work; use another key")]
    KeyTaken {
        /// The key.
        key: String,
    },
    /// The model's threads are gone: the pool was dropped.
    #[error("the model {model} has been shut down")]
    ShutDown {
        /// The model's key in the pool.
        model: String,
    },
    /// The operating system refused a thread.
    #[error("cannot start a thread for the model {model}: {reason}")]
    NoThread {
        /// The model's key in the pool.
        model: String,
        /// The operating system's words.
        reason: String,
    },
}
