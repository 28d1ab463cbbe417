//! Checkpoints that torch saves: a zip in which a pickle, `data.pkl`, says which tensors there are, and other members hold
//! their values.
//!
//! A pickle is a program. Candle's reader makes values of its instructions and runs nothing; only dictionaries of
//! tensors are taken from them, anything else is refused by name.

use std::{collections::BTreeMap, ops::Range};

use candle_core::pickle::{Object, OpCode, Stack};
use safetensors::{Dtype, tensor::TensorInfo};

/// Most that all values of a pickle may hold together, copies among them: some 25 for each tensor.
const MOST: usize = 4_000_000;
/// How deep values may lie in each other: a tensor lies six deep.
const DEEPEST: usize = 32;
/// Members of a zip that are not compressed.
const STORED: usize = 0;

/// The tensors in the dictionary `key` of a checkpoint, their places counted from the file's first byte.
///
/// # Errors
/// Expected, found, remedy.
pub(super) fn tensors(file: &[u8], key: &str) -> Result<BTreeMap<String, TensorInfo>, String> {
    let archive = Archive::read(file)?;
    let Object::Dict(items) = values(archive.pickle)? else {
        return Err(format!("expected a dictionary with {key:?}, found another value"));
    };
    let found = items.into_iter().find(|(name, _)| matches!(name, Object::Unicode(name) if name == key));
    let Some((_, Object::Dict(items))) = found else {
        return Err(format!("expected a dictionary of tensors under {key:?}, found none"));
    };
    let mut tensors = BTreeMap::new();
    for (name, value) in items {
        let Object::Unicode(name) = name else { return Err(format!("expected names of tensors, found {name:.60?}")) };
        // Versions of the modules, which torch hangs on a model's dictionary.
        if name == "_metadata" {
            continue;
        }
        let info = archive.tensor(&value).map_err(|problem| format!("{name}: {problem}"))?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(format!("expected each tensor once, found {name} twice"));
        }
    }
    Ok(tensors)
}

/// The value that a pickle makes.
fn values(pickle: &[u8]) -> Result<Object, String> {
    let (mut stack, mut rest, mut spent) = (Stack::empty(), pickle, 0);
    loop {
        // Candle knows numbers of eight bytes at most.
        if rest.first() == Some(&(OpCode::Long1 as u8)) && rest.get(1).is_none_or(|&bytes| bytes > 8) {
            return Err("expected numbers of at most eight bytes in data.pkl, found a longer one".to_owned());
        }
        let at = pickle.len() - rest.len();
        let ended = stack.read(&mut rest).map_err(|e| format!("data.pkl, byte {at}: {e}"))?;
        if ended {
            return stack.finalize().map_err(|e| format!("data.pkl: {e}"));
        }
        // Copies of copies would fill the memory, and a deep value the stack.
        spent += stack.stack().last().map_or(Ok(0), |value| size(value, 0))?;
        if spent > MOST {
            return Err("expected a dictionary of tensors in data.pkl, found far larger values".to_owned());
        }
    }
}

/// How much a value holds.
fn size(value: &Object, depth: usize) -> Result<usize, String> {
    if depth > DEEPEST {
        return Err("expected a dictionary of tensors in data.pkl, found far deeper values".to_owned());
    }
    let all = |values: &mut dyn Iterator<Item = &Object>| -> Result<usize, String> {
        let mut sum = 1;
        for value in values {
            sum += size(value, depth + 1)?;
        }
        Ok(sum)
    };
    match value {
        Object::Tuple(values) | Object::List(values) => all(&mut values.iter()),
        Object::Dict(items) => all(&mut items.iter().flat_map(|(key, value)| [key, value])),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            all(&mut [&**callable, &**args].into_iter())
        }
        Object::PersistentLoad(id) => all(&mut std::iter::once(&**id)),
        Object::Unicode(text) => Ok(1 + text.len() / 64),
        Object::Class { module_name, class_name } => Ok(1 + (module_name.len() + class_name.len()) / 64),
        _ => Ok(1),
    }
}

/// A zip that torch wrote.
struct Archive<'a> {
    /// Name, how it is compressed, and place of every member.
    members: BTreeMap<String, (usize, Range<usize>)>,
    /// What stands before the names of the members.
    folder: String,
    pickle: &'a [u8],
}

impl<'a> Archive<'a> {
    fn read(file: &'a [u8]) -> Result<Self, String> {
        let members = members(file).ok_or(
            "expected a zip as torch.save has written since version 1.6, found another file or a cut one; load it with torch and \
             save it again",
        )?;
        let folder = members.keys().find_map(|name| name.strip_suffix("data.pkl")).map(str::to_owned);
        let folder = folder.ok_or("expected a zip that torch.save has written, found one without data.pkl")?;
        let mut this = Self { members, folder, pickle: &[] };
        this.pickle = &file[this.member("data.pkl")?];
        // Files of older versions do not say.
        if let Ok(order) = this.member("byteorder")
            && &file[order.clone()] != b"little"
        {
            return Err(format!(
                "expected values of little endian, found {:?}",
                file[order].escape_ascii().to_string()
            ));
        }
        Ok(this)
    }

    /// The place of a member.
    fn member(&self, name: &str) -> Result<Range<usize>, String> {
        match self.members.get(&format!("{}{name}", self.folder)) {
            Some((STORED, place)) => Ok(place.clone()),
            Some(_) => Err(format!("expected {name} as torch stores it, found it compressed")),
            None => Err(format!("expected a member {name} in the zip, found none")),
        }
    }

    /// The tensor that `value` builds.
    fn tensor(&self, value: &Object) -> Result<TensorInfo, String> {
        let other = |found: &dyn std::fmt::Debug| format!("expected a tensor, found {found:.60?}");
        let Object::Reduce { callable, args } = value else { return Err(other(value)) };
        let Object::Tuple(args) = &**args else { return Err(other(args)) };
        match (&**callable, args.as_slice()) {
            (Object::Class { module_name, class_name }, [value, ..])
                if (module_name.as_str(), class_name.as_str()) == ("torch._utils", "_rebuild_parameter") =>
            {
                self.tensor(value)
            }
            (
                Object::Class { module_name, class_name },
                [Object::PersistentLoad(storage), offset, shape, strides, ..],
            ) if (module_name.as_str(), class_name.as_str()) == ("torch._utils", "_rebuild_tensor_v2") => {
                let Object::Tuple(storage) = &**storage else { return Err(other(storage)) };
                let [_, Object::Class { class_name, .. }, Object::Unicode(key), ..] = storage.as_slice() else {
                    return Err(other(storage));
                };
                let dtype = dtype(class_name)?;
                let (shape, strides) = (numbers(shape)?, numbers(strides)?);
                if !is_row_major(&shape, &strides) {
                    return Err(format!(
                        "expected values row by row, found the shape {shape:?} with steps of {strides:?}; save it contiguous()"
                    ));
                }
                let whole = self.member(&format!("data/{key}"))?;
                let width = dtype.bitsize() / 8;
                let place = || {
                    let start = whole.start.checked_add(number(offset)?.checked_mul(width)?)?;
                    let count = shape.iter().try_fold(width, |count, &side| count.checked_mul(side))?;
                    Some((start, start.checked_add(count)?)).filter(|(_, end)| *end <= whole.end)
                };
                let data_offsets = place().ok_or_else(|| {
                    format!("expected the values of {shape:?}, found {} bytes of values", whole.len())
                })?;
                Ok(TensorInfo { dtype, shape, data_offsets })
            }
            (found, _) => Err(other(found)),
        }
    }
}

fn dtype(storage: &str) -> Result<Dtype, String> {
    match storage {
        "FloatStorage" => Ok(Dtype::F32),
        "DoubleStorage" => Ok(Dtype::F64),
        "HalfStorage" => Ok(Dtype::F16),
        "BFloat16Storage" => Ok(Dtype::BF16),
        "LongStorage" => Ok(Dtype::I64),
        other => Err(format!("expected floats or whole numbers of 64 bits, found a {other:.60}")),
    }
}

fn number(value: &Object) -> Option<usize> {
    match value {
        Object::Int(number) => usize::try_from(*number).ok(),
        Object::Long(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

fn numbers(value: &Object) -> Result<Vec<usize>, String> {
    let list = match value {
        Object::Tuple(values) => values.iter().map(number).collect::<Option<Vec<usize>>>(),
        _ => None,
    };
    list.ok_or_else(|| format!("expected sides of a tensor, found {value:.60?}"))
}

fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1_usize;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(&side, &stride)| {
            let fits = side <= 1 || stride == step;
            step = step.saturating_mul(side);
            fits
        })
}

/// Name, compression and place of every member of a zip, or nothing where the file is none.
fn members(file: &[u8]) -> Option<BTreeMap<String, (usize, Range<usize>)>> {
    /// What a field of 32 bits holds whose value stands in the extra field, in 64.
    const ELSEWHERE: usize = 0xffff_ffff;
    /// What a file may have behind its directory: a comment of 16 bits' length.
    const TAIL: usize = 22 + 0xffff;
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let bytes = file.get(at..at.checked_add(bytes)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))).ok()
    };
    let is =
        |at: usize, signature: &[u8; 4]| file.get(at..at.saturating_add(4)).is_some_and(|found| found == signature);
    let last = file.len().checked_sub(22)?;
    let end = (file.len().saturating_sub(TAIL)..=last).rev().find(|&at| is(at, b"PK\x05\x06"))?;
    let (mut count, mut at) = (number(end + 10, 2)?, number(end + 16, 4)?);
    // The locator of a directory of 64 bits.
    if let Some(locator) = end.checked_sub(20).filter(|&at| is(at, b"PK\x06\x07")) {
        let record = number(locator + 8, 8)?;
        if !is(record, b"PK\x06\x06") {
            return None;
        }
        (count, at) = (number(record.checked_add(32)?, 8)?, number(record.checked_add(48)?, 8)?);
    }
    let mut members = BTreeMap::new();
    for _ in 0..count {
        if !is(at, b"PK\x01\x02") {
            return None;
        }
        let (name_bytes, extra_bytes, comment) = (number(at + 28, 2)?, number(at + 30, 2)?, number(at + 32, 2)?);
        let name = String::from_utf8(file.get(at + 46..at + 46 + name_bytes)?.to_vec()).ok()?;
        let (mut bytes, mut header) = (number(at + 20, 4)?, number(at + 42, 4)?);
        let whole = number(at + 24, 4)?;
        let (mut extra, extra_end) = (at + 46 + name_bytes, at + 46 + name_bytes + extra_bytes);
        while extra + 4 <= extra_end {
            let (kind, length) = (number(extra, 2)?, number(extra + 2, 2)?);
            if kind == 1 {
                // Of those that are elsewhere: the whole size, the size here, the header's place.
                let mut field = extra + 4 + if whole == ELSEWHERE { 8 } else { 0 };
                for value in [&mut bytes, &mut header] {
                    if *value == ELSEWHERE {
                        *value = number(field, 8)?;
                        field += 8;
                    }
                }
            }
            extra += 4 + length;
        }
        if !is(header, b"PK\x03\x04") {
            return None;
        }
        let start = header + 30 + number(header + 26, 2)? + number(header + 28, 2)?;
        let place = start..start.checked_add(bytes)?;
        file.get(place.clone())?;
        members.insert(name, (number(at + 10, 2)?, place));
        at = extra_end + comment;
    }
    Some(members)
}

#[cfg(test)]
mod tests;
