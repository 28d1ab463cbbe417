//! `groundloom index serve`.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arrow::datatypes::Schema;
use groundloom_engine::predicate::SqlPredicate;
use groundloom_index::{
    ColumnSpec, IndexError, Manifest, Predicate,
    serve::{Kind, Limits, Questions, Server, Settings},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    arguments,
    encoders::{self, Encoders},
    failure,
};
use crate::{arguments::Machine, commands::run::watch_signals, failure::Failure};

/// The environment variable that holds the bearer token.
const TOKEN: &str = "GROUNDLOOM_INDEX_TOKEN";

impl Questions for Encoders {
    fn column(&self, manifest: &Manifest, name: Option<&str>, kinds: &[Kind]) -> Result<usize, String> {
        Encoders::column(self, manifest, name, kinds)
    }

    fn text(&self, column: &ColumnSpec, text: &str) -> Result<Vec<f32>, String> {
        encoders::text(self.of(&column.name, column.model.as_ref())?.as_ref(), text)
    }

    fn image(&self, column: &ColumnSpec, bytes: &[u8]) -> Result<Vec<f32>, String> {
        encoders::image(self.of(&column.name, column.model.as_ref())?.as_ref(), bytes)
    }

    fn predicate(&self, text: &str, schema: &Schema) -> Result<Box<dyn Predicate>, IndexError> {
        Ok(Box::new(SqlPredicate::parse(text, schema)?))
    }
}

pub async fn run(command: arguments::Serve, machine: Machine) -> Result<(), Failure> {
    let token = match std::env::var(TOKEN) {
        Ok(token) if token.trim().is_empty() => return Err(Failure::Usage(format!("{TOKEN} is empty"))),
        Ok(token) => Some(token.trim().to_owned()),
        Err(_) => None,
    };
    let host: IpAddr = command.host;
    if !host.is_loopback() && token.is_none() {
        return Err(Failure::Usage(format!(
            "--host {host} lets other machines in: set a token in {TOKEN}, or serve on 127.0.0.1"
        )));
    }
    let limits = Limits {
        body: command.max_body,
        k: command.max_k,
        requests: command.max_requests,
        workers: machine.threads.get(),
        work: Duration::from_secs(command.timeout),
        ..Limits::default()
    };
    let settings = Settings {
        index: command.index.clone(),
        limits,
        token,
        questions: Arc::new(Encoders::on(command.on.open()?)),
        reload: Duration::from_secs(1),
    };
    let server = Server::bind(SocketAddr::new(host, command.port), settings).await.map_err(failure)?;
    let url = format!("http://{}/", server.address());
    say!("serving {} at {url} (Ctrl-C stops it)", command.index.display());
    writeln!(std::io::stdout().lock(), "{}", json!({ "url": url }))?;
    let stop = CancellationToken::new();
    watch_signals(stop.clone());
    server.run(stop).await;
    Ok(())
}
