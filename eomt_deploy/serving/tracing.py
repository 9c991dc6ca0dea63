"""Spans for OpenTelemetry, if its package is installed; without a configured exporter they cost
nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def span(name: str, attributes: Mapping[str, Any]) -> Iterator[Callable[[str, Any], None]]:
    """A span around a block; the function adds attributes to it."""
    try:
        from opentelemetry import trace
    except ImportError:
        yield lambda key, value: None
        return
    tracer = trace.get_tracer("eomt_deploy")
    with tracer.start_as_current_span(name, attributes=dict(attributes)) as current:
        yield current.set_attribute
