//! How many calls a second the client makes, and what they cost the processor: `scripts/bench_calls.py` runs it beside the `openai` package.
//!
//! `throughput URL ROWS CONCURRENCY STORE` prints one JSON line. With `bare` for STORE the same requests go over plain sockets, a thread each, and nothing is kept or read but the
//! length of answers: what the server and the machine leave possible.

use std::{
    error::Error,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use groundloom_llm::{
    Api, Client, ClientConfig, Endpoint, KeyHeader, Limits, Message, Pace, PriceTable, Request, Retry, Role, Sampling,
    Store,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("expected URL ROWS CONCURRENCY STORE");
    let (url, rows, concurrency, store) = (next()?, next()?.parse()?, next()?.parse::<usize>()?, next()?);
    if store == "bare" {
        let started = Instant::now();
        bare(&url, rows, concurrency)?;
        println!(
            "{{\"rows\": {rows}, \"concurrency\": {concurrency}, \"rows_per_second\": {:.0}}}",
            rows as f64 / started.elapsed().as_secs_f64()
        );
        return Ok(());
    }
    let config = ClientConfig {
        endpoint: Endpoint {
            url,
            key: None,
            key_header: KeyHeader::Bearer,
            query: Vec::new(),
            timeout: Duration::from_secs(60),
        },
        namespace: String::new(),
        pace: Pace { max_concurrency: concurrency, ..Pace::default() },
        retry: Retry::default(),
        hedge: None,
        limits: Limits::default(),
        budget: "throughput".into(),
        offline: false,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (seconds, cpu, own) = runtime.block_on(async {
        let client = Client::new(config, Store::open(Path::new(&store))?, PriceTable::built_in()?)?;
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let calls = futures::stream::iter(0..rows).map(|row: usize| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.ask(&request(row)).await })
        });
        let mut calls = calls.buffer_unordered(2 * concurrency);
        while let Some(answer) = calls.next().await {
            answer??;
        }
        Ok::<_, Box<dyn Error>>((started.elapsed().as_secs_f64(), cpu_seconds() - cpu, mib("RssAnon:")))
    })?;
    println!(
        "{{\"rows\": {rows}, \"concurrency\": {concurrency}, \"seconds\": {seconds:.3}, \"rows_per_second\": {:.0}, \"cpu_ms_per_call\": {:.3}, \"peak_mib\": {}, \"own_mib\": {own}}}",
        rows as f64 / seconds,
        1000.0 * cpu / rows as f64,
        mib("VmHWM:")
    );
    Ok(())
}

/// Asks all rows with as little work as it can be done with.
fn bare(url: &str, rows: usize, concurrency: usize) -> Result<(), Box<dyn Error>> {
    let (host, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or("expected http://HOST:PORT/PATH")?;
    let next = AtomicUsize::new(0);
    let ask = || -> std::io::Result<()> {
        let mut socket = BufReader::new(TcpStream::connect(host)?);
        socket.get_ref().set_nodelay(true)?;
        loop {
            let row = next.fetch_add(1, Ordering::Relaxed);
            if row >= rows {
                return Ok(());
            }
            let body = request(row).body().to_string();
            let head = format!(
                "POST /{path}/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            socket.get_mut().write_all((head + &body).as_bytes())?;
            let (mut line, mut length) = (String::new(), 0);
            while socket.read_line(&mut line)? > 2 {
                length = line.strip_prefix("content-length:").and_then(|n| n.trim().parse().ok()).unwrap_or(length);
                line.clear();
            }
            socket.read_exact(&mut vec![0; length])?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..concurrency).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread ended")?.map_err(Into::into))
    })
}

fn request(row: usize) -> Request {
    Request {
        api: Api::ChatCompletions,
        model: "test-model".into(),
        messages: vec![Message::text(Role::User, format!("describe picture number {row}"))],
        sampling: Sampling::default(),
        max_output_tokens: 64,
        form: None,
        extra: serde_json::Map::new(),
    }
}

/// Processor seconds of this process, from `/proc` (ticks are hundredths of a second on Linux).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// A size from `/proc`: the most that was resident (`VmHWM:`), or what is now and is no file's (`RssAnon:`).
fn mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}
