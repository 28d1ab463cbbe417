//! What a run measures, for Prometheus: `GET /metrics` as long as the run lasts.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use groundloom_engine::telemetry::{ModelTiming, Reading, Telemetry};
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use tokio::net::TcpListener;

use crate::failure::Failure;

/// Begins to serve; ends with the process.
pub async fn serve(address: SocketAddr, telemetry: Arc<Telemetry>) -> Result<(), Failure> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| Failure::Usage(format!("--metrics {address}: {e}; name another address")))?;
    if let Ok(bound) = listener.local_addr() {
        say!("metrics at http://{bound}/metrics");
    }
    let mut registry = Registry::with_prefix("groundloom");
    registry.register_collector(Box::new(Meters(telemetry)));
    let registry = Arc::new(registry);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let registry = Arc::clone(&registry);
            let answers = service_fn(move |request| {
                let registry = Arc::clone(&registry);
                async move { Ok::<_, Infallible>(answer(&request, &registry)) }
            });
            // A client that sends nothing is let go after hyper's own header timeout.
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answers);
            tokio::spawn(connection);
        }
    });
    Ok(())
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            match encode(&mut text, registry) {
                Ok(()) => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string()),
            }
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "this serves GET /metrics only\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Reads the telemetry whenever it is asked.
#[derive(Debug)]
struct Meters(Arc<Telemetry>);

impl Collector for Meters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Reading { tasks, tasks_reused, tasks_done, rows_read, rows_kept, quarantined, stages, models } =
            self.0.read();
        let mut out = Output(&mut encoder);
        out.gauge("tasks", "Tasks of the plan", tasks)?;
        out.gauge("tasks_reused", "Tasks that an earlier run had committed", tasks_reused)?;
        out.counter("tasks_done", "Tasks committed by this run", tasks_done)?;
        out.counter("rows_read", "Rows read from sources", rows_read)?;
        out.counter("rows_kept", "Good rows in committed parts", rows_kept)?;
        out.family(
            ("rows_quarantined", "Failed rows in committed tasks", None),
            MetricType::Counter,
            "code",
            &quarantined,
            |(c, n)| (c, ConstCounter::new(**n)),
        )?;
        out.family(("stage_rows", "Rows a stage worked on", None), MetricType::Counter, "stage", &stages, |s| {
            (&s.stage, ConstCounter::new(s.rows))
        })?;
        out.family(("stage_windows_in_flight", "Windows under way", None), MetricType::Gauge, "stage", &stages, |s| {
            (&s.stage, ConstGauge::new(s.in_flight.cast_signed()))
        })?;
        out.family(
            ("stage_busy", "Time of a stage's windows, added up", Some(&Unit::Seconds)),
            MetricType::Counter,
            "stage",
            &stages,
            |s| (&s.stage, ConstCounter::new(s.seconds)),
        )?;
        out.family(
            ("model_batches_waiting", "Batches not answered yet", None),
            MetricType::Gauge,
            "model",
            &models,
            |m| (&m.model, ConstGauge::new(m.waiting.cast_signed())),
        )?;
        out.family(("model_items", "Items a model answered", None), MetricType::Counter, "model", &models, |m| {
            (&m.model, ConstCounter::new(m.items))
        })?;
        out.family(("model_batches", "Batches a model computed", None), MetricType::Counter, "model", &models, |m| {
            (&m.model, ConstCounter::new(m.batches))
        })?;
        out.family(
            ("model_busy", "Time a model computed", Some(&Unit::Seconds)),
            MetricType::Counter,
            "model",
            &models,
            |m| (&m.model, ConstCounter::new(m.busy_seconds)),
        )?;
        out.family(
            ("model_wait", "Time batches waited for a model", Some(&Unit::Seconds)),
            MetricType::Counter,
            "model",
            &models,
            |m| (&m.model, ConstCounter::new(m.wait_seconds)),
        )?;
        out.family(
            ("model_weights", "Weights of a model that are loaded", Some(&Unit::Bytes)),
            MetricType::Gauge,
            "model",
            &models,
            |m| (&m.model, ConstGauge::new(m.weights_bytes as i64)),
        )?;
        out.family(
            ("model_loads", "How often the weights of a model were loaded", None),
            MetricType::Counter,
            "model",
            &models,
            |m| (&m.model, ConstCounter::new(m.loads)),
        )?;
        out.family(
            ("model_did_not_fit", "Batches that did not fit into a device's memory and were computed in halves", None),
            MetricType::Counter,
            "model",
            &models,
            |m| (&m.model, ConstCounter::new(m.did_not_fit)),
        )?;
        out.devices(&models)
    }
}

/// Writes metrics, each with its help and labels.
struct Output<'a, 'b>(&'a mut DescriptorEncoder<'b>);

type Done = Result<(), std::fmt::Error>;

impl Output<'_, '_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Done {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Done {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value.cast_signed()).encode(encoder)
    }

    /// Where each model computes.
    fn devices(&mut self, models: &[ModelTiming]) -> Done {
        let (name, help) = ("model_device", "1 for each device that a model computes on");
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for model in models {
            for device in &model.devices {
                let labels = [("model", model.model.as_str()), ("device", device.as_str())];
                ConstGauge::new(1_i64).encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// One metric per item, told apart by a label.
    fn family<T, M: EncodeMetric>(
        &mut self,
        (name, help, unit): (&str, &str, Option<&Unit>),
        kind: MetricType,
        label: &str,
        items: impl IntoIterator<Item = T>,
        read: impl Fn(&T) -> (&str, M),
    ) -> Done {
        let mut encoder = self.0.encode_descriptor(name, help, unit, kind)?;
        for item in items {
            let (value, metric) = read(&item);
            metric.encode(encoder.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }
}
