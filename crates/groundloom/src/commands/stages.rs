//! `groundloom stages`.

use std::io::Write;

use groundloom_engine::catalogue::component_types;
use groundloom_spec::{Role, describe, did_you_mean};

use crate::{arguments::Stages, failure::Failure};

pub fn run(command: &Stages) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let types = component_types();
    let Some(name) = &command.name else {
        for (role, title) in [(Role::Source, "Sources"), (Role::Stage, "Stages"), (Role::Sink, "Sinks")] {
            writeln!(out, "{title}")?;
            for t in types.iter().filter(|t| t.role == role) {
                writeln!(out, "  {:<22} {}", t.name, t.summary)?;
            }
        }
        writeln!(out, "\ngroundloom stages NAME shows the fields, defaults and an example of one.")?;
        return Ok(());
    };
    let found: Vec<_> = types.iter().filter(|t| t.name == name).collect();
    if found.is_empty() {
        let help = did_you_mean(name, "there are", types.iter().map(|t| t.name)).unwrap_or_default();
        return Err(Failure::Usage(format!("there is no source, stage or sink of type `{name}`; {help}")));
    }
    for (i, t) in found.into_iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        write!(out, "{}", describe(t))?;
    }
    Ok(())
}
