//! A recorded run of the reference, computed again from its images and texts.

use candle_core::{Device, Result, Tensor};
use image::RgbImage;

use super::{OwlDetector, network::Queries};
use crate::{ModelError, layers::with_values, text_tokenizer::Tokens};

/// What was put in, beside the folder.
pub(crate) struct Recorded<'a> {
    pub(crate) images: &'a [RgbImage],
    /// The queries of each image.
    pub(crate) texts: &'a [Vec<&'a str>],
    /// Boxes below it are dropped.
    pub(crate) threshold: f32,
}

/// Tensors by the names that the recording gives them, and the query of each box of each image.
pub(crate) struct Replayed {
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) labels: Vec<Vec<String>>,
}

impl OwlDetector {
    /// The tokenizer, for its own comparison.
    pub(crate) fn tokenizer(&self) -> &crate::text_tokenizer::TextTokenizer {
        &self.tokenizer
    }

    /// Runs processor, tokenizer, network and post-processing on a batch, and the guided detection of the last image's
    /// likeness in the first.
    ///
    /// # Errors
    /// [`ModelError::EmptyImage`], [`ModelError::Untokenized`], [`ModelError::Compute`].
    pub(crate) fn replay(&self, recorded: &Recorded<'_>) -> std::result::Result<Replayed, ModelError> {
        let compute = crate::layers::compute("the recorded run");
        let pixels =
            recorded.images.iter().map(|image| self.pixels(image)).collect::<std::result::Result<Vec<_>, _>>()?;
        let pixels = Tensor::cat(&pixels, 0).map_err(&compute)?;
        // Images of fewer queries get blanks, which are queries too.
        let most = recorded.texts.iter().map(Vec::len).max().unwrap_or(0);
        let padded: Vec<Vec<&str>> = recorded
            .texts
            .iter()
            .map(|texts| texts.iter().copied().chain(std::iter::repeat(" ")).take(most).collect())
            .collect();
        let tokens: Vec<Tokens> =
            padded.iter().flatten().map(|text| self.tokenizer.encode(text)).collect::<std::result::Result<_, _>>()?;
        let batch = self.tokenizer.pad(&tokens.iter().collect::<Vec<_>>())?;
        let mut tensors = Vec::new();
        let (logits, boxes) =
            self.run(&pixels, &batch.ids, &batch.mask, recorded.images.len(), &mut tensors).map_err(&compute)?;
        let labels = self.choose(recorded, &padded, &logits, &boxes, &mut tensors).map_err(&compute)?;
        Ok(Replayed { tensors, labels })
    }

    fn run(
        &self,
        pixels: &Tensor,
        ids: &Tensor,
        mask: &Tensor,
        images: usize,
        named: &mut Vec<(String, Tensor)>,
    ) -> Result<(Tensor, Tensor)> {
        let mut put = |name: &str, tensor: Tensor| named.push((name.to_owned(), tensor));
        put("in.pixel_values", pixels.clone());
        put("in.input_ids", ids.to_dtype(candle_core::DType::F32)?);
        put("in.attention_mask", mask.to_dtype(candle_core::DType::F32)?);
        let mut hidden = Vec::new();
        let features = self.network.features(pixels, &mut |x| hidden.push(x.clone()))?;
        for (number, hidden) in hidden.into_iter().enumerate() {
            put(&format!("out.vision_hidden.{number}"), hidden);
        }
        let (_, patches, width) = features.dims3()?;
        let side = patches.isqrt();
        put("out.image_embeds", features.reshape((images, side, side, width))?);
        let embeddings = self.network.read(ids, mask)?.reshape((images, ids.dim(0)? / images, ()))?;
        put("out.text_embeds", embeddings.clone());
        // A query that begins with padding is none.
        let firsts: Vec<u32> = ids.narrow(1, 0, 1)?.flatten_all()?.to_vec1()?;
        let real: Vec<bool> = firsts.iter().map(|&id| id > 0).collect();
        let queries = Queries { embeddings, real: Some(real.clone()) };
        let (logits, classes) = self.network.compare(&features, &queries)?;
        put("out.logits", logits.clone());
        put("out.class_embeds", classes);
        if let Some(objectness) = self.network.objectness(&features)? {
            put("out.objectness_logits", objectness);
        }
        let boxes = self.network.boxes(&features)?;
        put("out.pred_boxes", boxes.clone());

        // The last query as padding alone.
        let (count, length) = ids.dims2()?;
        let without =
            Tensor::cat(&[&ids.narrow(0, 0, count - 1)?, &Tensor::zeros((1, length), ids.dtype(), &Device::Cpu)?], 0)?;
        let embeddings = self.network.read(&without, mask)?.reshape((images, count / images, ()))?;
        let real = real.iter().enumerate().map(|(at, &real)| real && at + 1 < count).collect();
        put("out.logits_zero_query", self.network.compare(&features, &Queries { embeddings, real: Some(real) })?.0);

        let example = features.narrow(0, images - 1, 1)?;
        let example_boxes = self.network.boxes(&example)?;
        let query = self.network.query_of(&example, &example_boxes)?;
        let first = features.narrow(0, 0, 1)?;
        put("out.guided_logits", self.network.compare(&first, &query)?.0);
        put("out.guided_query_boxes", example_boxes);
        put("out.guided_target_boxes", self.network.boxes(&first)?);
        Ok((logits, boxes))
    }

    /// Boxes in pixels over the threshold, in the network's order, each with its best query.
    fn choose(
        &self,
        recorded: &Recorded<'_>,
        texts: &[Vec<&str>],
        logits: &Tensor,
        boxes: &Tensor,
        named: &mut Vec<(String, Tensor)>,
    ) -> Result<Vec<Vec<String>>> {
        let (_, patches, queries) = logits.dims3()?;
        let logits = with_values(logits, |logits| Ok(logits.to_vec()))?;
        let boxes = with_values(boxes, |boxes| Ok(boxes.to_vec()))?;
        let mut labels = Vec::new();
        for (number, image) in recorded.images.iter().enumerate() {
            let (across, down) = self.stretch(image);
            let (width, height) = (image.width() as f32 * across, image.height() as f32 * down);
            let (mut scores, mut places, mut chosen) = (Vec::new(), Vec::new(), Vec::new());
            let rows = logits.chunks(queries).zip(boxes.as_chunks::<4>().0).skip(number * patches).take(patches);
            for (logits, [x, y, w, h]) in rows {
                let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let score = 1.0 / (1.0 + (-highest).exp());
                if score <= recorded.threshold {
                    continue;
                }
                scores.push(score);
                chosen.push(logits.iter().position(|&logit| logit == highest).unwrap_or(0));
                places.extend([(x - 0.5 * w) * width, (y - 0.5 * h) * height]);
                places.extend([(x + 0.5 * w) * width, (y + 0.5 * h) * height]);
            }
            let count = scores.len();
            let mut put = |name: &str, values: Vec<f32>, shape: &[usize]| -> Result<()> {
                named.push((format!("out.post.{number}.{name}"), Tensor::from_vec(values, shape, &Device::Cpu)?));
                Ok(())
            };
            put("scores", scores, &[count])?;
            put("boxes", places, &[count, 4])?;
            put("labels", chosen.iter().map(|&query| query as f32).collect(), &[count])?;
            labels.push(chosen.into_iter().map(|query| texts[number][query].to_owned()).collect());
        }
        Ok(labels)
    }
}
