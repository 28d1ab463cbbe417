//! Columns that a model turns into vectors: texts, images, sounds and films, through the pool.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
};
use groundloom_data::{ColumnTypeError, DecodeLimits, MediaView, columns, media::decode_rgb};
use groundloom_models::{
    Ability, Embedder, EmbedderInfo, Modality, ModelError, ModelOn, ModelPool, PooledModel, Work, describe_able,
    describe_embedder, describe_model, resolve_embedder,
};

use crate::{
    films::Films,
    inputs::{self, Texts},
    sounds::Recording,
    stage::{ColumnError, StageError},
    window::{Fault, answered},
};

/// What a column holds.
#[derive(Debug, Clone)]
enum Values {
    Texts(Arc<Texts>),
    Images(Arc<MediaView>),
    Sounds(Arc<MediaView>),
    Films(Arc<Films>),
}

/// The values of one column in a window.
#[derive(Debug, Clone)]
pub(crate) struct Embeddable<'a> {
    name: &'a str,
    values: Values,
}

impl<'a> Embeddable<'a> {
    /// Opens the column `name` of a window, which holds one of `allowed` that the model takes, as [`require`] found.
    fn open(rows: &RecordBatch, name: &'a str, allowed: &[Modality], model: &EmbedderInfo) -> Result<Self, StageError> {
        let column: &ArrayRef = inputs::column(rows, name)?;
        let wrong = || ColumnTypeError { expected: expected(allowed, model), found: column.data_type().to_string() };
        let modality = held(column.data_type(), allowed, model).ok_or_else(|| inputs::type_changed(name)(wrong()))?;
        let media = || MediaView::try_new(column).map(Arc::new);
        let values = match modality {
            Modality::Text => Texts::try_new(column).map(|texts| Values::Texts(Arc::new(texts))),
            Modality::Audio => media().map(Values::Sounds),
            Modality::Video => Films::try_new(column).map(|films| Values::Films(Arc::new(films))),
            _ => media().map(Values::Images),
        };
        Ok(Self { name, values: values.map_err(inputs::type_changed(name))? })
    }

    /// Why the row cannot be embedded: it has no value.
    fn check(&self, row: usize) -> Result<(), Fault> {
        let (there, remedy) = match &self.values {
            Values::Texts(texts) => (texts.get(row).is_some(), "drop rows without a text before with `filter`"),
            Values::Images(images) => (images.bytes(row).is_some(), "give each row an image"),
            Values::Sounds(sounds) => (sounds.bytes(row).is_some(), "give each row a sound"),
            Values::Films(films) => (films.has(row), "give each row a film"),
        };
        if there { Ok(()) } else { Err(Fault::missing(self.name, remedy)) }
    }
}

/// Checks that the config key `key` names a column that holds one of `allowed`, and that the model takes it.
pub(crate) fn require(
    input: &Schema,
    key: &'static str,
    column: &str,
    allowed: &[Modality],
    model: &EmbedderInfo,
) -> Result<(), ColumnError> {
    if !allowed.iter().any(|modality| model.modalities().any(|taken| taken == *modality)) {
        let list = |all: &mut dyn Iterator<Item = Modality>| all.map(Modality::plural).collect::<Vec<_>>().join(", ");
        let message = format!(
            "{} takes {}, but no {}",
            model.name,
            list(&mut model.modalities()),
            list(&mut allowed.iter().copied())
        );
        return Err(ColumnError { key, column: column.to_owned(), message });
    }
    inputs::require(input, key, column, |data_type| match held(data_type, allowed, model) {
        Some(_) => Ok(()),
        None => Err(ColumnTypeError { expected: expected(allowed, model), found: data_type.to_string() }),
    })
}

/// What a column of this type holds for the model: the first of `allowed` that fits both.
fn held(data_type: &DataType, allowed: &[Modality], model: &EmbedderInfo) -> Option<Modality> {
    let fits = |modality: Modality| match modality {
        Modality::Text => !columns::is_media(data_type) && Texts::check_type(data_type).is_ok(),
        Modality::Image | Modality::Audio => columns::is_media(data_type),
        Modality::Video => Films::check_type(data_type).is_ok(),
        Modality::Depth | Modality::Thermal | Modality::Motion => false,
    };
    allowed.iter().copied().find(|modality| fits(*modality) && model.modalities().any(|taken| taken == *modality))
}

fn expected(allowed: &[Modality], model: &EmbedderInfo) -> String {
    let taken = model.modalities().filter(|modality| allowed.contains(modality));
    let columns = taken.map(|modality| match modality {
        Modality::Text => "a text column, utf8",
        Modality::Audio => "a column of sounds, struct<bytes, path>",
        Modality::Video => "a column of films, list<struct<bytes, path>> or struct<bytes, path>",
        _ => "an image column, struct<bytes, path>",
    });
    format!("{}, which is what {} takes", columns.collect::<Vec<_>>().join(", or "), model.name)
}

/// What the model `name` is, without loading it; the fault is one of the config key `model`.
pub(crate) fn describe(name: &str) -> Result<EmbedderInfo, ColumnError> {
    describe_embedder(name).map_err(|e| model_fault(name, &e))
}

/// What is wrong with the config key `model`, found while the pipeline file is checked.
pub(crate) fn model_fault(name: &str, error: &ModelError) -> ColumnError {
    ColumnError { key: "model", column: name.to_owned(), message: error.to_string() }
}

/// Whether the model `name` can do what a stage asks of it; the fault is one of the config key `model`.
pub(crate) fn require_ability(name: &str, ability: Ability) -> Result<(), ColumnError> {
    describe_able(name, ability).map(drop).map_err(|e| model_fault(name, &e))
}

/// The entry of a model in a fingerprint, of whatever kind the model is.
pub(crate) fn identity(name: &str) -> Result<Vec<String>, StageError> {
    let info = describe_model(name)?;
    Ok(vec![format!("{}@{}", info.name, info.weights_sha256)])
}

/// The entries of a model that writes: how it does so, its folder may say too.
pub(crate) fn writer_identity(name: &str) -> Result<Vec<String>, StageError> {
    let mut entries = identity(name)?;
    if let Some(sha256) = describe_model(name)?.generation_sha256 {
        entries.push(format!("{name}/generation_config.json@{sha256}"));
    }
    Ok(entries)
}

/// Bounds on what is decoded for a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MediaLimits {
    pub(crate) max_pixels: u64,
    pub(crate) max_seconds: f64,
}

/// One value, still encoded: the pool's thread decodes it, so that no more images lie decoded than a batch holds, and one sound or film.
pub(crate) struct Item {
    values: Values,
    row: usize,
    limits: MediaLimits,
}

impl Item {
    fn pixels(&self) -> DecodeLimits {
        DecodeLimits { max_pixels: self.limits.max_pixels, ..DecodeLimits::default() }
    }
}

/// A vector, or why the row has none.
type Embedded = Result<Vec<f32>, Fault>;

/// Decodes and embeds.
pub(crate) struct EmbedEncoded {
    embedder: Arc<dyn Embedder>,
}

impl EmbedEncoded {
    /// The vector of a sound or a film.
    fn alone(&self, item: &Item) -> Result<Embedded, ModelError> {
        let embedder = &self.embedder;
        let info = embedder.info();
        let answers = match &item.values {
            Values::Sounds(sounds) => {
                // A model that takes sounds has a rate; one that takes none says so.
                let rate = info.sample_rate.unwrap_or(groundloom_models::SAMPLE_RATE);
                match Recording::new(sounds, item.row, item.limits.max_seconds).decode(rate) {
                    Ok(waveform) => embedder.embed_audio(&[&waveform]),
                    Err(fault) => return Ok(Err(fault)),
                }
            }
            Values::Films(films) => match films.decode(item.row, info.video_frames, &item.pixels()) {
                Ok(frames) => embedder.embed_videos(&[&frames]),
                Err(fault) => return Ok(Err(fault)),
            },
            Values::Texts(_) | Values::Images(_) => Vec::new(),
        };
        let gone = || Err(ModelError::ShutDown { model: info.name.clone() });
        answers.into_iter().next().unwrap_or_else(gone).map(Ok)
    }
}

impl Work for EmbedEncoded {
    type Item = Item;
    type Output = Embedded;

    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(32).unwrap() }
    }

    fn weights_bytes(&self) -> u64 {
        self.embedder.info().weights_bytes
    }

    fn stays_on_cpu(&self) -> bool {
        self.embedder.stays_on_cpu()
    }

    fn run(&self, items: &[Item]) -> Vec<Result<Self::Output, ModelError>> {
        let texts: Vec<&str> = items
            .iter()
            .filter_map(|item| match &item.values {
                Values::Texts(texts) => Some(texts.get(item.row).unwrap_or_default()),
                _ => None,
            })
            .collect();
        let image = |item: &Item| match &item.values {
            Values::Images(images) => {
                let decoded = decode_rgb(images.bytes(item.row).unwrap_or_default(), &item.pixels());
                Some(decoded.map_err(|error| Fault::image(&error, images.path(item.row))))
            }
            _ => None,
        };
        let decoded: Vec<_> = items.iter().filter_map(image).collect();
        let images: Vec<_> = decoded.iter().filter_map(|image| image.as_ref().ok()).collect();
        let mut texts = self.embedder.embed_texts(&texts).into_iter();
        let mut images = self.embedder.embed_images(&images).into_iter();
        let mut decoded = decoded.iter();
        let next = |item: &Item| match &item.values {
            Values::Texts(_) => texts.next().map(|vector| vector.map(Ok)),
            Values::Images(_) => match decoded.next()? {
                Ok(_) => images.next().map(|vector| vector.map(Ok)),
                Err(fault) => Some(Ok(Err(fault.clone()))),
            },
            Values::Sounds(_) | Values::Films(_) => Some(self.alone(item)),
        };
        items.iter().filter_map(next).collect()
    }
}

/// The model of a stage.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) limits: MediaLimits,
    pub(crate) models: Arc<ModelPool>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Model {
    async fn load(&self) -> Result<PooledModel<EmbedEncoded>, StageError> {
        let name = self.name.clone();
        let load =
            move |device| resolve_embedder(ModelOn::new(&name, device)).map(|embedder| EmbedEncoded { embedder });
        Ok(self.models.get_on_devices(&format!("embedder {}", self.name), load).await?)
    }

    /// The vectors of the rows `rows` of a column, in their order; the column holds one of `allowed`, as [`require`] found.
    ///
    /// # Errors
    /// [`StageError::Model`] where the model cannot be loaded or the pool is gone.
    pub(crate) async fn embed(
        &self,
        window: &RecordBatch,
        column: &str,
        allowed: &[Modality],
        rows: &[usize],
    ) -> Result<Vec<Embedded>, StageError> {
        let model = self.load().await?;
        let column = Embeddable::open(window, column, allowed, model.work().embedder.info())?;
        let checked: Vec<Result<(), Fault>> = rows.iter().map(|&row| column.check(row)).collect();
        let items = rows.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let item = |row: usize| Item { values: column.values.clone(), row, limits: self.limits };
        let items = items.map(|(&row, _)| item(row)).collect();
        let mut answers = model.submit(items).await.into_iter();
        let mut vectors = Vec::with_capacity(rows.len());
        for checked in checked {
            vectors.push(match checked {
                Ok(()) => answered(answers.next(), &self.name)?,
                Err(fault) => Err(fault),
            });
        }
        Ok(vectors)
    }
}
