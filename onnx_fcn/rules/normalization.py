"""Normalisations, and other operators along the features of one position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from onnx_fcn.errors import Unsupported
from onnx_fcn.lifting.context import all_positions, weigh_positions
from onnx_fcn.lifting.facts import Fact, Known, Shared
from onnx_fcn.lifting.layouts import (
    arrange,
    as_channels,
    as_feature_map,
    grouped,
    move_factors,
    spatial_axes,
    unfold,
)
from onnx_fcn.lifting.lifted import Atom, Lifted
from onnx_fcn.lifting.refusals import EVALUATION
from onnx_fcn.lifting.registry import lifts
from onnx_fcn.lifting.site import Site
from onnx_fcn.rules.broadcasting import combine


@lifts("BatchNormalization")
def batch_normalization(site: Site, x: Lifted, scale: Fact, bias: Fact, mean: Fact, var: Fact) -> Lifted:
    """Per channel (axis 1) at every position, with the statistics from training. (N, C, …) -> same."""
    if site.attr("training_mode", 0) or len(site.outputs) > 1:
        raise Unsupported("uses the statistics of the current batch, as in training", code="training", hint=EVALUATION)
    parameters = (scale, bias, mean, var)
    if any(not isinstance(p, Known) for p in parameters):
        raise Unsupported("its statistics depend on the image", code="not-constant")
    if x.rank < 2 or x.batch in x.layout[1]:
        raise Unsupported(f"normalises axis 1 of {x}, which is not the channel axis", code="not-channels")
    fixed = x.space_of(x.layout[1])
    if fixed is None or x.space[fixed].slides:
        x, atoms = as_channels(site, x, [1])
    else:
        atoms = x.layout[1]
    if set(atoms) == set(x.channels):
        x = arrange(site, x, atoms)
        return x.on(site.emit([x, *parameters]))
    # only some of the channels, or an axis of the map: y = x·a + b with a = scale/√(var + ε), b = bias - mean·a
    weight, shift, center, spread = (site.value(p).astype(np.float64) for p in parameters)
    a = weight / np.sqrt(spread + float(site.attr("epsilon", 1e-5)))
    kind, shape = site.dtype(x.elem_type), [-1, *[1] * (x.rank - 2)]
    factors = [(v.astype(kind)).reshape(shape) for v in (a, shift - center * a)]
    y = combine(site, [x, site.record_constant(site.constant(factors[0]), factors[0])], op="Mul")
    return combine(site, [y, site.record_constant(site.constant(factors[1]), factors[1])], op="Add")


@lifts("ImageScaler")
def image_scaler(site: Site, x: Lifted) -> Lifted:
    """The normalisation of an image in files of ONNX's first years: a factor, and a bias for each channel."""
    x = as_feature_map(site, x)
    return x.on(site.emit([x]))


@lifts("LRN")
def local_response(site: Site, x: Lifted) -> Lifted:
    """Normalisation across neighbouring channels at every position, of a map with two axes of space."""
    x, _order = spatial_axes(site, as_feature_map(site, x))
    return x.on(site.emit([x]))


@lifts("Softmax", "LogSoftmax", "Hardmax")
def softmax(site: Site, x: Lifted) -> Lifted:
    """Along one axis; before opset 13, along that axis and all later ones, merged into one."""
    return softmaxed(site, x, site.op, coerces=site.opset < 13)


def softmaxed(site: Site, x: Lifted, op: str, *, coerces: bool) -> Lifted:
    """A softmax along the node's axis; with `coerces`, along that axis and all later ones, merged into one."""
    axis = x.axis(int(site.attr("axis", 1 if coerces else -1)))
    axes = range(axis, x.rank) if coerces else [axis]
    x = move_factors(site, x)
    if x.covers_positions(axes) and not site.is_head:
        return _softmaxed_over_map(site, x, axes, op)
    x, atoms = as_channels(site, x, axes)
    rank = 2 + len(x.space)
    return grouped(site, x, atoms, lambda t, k: site.softmax(t, k, rank if k == 1 else 4, op))


def _softmaxed_over_map(site: Site, x: Lifted, axes: Iterable[int], op: str) -> Lifted:
    """A softmax over all positions of a map of any size, and perhaps over channels: (N, C, *space) -> same."""
    weigh_positions(site, x, "weighs all positions by a softmax")
    atoms = {a for k in axes for a in x.layout[k]}
    x = unfold(site, x, [k for k, axis in enumerate(x.space) if not atoms.issuperset(axis.atoms)])
    kept = [a for a in x.channels if a not in atoms]
    x = arrange(site, x, [*kept, *(a for a in x.channels if a in atoms)])
    rows = site.emit([x, np.array([0, Atom.product(kept), -1], np.int64)], "Reshape")
    return x.on(site.emit([site.softmax(rows, 2, 3, op), site.emit([x], "Shape")], "Reshape"))


@lifts("LpNormalization")
def lp_normalization(site: Site, x: Lifted) -> Lifted:
    """Division by the norm along one axis."""
    x, atoms = as_channels(site, x, [x.axis(int(site.attr("axis", -1)))])
    return grouped(site, x, atoms, lambda t, k: site.emit([t], axis=k))


@lifts("LayerNormalization")
def layer_normalization(site: Site, x: Lifted, scale: Fact, bias: Fact | None = None) -> Lifted:
    """Over all axes from `axis` on, at every position, then scaled and shifted per element."""
    if site.has_output(1) or site.has_output(2):
        raise Unsupported("the statistics of a LayerNormalization are used", code="statistics")
    axis = x.axis(int(site.attr("axis", -1)))
    x, atoms = as_channels(site, x, range(axis, x.rank))
    y = standardise(site, x, atoms, float(site.attr("epsilon", 1e-5)))
    y = combine(site, [y, scale], op="Mul")
    return y if bias is None else combine(site, [y, bias], op="Add")


@lifts("RMSNormalization")
def rms_normalization(site: Site, x: Lifted, scale: Fact) -> Lifted:
    """x/√(mean of x² + ε) over all axes from `axis` on, at every position, then scaled per element."""
    x, atoms = as_channels(site, x, range(x.axis(int(site.attr("axis", -1))), x.rank))
    epsilon = site.scalar(x, float(site.attr("epsilon", 1e-5)))

    def emit(name: str, axis: int) -> str:
        square = site.reduce(site.emit([name, name], "Mul"), "ReduceMean", [axis])
        return site.emit([name, site.emit([site.emit([square, epsilon], "Add")], "Sqrt")], "Div")

    return combine(site, [grouped(site, x, atoms, emit), scale], op="Mul")


@lifts("MeanVarianceNormalization")
def mean_variance_normalization(site: Site, x: Lifted) -> Lifted:
    """(x - mean)/√var over some axes, at every position.

    ONNX defines the variance as the difference of two means, where a large mean leaves only rounding errors. Like
    onnxruntime, this rule centres first and adds no ε. Statistics over all positions of a live map are context.
    """
    axes = sorted({x.axis(int(a)) for a in site.attr("axes", [0, 2, 3])})
    if any(x.batch in x.layout[a] for a in axes) and x.shape[0] != 1:
        raise Unsupported(f"normalises over the batch: axes {axes} of {x}", code="batch")
    if x.is_live and not site.is_head and set(range(2, x.rank)) <= set(axes):
        x, _order = spatial_axes(site, as_feature_map(site, x))
        all_positions(site, x, "normalises over all positions")
        return x.on(site.emit([x]))
    x, atoms = as_channels(site, x, axes)
    return standardise(site, x, atoms, 0.0)


def standardise(site: Site, x: Lifted, atoms: Sequence[Atom], epsilon: float) -> Lifted:
    """(x - mean)/√(var + ε) over some channel atoms, at every position."""

    def emit(name: str, axis: int) -> str:
        centred = site.emit([name, site.reduce(name, "ReduceMean", [axis])], "Sub")
        variance = site.reduce(site.emit([centred, centred], "Mul"), "ReduceMean", [axis])
        deviation = site.emit([site.emit([variance, site.scalar(x, epsilon)], "Add")], "Sqrt")
        return site.emit([centred, deviation], "Div")

    return grouped(site, x, atoms, emit)


@lifts("InstanceNormalization", "GroupNormalization")
def instance_normalization(site: Site, x: Lifted, scale: Shared, bias: Shared) -> Lifted:
    """Per image and channel (or group of channels) over all positions.

    Over a live map these statistics are context: they stay global. If no window is left (a GroupNorm written as
    Reshape → InstanceNormalization on pooled features), or in a branch of the head, they belong to one position.
    """
    epsilon = float(site.attr("epsilon", 1e-5))
    if site.op == "GroupNormalization" and x.is_live and not site.is_head:
        x = as_feature_map(site, x)
        all_positions(site, x, "normalises over all positions")
        return x.on(site.emit([x, scale, bias]))
    if site.op == "InstanceNormalization":
        return _instance(site, x, scale, bias, epsilon)
    groups = int(site.attr("num_groups"))
    seen = x.reshaped([x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]])
    seen, atoms = as_channels(site, seen, range(2, seen.rank))
    y = standardise(site, seen, atoms, epsilon)
    y = replace(y, layout=seen.layout).reshaped(x.shape)
    return _affine(site, y, scale, bias)


def _instance(site: Site, x: Lifted, scale: Shared, bias: Shared, epsilon: float) -> Lifted:
    inner = [a for group in x.layout[2:] for a in group]
    if site.is_head or all(a in x.channels for a in inner):
        x, atoms = as_channels(site, x, range(2, x.rank))
        return _affine(site, standardise(site, x, atoms, epsilon), scale, bias)
    live = [a for axis in x.space for a in axis.atoms]
    if any(a not in inner for a in live):
        raise Unsupported(f"normalises over a part of the image: {x}", code="norm-partial")
    if x.layout[0] != ((x.batch,) if x.batch.size > 1 else ()) or x.batch in x.layout[1]:
        raise Unsupported(f"expects the batch on axis 0, but the layout here is {x}", code="not-channels")
    all_positions(site, x, "normalises over all positions")
    x = arrange(site, x, x.channels_in_order)
    if x.is_channels(1) and len(x.layout) == 2 + len(x.space):
        return x.on(site.emit([x, scale, bias]))
    groups = Atom.product(x.layout[1])
    shape = site.emit([x], "Shape")
    seen = site.emit([x, np.array([0, groups, -1], np.int64)], "Reshape")
    return x.on(site.emit([site.emit([seen, scale, bias]), shape], "Reshape"))


def _affine(site: Site, x: Lifted, scale: Shared, bias: Shared) -> Lifted:
    """x·scale + bias, per element of axis 1."""
    for fact, op in ((scale, "Mul"), (bias, "Add")):
        value = site.value(fact).reshape([-1, *[1] * (x.rank - 2)])
        x = combine(site, [x, site.record_constant(site.constant(value), value)], op=op)
    return x
