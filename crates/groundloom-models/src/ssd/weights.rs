//! Named tensors of a `model.safetensors`.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use crate::ModelError;

/// The tensors of one file, as f32 on the CPU.
pub struct Weights {
    origin: String,
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Reads a safetensors buffer; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] where the buffer is no safetensors file or holds values that are not finite.
    pub fn read(origin: &str, buffer: &[u8]) -> Result<Self, ModelError> {
        let bad = |problem: String| ModelError::BadWeights { origin: origin.to_owned(), problem };
        let read = candle_core::safetensors::load_buffer(buffer, &Device::Cpu)
            .map_err(|e| bad(format!("expected a safetensors file, found bytes that do not parse as one ({e})")))?;
        let mut tensors = HashMap::with_capacity(read.len());
        for (name, tensor) in read {
            let tensor = tensor
                .to_dtype(DType::F32)
                .map_err(|e| bad(format!("expected the tensor {name} to hold floats ({e})")))?;
            tensors.insert(name, tensor);
        }
        Ok(Self { origin: origin.to_owned(), tensors })
    }

    /// The tensor `name`, which must have the shape `shape`.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] where it is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&Tensor, ModelError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| self.bad(format!("expected a tensor {name} of shape {shape:?}, found none of that name")))?;
        if tensor.dims() != shape {
            return Err(
                self.bad(format!("expected the tensor {name} to have the shape {shape:?}, found {:?}", tensor.dims()))
            );
        }
        Ok(tensor)
    }

    /// The values of the tensor `name` of shape `shape`, in row-major order.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and where a value is not finite.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor(name, shape)?;
        let values = tensor
            .flatten_all()
            .and_then(|t| t.to_vec1::<f32>())
            .map_err(|e| self.bad(format!("cannot read the tensor {name}: {e}")))?;
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(
                self.bad(format!("expected finite values in the tensor {name}, found {value}; the file is damaged"))
            );
        }
        Ok(values)
    }

    fn bad(&self, problem: String) -> ModelError {
        ModelError::BadWeights { origin: self.origin.clone(), problem }
    }
}
