//! The precomputed embeddings of FROMAGe: a Python pickle of `{"paths": [text, …], "embeddings": N × D numbers}`.
//!
//! A pickle is a program. This reads the few instructions that dictionaries, lists, numbers, texts, NumPy arrays of
//! floats and PyTorch's tensors of floats need, runs nothing, and refuses the rest by name. What is written needs
//! `numpy.ndarray` alone to be loaded.

use std::{borrow::Cow, fs, io::Write, ops::Range, path::Path, rc::Rc};

use arrow::{
    array::{AsArray, Float16Array},
    buffer::{Buffer, ScalarBuffer},
    compute::cast,
    datatypes::{DataType, Float32Type},
};

use super::Matrix;
use crate::IndexError;

/// Pictures and their embeddings, row by row the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Fromage {
    /// Addresses or paths.
    pub paths: Vec<String>,
    /// Embeddings as they were given; FROMAGe makes them unit length when it loads them.
    pub embeddings: Matrix,
}

/// Reads a file of precomputed embeddings: a NumPy array of `<f2`, `<f4` or `<f8`, a tensor of PyTorch that is on the CPU
/// (`bfloat16` too), or a list of such rows, which is what FROMAGe's `extract_img_embs.py` writes, or of lists of numbers.
///
/// # Errors
/// [`IndexError::Damaged`] for anything else.
pub fn read_fromage(path: &Path) -> Result<Fromage, IndexError> {
    let bytes = fs::read(path).map_err(|e| IndexError::io(path, e))?;
    parse(&bytes).map_err(|problem| IndexError::damaged(path, problem))
}

fn parse(bytes: &[u8]) -> Outcome<Fromage> {
    let mut machine = Machine::new(bytes);
    let found = machine.run().and_then(|top| fromage(top, bytes.len()));
    found.map_err(|problem| format!("byte {}: {problem}", machine.at))
}

/// What stands before the numbers and after them, so that `pickle.load` makes the dictionary.
pub(super) fn write_head(out: &mut impl Write, paths: &[String], dims: usize) -> std::io::Result<()> {
    let text = |text: &str| [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    // Protocol 4; {"paths": [
    out.write_all(b"\x80\x04}(")?;
    out.write_all(&text("paths"))?;
    out.write_all(b"](")?;
    for path in paths {
        out.write_all(&text(path))?;
    }
    // ], "embeddings": numpy.ndarray((rows, dims), "<f4", bytes)}
    out.write_all(b"e")?;
    out.write_all(&text("embeddings"))?;
    out.write_all(b"cnumpy\nndarray\n")?;
    for number in [paths.len(), dims] {
        out.write_all(b"J")?;
        out.write_all(&(number as i32).to_le_bytes())?;
    }
    out.write_all(b"\x86")?;
    out.write_all(&text("<f4"))?;
    out.write_all(b"\x8e")?;
    out.write_all(&((paths.len() * dims * 4) as u64).to_le_bytes())
}

/// What [`write_head`] leaves open.
pub(super) const TAIL: &[u8] = b"\x87Ru.";

#[derive(Debug, Clone)]
enum Value<'a> {
    Mark,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    Bytes(Rc<Cow<'a, [u8]>>),
    Global(Rc<str>),
    /// Holds no lists or tuples that hold some again, so that a small file cannot nest deeply.
    Tuple(Rc<[Value<'a>]>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Rc<str>, Value<'a>)>),
    /// Little-endian.
    Dtype(Float),
    /// That so many floats stand behind the pickle: what is said of a tensor's values.
    Announced(Float, usize),
    /// A tensor's values: their place in the bytes.
    Storage(Float, Rc<Cow<'a, [u8]>>, Range<usize>),
    /// An array before its state is set.
    Unset,
    Array(Vec<usize>, Vec<f32>),
}

type Outcome<T> = Result<T, String>;

/// How a number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Float {
    F16,
    Bf16,
    F32,
    F64,
}

impl Float {
    /// In bytes.
    fn width(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// A type of NumPy.
    fn of_numpy(name: &str) -> Outcome<Self> {
        match name.strip_prefix('<').unwrap_or(name) {
            "f2" => Ok(Self::F16),
            "f4" => Ok(Self::F32),
            "f8" => Ok(Self::F64),
            _ => Err(format!("expected numbers of the type f2, f4 or f8, found {name:?}; {WANTED}")),
        }
    }

    /// A class of PyTorch's.
    fn of_torch(storage: &str) -> Option<Self> {
        match storage {
            "torch.HalfStorage" => Some(Self::F16),
            "torch.BFloat16Storage" => Some(Self::Bf16),
            "torch.FloatStorage" => Some(Self::F32),
            "torch.DoubleStorage" => Some(Self::F64),
            _ => None,
        }
    }
}

/// Most bytes of all paths, unless the file is so large itself.
const MOST_PATH_BYTES: usize = 256 << 20;

/// What `embeddings` should have been.
const WANTED: &str = "expected a NumPy array or a tensor of floats, or a list of such rows; save numpy.stack([numpy.asarray(e, '<f4') for e in embeddings])";

/// The dictionary as paths and embeddings; `size` is the file's in bytes.
fn fromage(top: Value<'_>, size: usize) -> Outcome<Fromage> {
    let Value::Dict(items) = top else { return Err("expected a dictionary of paths and embeddings".into()) };
    let (mut paths, mut embeddings) = (None, None);
    for (key, value) in items {
        match &*key {
            "paths" => paths = Some(value),
            "embeddings" => embeddings = Some(value),
            _ => {}
        }
    }
    let Some(Value::List(paths)) = paths else { return Err("expected a list of texts under \"paths\"".into()) };
    let paths: Option<Vec<Rc<str>>> =
        paths.into_iter().map(|p| if let Value::Text(text) = p { Some(text) } else { None }).collect();
    let paths = paths.ok_or("expected a list of texts under \"paths\"")?;
    // In the file a text may stand once for many rows.
    if paths.iter().map(|p| p.len()).sum::<usize>() > MOST_PATH_BYTES.max(8 * size) {
        return Err("expected paths, found texts that are far longer than the file".into());
    }
    let embeddings = match embeddings {
        Some(Value::Array(shape, values)) => match shape[..] {
            [_, dims] if dims > 0 => Matrix { dims, values },
            _ => return Err(format!("expected embeddings of rows and dimensions, found the shape {shape:?}")),
        },
        Some(Value::List(rows)) => {
            let mut all = Matrix { dims: 0, values: Vec::new() };
            for (i, row) in rows.iter().enumerate() {
                let row = floats(row).ok_or_else(|| WANTED.to_owned())?;
                if i == 0 {
                    all.dims = row.len();
                }
                if row.len() != all.dims || row.is_empty() {
                    return Err(format!("embedding {i}: expected {} numbers, found {}", all.dims, row.len()));
                }
                all.values.extend_from_slice(&row);
            }
            all
        }
        _ => return Err(format!("\"embeddings\": {WANTED}")),
    };
    if embeddings.rows().len() != paths.len() {
        return Err(format!("expected an embedding a path, found {} for {}", embeddings.rows().len(), paths.len()));
    }
    Ok(Fromage { paths: paths.iter().map(|p| (**p).to_owned()).collect(), embeddings })
}

fn floats<'v>(value: &'v Value<'_>) -> Option<Cow<'v, [f32]>> {
    match value {
        Value::Array(shape, values) if shape.len() == 1 => Some(Cow::Borrowed(values)),
        Value::List(numbers) => numbers
            .iter()
            .map(|number| match number {
                Value::Float(x) => Some(*x as f32),
                Value::Int(x) => Some(*x as f32),
                _ => None,
            })
            .collect::<Option<Vec<f32>>>()
            .map(Cow::Owned),
        _ => None,
    }
}

/// Runs the instructions of a pickle.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    memo: Vec<Option<Value<'a>>>,
    /// Bytes that arrays were made of so far.
    spent: usize,
    /// Bytes of the texts that were made into bytes so far.
    encoded: usize,
    /// Bytes that tensors' values were looked for in so far.
    unpacked: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, stack: Vec::new(), memo: Vec::new(), spent: 0, encoded: 0, unpacked: 0 }
    }

    /// What the next pickle makes, if several stand behind each other.
    fn next(&mut self) -> Outcome<Value<'a>> {
        (self.stack, self.memo) = (Vec::new(), Vec::new());
        self.run()
    }

    fn run(&mut self) -> Outcome<Value<'a>> {
        loop {
            let code = self.take(1)?[0];
            match code {
                b'.' => return self.pop(),
                0x80 => self.skip(1)?,
                0x95 => self.skip(8)?,
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool(code == 0x88)),
                b'K' => self.integer(1)?,
                b'M' => self.integer(2)?,
                b'J' => {
                    let number = self.number(4)? as u32 as i32;
                    self.stack.push(Value::Int(number.into()));
                }
                0x8a => {
                    let length = self.take(1)?[0] as usize;
                    if length > 8 {
                        return Err("expected numbers of 64 bits".into());
                    }
                    let number = self.number(length)?;
                    let shift = 64 - 8 * length as u32;
                    // Two's complement of `length` bytes.
                    let number = if length == 0 { 0 } else { ((number << shift) as i64) >> shift };
                    self.stack.push(Value::Int(number));
                }
                b'G' => {
                    let bits = self.take(8)?.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
                    self.stack.push(Value::Float(f64::from_bits(bits)));
                }
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'C' => self.data(1)?,
                b'B' => self.data(4)?,
                0x8e | 0x96 => self.data(8)?,
                b']' => self.stack.push(Value::List(Vec::new())),
                b'}' => self.stack.push(Value::Dict(Vec::new())),
                b')' => self.stack.push(Value::Tuple(Rc::from([]))),
                0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(code - 0x84)).ok_or(SHORT)?;
                    self.tuple(from)?;
                }
                b't' => {
                    let items = self.since_mark()?;
                    let from = self.stack.len();
                    self.stack.extend(items);
                    self.tuple(from)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.since_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(items)?;
                }
                b'q' => {
                    let place = self.number(1)?;
                    self.put(place)?;
                }
                b'r' => {
                    let place = self.number(4)?;
                    self.put(place)?;
                }
                0x94 => self.put(self.memo.len() as u64)?,
                b'h' => {
                    let place = self.number(1)?;
                    self.get(place)?;
                }
                b'j' => {
                    let place = self.number(4)?;
                    self.get(place)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (module, name) else { return Err(OTHER.into()) };
                    self.global(&module, &name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.stack.push(announced(&id)?);
                }
                b'R' => self.call()?,
                b'b' => self.build()?,
                other => return Err(format!("{OTHER} (instruction {other:#04x})")),
            }
        }
    }

    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let bytes: &'a [u8] = self.bytes;
        let end = self.at.checked_add(count).ok_or(SHORT)?;
        let taken = bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Outcome<()> {
        self.take(count).map(drop)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, bytes: usize) -> Outcome<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    }

    fn integer(&mut self, bytes: usize) -> Outcome<()> {
        let number = self.number(bytes)? as i64;
        self.stack.push(Value::Int(number));
        Ok(())
    }

    fn sized(&mut self, width: usize) -> Outcome<&'a [u8]> {
        let length = usize::try_from(self.number(width)?).map_err(|_| SHORT)?;
        self.take(length)
    }

    fn text(&mut self, width: usize) -> Outcome<()> {
        let text = str::from_utf8(self.sized(width)?).map_err(|_| "expected texts in UTF-8")?;
        self.stack.push(Value::Text(text.into()));
        Ok(())
    }

    fn data(&mut self, width: usize) -> Outcome<()> {
        let bytes = self.sized(width)?;
        self.stack.push(Value::Bytes(Rc::new(Cow::Borrowed(bytes))));
        Ok(())
    }

    fn line(&mut self) -> Outcome<&'a str> {
        let bytes: &'a [u8] = self.bytes;
        let rest = bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or(SHORT)?;
        self.at += length + 1;
        str::from_utf8(&rest[..length]).map_err(|_| OTHER.into())
    }

    fn pop(&mut self) -> Outcome<Value<'a>> {
        self.stack.pop().ok_or_else(|| SHORT.into())
    }

    fn since_mark(&mut self) -> Outcome<Vec<Value<'a>>> {
        let mark = self.stack.iter().rposition(|value| matches!(value, Value::Mark)).ok_or(SHORT)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    /// What stands from `from` on becomes a tuple.
    fn tuple(&mut self, from: usize) -> Outcome<()> {
        let items = self.stack.split_off(from);
        let flat = |value: &Value<'_>| match value {
            Value::Tuple(inner) => !inner.iter().any(|i| matches!(i, Value::Tuple(_))),
            Value::Mark | Value::List(_) | Value::Dict(_) | Value::Array(..) => false,
            _ => true,
        };
        if !items.iter().all(flat) {
            return Err(OTHER.into());
        }
        self.stack.push(Value::Tuple(items.into()));
        Ok(())
    }

    fn append(&mut self, items: Vec<Value<'a>>) -> Outcome<()> {
        let flat = |value: &Value<'_>| match value {
            Value::List(inner) => !inner.iter().any(|i| matches!(i, Value::List(_) | Value::Array(..))),
            Value::Text(_) | Value::Int(_) | Value::Float(_) | Value::Array(..) => true,
            _ => false,
        };
        match self.stack.last_mut() {
            Some(Value::List(list)) if items.iter().all(flat) => list.extend(items),
            _ => return Err(OTHER.into()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Value<'a>>) -> Outcome<()> {
        let Some(Value::Dict(dict)) = self.stack.last_mut() else { return Err(OTHER.into()) };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let (Value::Text(key), Some(value)) = (key, items.next()) else { return Err(OTHER.into()) };
            let flat = match &value {
                Value::Dict(inner) => !inner.iter().any(|(_, value)| matches!(value, Value::Dict(_))),
                value => !matches!(value, Value::Mark),
            };
            if !flat {
                return Err(OTHER.into());
            }
            dict.push((key, value));
        }
        Ok(())
    }

    fn put(&mut self, place: u64) -> Outcome<()> {
        // Places are counted up.
        let place = usize::try_from(place).ok().filter(|p| *p <= self.memo.len()).ok_or(OTHER)?;
        let shared = match self.stack.last().ok_or(SHORT)? {
            // These change after they were noted; nothing here needs them a second time.
            Value::Mark | Value::List(_) | Value::Dict(_) | Value::Unset | Value::Array(..) => None,
            value => Some(value.clone()),
        };
        match self.memo.get_mut(place) {
            Some(noted) => *noted = shared,
            None => self.memo.push(shared),
        }
        Ok(())
    }

    fn get(&mut self, place: u64) -> Outcome<()> {
        let value = usize::try_from(place).ok().and_then(|p| self.memo.get(p)).cloned().flatten();
        self.stack.push(value.ok_or(OTHER)?);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Outcome<()> {
        // NumPy 2 calls its core `_core`.
        let plain = format!("{module}.{name}").replacen("numpy._core.", "numpy.core.", 1);
        if !KNOWN.contains(&plain.as_str()) {
            return Err(format!("the file asks for {module}.{name}, which is not run; {WANTED}"));
        }
        self.stack.push(Value::Global(plain.into()));
        Ok(())
    }

    fn call(&mut self) -> Outcome<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(function)) = (arguments, function) else {
            return Err(OTHER.into());
        };
        let made = match (&*function, &arguments[..]) {
            ("numpy.core.multiarray._reconstruct", _) => Value::Unset,
            ("numpy.dtype", [Value::Text(name), ..]) => Value::Dtype(Float::of_numpy(name)?),
            // Bytes of the old protocols: a text of the characters 0 to 255.
            ("_codecs.encode", [Value::Text(text), Value::Text(coding)]) if &**coding == "latin1" => {
                // As with arrays: a text that is noted once could be copied without end.
                self.encoded = self.encoded.saturating_add(text.len());
                if self.encoded > self.bytes.len() {
                    return Err(OTHER.into());
                }
                let bytes: Result<Vec<u8>, _> = text.chars().map(|c| u8::try_from(u32::from(c))).collect();
                Value::Bytes(Rc::new(Cow::Owned(bytes.map_err(|_| OTHER)?)))
            }
            ("numpy.ndarray", [shape, Value::Text(dtype), Value::Bytes(bytes)]) => {
                self.array(shape, Float::of_numpy(dtype)?, bytes)?
            }
            // A tensor's hooks, of which none are saved.
            ("collections.OrderedDict", []) => Value::None,
            ("torch.storage._load_from_bytes", [Value::Bytes(bytes)]) => {
                // Bytes that are noted once could be read without end.
                self.unpacked = self.unpacked.saturating_add(bytes.len());
                if self.unpacked > self.bytes.len() {
                    return Err(OTHER.into());
                }
                let (float, place) = storage(bytes)?;
                Value::Storage(float, Rc::clone(bytes), place)
            }
            (
                "torch._utils._rebuild_tensor_v2",
                [Value::Storage(float, bytes, place), Value::Int(offset), shape, Value::Tuple(strides), ..],
            ) => {
                if !is_row_major(shape, strides) {
                    return Err(format!("expected rows one after the other, found other strides; {WANTED}"));
                }
                let count = numbers(shape).and_then(|n| n.iter().try_fold(float.width(), |all, n| all.checked_mul(*n)));
                let start = usize::try_from(*offset).ok().and_then(|offset| offset.checked_mul(float.width()));
                let part = start.zip(count).and_then(|(start, count)| bytes[place.clone()].get(start..)?.get(..count));
                self.array(shape, *float, part.ok_or("expected a tensor's values, found fewer")?)?
            }
            (
                "numpy.core.numeric._frombuffer",
                [Value::Bytes(bytes), Value::Dtype(float), shape, Value::Text(order)],
            ) => {
                if &**order != "C" {
                    return Err(format!("expected rows one after the other (C order); {WANTED}"));
                }
                self.array(shape, *float, bytes)?
            }
            _ => return Err(OTHER.into()),
        };
        self.stack.push(made);
        Ok(())
    }

    /// As [`array`]; all arrays together are made of no more bytes than the file has.
    fn array(&mut self, shape: &Value<'_>, float: Float, bytes: &[u8]) -> Outcome<Value<'a>> {
        self.spent = self.spent.saturating_add(bytes.len());
        if self.spent > self.bytes.len() { Err(OTHER.into()) } else { array(shape, float, bytes) }
    }

    fn build(&mut self) -> Outcome<()> {
        let (state, object) = (self.pop()?, self.pop()?);
        let Value::Tuple(state) = state else { return Err(OTHER.into()) };
        let made = match (object, &state[..]) {
            (Value::Dtype(float), [_, Value::Text(order), ..]) if &**order == "<" => Value::Dtype(float),
            (Value::Dtype(_), _) => return Err(format!("expected little-endian numbers; {WANTED}")),
            (Value::Unset, [_, shape, Value::Dtype(float), Value::Bool(false), Value::Bytes(bytes)]) => {
                self.array(shape, *float, bytes)?
            }
            (Value::Unset, [_, _, _, Value::Bool(true), _]) => {
                return Err(format!("expected rows one after the other (C order); {WANTED}"));
            }
            _ => return Err(OTHER.into()),
        };
        self.stack.push(made);
        Ok(())
    }
}

/// The functions whose effect is known here.
const KNOWN: [&str; 12] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.FloatStorage",
    "torch.DoubleStorage",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
];

const SHORT: &str = "the pickle is cut off";
const OTHER: &str = "expected a pickle of paths and embeddings alone, found other things";

/// What a tensor's values begin with that are pickled inside another pickle: torch's number for its files, and the version.
const TORCH: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";

/// Kind and place of the values that torch has saved: behind [`TORCH`] pickles of the machine, of what the values are and
/// of their name, then how many they are, and they themselves.
fn storage(bytes: &[u8]) -> Outcome<(Float, Range<usize>)> {
    let wrong = || format!("expected a tensor's values as torch saves them, found other bytes; {WANTED}");
    let mut machine = Machine::new(bytes.strip_prefix(TORCH).ok_or_else(wrong)?);
    let Value::Dict(system) = machine.next()? else { return Err(wrong()) };
    if !system.iter().any(|(key, value)| &**key == "little_endian" && matches!(value, Value::Bool(true))) {
        return Err(format!("expected little-endian numbers; {WANTED}"));
    }
    let Value::Announced(float, count) = machine.next()? else { return Err(wrong()) };
    machine.next()?;
    let found = machine.number(8)?;
    let length = count.checked_mul(float.width()).filter(|_| usize::try_from(found) == Ok(count)).ok_or_else(wrong)?;
    machine.skip(length)?;
    let end = TORCH.len() + machine.at;
    Ok((float, end - length..end))
}

/// The values that `id` stands for: `("storage", class, name, device, count, None)`.
fn announced<'a>(id: &Value<'_>) -> Outcome<Value<'a>> {
    let Value::Tuple(id) = id else { return Err(OTHER.into()) };
    let [Value::Text(kind), Value::Global(class), _, _, Value::Int(count), Value::None] = &id[..] else {
        return Err(OTHER.into());
    };
    let float = Float::of_torch(class).filter(|_| &**kind == "storage");
    Ok(Value::Announced(float.ok_or(OTHER)?, usize::try_from(*count).map_err(|_| OTHER)?))
}

/// The numbers of a tuple.
fn numbers(value: &Value<'_>) -> Option<Vec<usize>> {
    let Value::Tuple(values) = value else { return None };
    values.iter().map(|n| if let Value::Int(n) = n { usize::try_from(*n).ok() } else { None }).collect()
}

/// Whether a tensor's values stand one after the other; an axis of one value may have any step.
fn is_row_major(shape: &Value<'_>, strides: &[Value<'_>]) -> bool {
    let mut step = 1_usize;
    let Some(shape) = numbers(shape) else { return false };
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(&side, stride)| {
            let fits = side <= 1 || matches!(stride, Value::Int(stride) if usize::try_from(*stride) == Ok(step));
            step = step.saturating_mul(side);
            fits
        })
}

/// An array of one or two dimensions, rows one after the other.
fn array<'a>(shape: &Value<'_>, float: Float, bytes: &[u8]) -> Outcome<Value<'a>> {
    let shape =
        numbers(shape).filter(|s| matches!(s.len(), 1 | 2)).ok_or("expected arrays of one or two dimensions")?;
    let count = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n));
    if count.and_then(|n| n.checked_mul(float.width())) != Some(bytes.len()) {
        return Err(format!("expected an array of the shape {shape:?}, found {} bytes", bytes.len()));
    }
    let values = match float {
        Float::F16 => {
            let halves = Float16Array::new(ScalarBuffer::new(Buffer::from(bytes), 0, bytes.len() / 2), None);
            let floats = cast(&halves, &DataType::Float32).map_err(|e| e.to_string())?;
            floats.as_primitive::<Float32Type>().values().to_vec()
        }
        // The upper half of an f32.
        Float::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
        Float::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Float::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
    };
    Ok(Value::Array(shape, values))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    /// `pickle.dumps({"paths": ["http://a/1.jpg", "b"], "embeddings": numpy.arange(4, dtype="f4").reshape(2, 2)}, p)` of
    /// Python 3 with NumPy 2, for the protocols 2 and 4.
    const NUMPY: [&str; 2] = [
        "80027d7100285805000000706174687371015d710228580e000000687474703a2f2f612f312e6a70677103580100000062710465 \
         580a000000656d62656464696e67737105636e756d70792e5f636f72652e6d756c746961727261790a5f7265636f6e7374727563 \
         740a7106636e756d70790a6e6461727261790a71074b00857108635f636f646563730a656e636f64650a7109580100000062710a \
         58060000006c6174696e31710b86710c52710d87710e52710f284b014b024b02867110636e756d70790a64747970650a71115802 \
         000000663471128988877113527114284b0358010000003c71154e4e4e4affffffff4affffffff4b007471166289680958110000 \
         00000000000000c2803f00000040000040407117680b86711852711974711a62752e",
        "800495cd000000000000007d94288c057061746873945d94288c0e687474703a2f2f612f312e6a7067948c016294658c0a656d62 \
         656464696e6773948c166e756d70792e5f636f72652e6d756c74696172726179948c0c5f7265636f6e7374727563749493948c05 \
         6e756d7079948c076e6461727261799493944b0085944301629487945294284b014b024b02869468098c0564747970659493948c \
         02663494898887945294284b038c013c944e4e4e4affffffff4affffffff4b00749462894310000000000000803f000000400000 \
         404094749462752e",
    ];
    /// `pickle.dumps({"paths": ["a"], "embeddings": [[1.0, 2.5]]}, 4)`.
    const LISTS: &str = "8004953a000000000000007d94288c057061746873945d948c016194618c0a656d62656464696e6773945d945d9428473ff00000 \
         000000004740040000000000006561752e";
    /// `pickle.dumps({"paths": as above, "embeddings": embeddings}, p)` of Python 3 with torch 2.15: a list of two rows of one
    /// tensor of bfloat16 for the protocol 4, as FROMAGe's `extract_img_embs.py` makes them, and a whole tensor for the 2.
    const TENSORS: [&str; 2] = [
        "800495ec020000000000007d94288c057061746873945d94288c0e687474703a2f2f612f312e6a7067948c016294658c0a656d62 \
         656464696e6773945d94288c0c746f7263682e5f7574696c73948c125f72656275696c645f74656e736f725f7632949394288c0d \
         746f7263682e73746f72616765948c105f6c6f61645f66726f6d5f6279746573949394420601000080028a0a6cfc9c46f9206aa8 \
         50192e80024de9032e80027d710028581000000070726f746f636f6c5f76657273696f6e71014de903580d0000006c6974746c65 \
         5f656e6469616e710288580a000000747970655f73697a657371037d710428580500000073686f727471054b025803000000696e \
         7471064b0458040000006c6f6e6771074b0475752e800228580700000073746f72616765710063746f7263680a42466c6f617431 \
         3653746f726167650a7101580e00000039343638323438393031393834307102580300000063707571034b044e747104512e8002 \
         5d7100580e00000039343638323438393031393834307101612e04000000000000000000803f0040404094859452944b004b0285 \
         944b018594898c0b636f6c6c656374696f6e73948c0b4f7264657265644469637494939429529474945294680928680c42060100 \
         0080028a0a6cfc9c46f9206aa850192e80024de9032e80027d710028581000000070726f746f636f6c5f76657273696f6e71014d \
         e903580d0000006c6974746c655f656e6469616e710288580a000000747970655f73697a657371037d710428580500000073686f \
         727471054b025803000000696e7471064b0458040000006c6f6e6771074b0475752e800228580700000073746f72616765710063 \
         746f7263680a42466c6f6174313653746f726167650a7101580e0000003934363832343839303139383430710258030000006370 \
         7571034b044e747104512e80025d7100580e00000039343638323438393031393834307101612e04000000000000000000803f00 \
         40404094859452944b024b0285944b0185948968142952947494529465752e",
        "80027d7100285805000000706174687371015d710228580e000000687474703a2f2f612f312e6a70677103580100000062710465 \
         580a000000656d62656464696e6773710563746f7263682e5f7574696c730a5f72656275696c645f74656e736f725f76320a7106 \
         2863746f7263682e73746f726167650a5f6c6f61645f66726f6d5f62797465730a7107635f636f646563730a656e636f64650a71 \
         085819010000c28002c28a0a6cc3bcc29c46c3b9206ac2a850192ec280024dc3a9032ec280027d710028581000000070726f746f \
         636f6c5f76657273696f6e71014dc3a903580d0000006c6974746c655f656e6469616e7102c288580a000000747970655f73697a \
         657371037d710428580500000073686f727471054b025803000000696e7471064b0458040000006c6f6e6771074b0475752ec280 \
         0228580700000073746f72616765710063746f7263680a466c6f617453746f726167650a7101580e000000393436383236303534 \
         33303937367102580300000063707571034b044e747104512ec280025d7100580e00000039343638323630353433303937367101 \
         612e0400000000000000000000000000c2803f0000004000004040710958060000006c6174696e31710a86710b52710c85710d52 \
         710e4b004b024b0286710f4b024b018671108963636f6c6c656374696f6e730a4f726465726564446963740a7111295271127471 \
         13527114752e",
    ];
    /// The same as the first with the array in Fortran's order, a dictionary with `os.system`'s call in it, and embeddings
    /// of whole numbers.
    const OTHERS: [(&str, &str); 3] = [
        (
            "800495cd000000000000007d94288c057061746873945d94288c0e687474703a2f2f612f312e6a7067948c016294658c0a656d62 \
         656464696e6773948c166e756d70792e5f636f72652e6d756c74696172726179948c0c5f7265636f6e7374727563749493948c05 \
         6e756d7079948c076e6461727261799493944b0085944301629487945294284b014b024b02869468098c0564747970659493948c \
         02663494898887945294284b038c013c944e4e4e4affffffff4affffffff4b0074946288431000000000000000400000803f0000 \
         404094749462752e",
            "C order",
        ),
        (
            "80049551000000000000007d94288c057061746873945d94288c0e687474703a2f2f612f312e6a7067948c016294658c0a656d62 \
         656464696e6773948c05706f736978948c0673797374656d9493948c04747275659485945294752e",
            "system, which is not run",
        ),
        (
            "800495cd000000000000007d94288c057061746873945d94288c0e687474703a2f2f612f312e6a7067948c016294658c0a656d62 \
         656464696e6773948c166e756d70792e5f636f72652e6d756c74696172726179948c0c5f7265636f6e7374727563749493948c05 \
         6e756d7079948c076e6461727261799493944b0085944301629487945294284b014b024b02869468098c0564747970659493948c \
         02693494898887945294284b038c013c944e4e4e4affffffff4affffffff4b007494628943100000000001000000020000000300 \
         000094749462752e",
            "f2, f4 or f8",
        ),
    ];

    #[test]
    fn pickles_of_python_are_read_and_nothing_is_run() {
        let paths = vec!["http://a/1.jpg".to_owned(), "b".to_owned()];
        let all = Fromage { paths: paths.clone(), embeddings: Matrix { dims: 2, values: vec![0.0, 1.0, 2.0, 3.0] } };
        for pickle in NUMPY.iter().chain(&TENSORS) {
            assert_eq!(parse(&bytes(pickle)).unwrap(), all);
        }
        let replaced = |from: &[u8], to: &[u8]| {
            let mut pickle = bytes(TENSORS[1]);
            let at = pickle.windows(from.len()).position(|part| part == from).unwrap();
            pickle.splice(at..at + from.len(), to.iter().copied());
            parse(&pickle).unwrap_err()
        };
        assert!(replaced(b"FloatStorage", b"ShortStorage").contains("torch.ShortStorage, which is not run"));
        assert!(replaced(b"K\x02K\x01\x86", b"K\x01K\x02\x86").contains("found other strides"));
        assert!(replaced(b"K\x00K\x02K\x02\x86", b"K\x01K\x02K\x02\x86").contains("values, found fewer"));
        assert!(replaced(b"endianq\x02\xc2\x88", b"endianq\x02\xc2\x89").contains("little-endian"));
        let lists = Fromage { paths: vec!["a".into()], embeddings: Matrix { dims: 2, values: vec![1.0, 2.5] } };
        assert_eq!(parse(&bytes(LISTS)).unwrap(), lists);
        for (pickle, words) in OTHERS {
            let error = parse(&bytes(pickle)).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let mut written = Vec::new();
        write_head(&mut written, &paths, 2).unwrap();
        written.extend([0.0_f32, 1.0, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()));
        written.extend(TAIL);
        assert_eq!(parse(&written).unwrap(), all);
        // Cut anywhere, and with any byte changed: refused or read, never a panic.
        let saved = [NUMPY[0], NUMPY[1], LISTS, TENSORS[0], TENSORS[1]].map(bytes);
        for whole in saved.into_iter().chain([written]) {
            for cut in 0..whole.len() {
                assert!(parse(&whole[..cut]).is_err(), "cut at {cut}");
            }
            for at in 0..whole.len() {
                for byte in [0, b'(', b'a', b'e', b't', b'u', b'R', b'b', 0x85, 0xFF] {
                    let mut changed = whole.clone();
                    changed[at] = byte;
                    let _ = parse(&changed);
                }
            }
        }
        // Lists in lists in lists, and one text a thousand times.
        let deep = [vec![0x80, 4], vec![b']'; 100_000], vec![b'a'; 99_999], vec![b'.']].concat();
        assert!(parse(&deep).is_err());
        assert!(parse(b"\x80\x04}(X\x05\0\0\0pathsNu.").unwrap_err().contains("list of texts"));
    }

    #[test]
    fn a_small_pickle_does_not_grow_without_end() {
        let text = |text: &str| [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        let long = text(&"x".repeat(1 << 20));
        // The long text noted once, then made into bytes again and again: `_codecs.encode(memo[0], "latin1")`.
        let encode = [&b"c_codecs\nencode\nh\0"[..], &text("latin1"), b"\x86R"].concat();
        let bytes = [&long[..], b"q\0", &encode.repeat(10_000), b"."].concat();
        assert!(parse(&bytes).unwrap_err().contains("paths and embeddings alone"));
        // A tensor's values with the long text before them, noted once and looked into again and again.
        let system = [&b"\x80\x02}"[..], &text("little_endian"), b"\x88s", &long, b"Ns."].concat();
        let id =
            [&b"\x80\x02("[..], &text("storage"), b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), b"K\x01NtQ."];
        let blob = [TORCH, &system, &id.concat(), b"\x80\x02].\x01\0\0\0\0\0\0\0\0\0\x80\x3F"].concat();
        assert_eq!(storage(&blob).unwrap(), (Float::F32, blob.len() - 4..blob.len()));
        let load = b"ctorch.storage\n_load_from_bytes\nh\0\x85R";
        let data = [&b"B"[..], &(blob.len() as u32).to_le_bytes(), &blob, b"q\0"].concat();
        let bytes = [&data[..], &load.repeat(10_000), b"."].concat();
        assert!(parse(&bytes).unwrap_err().contains("paths and embeddings alone"));
        // A million paths that are all the same long text.
        let paths = [&b"]("[..], &long, b"q\0", &b"h\0".repeat(1_000_000), b"e"].concat();
        let bytes = [&b"}("[..], &text("paths"), &paths, &text("embeddings"), b"]u."].concat();
        assert!(parse(&bytes).unwrap_err().contains("far longer than the file"));
    }
}
