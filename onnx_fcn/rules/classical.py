"""Classical models behind a network, as ai.onnx.ml writes them: scaling, normalising, and linear scores.

They are written as ONNX's own operators, which compute what onnxruntime computes for a table of features (N, F):

    Scaler                  (x - offset)·scale
    Normalizer              x / norm, and x if that is zero
    LinearRegressor         x·coefficientsᵀ + intercepts: a dense layer
    LinearClassifier        the same, the probabilities made of it, and the label of the best score
    ArrayFeatureExtractor   some features, or the labels of class indices
    Binarizer               x > threshold

A classifier of two classes may have one score s: then the scores are -s and s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnx_fcn._types import Array
from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.facts import Blocked, Fact
from onnx_fcn.lifting.layouts import as_channels, grouped
from onnx_fcn.lifting.lifted import Lifted, dim_of, dims_of
from onnx_fcn.lifting.refusals import hint_for
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules.broadcasting import combine
from onnx_fcn.rules.channels import take
from onnx_fcn.rules.contraction import contract
from onnx_fcn.rules.normalization import softmaxed

DOMAIN = "ai.onnx.ml"
FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE

#: Normalizer's norms, as reductions. The largest value counts, not the largest magnitude.
NORMS = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}


@lifts("Scaler", domain=DOMAIN)
def scaler(site: Site, x: Lifted) -> Lifted:
    """(x - offset)·scale with one number for all features, or one for each; in doubles if x is."""
    offset, scale = (np.array(site.attr(name, []), np.float64) for name in ("offset", "scale"))
    x = _features(x)
    if offset.size != scale.size or offset.size not in (1, x.shape[1]):
        given = f"{offset.size} offsets and {scale.size} scales"
        raise Unsupported(f"has {given} for {dim_of(x.shape[1])} features", code="attribute")
    x = x if x.elem_type == DOUBLE else _as_floats(site, x)
    return _as_floats(site, _with(site, "Mul", _with(site, "Sub", x, offset), scale))


@lifts("Normalizer", domain=DOMAIN)
def normalizer(site: Site, x: Lifted) -> Lifted:
    """Division of each row by its norm, unless that is zero."""
    kind = str(site.attr("norm", "MAX"))
    if kind not in NORMS:
        raise Unsupported(f"its norm is {kind}, and must be {', '.join(NORMS)}", code="attribute")
    x, atoms = as_channels(site, _as_floats(site, _features(x)), [1])

    def emit(name: str, axis: int) -> str:
        norm = site.reduce(name, NORMS[kind], [axis])
        is_zero = site.emit([site.emit([norm], "Cast", to=onnx.TensorProto.BOOL)], "Not")
        return site.emit([name, site.emit([norm, site.emit([is_zero], "Cast", to=FLOAT)], "Add")], "Div")

    return grouped(site, x, atoms, emit)


@lifts("Binarizer", domain=DOMAIN)
def binarizer(site: Site, x: Lifted) -> Lifted:
    """1 for values above the threshold, 0 for others."""
    above = _with(site, "Greater", x, np.array(site.attr("threshold", 0.0)))
    return x.on(site.emit([above], "Cast", to=x.elem_type))


@lifts("ArrayFeatureExtractor", domain=DOMAIN)
def array_feature_extractor(site: Site, x: Fact, index: Fact) -> Lifted:
    """Elements of the last axis by a constant index; or from labels (L,), the label of each class index. -> (1, …)"""
    if isinstance(index, Lifted):
        labels = site.value(x)
        if labels.dtype.kind not in "iuf":
            raise _strings(site, site.node.inputs[1])
        if labels.size != labels.shape[-1]:
            raise Unsupported(f"looks up a table of shape {dims_of(labels.shape)}", code="lookup")
        return _looked_up(site, labels.reshape(-1), index).reshaped([1, math.prod(index.shape)])
    if not isinstance(x, Lifted):
        raise Unsupported("selects from a constant by an index that is not known", code="not-constant")
    rows = x.unsqueezed([0]) if x.rank == 1 else x
    return take(site, rows, rows.rank - 1, site.value(index).reshape(-1))


@lifts("LinearRegressor", domain=DOMAIN)
def linear_regressor(site: Site, x: Lifted) -> Lifted:
    """(N, F) -> (N, targets)."""
    targets, transform = int(site.attr("targets", 1)), _transform(site)
    intercepts = np.array(site.attr("intercepts", [0.0] * targets), np.float32)
    if intercepts.size != targets:
        raise Unsupported(f"has {intercepts.size} intercepts for {targets} targets", code="attribute")
    if targets == 1 and transform != "NONE":  # onnxruntime does nothing here, unlike ONNX's definition
        raise _of_a_single_score(transform)
    return _transformed(site, _scores(site, x, _coefficients(site, x, targets), intercepts), transform)


@lifts("LinearClassifier", domain=DOMAIN)
def linear_classifier(site: Site, x: Lifted) -> Sequence[Fact]:
    """(N, F) -> the labels (N,), and the scores or probabilities (N, classes).

    Of a single score s, the label is the second one if s > 0. Without a transform, the answers are then 1 - s and s.
    """
    transform, intercepts = _transform(site), np.array(site.attr("intercepts", []), np.float32)
    coefficients = _coefficients(site, x, intercepts.size)
    single = intercepts.size == 1
    if single and transform == "SOFTMAX":  # onnxruntime gives 1 - s and s here
        raise _of_a_single_score(transform)
    if single:
        coefficients, intercepts = (np.concatenate([-v, v]) for v in (coefficients, intercepts))
    scores = _scores(site, x, coefficients, intercepts)
    label = _label(site, scores)
    if single and transform == "NONE":
        return label, _with(site, "Add", scores, np.array([1, 0]))
    return label, _transformed(site, scores, transform)


def _features(x: Lifted) -> Lifted:
    """The operand, which is checked to be a table."""
    if x.rank != 2:
        raise Unsupported(f"reads {x} ({x.dims}), which is not a table of features", code="rank")
    return x


def _as_floats(site: Site, x: Lifted) -> Lifted:
    return x if x.elem_type == FLOAT else x.on(site.emit([x], "Cast", to=FLOAT), FLOAT)


def _with(site: Site, op: str, x: Lifted, value: Array) -> Lifted:
    """An elementwise operator on x and a constant that broadcasts, in the type of x."""
    value = value.astype(site.dtype(x.elem_type))
    return combine(site, [x, site.record_constant(site.constant(value), value)], op=op)


def _coefficients(site: Site, x: Lifted, rows: int) -> Array:
    """The coefficients (rows, F)."""
    values, features = np.array(site.attr("coefficients", []), np.float32), _features(x).shape[1]
    if not rows or values.size != rows * features:
        expected = f"{rows} × {dim_of(features)} features"
        raise Unsupported(f"has {values.size} coefficients for {expected}", code="attribute")
    return values.reshape(rows, features)


def _scores(site: Site, x: Lifted, coefficients: Array, intercepts: Array) -> Lifted:
    """A dense layer. (N, F) -> (N, rows)"""
    weight = site.record_constant(site.fresh(f"{site.node.name or site.outputs[0]}/coefficients"), coefficients)
    bias = site.record_constant(site.constant(intercepts), intercepts)
    return contract(site, _as_floats(site, x), 1, weight, lambda w: w.T, bias)


def _transform(site: Site) -> str:
    """What the node makes of its scores.

    Raises:
        Unsupported: if it is not understood.
    """
    name = str(site.attr("post_transform", "NONE"))
    if name not in ("NONE", "SOFTMAX", "LOGISTIC"):
        raise Unsupported(
            f"its post_transform is {name}, and only NONE, SOFTMAX and LOGISTIC are understood", code="attribute"
        )
    return name


def _of_a_single_score(transform: str) -> Unsupported:
    return Unsupported(f"applies {transform} to a single score, which runtimes interpret differently", code="attribute")


def _transformed(site: Site, scores: Lifted, transform: str) -> Lifted:
    if transform == "SOFTMAX":
        return softmaxed(site, scores, "Softmax", coerces=False)
    return _logistic(site, scores) if transform == "LOGISTIC" else scores


def _logistic(site: Site, x: Lifted) -> Lifted:
    """LOGISTIC in onnxruntime's steps: v = 1/(1 + exp(-|x|)), and 1 - v where x < 0.

    Unlike Sigmoid, this is 0 far below zero. A Normalizer after it shows the difference.
    """
    one = site.scalar(x, 1.0)
    decay = site.emit([site.emit([site.emit([x], "Abs")], "Neg")], "Exp")
    above = site.emit([one, site.emit([one, decay], "Add")], "Div")
    below = site.emit([one, above], "Sub")
    return x.on(site.where(site.emit([x, site.scalar(x, 0.0)], "Less"), below, above))


def _label(site: Site, scores: Lifted) -> Fact:
    """The label of the best score. (N, classes) -> (N,)

    Raises:
        Unsupported: if it is a string and is read, or there is not one label for each score.
    """
    names, labels = site.attr("classlabels_strings", []), np.array(site.attr("classlabels_ints", []), np.int64)
    count = len(names) or labels.size
    if count != scores.shape[1]:
        raise Unsupported(f"has {count} labels for {scores.shape[1]} scores", code="attribute")
    if names and site.has_output(0):
        raise _strings(site, site.outputs[1] if len(site.outputs) > 1 else "")
    if names:
        return Blocked()
    y, atoms = as_channels(site, scores, [1])
    best = grouped(site, y, atoms, lambda t, k: site.emit([t], "ArgMax", axis=k, keepdims=1), ())
    best = replace(best, layout=y.layout[:1], elem_type=onnx.TensorProto.INT64)
    return best if np.array_equal(labels, np.arange(labels.size)) else _looked_up(site, labels, best)


def _looked_up(site: Site, labels: Array, index: Lifted) -> Lifted:
    """The label of each class index."""
    return index.on(site.emit([labels, index], "Gather"), onnx.helper.np_dtype_to_tensor_dtype(labels.dtype))


def _strings(site: Site, instead: str) -> Unsupported:
    """The refusal of labels that are strings; `instead` is a tensor to take as an output."""
    reason = "gives labels that are strings, which a map cannot contain"
    return Unsupported(reason, code="strings", hint=hint_for(DOMAIN, site.op, instead))
