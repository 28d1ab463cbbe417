//! HTTP/1.1 as this server needs it (RFC 9112): heads by `httparse`, bodies with a length or in chunks, one answer a request.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest head of a request.
const HEAD: usize = 16 << 10;
const HEADERS: usize = 64;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path without query, percent-encoding undone.
    pub(crate) path: String,
    pub(crate) host: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) keep_alive: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
    /// Further headers, whole lines without line ends.
    pub(crate) headers: Vec<&'static str>,
}

/// Why a request could not be read.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The client is told, and the connection ends.
    Answer(u16, String),
    /// The connection is gone.
    Gone,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

fn bad(message: &str) -> Refusal {
    Refusal::Answer(400, message.to_owned())
}

pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

/// What the head says of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Known(usize),
    Chunked,
}

struct Head {
    request: Request,
    length: Length,
    expects_continue: bool,
    bytes: usize,
}

/// A connection, with what has been read of the next request.
pub(crate) struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Whether a request has begun to arrive.
    pub(crate) fn has_begun(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Waits until a request begins; false when the client has gone.
    pub(crate) async fn begins(&mut self) -> io::Result<bool> {
        Ok(self.has_begun() || self.fill().await? > 0)
    }

    /// Reads more into the buffer.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(8 << 10);
        self.stream.read_buf(&mut self.buffer).await
    }

    async fn more(&mut self) -> Result<(), Refusal> {
        match self.fill().await? {
            0 => Err(Refusal::Gone),
            _ => Ok(()),
        }
    }

    /// Reads a request with a body of at most `most` bytes.
    pub(crate) async fn request(&mut self, most: usize) -> Result<Request, Refusal> {
        let head = loop {
            // Empty lines before a request are allowed.
            let empty = self.buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            self.buffer.drain(..empty);
            if let Some(head) = parse(&self.buffer)? {
                break head;
            }
            if self.buffer.len() > HEAD {
                return Err(Refusal::Answer(431, format!("expected a head of at most {HEAD} bytes")));
            }
            self.more().await?;
        };
        self.buffer.drain(..head.bytes);
        let mut request = head.request;
        if let Length::Known(length) = head.length
            && length > most
        {
            return Err(too_large(most));
        }
        if head.expects_continue && head.length != Length::Known(0) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        request.body = match head.length {
            Length::Known(length) => self.take(length).await?,
            Length::Chunked => self.chunks(most).await?,
        };
        Ok(request)
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, Refusal> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    async fn chunks(&mut self, most: usize) -> Result<Vec<u8>, Refusal> {
        let mut body = Vec::new();
        loop {
            let (line, size) = loop {
                match httparse::parse_chunk_size(&self.buffer) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) if self.buffer.len() < 1 << 10 => self.more().await?,
                    _ => return Err(bad("expected the size of a chunk")),
                }
            };
            self.buffer.drain(..line);
            if size > (most - body.len()) as u64 {
                return Err(too_large(most));
            }
            if size == 0 {
                break;
            }
            body.extend(self.take(size as usize).await?);
            if self.take(2).await? != b"\r\n" {
                return Err(bad("expected a line end after a chunk"));
            }
        }
        // Trailers are read and left alone.
        loop {
            let end = loop {
                if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                    break end;
                }
                if self.buffer.len() > HEAD {
                    return Err(Refusal::Answer(431, "the trailers are too long".to_owned()));
                }
                self.more().await?;
            };
            self.buffer.drain(..end + 2);
            if end == 0 {
                return Ok(body);
            }
        }
    }

    /// Sends an answer; to HEAD without its body.
    pub(crate) async fn answer(&mut self, response: &Response, head_only: bool, keep_alive: bool) -> io::Result<()> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\nX-Content-Type-Options: nosniff\r\n",
            response.status,
            reason(response.status),
            response.content_type,
            response.body.len(),
            if keep_alive { "keep-alive" } else { "close" },
        );
        for header in &response.headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&response.body);
        }
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    /// Ends the connection so that a client that is still sending can read its answer first.
    pub(crate) async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
        let mut rest = vec![0; 64 << 10];
        let mut left = 64_usize;
        while left > 0 && matches!(self.stream.read(&mut rest).await, Ok(n) if n > 0) {
            left -= 1;
        }
    }
}

fn too_large(most: usize) -> Refusal {
    Refusal::Answer(413, format!("expected a body of at most {most} bytes"))
}

fn parse(buffer: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let bytes = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::Answer(431, format!("expected at most {HEADERS} headers")));
        }
        Err(httparse::Error::Version) => return Err(Refusal::Answer(505, "expected HTTP/1.1".to_owned())),
        Err(error) => return Err(Refusal::Answer(400, format!("expected an HTTP/1.1 request: {error}"))),
    };
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).map_err(|_| bad("expected headers of UTF-8 text"));
    let mut length = None;
    let (mut chunked, mut expects_continue) = (false, false);
    let (mut host, mut authorization) = (None, None);
    let version = parsed.version.unwrap_or(0);
    let mut keep_alive = version == 1;
    for header in parsed.headers.iter() {
        let value = header.value;
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let found: Option<usize> = str::from_utf8(value).ok().filter(|_| digits).and_then(|v| v.parse().ok());
                let found = found.ok_or_else(|| bad("expected Content-Length to be a number"))?;
                if length.replace(found).is_some_and(|before| before != found) {
                    return Err(bad("two lengths of one body"));
                }
            }
            "transfer-encoding" => {
                if !value.eq_ignore_ascii_case(b"chunked") || chunked {
                    return Err(Refusal::Answer(501, "expected Transfer-Encoding: chunked or none".to_owned()));
                }
                chunked = true;
            }
            "expect" => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::Answer(417, "expected Expect: 100-continue or none".to_owned()));
                }
                expects_continue = version == 1;
            }
            "connection" => {
                let close = text(value)?.split(',').any(|t| t.trim().eq_ignore_ascii_case("close"));
                keep_alive &= !close;
            }
            "host" if host.is_some() => return Err(bad("two hosts")),
            "host" => host = Some(text(value)?),
            "authorization" => authorization = Some(text(value)?),
            _ => {}
        }
    }
    let length = match (chunked, length) {
        // Which of the two counts is what smuggled requests live on.
        (true, Some(_)) => return Err(bad("a length and chunks for one body")),
        (true, None) => Length::Chunked,
        (false, length) => Length::Known(length.unwrap_or(0)),
    };
    if version == 1 && host.is_none() {
        return Err(bad("expected a Host header"));
    }
    let target = parsed.path.unwrap_or_default();
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: decoded(path).ok_or_else(|| bad("expected a path of percent-encoded UTF-8"))?,
        host,
        authorization,
        body: Vec::new(),
        keep_alive,
    };
    Ok(Some(Head { request, length, expects_continue, bytes }))
}

/// Undoes percent-encoding.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                (digit(rest.next())? * 16 + digit(rest.next())?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    /// Sends bytes in pieces of every size and returns what the server made of them.
    async fn read(bytes: &[u8], piece: usize) -> Result<Vec<Request>, u16> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let bytes = bytes.to_vec();
        let sender = tokio::spawn(async move {
            for part in bytes.chunks(piece) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
            let mut said = Vec::new();
            let _ = client.read_to_end(&mut said).await;
            said
        });
        let mut connection = Connection::new(server);
        let mut requests = Vec::new();
        while connection.begins().await.unwrap() {
            match connection.request(100).await {
                Ok(request) => requests.push(request),
                Err(Refusal::Answer(status, _)) => return Err(status),
                Err(Refusal::Gone) => return Err(0),
            }
        }
        drop(connection);
        sender.await.unwrap();
        Ok(requests)
    }

    #[tokio::test]
    async fn requests_are_read_however_they_are_cut() {
        let text = b"POST /search?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\
            \r\nGET /rows/a%20b HTTP/1.1\r\nhost: a\r\nConnection: close\r\n\r\n\
            POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n";
        for piece in [1, 2, 7, 1000] {
            let found = read(text, piece).await.unwrap();
            let seen: Vec<(&str, &str, &[u8], bool)> =
                found.iter().map(|r| (r.method.as_str(), r.path.as_str(), r.body.as_slice(), r.keep_alive)).collect();
            assert_eq!(
                seen,
                [
                    ("POST", "/search", b"hello".as_slice(), true),
                    ("GET", "/rows/a b", b"", false),
                    ("POST", "/c", b"abcde", true)
                ]
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(20 << 10));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(65));
        for (text, status) in [
            ("GET /\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/3.0\r\n\r\n", 505),
            ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /%ff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", 0),
            (&long, 431),
            (&many, 431),
        ] {
            assert_eq!(read(text.as_bytes(), 64).await, Err(status), "{text:?}");
        }
    }
}
