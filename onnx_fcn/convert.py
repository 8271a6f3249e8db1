"""The pipeline: open, lift, assemble, validate, save."""

from __future__ import annotations

import os
from dataclasses import dataclass

import onnx

from onnx_fcn.assemble import assemble
from onnx_fcn.document import Document, Edit
from onnx_fcn.lifting import Request, lift


@dataclass
class Conversion:
    document: Document


def convert(source, output=None, *, input_size=None, input=None, dynamic_batch=False):
    document = Document.open(source)
    prepare(document)
    document.check()
    state = lift(document, Request(input, input_size))
    document.commit(assemble(document, state, dynamic_batch=dynamic_batch))
    if output is not None:
        document.save(output)
    return Conversion(document)


def prepare(document: Document) -> None:
    order = document.sorted_order()
    if order is not None:
        document.commit(Edit(order=order))
