//! Secrets: named in the file, held by the environment, fetched where they're used.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::reference::{Part, Reference, parts};

/// The schema keyword that marks a secret.
pub(crate) const SECRET_KEYWORD: &str = "x-groundloom-secret";

/// Text like `Bearer ${env:API_TOKEN}`, whose secret parts stay in the environment.
///
/// A config struct declares a field of this type (or an `Option` or list of it); everywhere else
/// `${env:…}` is refused, and here everything without it is. The value never enters the pipeline
/// file's values: this type holds the names of the variables alone and serialises as the text in the
/// file, so that a fingerprint, a manifest or a plan sent to another machine can't carry the secret.
/// `Debug` shows `***`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret {
    template: String,
}

/// Why a secret has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The text names no environment variable.
    #[error("a secret must be given as ${{env:NAME}}, and this text has none; set an environment variable and name it")]
    Plain,
    /// The text has a `${` that is no reference to an environment variable.
    #[error("a secret must be given as ${{env:NAME}}: {0}")]
    Malformed(String),
    /// The environment lacks a variable.
    #[error("the environment variable {variable} is not set; set it before the run")]
    Missing {
        /// The variable's name.
        variable: String,
    },
}

impl Secret {
    /// A secret from its text in the file.
    ///
    /// # Errors
    /// [`SecretError::Plain`] or [`SecretError::Malformed`].
    pub fn from_template(template: impl Into<String>) -> Result<Self, SecretError> {
        let template = template.into();
        let mut variables = 0;
        for part in parts(&template) {
            match part {
                Ok(Part::Text(_)) => {}
                Ok(Part::Reference { reference: Reference::Variable(_), .. }) => variables += 1,
                Ok(Part::Reference { reference: Reference::Param(name), .. }) => {
                    return Err(SecretError::Malformed(format!("the param `{name}` has no place here")));
                }
                Err(error) => return Err(SecretError::Malformed(error.message)),
            }
        }
        if variables == 0 {
            return Err(SecretError::Plain);
        }
        Ok(Self { template })
    }

    /// The text in the file, with `${env:NAME}` in place of the values.
    pub fn template(&self) -> &str {
        &self.template
    }

    /// The names of the environment variables, in the order of the text.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        parts(&self.template).filter_map(|part| match part {
            Ok(Part::Reference { reference: Reference::Variable(name), .. }) => Some(name),
            _ => None,
        })
    }

    /// The value, with the variables that `env` looks up. Use it at once and don't store it.
    ///
    /// # Errors
    /// [`SecretError::Missing`] names the first variable that isn't set.
    pub fn reveal(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<String, SecretError> {
        let mut value = String::new();
        for part in parts(&self.template) {
            match part {
                Ok(Part::Text(text)) => value.push_str(&text),
                Ok(Part::Reference { reference: Reference::Variable(name), .. }) => {
                    value.push_str(&env(name).ok_or_else(|| SecretError::Missing { variable: name.to_owned() })?)
                }
                // `from_template` lets nothing else in.
                Ok(Part::Reference { .. }) | Err(_) => {}
            }
        }
        Ok(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.template)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_template(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}",
            "x-groundloom-secret": true,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_shows_its_name_and_never_its_value() {
        let env = |name: &str| (name == "TOKEN").then(|| "hunter2".to_owned());
        let secret = Secret::from_template("Bearer ${env:TOKEN} $${x}").unwrap();
        assert_eq!(secret.reveal(&env).unwrap(), "Bearer hunter2 ${x}");
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        let json = serde_json::to_string(&secret).unwrap();
        assert_eq!(json, r#""Bearer ${env:TOKEN} $${x}""#);
        assert_eq!(serde_json::from_str::<Secret>(&json).unwrap(), secret);
        assert_eq!(secret.variables().collect::<Vec<_>>(), ["TOKEN"]);
    }

    #[test]
    fn texts_that_are_no_secret() {
        let message = |text: &str| Secret::from_template(text).unwrap_err().to_string();
        insta::assert_snapshot!(message("hunter2"), @"a secret must be given as ${env:NAME}, and this text has none; set an environment variable and name it");
        insta::assert_snapshot!(message("$${env:TOKEN}"), @"a secret must be given as ${env:NAME}, and this text has none; set an environment variable and name it");
        insta::assert_snapshot!(message("${env:TOKEN} ${name}"), @"a secret must be given as ${env:NAME}: the param `name` has no place here");
        insta::assert_snapshot!(message("${env:TOKEN"), @"a secret must be given as ${env:NAME}: `${` has no closing `}`");
        let secret = Secret::from_template("${env:NONE}").unwrap();
        insta::assert_snapshot!(secret.reveal(&|_| None).unwrap_err(), @"the environment variable NONE is not set; set it before the run");
    }
}
