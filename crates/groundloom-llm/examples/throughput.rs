//! How many calls a second the client makes, and what they cost the processor: `scripts/bench_calls.py` runs it beside the `openai` package.
//!
//! `throughput URL ROWS CONCURRENCY STORE` prints one JSON line.

use std::{error::Error, path::Path, sync::Arc, time::Duration};

use futures::StreamExt;
use groundloom_llm::{
    Api, Client, ClientConfig, Endpoint, KeyHeader, Limits, Message, Pace, PriceTable, Request, Retry, Role, Sampling,
    Store,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("expected URL ROWS CONCURRENCY STORE");
    let (url, rows, concurrency, store) = (next()?, next()?.parse()?, next()?.parse::<usize>()?, next()?);
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
    let (seconds, cpu) = runtime.block_on(async {
        let client = Client::new(config, Store::open(Path::new(&store))?, PriceTable::built_in()?)?;
        let (started, cpu) = (std::time::Instant::now(), cpu_seconds());
        let calls = futures::stream::iter(0..rows).map(|row: usize| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { client.ask(&request(row)).await })
        });
        let mut calls = calls.buffer_unordered(2 * concurrency);
        while let Some(answer) = calls.next().await {
            answer??;
        }
        Ok::<_, Box<dyn Error>>((started.elapsed().as_secs_f64(), cpu_seconds() - cpu))
    })?;
    println!(
        "{{\"rows\": {rows}, \"concurrency\": {concurrency}, \"seconds\": {seconds:.3}, \"rows_per_second\": {:.0}, \"cpu_ms_per_call\": {:.3}, \"peak_mib\": {}}}",
        rows as f64 / seconds,
        1000.0 * cpu / rows as f64,
        peak_mib()
    );
    Ok(())
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

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}
