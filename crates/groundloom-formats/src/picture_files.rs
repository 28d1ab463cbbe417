//! Reading picture files whole, each a value of a row.

use std::io::{ErrorKind, Read};

use crate::{
    BatchLimits, FormatError, ShardFile, quarantine_codes as codes,
    shard_rows::Fault,
    store::{Stores, io_error},
};

/// A larger file goes to quarantine unread: a column of a batch holds less than 2 GiB.
pub(crate) const LARGEST_FILE: u64 = 256 << 20;

/// How many of the files make one batch, by the bytes of each that become part of its row; at least one.
pub(crate) fn next_batch(files: &[ShardFile], limits: BatchLimits, size: impl Fn(&ShardFile) -> usize) -> usize {
    let most = limits.rows.clamp(1, files.len().max(1));
    let mut held = 0;
    let full = files[..most.min(files.len())].iter().position(|file| {
        held += size(file);
        held >= limits.bytes
    });
    full.map_or(most, |last| last + 1)
}

/// Bytes of a picture that is read, 0 of one that is too large for that.
pub(crate) fn read_size(file: &ShardFile) -> usize {
    if file.size <= LARGEST_FILE { file.size as usize } else { 0 }
}

/// A picture's bytes, or why its row goes to quarantine.
///
/// # Errors
/// That the file vanished or that the disk failed is an error of the run.
pub(crate) fn read_picture(stores: &Stores, file: &ShardFile) -> Result<Result<Vec<u8>, Fault>, FormatError> {
    if file.size > LARGEST_FILE {
        let message = format!("{}: expected at most {LARGEST_FILE} bytes in a file, found {}", file.path, file.size);
        return Ok(Err(Fault::new(codes::TOO_LONG, message)));
    }
    let read = read_file(stores, &file.location, file.size)?;
    Ok(read.map_err(|message| Fault::new(codes::UNREADABLE_FILE, format!("{}: {message}", file.path))))
}

/// A file's bytes, or why this user may not read them or that it is a link to nothing. That it vanished or that the disk failed is an error of the run.
pub(crate) fn read_file(stores: &Stores, location: &str, size: u64) -> Result<Result<Vec<u8>, String>, FormatError> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    let read = stores
        .reader(location, None)
        .and_then(|mut reader| reader.read_to_end(&mut bytes).map_err(|e| io_error(location, e)));
    match read {
        Ok(_) => Ok(Ok(bytes)),
        Err(FormatError::Io { message, source: Some(cause), .. })
            if cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::PermissionDenied) =>
        {
            Ok(Err(message))
        }
        Err(error) => match std::fs::read_link(location) {
            Ok(target) if !std::path::Path::new(location).exists() => {
                Ok(Err(format!("the link leads to `{}`, which is not there", target.display())))
            }
            _ => Err(error),
        },
    }
}
