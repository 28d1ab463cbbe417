//! The command line of Groundloom.
//!
//! What a person reads goes to standard error, data to standard output as JSON lines, so that everything pipes.

#![deny(clippy::print_stderr)]

/// Writes a line for people. Unlike `eprintln!` it does not panic when nobody reads any more (`groundloom run … 2>&1 | head`).
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod arguments;
mod commands;
mod failure;
mod memory;
mod metrics;
mod progress;
#[cfg(feature = "otel")]
mod traces;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    arguments::{Arguments, Command, LogFormat},
    failure::Failure,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    memory::give_large_blocks_back();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads.get())
        // Parsing and planning recurse deeper than the default stack likes.
        .thread_stack_size(16 << 20)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            #[cfg(feature = "otel")]
            let traces = traces::start(runtime.handle());
            #[cfg(feature = "otel")]
            start_log(arguments.log, traces.as_ref().map(traces::Traces::layer));
            #[cfg(not(feature = "otel"))]
            start_log(arguments.log, None::<tracing_subscriber::layer::Identity>);
            let outcome = runtime.block_on(run(arguments));
            #[cfg(feature = "otel")]
            if let Some(traces) = traces {
                traces.finish();
            }
            // A reader that blocks in a dead network share must not keep the process.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Failed(format!("no threads: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let machine = arguments.machine();
    match arguments.command {
        Command::Run(command) => commands::run::run(command, machine).await,
        Command::Check(command) => commands::check::run(command).await,
        Command::Plan(command) => commands::plan::run(command, machine).await,
        Command::Stages(command) => commands::stages::run(&command),
        Command::Why(command) => commands::why::run(command, machine).await,
        Command::Diff(command) => commands::diff::run(&command),
        Command::Quarantine { command } => commands::quarantine::run(command, machine).await,
        Command::Parse(command) => commands::parse::run(&command),
        Command::Detect(command) => commands::detect::run(&command),
        Command::Index(command) => commands::index::run(command, machine).await,
        Command::Embed(command) => commands::embed::run(&command),
        Command::Models(command) => commands::models::run(&command).await,
        Command::Prompt(command) => commands::prompt::run(command).await,
        Command::Schema(command) => commands::schema::run(command).await,
    }
}

fn start_log(format: LogFormat, spans: Option<impl Layer<Registry> + Send + Sync>) {
    let filter = EnvFilter::try_from_env("GROUNDLOOM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Colours in a file are noise.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let log = match format {
        LogFormat::Text => log.with_target(false).with_ansi(colours).with_filter(filter).boxed(),
        LogFormat::Json => log.json().with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(spans).with(log).init();
}
