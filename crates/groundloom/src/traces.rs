//! Spans of a run (run, segments, tasks, publication) for an OpenTelemetry collector, with the feature `otel`.
//!
//! Set up as every OpenTelemetry program is, by the environment (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, …); without an endpoint
//! nothing is sent. The protocol is OTLP over HTTP with protobuf bodies.

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracerProvider, Tracer},
};
use tokio::runtime::Handle;
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

/// The way of spans out of the process.
pub struct Traces {
    provider: SdkTracerProvider,
}

/// Opens the way, if the environment names a collector. The requests are sent by `runtime`.
pub fn start(runtime: &Handle) -> Option<Traces> {
    let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !named("OTEL_EXPORTER_OTLP_ENDPOINT") && !named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        return None;
    }
    let client = Client { client: reqwest::Client::new(), runtime: runtime.clone() };
    match SpanExporter::builder().with_http().with_http_client(client).build() {
        Ok(exporter) => {
            let mut resource = Resource::builder();
            if !named("OTEL_SERVICE_NAME") {
                resource = resource.with_service_name("groundloom");
            }
            let provider =
                SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
            Some(Traces { provider })
        }
        Err(error) => {
            say!("warning: no traces are sent: {error}");
            None
        }
    }
}

impl Traces {
    /// What turns Groundloom's spans into OpenTelemetry's.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let layer: OpenTelemetryLayer<S, Tracer> =
            tracing_opentelemetry::layer().with_tracer(self.provider.tracer("groundloom")).with_location(false);
        let ours = Targets::new().with_target("groundloom", LevelFilter::INFO);
        layer.with_filter(ours)
    }

    /// Sends what is left; a collector that does not answer holds the process up for some seconds at most.
    pub fn finish(self) {
        if let Err(error) = self.provider.shutdown() {
            say!("warning: traces were lost: {error}");
        }
    }
}

/// Requests of the exporter's thread, made on the runtime's.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let (parts, body) = request.into_parts();
        let answer = self.runtime.spawn(async move {
            let url = parts.uri.to_string();
            let answer = client.request(parts.method, url).headers(parts.headers).body(body).send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?))
        });
        let (status, headers, body) = answer.await??;
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}
