//! Named tensors of a model: one safetensors file or several, mapped into memory, read once by name.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use candle_core::{DType, Device, Tensor, safetensors::Load};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::{
    Dtype,
    tensor::{SafeTensors, TensorInfo, TensorView},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    ModelError,
    folder::{ModelFolder, hexadecimal},
    fromage,
    layers::compute,
};

mod checkpoint;

/// The weights of a model without shards.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The same in open_clip's layout.
pub(crate) const OPEN_CLIP: &str = "open_clip_model.safetensors";
/// Which shard holds which tensor, for a model with shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Behind the name of a tensor of 8-bit integers, that of its scales: `[rows]` or `[rows, blocks]`.
const SCALES: &str = "scales";

/// A place among the tensors of a model: names are looked up behind its prefix.
///
/// Tensors come out as f32 on the device of the network (the CPU unless [`Weights::on`] says otherwise) whatever they are stored as: f32, f16, bf16, f64, or 8-bit integers with a
/// tensor `NAME.scales` beside them (row-major; each row of `[rows, columns]` in equal blocks with one scale each).
#[derive(Clone)]
pub(crate) struct Weights {
    files: Arc<Files>,
    prefix: String,
    /// Where the network computes.
    device: Device,
}

struct Files {
    origin: String,
    files: Vec<Arc<Mapped>>,
    tensors: BTreeMap<String, Place>,
    read: Mutex<HashSet<String>>,
    sha256: String,
}

struct Mapped {
    bytes: Bytes,
    /// Where the values begin.
    data: usize,
}

/// The bytes of a file.
pub(crate) enum Bytes {
    Mapped(Mmap),
    Read(Cow<'static, [u8]>),
}

impl Bytes {
    /// Says that a part will not be read soon: its pages leave this process's memory, and come back from the file when
    /// it is read again. Without it a model takes twice its size while it is loaded.
    fn set_aside(&self, part: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: the map is shared and never written to, so that whoever reads a page that was given back sees the
            // file's bytes again.
            let done = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, part.start, part.len()) };
            // It is advice: where it cannot be followed the pages stay.
            let _ = done;
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}

#[derive(Clone)]
struct Place {
    file: usize,
    info: TensorInfo,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors` (see [`single`]), or the shards that `model.safetensors.index.json` names; of a FROMAGe
    /// its checkpoint and the models that it stands on.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadConfig`] for the index, [`ModelError::BadWeights`].
    pub(crate) fn open(folder: &ModelFolder) -> Result<Self, ModelError> {
        if folder.is_fromage() {
            return fromage::weights(folder);
        }
        let single = single(|name| folder.has(name));
        let Some(index) = folder.read_if_there(INDEX)?.filter(|_| !folder.has(single)) else {
            return Self::from_files(
                folder.file_name(single),
                vec![(folder.file_name(single), bytes(folder, single)?)],
            );
        };
        let bad = |problem: String| ModelError::BadConfig { origin: folder.file_name(INDEX), problem };
        let index: Index = serde_json::from_slice(&index)
            .map_err(|e| bad(format!("expected JSON with a `weight_map`, found: {e}")))?;
        let shards: std::collections::BTreeSet<&String> = index.weight_map.values().collect();
        if let Some(path) = shards.iter().find(|name| name.contains(['/', '\\'])) {
            return Err(bad(format!("expected `weight_map` to name files of the folder, found the path {path:?}")));
        }
        let mut files = Vec::with_capacity(shards.len());
        for name in shards {
            files.push((folder.file_name(name), bytes(folder, name)?));
        }
        let weights = Self::from_files(folder.file_name(INDEX), files)?;
        if let Some(name) = index.weight_map.keys().find(|name| !weights.files.tensors.contains_key(*name)) {
            return Err(weights.bad(format!("expected the tensor {name} in {}, found none", index.weight_map[name])));
        }
        Ok(weights)
    }

    /// Opens the dictionary `key` of a checkpoint that torch saved, where it lies.
    ///
    /// # Errors
    /// [`ModelError::Unreadable`], [`ModelError::BadWeights`] for what is no dictionary of tensors.
    pub(crate) fn checkpoint(folder: &ModelFolder, name: &str, key: &str) -> Result<Self, ModelError> {
        let (origin, bytes) = (folder.file_name(name), bytes(folder, name)?);
        let tensors = checkpoint::tensors(&bytes, key)
            .map_err(|problem| ModelError::BadWeights { origin: origin.clone(), problem })?;
        let sha256 = hexadecimal(&digest(&origin, &bytes));
        let tensors = tensors.into_iter().map(|(name, info)| (name, Place { file: 0, info })).collect();
        let files = vec![Arc::new(Mapped { bytes, data: 0 })];
        let files = Files { origin, files, tensors, read: Mutex::default(), sha256 };
        Ok(Self { files: Arc::new(files), prefix: String::new(), device: Device::Cpu })
    }

    /// Several models as one: the tensors of each behind its name and a dot, or as they are where the name is empty. The
    /// sha256 is that of theirs in hexadecimal, one after the other.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] where two have a tensor of one name.
    pub(crate) fn together(parts: &[(&str, Self)]) -> Result<Self, ModelError> {
        let (mut files, mut tensors, mut digests) = (Vec::new(), BTreeMap::new(), Sha256::new());
        for (part, weights) in parts {
            let before = files.len();
            for (name, place) in &weights.files.tensors {
                let name = if part.is_empty() { name.clone() } else { format!("{part}.{name}") };
                let place = Place { file: before + place.file, info: place.info.clone() };
                if tensors.insert(name.clone(), place).is_some() {
                    return Err(weights.bad(format!("expected each tensor once, found {name} in another file too")));
                }
            }
            files.extend(weights.files.files.iter().cloned());
            digests.update(weights.sha256());
        }
        let origins: Vec<&str> = parts.iter().map(|(_, weights)| weights.files.origin.as_str()).collect();
        let (origin, sha256) = (origins.join(", "), hexadecimal(&digests.finalize()));
        let files = Files { origin, files, tensors, read: Mutex::default(), sha256 };
        Ok(Self { files: Arc::new(files), prefix: String::new(), device: Device::Cpu })
    }

    /// Reads one safetensors buffer; `origin` names it in errors.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] where the buffer is no safetensors file.
    #[cfg(test)]
    pub(crate) fn read(origin: &str, buffer: Cow<'static, [u8]>) -> Result<Self, ModelError> {
        Self::from_files(origin.to_owned(), vec![(origin.to_owned(), Bytes::Read(buffer))])
    }

    fn from_files(origin: String, sources: Vec<(String, Bytes)>) -> Result<Self, ModelError> {
        let (mut files, mut tensors, mut digests) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (name, bytes) in sources {
            let bad = |problem: String| ModelError::BadWeights { origin: name.clone(), problem };
            let (header, metadata) = SafeTensors::read_metadata(&bytes)
                .map_err(|e| bad(format!("expected a safetensors file, found bytes that do not parse as one ({e})")))?;
            let data = header + size_of::<u64>();
            if bytes.len() - data < metadata.data_len() {
                return Err(bad(format!(
                    "expected {} bytes of values, found {}; the file is cut short",
                    metadata.data_len(),
                    bytes.len() - data
                )));
            }
            digests.push(digest(&name, &bytes));
            for (tensor, info) in metadata.tensors() {
                let place = Place {
                    file: files.len(),
                    info: TensorInfo { dtype: info.dtype, shape: info.shape.clone(), data_offsets: info.data_offsets },
                };
                if tensors.insert(tensor.clone(), place).is_some() {
                    return Err(bad(format!("expected each tensor once, found {tensor} in two files")));
                }
            }
            files.push(Arc::new(Mapped { bytes, data }));
        }
        let sha256 = match digests.as_slice() {
            [one] => hexadecimal(one),
            several => hexadecimal(&Sha256::digest(several.concat())),
        };
        let files = Files { origin, files, tensors, read: Mutex::default(), sha256 };
        Ok(Self { files: Arc::new(files), prefix: String::new(), device: Device::Cpu })
    }

    /// The same for a network that computes on `device`.
    pub(crate) fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// Where the network computes.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Sha256 of the file in hexadecimal; for shards, of their digests one after the other in the order of their names.
    pub(crate) fn sha256(&self) -> &str {
        &self.files.sha256
    }

    /// Bytes of all files.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.files.files.iter().map(|file| file.bytes.len() as u64).sum()
    }

    /// The tensors behind `PREFIX.name.`
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        let prefix = self.full(&name.to_string()) + ".";
        Self { files: self.files.clone(), prefix, device: self.device.clone() }
    }

    /// The first of `names` behind which there are tensors, or else the first: checkpoints of other ages and heads
    /// name the same part differently. The empty name is this place itself.
    pub(crate) fn at_first(&self, names: &[&str]) -> Self {
        let place = |name: &&str| if name.is_empty() { self.clone() } else { self.at(name) };
        let places: Vec<Self> = names.iter().map(place).collect();
        let found = places.iter().find(|place| !place.is_empty()).or(places.first());
        found.cloned().unwrap_or_else(|| self.clone())
    }

    /// Whether there is no tensor at this place.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.tensors.range(self.prefix.clone()..).next().is_none_or(|(name, _)| !name.starts_with(&self.prefix))
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.tensors.contains_key(&self.full(name))
    }

    /// The shape of the tensor `name`, if there is one.
    pub(crate) fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.files.tensors.get(&self.full(name)).map(|place| place.info.shape.as_slice())
    }

    /// The tensor `name`, which must have the shape `shape`, as f32 on the network's device.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] where it is missing, has another shape, or does not hold floats;
    /// [`ModelError::DeviceMemory`].
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.tensor_on_cpu(name, shape)?.to_device(&self.device).map_err(compute("a model's weights"))
    }

    /// As [`Weights::tensor`], on the CPU, for what is looked at there.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub(crate) fn tensor_on_cpu(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let name = self.full(name);
        let Some(place) = self.files.tensors.get(&name) else {
            return Err(self.bad(format!("expected a tensor {name} of shape {shape:?}, found none of that name")));
        };
        if place.info.shape != shape {
            return Err(self
                .bad(format!("expected the tensor {name} to have the shape {shape:?}, found {:?}", place.info.shape)));
        }
        self.mark_read(&name);
        if place.info.dtype == Dtype::I8 {
            return self.scaled(&name, place, shape);
        }
        let loaded = self.view(place).and_then(|view| view.load(&Device::Cpu)?.to_dtype(DType::F32));
        let file = &self.files.files[place.file];
        let (start, end) = place.info.data_offsets;
        file.bytes.set_aside(file.data + start..file.data + end);
        loaded.map_err(|e| self.bad(format!("expected the tensor {name} to hold floats ({e})")))
    }

    /// The values of the tensor `name` of shape `shape`, in row-major order.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and where a value is not finite.
    pub(crate) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let tensor = self.tensor_on_cpu(name, shape)?;
        let name = self.full(name);
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

    /// Refuses tensors that nobody read: a part of the network that this crate does not have. `known` are prefixes of
    /// tensors that an answer does not need (another head, the other tower).
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] names up to five of them.
    pub(crate) fn finish(&self, known: &[&str]) -> Result<(), ModelError> {
        let read = self.files.read.lock().unwrap_or_else(PoisonError::into_inner);
        // Buffers that older files carry: 0, 1, 2, … as a tensor, and the table of which tokens lie how far apart.
        let buffer = |name: &str| name.ends_with("position_ids") || name.ends_with("relative_position_index");
        let unread: Vec<&str> = self
            .files
            .tensors
            .keys()
            .map(String::as_str)
            .filter(|name| !read.contains(*name) && !buffer(name))
            .filter(|name| !known.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        if unread.is_empty() {
            return Ok(());
        }
        let (some, more) = (unread.len().min(5), unread.len().saturating_sub(5));
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Err(self.bad(format!(
            "expected only tensors of the architecture that config.json names, found also {}{more}",
            unread[..some].join(", ")
        )))
    }

    /// 8-bit integers times the scale of their block.
    fn scaled(&self, name: &str, place: &Place, shape: &[usize]) -> Result<Tensor, ModelError> {
        let scales = format!("{name}.{SCALES}");
        let Some(at) = self.files.tensors.get(&scales) else {
            return Err(self.bad(format!("expected the scales {scales} of the 8-bit tensor {name}, found none")));
        };
        self.mark_read(&scales);
        let scale: Vec<f32> = self
            .view(at)
            .and_then(|view| view.load(&Device::Cpu))
            .and_then(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1())
            .map_err(|e| self.bad(format!("expected {scales} to hold floats ({e})")))?;
        let bytes = self.bytes(place);
        let (rows, columns) = (shape[0], bytes.len() / shape[0].max(1));
        if scale.is_empty() || !scale.len().is_multiple_of(rows) || !bytes.len().is_multiple_of(scale.len()) {
            return Err(self.bad(format!(
                "expected {scales} to cut the {rows} rows of {columns} values into equal blocks, found {} scales",
                scale.len()
            )));
        }
        let block = bytes.len() / scale.len();
        let values: Vec<f32> = bytes
            .chunks(block)
            .zip(&scale)
            .flat_map(|(block, scale)| block.iter().map(move |&byte| f32::from(byte.cast_signed()) * scale))
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(|e| self.bad(format!("cannot read {name}: {e}")))
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        let file = &self.files.files[place.file];
        let (start, end) = place.info.data_offsets;
        &file.bytes[file.data + start..file.data + end]
    }

    fn view(&self, place: &Place) -> candle_core::Result<TensorView<'_>> {
        TensorView::new(place.info.dtype, place.info.shape.clone(), self.bytes(place))
            .map_err(|e| candle_core::Error::Msg(e.to_string()))
    }

    fn mark_read(&self, name: &str) {
        self.files.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub(crate) fn bad(&self, problem: String) -> ModelError {
        ModelError::BadWeights { origin: self.files.origin.clone(), problem }
    }
}

/// The file of a model without shards, of those that a folder `has`: open_clip's own name goes with its options.
pub(crate) fn single(has: impl Fn(&str) -> bool) -> &'static str {
    if !has("config.json") && has(OPEN_CLIP) { OPEN_CLIP } else { SINGLE }
}

/// What tells one content of a file from another, short of reading it: its name, size, and when it was changed.
type FileState = (String, usize, Option<SystemTime>);

/// Sha256 of a file, once per process and content: pipelines ask who their models are many times.
pub(crate) fn digest(name: &str, bytes: &Bytes) -> [u8; 32] {
    /// Bytes that are looked at before they are set aside.
    const PART: usize = 16 << 20;
    static KNOWN: Mutex<BTreeMap<FileState, [u8; 32]>> = Mutex::new(BTreeMap::new());
    let changed = std::fs::metadata(name).and_then(|file| file.modified()).ok();
    let state = (name.to_owned(), bytes.len(), changed);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(digest) = known().get(&state) {
        return *digest;
    }
    let mut digest = Sha256::new();
    for (i, part) in bytes.chunks(PART).enumerate() {
        digest.update(part);
        bytes.set_aside(i * PART..i * PART + part.len());
    }
    let digest: [u8; 32] = digest.finalize().into();
    known().insert(state, digest);
    digest
}

pub(crate) fn bytes(folder: &ModelFolder, name: &str) -> Result<Bytes, ModelError> {
    let ModelFolder::OnDisk(path) = folder else { return Ok(Bytes::Read(folder.read(name)?)) };
    let path = path.join(name);
    // SAFETY: the map is only read, as bytes, which any content is valid for. A file that another process cuts short
    // while it is mapped ends this process by a signal, as for every program that maps files; replacing the file by
    // renaming another over it, as downloads do, is safe.
    let map = File::open(&path).and_then(|file| unsafe { Mmap::map(&file) });
    map.map(Bytes::Mapped).map_err(|e| ModelError::Unreadable { path, reason: e.to_string() })
}

#[cfg(test)]
mod tests;
