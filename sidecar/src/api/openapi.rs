//! OpenAPI 3.1 description of the server API, generated from the request and reply types of its methods so that the two
//! cannot differ.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    error::{ErrorBody, Reply},
    method::{Broadcast, Channels, Disconnect, Info, Method, Publish},
};

/// Returns the whole document.
pub(super) fn document() -> Value {
    let mut document = Document::new();
    document.add::<Publish>();
    document.add::<Broadcast>();
    document.add::<Channels>();
    document.add::<Info>();
    document.add::<Disconnect>();
    document.finish()
}

struct Document {
    schemas: schemars::SchemaGenerator,
    paths: Map<String, Value>,
}

impl Document {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self { schemas: settings.into_generator(), paths: Map::new() }
    }

    fn add<M: Method>(&mut self) {
        let request = self.schema::<M::Request>();
        let reply = self.schema::<Reply<M::Reply>>();
        let error = self.schema::<Reply<()>>();
        let refused =
            |text: &str| json!({"description": text, "content": {"application/json": {"schema": error}}});
        let operation = json!({
            "operationId": M::NAME,
            "summary": M::SUMMARY,
            "security": [{"apiKey": []}, {"authorization": []}],
            "parameters": [{
                "name": "X-Centrifugo-Error-Mode",
                "in": "header",
                "description": "With `transport`, errors have an HTTP status of their own. Otherwise they are returned with status 200.",
                "schema": {"enum": ["transport"]},
            }],
            "requestBody": {"required": true, "content": {"application/json": {"schema": request}}},
            "responses": {
                "200": {
                    "description": "The result of the call, or an error.",
                    "content": {"application/json": {"schema": reply}},
                },
                "400": refused("Bad request, in error mode `transport`."),
                "401": refused("The API key is missing or invalid."),
                "404": refused("Unknown channel, in error mode `transport`."),
                "413": refused("The body is too large."),
                "415": refused("The body is compressed or is not declared as JSON."),
                "503": refused("The broker is unavailable, in error mode `transport`."),
            },
        });
        self.paths.insert(M::PATH.to_owned(), json!({"post": operation}));
    }

    fn schema<T: JsonSchema>(&mut self) -> Value {
        self.schemas.subschema_for::<T>().to_value()
    }

    fn finish(mut self) -> Value {
        self.schema::<ErrorBody>();
        let Self { mut schemas, paths } = self;
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Fanout server API",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "API for backends. Compatible with clients of Centrifugo's server API. \
                    Unknown fields are ignored.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": paths,
            "components": {
                "schemas": schemas.take_definitions(true),
                "securitySchemes": {
                    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "authorization": {
                        "type": "apiKey", "in": "header", "name": "Authorization",
                        "description": "`apikey <key>`, as sent by older clients.",
                    },
                },
            },
        })
    }
}
