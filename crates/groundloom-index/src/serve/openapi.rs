//! The OpenAPI document of the server.

use serde_json::{Value, json};

use super::Limits;

/// The document, with the limits of this server in it.
pub(crate) fn document(limits: &Limits, token: bool) -> Value {
    let error = |what: &str| json!({ "description": what, "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } } });
    let ok = |schema: &str| json!({ "description": "the answer", "content": { "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } } });
    let errors = |success: Value| {
        json!({
            "200": success,
            "400": error("the body is no JSON"),
            "401": error("the bearer token is missing or wrong"),
            "408": error("the request did not arrive in time"),
            "413": error("the body is larger than the limit"),
            "422": error("a value is wrong; the message says which and what was expected"),
            "429": error("too many requests at once"),
            "503": error("the work took too long, or the server is stopping"),
        })
    };
    let key = json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } });
    let one_or_more = |what: &str| json!({ "description": what, "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Groundloom index", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0" } },
        "security": if token { json!([{ "bearer": [] }]) } else { json!([]) },
        "paths": {
            "/search": { "post": {
                "summary": "Find the rows closest to a question, or to each of several",
                "requestBody": { "required": true, "content": { "application/json": { "schema": { "oneOf": [
                    { "$ref": "#/components/schemas/Query" },
                    { "type": "object", "required": ["queries"], "additionalProperties": false, "properties": {
                        "queries": { "type": "array", "maxItems": limits.queries, "items": { "$ref": "#/components/schemas/Query" } } } },
                ] } } } },
                "responses": errors(json!({ "description": "the answer, or `answers` for several questions", "content": { "application/json": { "schema": {
                    "oneOf": [{ "$ref": "#/components/schemas/Answer" },
                        { "type": "object", "properties": { "answers": { "type": "array", "items": { "$ref": "#/components/schemas/Answer" } }, "generation": { "type": "integer" } } }] } } } })),
            } },
            "/embed": { "post": {
                "summary": "The vector of a text or a picture, by the model of a column",
                "requestBody": { "required": true, "content": { "application/json": { "schema": {
                    "type": "object", "additionalProperties": false, "properties": {
                        "text": { "type": "string" },
                        "image": { "type": "string", "description": "base64 of a picture file" },
                        "column": { "type": "string" } } } } } },
                "responses": errors(ok("Vector")),
            } },
            "/rows/{id}": { "get": { "summary": "A row by its key", "parameters": [key.clone()], "responses": errors(ok("Row")) } },
            "/rows/{id}/media/{column}": { "get": {
                "summary": "A picture of a row",
                "parameters": [key, { "name": "column", "in": "path", "required": true, "schema": { "type": "string" } }],
                "responses": { "200": { "description": "the encoded picture", "content": { "image/*": {} } }, "404": error("there is no such row or picture") },
            } },
            "/index": { "get": { "summary": "Columns, models and size", "responses": errors(ok("Row")) } },
            "/healthz": { "get": { "summary": "Whether the server lives", "security": [], "responses": { "200": { "description": "it does" } } } },
            "/readyz": { "get": { "summary": "Whether an index is open, and which generation", "responses": { "200": { "description": "it is" } } } },
            "/metrics": { "get": { "summary": "Counters in Prometheus' text format", "responses": { "200": { "description": "the counters", "content": { "text/plain": {} } } } } },
        },
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": {
                "Query": { "type": "object", "additionalProperties": false,
                    "description": "One of text, image, row, vector; several are added, each made unit length first.",
                    "properties": {
                        "text": one_or_more("texts"),
                        "image": one_or_more("base64 of picture files"),
                        "row": one_or_more("keys of rows"),
                        "vector": { "type": "array", "items": { "type": "number" } },
                        "column": { "type": "string", "description": "the vector column; default: the first whose model takes the question" },
                        "k": { "type": "integer", "minimum": 1, "maximum": limits.k, "default": 10 },
                        "where": { "type": "string", "description": "an SQL condition on the rows", "examples": ["width > 300"] },
                        "ef": { "type": "integer", "minimum": 1, "description": "how many of the closest nodes the walk looks around of before it ends; default: as tuned" },
                        "exact": { "type": "boolean", "default": false },
                        "columns": { "type": "array", "items": { "type": "string" } } } },
                "Answer": { "type": "object", "properties": {
                    "column": { "type": "string" },
                    "hits": { "type": "array", "items": { "type": "object", "properties": {
                        "score": { "type": "number" }, "row": { "$ref": "#/components/schemas/Row" } } } },
                    "plans": { "type": "array", "items": { "enum": ["scan", "graph", "filtered_graph"] } },
                    "matching": { "type": "integer", "description": "rows that match `where`" },
                    "generation": { "type": "integer" } } },
                "Vector": { "type": "object", "properties": {
                    "column": { "type": "string" }, "model": {}, "vector": { "type": "array", "items": { "type": "number" } } } },
                "Row": { "type": "object" },
                "Error": { "type": "object", "properties": { "error": { "type": "object", "properties": {
                    "code": { "type": "string" }, "message": { "type": "string" } } } } },
            },
        },
    })
}
