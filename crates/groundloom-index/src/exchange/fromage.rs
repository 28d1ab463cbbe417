//! The precomputed embeddings of FROMAGe: a Python pickle of `{"paths": [text, …], "embeddings": N × D numbers}`.
//!
//! A pickle is a program. This reads the few instructions that dictionaries, lists, numbers, texts and NumPy arrays of
//! floats need, runs nothing, and refuses the rest by name. What is written needs `numpy.ndarray` alone to be loaded.

use std::{borrow::Cow, fs, io::Write, path::Path, rc::Rc};

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

/// Reads a file of precomputed embeddings: a NumPy array of `<f2`, `<f4` or `<f8`, or a list of such rows or of lists of
/// numbers.
///
/// # Errors
/// [`IndexError::Damaged`] for anything else, tensors of PyTorch among it.
pub fn read_fromage(path: &Path) -> Result<Fromage, IndexError> {
    let bytes = fs::read(path).map_err(|e| IndexError::io(path, e))?;
    let mut machine = Machine { bytes: &bytes, at: 0, stack: Vec::new(), memo: Vec::new(), spent: 0, encoded: 0 };
    let found = machine.run().and_then(|top| fromage(top, bytes.len()));
    found.map_err(|problem| IndexError::damaged(path, format!("byte {}: {problem}", machine.at)))
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
    /// Bytes of a little-endian float.
    Dtype(usize),
    /// An array before its state is set.
    Unset,
    Array(Vec<usize>, Vec<f32>),
}

type Outcome<T> = Result<T, String>;

/// Most bytes of all paths, unless the file is so large itself.
const MOST_PATH_BYTES: usize = 256 << 20;

/// What `embeddings` should have been.
const WANTED: &str = "expected a NumPy array of floats or a list of such rows; save numpy.stack([numpy.asarray(e, '<f4') for e in embeddings])";

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
}

impl<'a> Machine<'a> {
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
            if matches!(value, Value::Dict(_) | Value::Mark) {
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
            ("numpy.dtype", [Value::Text(name), ..]) => Value::Dtype(width(name)?),
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
                self.array(shape, width(dtype)?, bytes)?
            }
            (
                "numpy.core.numeric._frombuffer",
                [Value::Bytes(bytes), Value::Dtype(width), shape, Value::Text(order)],
            ) => {
                if &**order != "C" {
                    return Err(format!("expected rows one after the other (C order); {WANTED}"));
                }
                self.array(shape, *width, bytes)?
            }
            _ => return Err(OTHER.into()),
        };
        self.stack.push(made);
        Ok(())
    }

    /// As [`array`]; all arrays together are made of no more bytes than the file has.
    fn array(&mut self, shape: &Value<'_>, width: usize, bytes: &[u8]) -> Outcome<Value<'a>> {
        self.spent = self.spent.saturating_add(bytes.len());
        if self.spent > self.bytes.len() { Err(OTHER.into()) } else { array(shape, width, bytes) }
    }

    fn build(&mut self) -> Outcome<()> {
        let (state, object) = (self.pop()?, self.pop()?);
        let Value::Tuple(state) = state else { return Err(OTHER.into()) };
        let made = match (object, &state[..]) {
            (Value::Dtype(width), [_, Value::Text(order), ..]) if &**order == "<" => Value::Dtype(width),
            (Value::Dtype(_), _) => return Err(format!("expected little-endian numbers; {WANTED}")),
            (Value::Unset, [_, shape, Value::Dtype(width), Value::Bool(false), Value::Bytes(bytes)]) => {
                self.array(shape, *width, bytes)?
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
const KNOWN: [&str; 5] = [
    "numpy.core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
];

const SHORT: &str = "the pickle is cut off";
const OTHER: &str = "expected a pickle of paths and embeddings alone, found other things";

/// Bytes of a float type by its name.
fn width(dtype: &str) -> Outcome<usize> {
    match dtype.strip_prefix('<').unwrap_or(dtype) {
        "f2" => Ok(2),
        "f4" => Ok(4),
        "f8" => Ok(8),
        _ => Err(format!("expected numbers of the type f2, f4 or f8, found {dtype:?}; {WANTED}")),
    }
}

/// An array of one or two dimensions, rows one after the other.
fn array<'a>(shape: &Value<'_>, width: usize, bytes: &[u8]) -> Outcome<Value<'a>> {
    let Value::Tuple(shape) = shape else { return Err(OTHER.into()) };
    let shape: Option<Vec<usize>> =
        shape.iter().map(|n| if let Value::Int(n) = n { usize::try_from(*n).ok() } else { None }).collect();
    let shape = shape.filter(|s| matches!(s.len(), 1 | 2)).ok_or("expected arrays of one or two dimensions")?;
    let count = shape.iter().try_fold(1_usize, |all, n| all.checked_mul(*n));
    if count.and_then(|n| n.checked_mul(width)) != Some(bytes.len()) {
        return Err(format!("expected an array of the shape {shape:?}, found {} bytes", bytes.len()));
    }
    let values = match width {
        2 => {
            let halves = Float16Array::new(ScalarBuffer::new(Buffer::from(bytes), 0, bytes.len() / 2), None);
            let floats = cast(&halves, &DataType::Float32).map_err(|e| e.to_string())?;
            floats.as_primitive::<Float32Type>().values().to_vec()
        }
        4 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        _ => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
    };
    Ok(Value::Array(shape, values))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(bytes: &[u8]) -> Result<Fromage, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cc3m_embeddings.pkl");
        fs::write(&path, bytes).unwrap();
        read_fromage(&path).map_err(|e| e.to_string())
    }

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
        for pickle in NUMPY {
            assert_eq!(read(&bytes(pickle)).unwrap(), all);
        }
        let lists = Fromage { paths: vec!["a".into()], embeddings: Matrix { dims: 2, values: vec![1.0, 2.5] } };
        assert_eq!(read(&bytes(LISTS)).unwrap(), lists);
        for (pickle, words) in OTHERS {
            let error = read(&bytes(pickle)).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let mut written = Vec::new();
        write_head(&mut written, &paths, 2).unwrap();
        written.extend([0.0_f32, 1.0, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()));
        written.extend(TAIL);
        assert_eq!(read(&written).unwrap(), all);
        // Cut anywhere, and with any byte changed: refused or read, never a panic.
        for whole in [bytes(NUMPY[0]), bytes(NUMPY[1]), bytes(LISTS), written] {
            for cut in 0..whole.len() {
                assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
            }
            for at in 0..whole.len() {
                for byte in [0, b'(', b'a', b'e', b't', b'u', b'R', b'b', 0x85, 0xFF] {
                    let mut changed = whole.clone();
                    changed[at] = byte;
                    let _ = read(&changed);
                }
            }
        }
        // Lists in lists in lists, and one text a thousand times.
        let deep = [vec![0x80, 4], vec![b']'; 100_000], vec![b'a'; 99_999], vec![b'.']].concat();
        assert!(read(&deep).is_err());
        assert!(read(b"\x80\x04}(X\x05\0\0\0pathsNu.").unwrap_err().contains("list of texts"));
    }

    #[test]
    fn a_small_pickle_does_not_grow_without_end() {
        let text = |text: &str| [&[b'X'][..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        let long = text(&"x".repeat(1 << 20));
        // The long text noted once, then made into bytes again and again: `_codecs.encode(memo[0], "latin1")`.
        let encode = [&b"c_codecs\nencode\nh\0"[..], &text("latin1"), b"\x86R"].concat();
        let bytes = [&long[..], b"q\0", &encode.repeat(10_000), b"."].concat();
        assert!(read(&bytes).unwrap_err().contains("paths and embeddings alone"));
        // A million paths that are all the same long text.
        let paths = [&b"]("[..], &long, b"q\0", &b"h\0".repeat(1_000_000), b"e"].concat();
        let bytes = [&b"}("[..], &text("paths"), &paths, &text("embeddings"), b"]u."].concat();
        assert!(read(&bytes).unwrap_err().contains("far longer than the file"));
    }
}
