//! How a command fails: what is printed, and the exit code.

use std::{io::IsTerminal, process::ExitCode, sync::Arc};

use groundloom_engine::EngineError;
use groundloom_spec::{Diagnostics, SourceFile, render};

/// A command that did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The pipeline file is wrong. Exit code 2.
    Invalid(Arc<SourceFile>, Diagnostics),
    /// The arguments are wrong. Exit code 2.
    Usage(String),
    /// The work failed. Exit code 1.
    Failed(String),
    /// More rows failed than the file allows. Exit code 3.
    TooManyBad(String),
    /// The reader of our output went away, which is no failure of ours.
    OutputClosed,
}

impl Failure {
    /// An engine's error about a pipeline file.
    pub fn of(file: &Arc<SourceFile>, error: EngineError) -> Self {
        match error {
            EngineError::Invalid(diagnostics) => Self::Invalid(Arc::clone(file), diagnostics),
            EngineError::TooManyBad { .. } => Self::TooManyBad(error.to_string()),
            // Not the pipeline's fault but the output's place: as wrong as an argument.
            EngineError::ForeignTarget(_) => Self::Usage(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }

    /// An engine's error where no pipeline file is involved.
    pub fn from_engine(error: EngineError) -> Self {
        Self::of(&Arc::new(SourceFile::new("", "")), error)
    }

    /// Prints it to standard error.
    pub fn report(&self) {
        match self {
            Self::Invalid(file, diagnostics) => {
                let errors = diagnostics.iter().filter(|d| d.severity == groundloom_spec::Severity::Error).count();
                say!("{}", render(file, diagnostics, std::io::stderr().is_terminal()));
                say!("{errors} error{} in {}; nothing was started", if errors == 1 { "" } else { "s" }, file.name);
            }
            Self::Usage(message) | Self::Failed(message) | Self::TooManyBad(message) => say!("error: {message}"),
            Self::OutputClosed => {}
        }
    }

    /// 1 failed, 2 wrong file or arguments, 3 over the bad-row limit.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Failed(_) => ExitCode::from(1),
            Self::Invalid(..) | Self::Usage(_) => ExitCode::from(2),
            Self::TooManyBad(_) => ExitCode::from(3),
            Self::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        std::io::Error::from(error).into()
    }
}
