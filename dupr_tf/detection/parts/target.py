"""The runtime that a graph is traced for. ONNX and LiteRT lack some of TensorFlow's operations."""

from __future__ import annotations

import contextlib
import contextvars

TENSORFLOW, ONNX, LITERT = "tensorflow", "onnx", "litert"
_target = contextvars.ContextVar("target", default=TENSORFLOW)


@contextlib.contextmanager
def tracing_for(target: str):
    """Builds operations for a target inside the `with` block; functions must be traced within it."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def current_target() -> str:
    """Returns the target of the surrounding `tracing_for`. Default: TENSORFLOW."""
    return _target.get()
