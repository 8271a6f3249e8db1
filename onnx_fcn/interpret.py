"""The walk: one pass from the image to the outputs that lifts every operator by its rule, trunk and head alike.

Converting a classifier is vectorising it over window positions, as `jax.vmap` vectorises over a batch axis. Each
tensor gets one fact:

    Lifted     a map that stands for the original tensor at every position       (lifted.py)
    Known      independent of the image: weights, constants, and whatever is computed from them and from shapes
    Unmapped   data of the image that does not depend on the position: a second input, a squeeze-and-excite gate
    Blocked    depends on something refused; only root causes are reported

A node without a lifted operand is left as it is: *unmapped means untouched*. A node with one needs a rule; a rule
reads facts, asks its `Site` for new nodes, and returns the facts of its outputs. The nodes wait in the seat of the
node that they replace: until the whole walk has succeeded the model is not touched.

**Context.** A gate such as squeeze-and-excite cannot be told from a head in advance: both begin with a pooling over
the whole window. So every such reduction is an *origin* of what it computes; when a value meets a live map again,
the walk rewinds to its origins and marks them as context: they stay global, and their branch stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

import onnx
import onnx_graphsurgeon as gs

from onnx_fcn.document import Weight, names_used
from onnx_fcn.errors import Diagnostic, Unsupported
from onnx_fcn.known import Array, Values, stored_in
from onnx_fcn.lifted import Atom, Axis, Lifted, atoms_of
from onnx_fcn.signatures import check_operands

if TYPE_CHECKING:
    from onnx_fcn.site import Site

__all__ = [
    "EVALUATION",
    "RANDOM",
    "RUN_THE_REST",
    "Blocked",
    "Fact",
    "Final",
    "Image",
    "Known",
    "Seat",
    "Shared",
    "Unmapped",
    "Walk",
    "lifts",
    "operators",
    "product_of_maps",
    "rule_of",
    "run",
]

#: Operators that answer something else every time.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

#: Fused attention.
ATTENTION = frozenset(
    {
        *("Attention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "GroupQueryAttention"),
        *("LongformerAttention", "MultiHeadAttention", "PackedAttention", "PackedMultiHeadAttention", "QAttention"),
        "SparseAttention",
    }
)

#: The factors of a product, among an operator's operands.
FACTORS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Einsum", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
}

#: Codes of refusals that are about positions. Where attention comes behind one, such as an embedding's Add or the
#: Concat of a class token, it is the attention that cannot slide: the network has no other use for the positions.
ABOUT_POSITIONS = frozenset(
    {
        *("axes-meet", "constant-per-image", "dense-partial-window", "lookup", "mixes-positions", "norm-partial"),
        *("not-channels", "not-spatial", "per-position", "permuted-axes", "reduce-partial-window"),
        *("reshape-cuts-axis", "unfold-too-large", "weight-per-position", "weight-too-large"),
    }
)

#: What to do where a head cannot slide.
RUN_THE_REST = "take the map before it as an output, and run the rest on windows of that"

#: Operators that pick elements of an axis, in any order.
REORDERS = frozenset({"Gather", "GatherElements", "GatherND", "ReverseSequence", "Slice"})

#: Why positions in another order do not slide, and what to do about that.
REORDERED = (
    "what flips or shuffles each window does not slide: do that to the images, and convert the network without it"
)

#: Why what differs between positions does not slide.
PER_POSITION = (
    "positional embeddings, coordinate channels and normalisations per position have no meaning on a larger image"
)

#: What to do about a network that was exported as it is trained.
EVALUATION = "export it in evaluation mode, with model.eval() before torch.onnx.export"


@dataclass(frozen=True)
class Known:
    """A tensor whose value does not depend on the image. `sized`: it is computed from the shape of a mapped tensor."""

    name: str
    sized: bool = False


@dataclass(frozen=True)
class Unmapped:
    """A tensor that is the same for all positions.

    `spread`: the tensor that it is an expansion of. `context`: it was computed from the whole image.
    """

    name: str
    spread: str | None = None
    context: bool = False


@dataclass(frozen=True)
class Blocked:
    """The consequence of refusals, which are those of the seats `causes`, and the reductions that it descends from."""

    origins: frozenset[int] = frozenset()
    causes: frozenset[int] = frozenset()


Fact = Lifted | Known | Unmapped | Blocked

#: What is the same at every position: an operand that a node can go on reading as it stands.
Shared = Known | Unmapped

#: What the facts that a rule may be given say of an operand.
KINDS: dict[type, str] = {
    Lifted: "depends on the position",
    Known: "is a constant",
    Unmapped: "depends on the image, but not on the position",
}

Rule = Callable[..., "Fact | Sequence[Fact]"]

_RULES: dict[tuple[str, str], Rule] = {}


R = TypeVar("R", bound=Rule)


def lifts(*operators: str, domain: str = "") -> Callable[[R], R]:
    """Register the rule of some operators: `rule(site, *facts of the operands) -> fact(s) of the outputs`."""

    def register(rule: R) -> R:
        for operator in operators:
            assert (domain, operator) not in _RULES, operator
            _RULES[domain, operator] = rule
        return rule

    return register


def rule_of(domain: str, operator: str) -> Rule | None:
    """The rule of an operator."""
    return _RULES.get(("" if domain in (None, "", "ai.onnx") else domain, operator))


def operators() -> list[tuple[str, str]]:
    """Every (domain, operator) that has a rule."""
    return sorted(_RULES)


@dataclass(frozen=True)
class Image:
    """How one input of the model is seen: which of its axes slide.

    Attributes:
        name: the input.
        shape: its native shape; the batch as the walk evaluates it.
        batch: the axis of the batch, or None.
        channels: the axis of the channels, or None.
        space: the axes that slide, in order.
        elem_type: `onnx.TensorProto.DataType`.
        assumed: what its file does not say of it, and neither the user: sentences on its axes, their sizes, its batch.
    """

    name: str
    shape: tuple[int, ...]
    batch: int | None
    channels: int | None
    space: tuple[int, ...]
    elem_type: int
    assumed: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """Native size, in pixels."""
        return tuple(self.shape[a] for a in self.space)

    @property
    def is_channels_first(self) -> bool:
        """Is the input a map (N, C, *space) as it stands?"""
        return (self.batch, self.channels, *self.space) == tuple(range(len(self.shape)))

    def lifted(self, name: str) -> Lifted:
        """The fact of the image itself, once it lies channels-first in the tensor `name`."""
        letters = {1: "w", 2: "hw", 3: "dhw"}[len(self.space)]
        batch = Atom(1 if self.batch is None else self.shape[self.batch], "n")
        channels = () if self.channels is None else atoms_of(self.shape[self.channels], "c")
        space = tuple(
            Axis(atoms_of(self.shape[a], letter), image=k) for k, (a, letter) in enumerate(zip(self.space, letters))
        )
        layout: list[tuple[Atom, ...]] = []
        for axis in range(len(self.shape)):
            if axis == self.batch:
                layout.append((batch,) if batch.size != 1 else ())
            elif axis == self.channels:
                layout.append(channels)
            else:
                layout.append(space[self.space.index(axis)].atoms)
        return Lifted(name, batch, channels, space, tuple(layout), self.elem_type)


@dataclass(frozen=True)
class Emission:
    """A node that a rule wants. `varies`: it is a variation of the seat's own node, and keeps what it does not name."""

    node: gs.Node
    varies: bool = False


@dataclass
class Seat:
    """One node of the program, and what its rule put in its place."""

    node: gs.Node
    proto: onnx.NodeProto
    index: int  # of the node in the main graph that it stands in or was unfolded from
    emissions: list[Emission] = field(default_factory=list)
    constants: dict[str, Weight] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)  # constant -> the tensor that it was made from
    repeated: int = 0  # bytes of the constants that are weights, repeated
    operands: tuple[Fact | None, ...] = ()
    replaced: bool = False  # a rule has run: the original node is gone, unless an emission varies it
    slides: Slides | None = None
    changes: list[Change] = field(default_factory=list)
    unfolded: bool = False  # an If whose branch has been put behind it

    @property
    def own_names(self) -> set[str]:
        """Names that the node brought along."""
        return {self.node.name, *(o.name for o in self.node.outputs)}

    @property
    def name(self) -> str:
        """The node's name, or that of its first output."""
        return str(self.node.name or next((o.name for o in self.node.outputs if o.name), ""))


@dataclass(frozen=True)
class Slides:
    """What a sliding operator did that a single window would not see in the same way.

    Attributes:
        pads: it pads the map (or reads beyond the window otherwise), so neighbouring windows see each other.
        strides: it makes the grid of windows coarser.
    """

    pads: bool
    strides: bool


@dataclass(frozen=True)
class Change:
    """What became of a node, for the report.

    Attributes:
        kind: ``dense`` (a layer that became a Conv), ``window`` (a convolution or pooling over the whole window),
            ``unfold`` (window positions became channels) or ``context`` (sees the whole image).
        kernel: the window that it covers, along the axes of the map.
        inputs: channels that it reads.
        outputs: channels that it makes.
        groups: groups of channels.
        reads: the tensor that it reads, as it is named in the original.
        layout: how that tensor lies on the map, such as ``n (c256 h6 w6)``.
        weight: the name of its weight.
    """

    kind: str
    kernel: tuple[int, ...] = ()
    inputs: int = 0
    outputs: int = 0
    groups: int = 1
    reads: str = ""
    layout: str = ""
    weight: str = ""


class Rewind(Exception):
    """A value has met a live map: these seats are context."""

    def __init__(self, seats: Iterable[int]) -> None:
        super().__init__()
        self.seats = frozenset(seats)


@dataclass(frozen=True)
class Options:
    """What one walk is asked for beyond lifting.

    Attributes:
        output_stride: the coarsest stride, in input pixels; beyond it operators dilate instead.
        head: reductions that were context in an earlier walk, and belong to the head.
        folds: fold the batch into a spatial axis around the head.
        asked: the output stride is the user's; otherwise it is the one that all answers share.
    """

    output_stride: Fraction | None = None
    head: frozenset[str] = frozenset()
    folds: bool = False
    asked: bool = False


@dataclass(frozen=True)
class Final:
    """An output that is more than its map of answers: see `forms`.

    Attributes:
        tensor: its name.
        dims: its shape; None for the batch, names and formulas for what depends on the image.
        elem_type: `onnx.TensorProto.DataType`.
        form: in words, such as ``full-size argmax``.
    """

    tensor: str
    dims: tuple[int | str | None, ...]
    elem_type: int
    form: str


@dataclass
class Walk:
    """The state of a walk, and when it is over its result."""

    image: Image
    options: Options
    opsets: Mapping[str, int]
    values: Values
    seats: list[Seat]
    outputs: tuple[str, ...]
    shape_of: Callable[[str], tuple[int | None, ...] | None]  # of an unmapped tensor, at the native size
    prologue: Seat
    epilogue: list[Seat] = field(default_factory=list)
    results: dict[str, Lifted] = field(default_factory=dict)  # the outputs as they are delivered
    finals: dict[str, Final] = field(default_factory=dict)  # what was made of these
    renamed: dict[str, str] = field(default_factory=dict)  # maps that were given the name of an output
    read: frozenset[str] = frozenset()  # tensors that something reads
    facts: dict[str, Fact] = field(default_factory=dict)
    context: set[int] = field(default_factory=set)
    diagnostics: dict[int, Diagnostic] = field(default_factory=dict)
    products: dict[int, frozenset[int]] = field(default_factory=dict)  # of what is blocked, and the seats at fault
    reductions: set[int] = field(default_factory=set)  # seats that may turn out to be context
    names: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)  # of each hint, the last number that made a name of it

    @property
    def batch(self) -> int:
        """The batch that shapes are evaluated with."""
        return 1 if self.image.batch is None else self.image.shape[self.image.batch]

    def fresh(self, hint: str) -> str:
        """A tensor name that nothing has."""
        name = hint
        while name in self.names:  # the search goes on where it ended
            self.counts[hint] = count = self.counts.get(hint, 1) + 1
            name = f"{hint}_{count}"
        self.names.add(name)
        return name

    @property
    def has_head(self) -> bool:
        """Is there a dense layer, or an output that contracts its window? A fully convolutional network has neither."""
        facts = (self.facts.get(name) for name in self.outputs)
        contracts = any(isinstance(f, Lifted) and (f.origins or not f.is_live) for f in facts)
        return contracts or any(c.kind == "dense" for seat in self.seats for c in seat.changes)

    @property
    def succeeded(self) -> bool:
        """Nothing was refused."""
        return not self.diagnostics

    @property
    def causes(self) -> dict[int, Diagnostic]:
        """The root causes of a refusal, by their seats: of attention, that it is this; see `ABOUT_POSITIONS`."""
        found = dict(self.diagnostics)
        for position, seats in sorted(self.products.items()):
            led = [k for k in seats if k in found and found[k].code in ABOUT_POSITIONS]
            if led:
                found = {k: d for k, d in found.items() if k not in led}
                found[position] = _completed(self.seats[position], product_of_maps())
        return dict(sorted(found.items()))


def product_of_maps(what: str = "positions with positions (attention, bilinear pooling)") -> Unsupported:
    """The refusal of a product of two values that both depend on the image."""
    reason = f"multiplies {what}: only a constant weight can become a convolution"
    return Unsupported(reason, code="product-of-maps", hint=RUN_THE_REST)


def _completed(seat: Seat, refusal: Unsupported) -> Diagnostic:
    """A refusal with its node."""
    return Diagnostic(refusal.code, seat.name, seat.node.op, refusal.reason, refusal.hint)


def run(state: Walk) -> Walk:
    """Lift every node of the program, in order, and deliver the outputs."""
    from onnx_fcn import rules  # registers them
    from onnx_fcn.site import Site

    assert rules
    state.facts[state.image.name] = Site(state, -1, state.prologue).begin(state.image)
    position = 0
    while position < len(state.seats):
        seat = state.seats[position]
        try:
            _step(state, position, seat, Site)
        except Rewind as rewind:
            state.context |= rewind.seats
            position = min(rewind.seats)
            _forget(state, position)
            continue
        position += 1
    if state.succeeded:
        for name in state.outputs:
            _deliver(state, name, Site)
    return state


def _deliver(state: Walk, name: str, site_type: type[Site]) -> None:
    """Bring one output into the form (N, C, *grid), in a seat behind all others."""
    fact = state.facts.get(name)
    if not isinstance(fact, Lifted):
        return
    node = gs.Node("Output", name, outputs=[gs.Variable(name)])
    seat = Seat(node, onnx.NodeProto(), len(state.seats), replaced=True, operands=(fact,))
    state.epilogue.append(seat)
    try:
        state.results[name] = site_type(state, len(state.seats), seat).deliver(fact)
    except Unsupported as refusal:
        state.diagnostics[len(state.seats)] = Diagnostic(refusal.code, name, "output", refusal.reason, refusal.hint)


def _forget(state: Walk, position: int) -> None:
    state.counts.clear()  # since names are given back
    for k in range(position, len(state.seats)):
        seat = state.seats[k]
        for emission in seat.emissions:
            state.names -= {emission.node.name, *(o.name for o in emission.node.outputs)} - seat.own_names
        state.names -= set(seat.constants)
        seat.emissions, seat.constants, seat.sources, seat.changes = [], {}, {}, []
        seat.replaced, seat.slides, seat.repeated = False, None, 0
        for output in seat.node.outputs:
            state.facts.pop(output.name, None)
        state.diagnostics.pop(k, None)
        state.products.pop(k, None)


def _step(state: Walk, position: int, seat: Seat, site_type: type[Site]) -> None:
    """Find the facts of one node's outputs."""
    node, facts = seat.node, state.facts
    names = [t.name for t in node.inputs]
    implicit = sorted(set(names_used(seat.proto)) - {"", *names})
    operands = tuple(facts[n] if n else None for n in names)
    seat.operands = operands
    everything = [f for f in (*operands, *(facts[n] for n in implicit if n in facts)) if f is not None]
    condition = next(iter(operands), None)
    outputs: Sequence[Fact]
    blocked = [f for f in everything if isinstance(f, Blocked)]
    if blocked:
        origins: frozenset[int] = frozenset().union(*(f.origins for f in blocked))
        causes: frozenset[int] = frozenset().union(*(f.causes for f in blocked))
        if origins and any(isinstance(f, Lifted) and f.is_live for f in everything):
            raise Rewind(origins)
        if _is_product(node, operands):
            state.products[position] = causes
        outputs = [Blocked(origins, causes)] * len(node.outputs)
    elif node.op in RANDOM and node.domain in (None, "", "ai.onnx"):
        reason = "answers something else every time, so that no answer can be compared with the original's"
        state.diagnostics[position] = Diagnostic("random", seat.name, node.op, reason, EVALUATION)
        outputs = [Blocked(causes=frozenset({position}))] * len(node.outputs)
    elif node.op == "If" and isinstance(condition, Known) and any(isinstance(f, Lifted) for f in everything):
        outputs = _unfold_branch(state, position, seat, condition)
    elif not any(isinstance(f, Lifted) for f in everything):
        outputs = _untouched(state, seat, everything)
        sized = [f for f in operands if isinstance(f, Known) and f.sized]
        beside = all(type(f) is Unmapped and f.spread is None and not f.context for f in outputs)
        if sized and beside and not implicit:
            outputs = _frozen(site_type(state, position, seat), operands, sized, outputs)
    else:
        site = site_type(state, position, seat)
        try:
            outputs = _apply(site, seat, operands, implicit)
        except Unsupported as refusal:
            lifted = [f for f in everything if isinstance(f, Lifted)]
            state.diagnostics[position] = _diagnosed(state, seat, refusal, lifted)
            origins = frozenset().union(*(f.origins for f in lifted if not f.is_live))
            origins = origins if origins <= state.reductions else frozenset()
            outputs = [Blocked(origins, frozenset({position}))] * len(node.outputs)
    for tensor, fact in zip(node.outputs, outputs):
        if tensor.name:
            facts[tensor.name] = fact


def _is_product(node: gs.Node, operands: Sequence[Fact | None]) -> bool:
    """Does a node multiply two values that depend on the image, or that would if they were not refused?"""
    if node.op in ATTENTION:
        return True
    places = FACTORS.get(node.op, ())
    factors = [operands[k] for k in places if k < len(operands)]
    return len(factors) == 2 and all(isinstance(f, Blocked | Lifted) for f in factors)


def _diagnosed(state: Walk, seat: Seat, refusal: Unsupported, lifted: list[Lifted]) -> Diagnostic:
    """A refusal with its node; the earlier node at fault where one mixed the positions, or made channels of them."""
    mixing = sorted(k for f in lifted for k in f.origins if any(c.kind == "dense" for c in state.seats[k].changes))
    if mixing and refusal.code == "unfold-too-large":
        layer = state.seats[mixing[-1]]
        reason = f"mixes the positions of a window, and {seat.node.op} '{seat.name}', behind it, {refusal.reason}"
        return _completed(layer, Unsupported(reason, code="mixes-positions", hint=refusal.hint))
    unfolded = next((f.unfolded for f in lifted if f.unfolded is not None), None)
    if unfolded is None or refusal.code not in ("not-channels", "not-spatial"):
        return _completed(seat, refusal)
    earlier = state.seats[unfolded]
    return Diagnostic(
        "per-position",
        earlier.name,
        earlier.node.op,
        f"treats the positions of a window in different ways, and {seat.node.op} '{seat.name}' slides over the result",
        REORDERED if earlier.node.op in REORDERS else PER_POSITION,
    )


def _apply(site: Site, seat: Seat, operands: tuple[Fact | None, ...], implicit: list[str]) -> Sequence[Fact]:
    rule = rule_of(seat.node.domain, seat.node.op)
    domain = f"{seat.node.domain}." if seat.node.domain else ""
    if rule is None and seat.node.op in ATTENTION:
        raise product_of_maps()
    if rule is None:
        raise Unsupported(
            f"there is no rule for {domain}{seat.node.op}, so it is not known what it means at every position",
            code="no-rule",
            hint=_hint(seat.node.domain, seat.node.op),
        )
    if implicit:
        raise Unsupported("its subgraph reads a map", code="subgraph", hint=SUBGRAPHS.get(seat.node.op, REPLACE))
    check_operands(rule, operands, KINDS)
    site.check_meeting(operands)
    seat.replaced = True
    result = rule(site, *site.alike(operands))
    outputs: Sequence[Fact] = [result] if isinstance(result, Lifted | Known | Unmapped | Blocked) else list(result)
    if site.is_context or any(isinstance(f, Unmapped) and f.context for f in operands):
        outputs = [_everywhere(f) for f in outputs]
    return site.named(outputs)


#: What to do about an operator that nobody has written a rule for.
REPLACE = "replace it before the export by operators that there are rules for, or open an issue with the model"

#: What to do about operators that have no meaning at every position.
HINTS = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrence runs along positions: take the map before it as an output"),
    **dict.fromkeys(
        ("NonMaxSuppression", "RoiAlign", "MaxRoiPool"),
        "a detector finds objects anywhere already: take the class scores before it as an output",
    ),
}


#: What to do about operators with a subgraph.
SUBGRAPHS = {
    "If": "export only the branch that is wanted",
    **dict.fromkeys(("Loop", "Scan"), "unroll it before the export"),
}


def _hint(domain: str, operator: str) -> str:
    if domain == "com.microsoft.nchwc":
        return "start from the model before onnxruntime optimised it"
    return HINTS.get(operator, REPLACE)


def _everywhere(fact: Fact) -> Fact:
    """The fact of a tensor that knows something of the whole image."""
    if isinstance(fact, Lifted):
        return replace(fact, space=tuple(replace(a, field=a.field.everywhere()) for a in fact.space))
    return replace(fact, context=True) if isinstance(fact, Unmapped) else fact


#: Operators that may repeat one value over the positions of a map.
SPREADS = frozenset({"Expand", "Resize", "Tile", "Upsample"})


def _untouched(state: Walk, seat: Seat, operands: list[Fact]) -> Sequence[Fact]:
    """The facts of a node without a mapped operand, which stays as it is."""
    names = [o.name for o in seat.node.outputs]
    unmapped = [f for f in operands if isinstance(f, Unmapped)]
    sized = any(isinstance(f, Known) and f.sized for f in operands)
    if not unmapped:
        return [Known(n, sized) for n in names]
    if seat.node.op == "Shape" and (shape := _static_shape(state, seat, unmapped[0].name)) is not None:
        state.values.set(names[0], shape)
        return [Known(names[0], sized=True)]
    if seat.node.op in SPREADS and isinstance(operands[0], Unmapped):
        return [replace(operands[0], name=names[0], spread=operands[0].spread or operands[0].name)]
    return [Unmapped(n, context=any(f.context for f in unmapped)) for n in names]


def _frozen(
    site: Site, operands: Sequence[Fact | None], sized: Sequence[Known], outputs: Sequence[Fact]
) -> Sequence[Fact]:
    """What a node beside the image computes with sizes that it reads off the image: with those of a window.

    The size of the batch it goes on reading: that is the same for all windows.
    """
    try:
        for fact in sized:
            site.frozen(fact)
    except Unsupported:
        return outputs
    return site.named([Unmapped(name) for name in site.rewritten(operands)])


def _static_shape(state: Walk, seat: Seat, name: str) -> Array | None:
    import numpy as np

    shape = state.shape_of(name)
    if shape is None or any(d is None for d in shape):
        return None
    start, end = seat.node.attrs.get("start", 0), seat.node.attrs.get("end")
    return np.array(shape[start:end], np.int64)


def _unfold_branch(state: Walk, position: int, seat: Seat, condition: Known) -> Sequence[Fact]:
    """Put the nodes of the branch that a constant condition chooses behind the If, which itself goes."""
    chosen = "then_branch" if bool(state.values[condition.name].reshape(-1)[0]) else "else_branch"
    view: gs.Graph = seat.node.attrs[chosen]
    graph = next(a.g for a in seat.proto.attribute if a.name == chosen)
    for name, tensor in stored_in(graph).items():
        array = state.values.add(name, tensor)
        elem_type = tensor.data_type if isinstance(tensor, onnx.TensorProto) else tensor.values.data_type
        seat.constants[name] = Weight(array, array.shape, elem_type)
        state.facts[name] = Known(name)
    seat.replaced = True
    if not seat.unfolded:
        seat.unfolded = True
        inner = [Seat(node, proto, seat.index) for node, proto in zip(view.nodes, graph.node)]
        for result, output in zip(graph.output, seat.proto.output):
            alias = gs.Node("Identity", output, inputs=[gs.Variable(result.name)], outputs=[gs.Variable(output)])
            inner.append(Seat(alias, onnx.helper.make_node("Identity", [result.name], [output]), seat.index))
        state.seats[position + 1 : position + 1] = inner
        state.values.produce(s.proto for s in inner)
    return []
