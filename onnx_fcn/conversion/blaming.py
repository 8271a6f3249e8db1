"""Whom to blame for a failure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnx_fcn.errors import FcnError
from onnx_fcn.model.sessions import session
from onnx_fcn.walk.given import Given

__all__ = ["blaming_model"]


@contextmanager
def blaming_model(given: Given) -> Iterator[None]:
    """If something fails unexpectedly, ask onnxruntime whether the model is to blame: the checker misses many faults.

    Raises:
        ModelError: if onnxruntime rejects the model, too. Otherwise the failure is a bug here, and propagates.
    """
    try:
        yield
    except FcnError:
        raise
    except Exception:  # any: it propagates, unless onnxruntime blames the model
        session(given.file)
        raise
