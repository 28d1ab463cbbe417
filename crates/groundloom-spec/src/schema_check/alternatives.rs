//! Values that must fit one of several schemas: enums, and `Option`.

use serde_json::Value as Json;

use super::{At, Schema, SchemaCheck, is_kind, kind_help, object};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::node::{Node, Value};
use crate::schema_words::{branches, expectations, kinds, only_key, strings};
use crate::spelling::joined;

impl SchemaCheck<'_> {
    /// Checks a value that must fit one of several schemas. Where it fits none, the findings are
    /// those of the one that was probably meant.
    pub(super) fn alternatives(&mut self, node: &Node, branches: &[Json], at: At<'_>) {
        let maps: Vec<&Json> = branches.iter().filter(|branch| self.takes_map(branch)).collect();
        if matches!(node.value, Value::Map(_)) && maps.len() > 1 {
            // A variant that says which it is is checked alone; trying all of them would take
            // exponential time where they nest.
            if let Some(tag) = self.tag(&maps) {
                return self.tagged(node, &tag, &maps, at);
            }
            if maps.iter().all(|branch| self.variant_name(branch).is_some()) {
                return self.variant(node, &maps, at);
            }
        }
        let mut attempts = Vec::new();
        for branch in branches {
            let found = self.attempt(node, branch, at);
            if !found.has_errors() {
                return;
            }
            attempts.push((branch, found));
        }
        // An `Option` has one branch to speak of.
        attempts.retain(|(branch, _)| branch.get("type").and_then(Json::as_str) != Some("null"));
        if let [(_, found)] = attempts.as_slice() {
            return self.found.extend(found.clone());
        }
        let fitting = attempts
            .iter()
            .filter(|(branch, _)| strings(self.root, branch).is_empty() && self.takes_kind_of(node, branch));
        match fitting.min_by_key(|(_, found)| found.len()) {
            Some((_, found)) => self.found.extend(found.clone()),
            None => self.no_alternative(node, branches, at),
        }
    }

    /// A value of a kind that no alternative takes, or a name that none of them is.
    fn no_alternative(&mut self, node: &Node, branches: &[Json], at: At<'_>) {
        let names: Vec<&str> = branches.iter().flat_map(|branch| strings(self.root, branch)).collect();
        let mut expected: Vec<String> = Vec::new();
        for branch in branches.iter().filter_map(Json::as_object) {
            for phrase in expectations(self.root, branch) {
                if !expected.contains(&phrase) {
                    expected.push(phrase);
                }
            }
        }
        let all_names = expected.iter().all(|phrase| phrase.starts_with('`'));
        if !names.is_empty() && (all_names || node.as_str().is_some()) {
            return self.not_a_name(node, &names, &expected, at);
        }
        if matches!(node.value, Value::Secret(_)) {
            return self.no_secret(node, at);
        }
        let help = branches.iter().find_map(|branch| kind_help(node, object(self.root, branch)?));
        self.unexpected(node, &joined(&expected, "or"), help, at);
    }

    fn attempt(&mut self, node: &Node, schema: &Json, at: At<'_>) -> Diagnostics {
        let before = std::mem::take(&mut self.found);
        self.check(node, schema, at);
        std::mem::replace(&mut self.found, before)
    }

    /// The key by which the variants of an internally tagged enum are told apart.
    fn tag(&self, maps: &[&Json]) -> Option<String> {
        let schemas: Vec<&Schema> = maps.iter().filter_map(|branch| object(self.root, branch)).collect();
        let first = schemas.first()?.get("properties")?.as_object()?;
        first.keys().find(|key| schemas.iter().all(|schema| tag_value(schema, key).is_some())).cloned()
    }

    /// A map that should be one variant of an internally tagged enum.
    fn tagged(&mut self, node: &Node, tag: &str, maps: &[&Json], at: At<'_>) {
        let root = self.root;
        let name_of =
            |branch: &&Json| object(root, branch).and_then(|schema| tag_value(schema, tag)).map(str::to_owned);
        let names: Vec<String> = maps.iter().filter_map(name_of).collect();
        let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let Some(entry) = node.entry(tag) else {
            let diagnostic = Diagnostic::error("missing_key", format!("{} has no `{tag}`", self.subject(at)))
                .label(format!("`{tag}` is missing"))
                .help(format!("add `{tag}`: {}", joined(&quoted, "or")));
            return self.report(node, at, diagnostic);
        };
        if entry.value.value == Value::Unresolved {
            return;
        }
        let given = entry.value.as_str();
        match maps.iter().find(|branch| given.is_some() && name_of(branch).as_deref() == given) {
            Some(branch) => self.check(node, branch, at),
            None => {
                let path = at.key(tag);
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.not_a_name(&entry.value, &names, &quoted, At { path: &path, spot: entry.spot() });
            }
        }
    }

    /// A map that should be one variant with data: its one key is the variant's name.
    fn variant(&mut self, node: &Node, maps: &[&Json], at: At<'_>) {
        let names: Vec<String> =
            maps.iter().filter_map(|branch| self.variant_name(branch)).map(str::to_owned).collect();
        let [entry] = node.entries() else {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let message = format!("{} must have exactly one key, found {}", self.subject(at), node.entries().len());
            let diagnostic = Diagnostic::error("wrong_length", message).label("expected one key");
            return self.report(node, at, diagnostic.help(format!("give {}", joined(&quoted, "or"))));
        };
        match maps.iter().find(|branch| self.variant_name(branch) == Some(&entry.key)) {
            Some(branch) => self.check(node, branch, at),
            None => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                self.unknown_key(entry, &names, at);
            }
        }
    }

    fn variant_name<'s>(&'s self, branch: &'s Json) -> Option<&'s str> {
        object(self.root, branch).and_then(only_key)
    }

    fn takes_map(&self, schema: &Json) -> bool {
        self.takes(schema, &|kind| kind == "object")
    }

    fn takes_kind_of(&self, node: &Node, schema: &Json) -> bool {
        let is_name = object(self.root, schema).is_some_and(|schema| schema.get("const").is_some_and(Json::is_string));
        self.takes(schema, &|kind| is_kind(node, kind)) || (is_name && node.as_str().is_some())
    }

    /// Whether a schema's `type`, or that of one of its alternatives, is as asked for.
    fn takes(&self, schema: &Json, is_right: &dyn Fn(&str) -> bool) -> bool {
        let Some(schema) = object(self.root, schema) else {
            return false;
        };
        if let Some(branches) = branches(schema) {
            return branches.iter().any(|branch| self.takes(branch, is_right));
        }
        schema.get("type").is_some_and(|types| kinds(types).any(is_right))
    }
}

fn tag_value<'s>(schema: &'s Schema, tag: &str) -> Option<&'s str> {
    schema.get("properties")?.get(tag)?.get("const")?.as_str()
}
