"""Runs a pipeline of a binary built with `--features otel` against a collector of its own, and reads the spans with OpenTelemetry's own messages.

    cargo build --features otel
    pip install opentelemetry-proto
    python tests/python/traces.py target/debug/groundloom
"""

import http.server
import os
import subprocess
import sys
import tempfile
import threading

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

spans, services = [], set()


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            services.update(a.value.string_value for a in of_resource.resource.attributes if a.key == "service.name")
            for scope in of_resource.scope_spans:
                spans.extend(scope.spans)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def main(binary):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "in"))
        for file in range(3):
            with open(os.path.join(folder, "in", f"{file}.jsonl"), "w") as f:
                f.writelines('{"n": %d}\n' % n for n in range(1000))
        with open(os.path.join(folder, "p.yaml"), "w") as f:
            f.write("name: traced\nsources: { rows: { type: jsonl, path: 'in/*.jsonl' } }\n"
                    "stages: { some: { type: filter, where: 'n < 100' } }\nsinks: { out: { type: parquet, path: out } }\n")
        environment = dict(os.environ, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        subprocess.run([os.path.abspath(binary), "run", "p.yaml"], cwd=folder, env=environment, check=True, capture_output=True)
    by_name = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    assert services == {"groundloom"}, services
    assert {name: len(found) for name, found in by_name.items()} == {"run": 1, "segment": 1, "task": 1, "publish": 1}, by_name
    run, segment = by_name["run"][0], by_name["segment"][0]
    assert run.parent_span_id == b"" and segment.parent_span_id == run.span_id
    assert all(task.parent_span_id == segment.span_id for task in by_name["task"])
    assert by_name["publish"][0].parent_span_id == run.span_id
    kept = [a.value.int_value for task in by_name["task"] for a in task.attributes if a.key == "rows_kept"]
    assert kept == [300], kept  # three small files are one shard
    assert all(span.end_time_unix_nano > span.start_time_unix_nano for span in spans)
    print(f"{len(spans)} spans of one run, parents and counts right")


if __name__ == "__main__":
    main(sys.argv[1])
