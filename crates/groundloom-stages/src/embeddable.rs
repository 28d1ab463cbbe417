//! Columns that a model turns into vectors: texts and images, through the pool.

use std::{num::NonZeroUsize, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
};
use groundloom_data::{ColumnTypeError, DecodeLimits, MediaError, MediaView, columns, media::decode_rgb};
use groundloom_models::{
    Embedder, EmbedderInfo, ModelError, ModelPool, PooledModel, Work, describe_embedder, describe_model,
    resolve_embedder,
};

use crate::{
    inputs::{self, Texts},
    stage::{ColumnError, StageError, codes},
    window::Fault,
};

/// What a column holds.
#[derive(Debug, Clone)]
enum Values {
    Texts(Arc<Texts>),
    Images(Arc<MediaView>),
}

/// The values of one column in a window.
#[derive(Debug, Clone)]
pub(crate) struct Embeddable<'a> {
    name: &'a str,
    values: Values,
}

impl<'a> Embeddable<'a> {
    /// Opens the column `name` of a window.
    pub(crate) fn open(rows: &RecordBatch, name: &'a str) -> Result<Self, StageError> {
        let column: &ArrayRef = inputs::column(rows, name)?;
        let values = if columns::is_media(column.data_type()) {
            Values::Images(Arc::new(MediaView::try_new(column).map_err(inputs::type_changed(name))?))
        } else {
            Values::Texts(Arc::new(Texts::try_new(column).map_err(inputs::type_changed(name))?))
        };
        Ok(Self { name, values })
    }

    /// Why the row cannot be embedded: it has no value.
    fn check(&self, row: usize) -> Result<(), Fault> {
        match &self.values {
            Values::Texts(texts) if texts.get(row).is_none() => {
                Err(Fault::missing(self.name, "drop rows without a text before with `filter`"))
            }
            Values::Images(images) if images.bytes(row).is_none() => {
                Err(Fault::missing(self.name, "give each row an image"))
            }
            _ => Ok(()),
        }
    }
}

/// Checks that the config key `key` names a column of texts or images, and that the model takes them.
pub(crate) fn require(
    input: &Schema,
    key: &'static str,
    column: &str,
    model: &EmbedderInfo,
) -> Result<(), ColumnError> {
    inputs::require(input, key, column, |data_type: &DataType| {
        let image = columns::is_media(data_type);
        let expected = match (model.texts, model.images) {
            (true, true) => "a text column, utf8, or an image column, struct<bytes, path>",
            (true, false) => "a text column, utf8",
            (false, _) => "an image column, struct<bytes, path>",
        };
        let fits = if image { model.images } else { model.texts && Texts::check_type(data_type).is_ok() };
        let wrong = || ColumnTypeError {
            expected: format!("{expected}, which is what {} takes", model.name),
            found: data_type.to_string(),
        };
        if fits { Ok(()) } else { Err(wrong()) }
    })
}

/// What the model `name` is, without loading it; the fault is one of the config key `model`.
pub(crate) fn describe(name: &str) -> Result<EmbedderInfo, ColumnError> {
    describe_embedder(name).map_err(|e| ColumnError { key: "model", column: name.to_owned(), message: e.to_string() })
}

/// The entry of a model in a fingerprint, of whatever kind the model is.
pub(crate) fn identity(name: &str) -> Result<Vec<String>, StageError> {
    let info = describe_model(name)?;
    Ok(vec![format!("{}@{}", info.name, info.weights_sha256)])
}

/// One value, still encoded: the pool's thread decodes it, so that no more images lie decoded than a batch holds.
pub(crate) struct Item {
    values: Values,
    row: usize,
    limits: DecodeLimits,
}

/// Decodes and embeds.
pub(crate) struct EmbedEncoded {
    embedder: Arc<dyn Embedder>,
}

impl Work for EmbedEncoded {
    type Item = Item;
    type Output = Result<Vec<f32>, MediaError>;

    fn batch(&self) -> NonZeroUsize {
        const { NonZeroUsize::new(32).unwrap() }
    }

    fn weights_bytes(&self) -> u64 {
        self.embedder.info().weights_bytes
    }

    fn run(&self, items: &[Item]) -> Vec<Result<Self::Output, ModelError>> {
        let texts: Vec<&str> = items
            .iter()
            .filter_map(|item| match &item.values {
                Values::Texts(texts) => Some(texts.get(item.row).unwrap_or_default()),
                Values::Images(_) => None,
            })
            .collect();
        let decoded: Vec<_> = items
            .iter()
            .filter_map(|item| match &item.values {
                Values::Texts(_) => None,
                Values::Images(images) => Some(decode_rgb(images.bytes(item.row).unwrap_or_default(), &item.limits)),
            })
            .collect();
        let images: Vec<_> = decoded.iter().filter_map(|image| image.as_ref().ok()).collect();
        let mut texts = self.embedder.embed_texts(&texts).into_iter();
        let mut images = self.embedder.embed_images(&images).into_iter();
        let mut decoded = decoded.iter();
        let next = |item: &Item| match &item.values {
            Values::Texts(_) => texts.next().map(|vector| vector.map(Ok)),
            Values::Images(_) => match decoded.next()? {
                Ok(_) => images.next().map(|vector| vector.map(Ok)),
                Err(error) => Some(Ok(Err(error.clone()))),
            },
        };
        items.iter().filter_map(next).collect()
    }
}

/// The model of a stage.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) max_pixels: u64,
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
        let load = move || resolve_embedder(&name).map(|embedder| EmbedEncoded { embedder });
        Ok(self.models.get(&format!("embedder {}", self.name), load).await?)
    }

    /// The vectors of the rows `rows` of a column, in their order.
    ///
    /// # Errors
    /// [`StageError::Model`] where the model cannot be loaded or the pool is gone.
    pub(crate) async fn embed(
        &self,
        column: &Embeddable<'_>,
        rows: &[usize],
    ) -> Result<Vec<Result<Vec<f32>, Fault>>, StageError> {
        let model = self.load().await?;
        let limits = DecodeLimits { max_pixels: self.max_pixels, ..DecodeLimits::default() };
        let checked: Vec<Result<(), Fault>> = rows.iter().map(|&row| column.check(row)).collect();
        let items = rows.iter().zip(&checked).filter(|(_, checked)| checked.is_ok());
        let items = items.map(|(&row, _)| Item { values: column.values.clone(), row, limits }).collect();
        let mut answers = model.submit(items).await.into_iter();
        let mut vectors = Vec::with_capacity(rows.len());
        for (&row, checked) in rows.iter().zip(checked) {
            let answer = match checked {
                Ok(()) => answers.next(),
                Err(fault) => {
                    vectors.push(Err(fault));
                    continue;
                }
            };
            vectors.push(match answer {
                Some(Ok(Ok(vector))) => Ok(vector),
                Some(Ok(Err(error))) => {
                    let path = match &column.values {
                        Values::Images(images) => images.path(row),
                        Values::Texts(_) => None,
                    };
                    Err(Fault::image(&error, path))
                }
                Some(Err(error @ ModelError::ShutDown { .. })) => return Err(error.into()),
                Some(Err(error)) => Err(Fault { code: codes::MODEL_FAILED, message: error.to_string() }),
                None => return Err(ModelError::ShutDown { model: self.name.clone() }.into()),
            });
        }
        Ok(vectors)
    }
}
