"""Spans for OpenTelemetry."""

from __future__ import annotations

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from served import encoded, running


def test_a_span_for_each_request(exported):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with running({"m": exported("semantic")}) as server:
        assert httpx.post(f"{server.address}/segment", content=encoded(1)).is_success
    (found,) = [x for x in exporter.get_finished_spans() if x.name == "segment"]
    assert found.name == "segment"
    assert found.attributes["model"] == "m"
    assert found.attributes["network_seconds"] > 0
