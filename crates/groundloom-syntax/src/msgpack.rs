//! A reader for the MessagePack that spaCy and thinc write.
//!
//! Format: <https://github.com/msgpack/msgpack/blob/master/spec.md>, without extension
//! types, which those files don't use. Strings and binaries borrow from the input.

use crate::error::{Result, bad_model};

/// Deeper nesting than any model file has; stops a hostile file from exhausting the stack.
const MAX_DEPTH: u32 = 64;

/// One MessagePack value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Str(&'a str),
    Bin(&'a [u8]),
    Array(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// The value under a string or binary key of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.as_map()?
            .iter()
            .find(|(k, _)| match k {
                Value::Str(s) => *s == key,
                Value::Bin(b) => *b == key.as_bytes(),
                _ => false,
            })
            .map(|(_, v)| v)
    }

    pub(crate) fn as_map(&self) -> Option<&[(Value<'a>, Value<'a>)]> {
        if let Value::Map(m) = self { Some(m) } else { None }
    }

    pub(crate) fn as_array(&self) -> Option<&[Value<'a>]> {
        if let Value::Array(a) = self { Some(a) } else { None }
    }

    pub(crate) fn as_str(&self) -> Option<&'a str> {
        if let Value::Str(s) = self { Some(s) } else { None }
    }

    pub(crate) fn as_bin(&self) -> Option<&'a [u8]> {
        if let Value::Bin(b) = self { Some(b) } else { None }
    }

    pub(crate) fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    pub(crate) fn as_u64(&self) -> Option<u64> {
        match self {
            Value::UInt(u) => Some(*u),
            Value::Int(i) => u64::try_from(*i).ok(),
            _ => None,
        }
    }

    pub(crate) fn as_i64(&self) -> Option<i64> {
        match self {
            Value::UInt(u) => i64::try_from(*u).ok(),
            Value::Int(i) => Some(*i),
            _ => None,
        }
    }
}

/// Reads one value that must fill `bytes`; `file` names the source in errors.
pub(crate) fn read<'a>(bytes: &'a [u8], file: &str) -> Result<Value<'a>> {
    let mut reader = Reader { bytes, at: 0, file };
    let value = reader.value(0)?;
    if reader.at != bytes.len() {
        return Err(bad_model(file, format!("{} bytes follow the MessagePack value", bytes.len() - reader.at)));
    }
    Ok(value)
}

struct Reader<'a, 'f> {
    bytes: &'a [u8],
    at: usize,
    file: &'f str,
}

impl<'a> Reader<'a, '_> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.bytes.len()).ok_or_else(|| {
            bad_model(self.file, format!("MessagePack ends at byte {} inside a value", self.bytes.len()))
        })?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    /// A big-endian unsigned integer of `n` ≤ 8 bytes.
    fn uint(&mut self, n: usize) -> Result<u64> {
        Ok(self.take(n)?.iter().fold(0, |acc, &b| acc << 8 | u64::from(b)))
    }

    fn len(&mut self, n: usize) -> Result<usize> {
        let len = self.uint(n)?;
        usize::try_from(len).map_err(|_| bad_model(self.file, format!("length {len} is too large")))
    }

    fn str(&mut self, n: usize) -> Result<Value<'a>> {
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes)
            .map(Value::Str)
            .map_err(|e| bad_model(self.file, format!("a string is not UTF-8: {e}")))
    }

    fn array(&mut self, n: usize, depth: u32) -> Result<Value<'a>> {
        let mut items = Vec::with_capacity(n.min(self.bytes.len() - self.at));
        for _ in 0..n {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, n: usize, depth: u32) -> Result<Value<'a>> {
        let mut items = Vec::with_capacity(n.min(self.bytes.len() - self.at));
        for _ in 0..n {
            let key = self.value(depth + 1)?;
            items.push((key, self.value(depth + 1)?));
        }
        Ok(Value::Map(items))
    }

    fn value(&mut self, depth: u32) -> Result<Value<'a>> {
        if depth > MAX_DEPTH {
            return Err(bad_model(self.file, "MessagePack is nested too deeply"));
        }
        let tag = self.take(1)?[0];
        match tag {
            0x00..=0x7f => Ok(Value::UInt(u64::from(tag))),
            0x80..=0x8f => self.map(usize::from(tag & 0x0f), depth),
            0x90..=0x9f => self.array(usize::from(tag & 0x0f), depth),
            0xa0..=0xbf => self.str(usize::from(tag & 0x1f)),
            0xc0 => Ok(Value::Nil),
            0xc2 | 0xc3 => Ok(Value::Bool(tag == 0xc3)),
            0xc4..=0xc6 => {
                let n = self.len(1 << (tag - 0xc4))?;
                Ok(Value::Bin(self.take(n)?))
            }
            0xca => Ok(Value::Float(f64::from(f32::from_bits(self.uint(4)? as u32)))),
            0xcb => Ok(Value::Float(f64::from_bits(self.uint(8)?))),
            0xcc..=0xcf => Ok(Value::UInt(self.uint(1 << (tag - 0xcc))?)),
            0xd0 => Ok(Value::Int(i64::from(self.uint(1)? as u8 as i8))),
            0xd1 => Ok(Value::Int(i64::from(self.uint(2)? as u16 as i16))),
            0xd2 => Ok(Value::Int(i64::from(self.uint(4)? as u32 as i32))),
            0xd3 => Ok(Value::Int(self.uint(8)? as i64)),
            0xd9..=0xdb => {
                let n = self.len(1 << (tag - 0xd9))?;
                self.str(n)
            }
            0xdc | 0xdd => {
                let n = self.len(2 << (tag - 0xdc))?;
                self.array(n, depth)
            }
            0xde | 0xdf => {
                let n = self.len(2 << (tag - 0xde))?;
                self.map(n, depth)
            }
            0xe0..=0xff => Ok(Value::Int(i64::from(tag as i8))),
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => {
                Err(bad_model(self.file, format!("MessagePack type 0x{tag:02x} is not used by spaCy")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_each_kind() {
        let bytes = [
            0x85, 0xa1, b'a', 0xc0, 0xa1, b'b', 0x92, 0xff, 0xcd, 0x01, 0x00, 0xc4, 0x01, b'c', 0xc3, 0xd9, 0x01, b'd',
            0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0x05, 0xd1, 0xff, 0x00,
        ];
        let v = read(&bytes, "test").unwrap();
        assert_eq!(v.get("a"), Some(&Value::Nil));
        assert_eq!(v.get("b").unwrap().as_array().unwrap()[0].as_i64(), Some(-1));
        assert_eq!(v.get("b").unwrap().as_array().unwrap()[1].as_u64(), Some(256));
        assert_eq!(v.get("c").unwrap().as_bool(), Some(true), "binary keys are found too");
        assert_eq!(v.get("d"), Some(&Value::Float(1.0)));
        assert_eq!(v.as_map().unwrap()[4].1.as_i64(), Some(-256));
    }

    proptest! {
        #[test]
        fn never_panics_and_never_over_allocates(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, "test");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(read(&[0x91; 100], "test").is_err());
    }
}
