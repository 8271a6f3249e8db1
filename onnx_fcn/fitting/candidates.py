"""Which maps of a network a new last layer may read.

    last      what the original's last layer reads: features of a whole window, often behind a pooling
    cut       the last feature map that all answers are computed from
    stride 8  the last map with 8 pixels between its cells, and so for every stride of the network from 4 on; where 1×1
              layers compute several of these from each other, the one with the fewest channels

Classes of whole images need the first; the later a map, the less it says where something is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnx import NodeProto

from onnx_fcn.errors import OptionError
from onnx_fcn.fitting.network import Network
from onnx_fcn.geometry import Field
from onnx_fcn.lifting.facts import Fact, Known
from onnx_fcn.lifting.lifted import Axis, Lifted
from onnx_fcn.model.operators import PROBABILITIES, THROUGH
from onnx_fcn.walk.cut import cuts_of
from onnx_fcn.walk.fields import sliding
from onnx_fcn.walk.forms import FLOATS

__all__ = ["Candidate", "Feature", "among", "joined", "usable"]


#: The finest stride that is tried unasked: finer maps have few features, and many cells.
FINEST = 4


@dataclass(frozen=True)
class Feature:
    """One map that a layer reads.

    Attributes:
        tensor: its name in the original.
        fact: the lifted map.
        covers: does the layer read all cells of a window, or one cell?
    """

    tensor: str
    fact: Lifted
    covers: bool = False

    @property
    def numbers(self) -> int:
        """Features for each place."""
        return self.fact.width * (math.prod(self.fact.window) if self.covers else 1)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Its axes along the image, in the image's order; contracted if the layer reads whole windows."""
        return tuple(a.contracted() if self.covers and a.atoms else a for a in sliding(self.fact))

    @property
    def stride(self) -> tuple[Fraction, ...]:
        """Pixels between neighbouring cells along each axis of the image, without any dilation."""
        return tuple(a.stride * a.rate for a in self.axes)


@dataclass(frozen=True)
class Candidate:
    """A choice of maps.

    Attributes:
        name: such as ``cut`` or ``stride 8+16``.
        features: the maps, the finest first.
    """

    name: str
    features: tuple[Feature, ...]

    @property
    def numbers(self) -> int:
        """Features for each place."""
        return sum(f.numbers for f in self.features)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the maps in the original."""
        return tuple(f.tensor for f in self.features)


def among(network: Network, at: str | Sequence[str]) -> tuple[list[Candidate], list[str]]:
    """The candidates that are asked for, and sentences about those that cannot be used.

    Args:
        network: the classifier.
        at: ``auto``, ``last``, ``cut``, ``stride:8,16``, or the names of tensors.

    Raises:
        OptionError: if none can be used, or there is no such map.
    """
    if at == "auto":
        return _all(network)
    if at == "last":
        return [Candidate("last", (_last(network),))], []
    if at == "cut":
        return [Candidate("cut", (_cut(network),))], []
    if isinstance(at, str) and at.startswith("stride:"):
        return [_at_strides(network, at.removeprefix("stride:"))], []
    names = [n.strip() for n in at.split(",")] if isinstance(at, str) else list(at)
    if not any(names):
        raise OptionError("--at is empty: it is auto, last, cut, stride:8,16 or names of tensors")
    features = tuple(usable(network, name) for name in names)
    if len(set(names)) < len(names):
        raise OptionError("--at names each map once")
    return [joined(features)], []


def joined(features: Sequence[Feature]) -> Candidate:
    """One candidate of several maps."""
    ordered = tuple(sorted(features, key=lambda f: f.stride))
    name = "stride " + "+".join(f"{float(max(f.stride)):g}" for f in ordered)
    return Candidate(name, ordered)


def usable(network: Network, name: str, *, covers: bool = False) -> Feature:
    """A map by its name.

    Raises:
        OptionError: if it cannot be used, with the reason.
    """
    fact = network.map_at(name)
    if fact.elem_type not in FLOATS:
        raise OptionError(f"'{name}' is rounded to integers, so no layer can be trained on it: fit the float model")
    if not all(a.field.is_local for a in sliding(fact)):
        raise OptionError(
            f"'{name}' depends on the whole image, through a squeeze-and-excite gate, dynamic quantisation or the "
            "like, so its features differ from crop to crop: choose an earlier map with --at"
        )
    if fact.padding is not None or fact.unfolded is not None:
        raise OptionError(f"'{name}' is not a map that a layer can read at every position: choose another with --at")
    if any(a.atoms and a.image is None for a in fact.space):
        raise OptionError(f"'{name}' ({fact}) has an axis that is not the image's: choose another map with --at")
    if not covers and not fact.is_plain:
        raise OptionError(f"'{name}' ({fact}) is not a map: its positions and channels are on one axis")
    return Feature(name, fact, covers and fact.is_live)


def _all(network: Network) -> tuple[list[Candidate], list[str]]:
    found: dict[str, Candidate] = {}
    refused: list[str] = []
    for name, find in (("last", _last), ("cut", _cut)):
        try:
            feature = find(network)
        except OptionError as error:
            refused.append(f"{name} is not tried: {error}")
            continue
        found.setdefault(feature.tensor, Candidate(name, (feature,)))
    for feature in _of_each_stride(network):
        if max(feature.stride) >= FINEST:
            found.setdefault(feature.tensor, joined([feature]))
    if not found:
        raise OptionError(f"the network has no map that a layer can be trained on; {'; '.join(refused)}")
    return list(found.values()), refused


def _of_each_stride(network: Network) -> Iterator[Feature]:
    """The last usable map of each stride, the coarsest first.

    Of those that see the same pixels, it is the narrowest: the others are computed from it cell by cell, such as the
    expansions of MobileNet's blocks, and have more numbers but no more information.
    """
    found: dict[tuple[Fraction, ...], Feature] = {}
    for cut in cuts_of(network.walk):
        if cut.name == network.walk.image.name or not _is_usable(network, cut.name):
            continue
        feature = Feature(cut.name, cut.fact)
        last = found.setdefault(feature.stride, feature)
        if _sees(feature) == _sees(last) and feature.numbers < last.numbers:
            found[feature.stride] = feature
    yield from found.values()


def _sees(feature: Feature) -> list[Field]:
    return [a.field for a in feature.axes]


def _is_usable(network: Network, name: str) -> bool:
    try:
        usable(network, name)
    except OptionError:
        return False
    return True


def _at_strides(network: Network, text: str) -> Candidate:
    wanted = [w for w in map(str.strip, text.split(",")) if w]
    by_stride = {f"{float(max(f.stride)):g}": f for f in _of_each_stride(network)}
    if not wanted:
        raise OptionError("--at stride: names no stride: write stride:8, or stride:8,16 for two maps")
    if odd := [w for w in wanted if not w.isdecimal() and w not in by_stride]:
        raise OptionError(f"--at stride: takes numbers of pixels, such as stride:8,16, and not '{odd[0]}'")
    if unknown := [w for w in wanted if w not in by_stride]:
        known = ", ".join(sorted(by_stride, key=float)) or "none"
        raise OptionError(
            f"no map that all answers are computed from has a stride of {unknown[0]} pixels: the strides are {known}"
        )
    return joined([by_stride[w] for w in dict.fromkeys(wanted)])


def _cut(network: Network) -> Feature:
    """The last map that all answers are computed from.

    Raises:
        OptionError: if it cannot be used.
    """
    cut = next(iter(cuts_of(network.walk)), None)
    if cut is None or cut.name == network.walk.image.name:
        raise OptionError("no feature map is common to all answers: name a tensor with --at")
    return usable(network, cut.name)


def _last(network: Network) -> Feature:
    """What the last layer reads.

    Raises:
        OptionError: if the network does not end with a linear layer.
    """
    graph, facts = network.given.selected.proto.graph, network.walk.facts
    makers = {o: node for node in graph.node for o in node.output if o}
    name, node = graph.output[0].name, None
    while name in makers:
        node = makers[name]
        lifted = [n for n in node.input if isinstance(facts.get(n), Lifted)]
        if len(lifted) != 1:
            break
        (read,) = lifted
        if node.op_type in ("Gemm", "MatMul", "Conv"):
            return usable(network, read, covers=_covers(network, node, read))
        if node.op_type not in PROBABILITIES | THROUGH | {"Add"} or (node.op_type == "Add" and not _adds(node, facts)):
            break
        name = read
    what = f"{node.op_type} '{node.name or node.output[0]}'" if node is not None else f"'{name}'"
    raise OptionError(
        f"the network ends with {what}, which is neither a dense layer nor a convolution, so there is no last layer to "
        "replace: --at cut, or the name of a tensor, says what to train on"
    )


def _adds(node: NodeProto, facts: Mapping[str, Fact]) -> bool:
    """Does it add a constant?"""
    return any(isinstance(facts.get(n), Known) for n in node.input)


def _covers(network: Network, node: NodeProto, read: str) -> bool:
    """Does a layer read all cells of a window at once?"""
    fact = network.map_at(read)
    if not fact.is_live:
        return False
    if node.op_type == "Conv":
        taps = network.walk.values[node.input[1]].shape[2:]
        return fact.is_plain and math.prod(taps) == math.prod(fact.window)
    return fact.shape[-1] == fact.width * math.prod(fact.window)
