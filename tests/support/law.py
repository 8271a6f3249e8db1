"""The law that every rule obeys, as one check of a converted model against its original.

    lifted(map)[..., i, j] == original(window of the map at i, j)

The oracle is the original, which onnxruntime runs on windows that numpy cuts out. Which map the windows are cut from
depends on the network:

    nothing pads           the image: each answer is the original's answer for a crop
    padding, or context    the feature map `cut`: each answer is the original head's answer for a window of it; the
                           original is cut in two there, and its trunk makes the map of the larger image

Two models go in, and nothing of the package is used here: only numpy, onnx and onnxruntime.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper, parser, shape_inference

#: Two ways to sum the same few hundred terms differ by the order of the sum, and that is all: rounding errors grow as
#: √terms × eps, and what follows a sum (exponentials, quotients) enlarges them a few times. Relative to the largest
#: answer.
ROUNDING = 64

#: Answers that differ between windows by less than this many times the tolerance would hide a misplaced window.
DISTINCT = 4

Array = np.ndarray
Session = Callable[[dict[str, Array]], list[Array]]


# Models ---------------------------------------------------------------------------------------------------------------


def model(
    body: str,
    *,
    image: str = "float[N,6,4,3] x",
    outputs: str = "y",
    opset: int = 13,
    ir_version: int = 8,
    **weights: object,
) -> ModelProto:
    """A small network in ONNX's own text syntax: `model("f = Flatten (x)  y = MatMul (f, w)", w=(72, 5))`.

    weights: initializers. A tuple is the shape of random ones; a list is integers, such as a Reshape's target; anything
    else is the value itself.
    """
    domains = [f'"": {opset}', *(f'"{d}": 1' for d in ("com.microsoft", "ai.onnx.ml") if f"{d}." in body)]
    made = parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{', '.join(domains)}]> g ({image}) => ({outputs}) {{ {body} }}"
    )
    kind = numpy_type(made.graph.input[0])
    tensors = {name: value_of(name, value, kind) for name, value in weights.items()}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    inferred = shape_inference.infer_shapes(made, data_prop=True)
    made.graph.ClearField("output")
    made.graph.output.extend(inferred.graph.output)
    onnx.checker.check_model(made)
    return made


def value_of(name: str, value: object, kind: np.dtype) -> Array:
    """The value of an initializer that is written as `value`; `kind` is the type of the image."""
    if isinstance(value, tuple):
        scale = 1 / np.sqrt(max(value)) if len(value) > 1 else 1
        return (random(name, *value) * scale).astype(kind if kind.kind == "f" else np.float32)
    if isinstance(value, list):
        return np.array(value, np.int64)
    return np.asarray(value, kind if isinstance(value, float) else None)


def random(name: str, *shape: int) -> Array:
    """Numbers of deviation 1, other ones for each name and the same every time."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def positive(name: str, *shape: int) -> Array:
    """Scales and variances: between ½ and 1½."""
    return np.random.default_rng(zlib.crc32(name.encode())).uniform(0.5, 1.5, shape).astype(np.float32)


def behind_a_trunk(head: ModelProto) -> ModelProto:
    """The same network behind a convolution of stride 2, so that its image is a feature map.

    The kernels are positive and sum to 1, so that the map keeps to the range of the image.
    """
    made = ModelProto()
    made.CopyFrom(head)
    declared = made.graph.input[0]
    inside = declared.name
    shape = declared.type.tensor_type.shape.dim
    channels, rank = shape[1].dim_value, len(shape) - 2
    kernel = np.random.default_rng(0).dirichlet([0.1] * 2 * 3**rank, channels)
    kernel = kernel.reshape(channels, 2, *[3] * rank).astype(numpy_type(declared))
    declared.name = f"{inside}/pixels"
    shape[1].dim_value = 2
    for dim in shape[2:]:
        dim.dim_value = 2 * dim.dim_value + 1
    made.graph.initializer.append(numpy_helper.from_array(kernel, f"{inside}/kernel"))
    operands = [declared.name, f"{inside}/kernel"]
    trunk = helper.make_node("Conv", operands, [inside], f"{inside}/trunk", strides=[2] * rank)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([trunk, *nodes])
    return made


def trunk_of(original: ModelProto, cuts: Sequence[str]) -> ModelProto:
    """The network up to some tensors, for images of any size."""
    image = data_inputs(original)[0].type.tensor_type
    free = helper.make_tensor_value_info(original.graph.input[0].name, image.elem_type, [None] * len(image.shape.dim))
    return part(original, [free], [ValueInfoProto(name=name) for name in cuts])


def head_of(original: ModelProto, cuts: dict[str, Array]) -> ModelProto:
    """The network from some tensors on, of which these are values."""
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in cuts.items()}
    middle = [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]
    return part(original, [*middle, *data_inputs(original)[1:]], original.graph.output)


def part(network: ModelProto, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]) -> ModelProto:
    """What computes some tensors from others."""
    made = ModelProto()
    made.CopyFrom(network)
    wanted, given = {o.name for o in outputs}, {i.name for i in inputs}
    nodes = []
    for node in reversed(network.graph.node):
        if (wanted - given) & set(node.output):
            nodes.append(node)
            wanted |= set(node.input)
    for field, values in (("node", nodes[::-1]), ("input", inputs), ("output", outputs)):
        made.graph.ClearField(field)
        getattr(made.graph, field).extend(values)
    return made


def data_inputs(network: ModelProto) -> list[ValueInfoProto]:
    """The inputs that are not weights; the image is the first."""
    weights = {t.name for t in network.graph.initializer}
    return [i for i in network.graph.input if i.name not in weights]


def dims_of(declared: ValueInfoProto) -> list[int | None]:
    """Declared sizes; None for those that are free."""
    return [d.dim_value if d.HasField("dim_value") else None for d in declared.type.tensor_type.shape.dim]


def native_size(network: ModelProto, space: Sequence[int] = (2, 3)) -> tuple[int, ...] | None:
    """The declared size of the image, its first input, along the axes that slide; None where it is open."""
    dims = dims_of(data_inputs(network)[0])
    found = [n for axis in space if (n := dims[axis]) is not None]
    return tuple(found) if len(found) == len(space) else None


def numpy_type(declared: ValueInfoProto) -> np.dtype:
    """The numpy type of a tensor."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type))


def session(network: ModelProto) -> Session:
    """A network to call, as it is written: nothing is optimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return functools.partial(made.run, None)


@functools.cache
def newest_opset() -> int:
    """The newest version of ONNX's operators that this onnxruntime runs."""
    for opset in range(onnx.defs.onnx_opset_version(), 0, -1):
        try:
            session(model("y = Flatten (x)", opset=opset))
        except Exception:  # whatever its type: onnxruntime does not know this version yet
            continue
        return opset
    raise AssertionError("onnxruntime runs nothing")


# The law --------------------------------------------------------------------------------------------------------------


def check(
    original: ModelProto,
    converted: ModelProto,
    *,
    batch: int | None = None,
    cut: str | None = None,
    context: Sequence[str] = (),
    space: Sequence[int] = (2, 3),
    stride: int | Sequence[int] = 1,
    step: int = 1,
    between: tuple[float, float] = (-2, 2),
) -> None:
    """A converted network obeys the law: at the native size with every batch that it takes, and at all windows of
    larger images that are not square.

    Args:
        original: the network as it was; the image is its first input.
        converted: what became of it.
        batch: the one that the network bakes into its nodes, though its image is declared with any.
        cut: the feature map to take windows of; the image itself unless something pads.
        context: tensors besides it that the head reads, which are the same for all windows.
        space: the axes of the image that slide.
        stride: pixels between neighbouring windows.
        step: cells of `cut` between neighbouring windows.
        between: values of the image.

    Raises:
        AssertionError: with the first output and window that differ, and by how much.
    """
    onnx.checker.check_model(converted, full_check=True)
    for field in ("input", "output"):
        assert [v.name for v in getattr(converted.graph, field)] == [v.name for v in getattr(original.graph, field)]
    image, *others = data_inputs(original)
    native, strides = dims_of(image), np.broadcast_to(stride, len(space))
    taken = [None if k in space else n for k, n in enumerate(native)]
    taken[0] = batch or taken[0]
    assert dims_of(converted.graph.input[0]) == taken, f"takes images {dims_of(converted.graph.input[0])}, not {taken}"
    whole, lifted = session(original), session(converted)
    trunk = session(trunk_of(original, [cut, *context])) if cut else None
    for n in batches_of(image, space) if batch is None else [batch]:
        feeds = {i.name: noise(i, n, between) for i in (image, *others)}
        window = [native[axis] for axis in space]
        compare(converted, lifted(feeds), by_window(whole, feeds, image.name, window, space, strides), n)

        larger = list(native)
        for axis, more, pixels in zip(space, (3, 2, 1), strides):
            larger[axis] += more * pixels + (1 if trunk is None and pixels > 1 else 0)
        big = {**feeds, image.name: noise(image, n, between, larger)}
        if trunk is None:
            expected = by_window(whole, big, image.name, window, space, strides)
        else:
            small, maps = (dict(zip([cut, *context], trunk({image.name: f[image.name]}))) for f in (feeds, big))
            head = session(head_of(original, maps))
            maps |= {i.name: big[i.name] for i in others}
            expected = by_window(head, maps, cut, [small[cut].shape[k] for k in space], space, [step] * len(space))
        answers = lifted(big)
        check_formulas(converted, big, answers)
        compare(converted, answers, expected, n)


def check_formulas(converted: ModelProto, feeds: dict[str, Array], answers: list[Array]) -> None:
    """The sizes that outputs declare, such as `(height - 28) // 4 + 1`, are those that they have."""
    image = converted.graph.input[0]
    sizes = {d.dim_param: n for d, n in zip(image.type.tensor_type.shape.dim, feeds[image.name].shape) if d.dim_param}
    for declared, answer in zip(converted.graph.output, answers, strict=True):
        for dim, n in zip(declared.type.tensor_type.shape.dim, answer.shape, strict=True):
            assert not dim.dim_param or eval(dim.dim_param, {}, sizes) == n, f"'{declared.name}' says {dim.dim_param}"


def batches_of(image: ValueInfoProto, space: Sequence[int]) -> list[int]:
    """Batches to try: one and several where any is declared; one where the image has none."""
    first, *rest = dims_of(image)
    return [1, 3] if first is None else [first if len(rest) > len(space) else 1]


def noise(declared: ValueInfoProto, batch: int, between: tuple[float, float], dims: Sequence[int | None] = ()) -> Array:
    """A random input of these dims, by default the declared ones."""
    shape = [batch if d is None else d for d in dims or dims_of(declared)]
    kind = numpy_type(declared)
    values = np.random.default_rng([zlib.crc32(declared.name.encode()), *shape]).uniform(*between, shape)
    return np.round(values).astype(kind) if kind.kind in "iu" else values.astype(kind)


def by_window(
    network: Session,
    feeds: dict[str, Array],
    name: str,
    window: Sequence[int],
    space: Sequence[int],
    strides: Sequence[int],
) -> dict[tuple[int, ...], list[Array]]:
    """What a network answers for each window of one of its inputs, by the window's place in the grid."""
    values = feeds[name]
    grid = [(values.shape[axis] - size) // stride + 1 for axis, size, stride in zip(space, window, strides)]
    answers = {}
    for place in np.ndindex(*grid):
        where = [slice(None)] * values.ndim
        for axis, size, stride, at in zip(space, window, strides, place):
            where[axis] = slice(at * stride, at * stride + size)
        answers[place] = network({**feeds, name: np.ascontiguousarray(values[tuple(where)])})
    return answers


def compare(
    converted: ModelProto, answers: list[Array], expected: dict[tuple[int, ...], list[Array]], batch: int
) -> None:
    """Every cell of every output against the answer for that window."""
    grid = tuple(n + 1 for n in max(expected))
    for k, (declared, got) in enumerate(zip(converted.graph.output, answers, strict=True)):
        cells = [vectors(window[k], batch) for window in expected.values()]
        want = np.stack(cells, axis=-1).reshape(*cells[0].shape, *grid)
        where = f"output '{declared.name}' at {grid} windows, batch {batch}"
        assert got.shape == want.shape, f"{where}: shape {got.shape} where {want.shape} is right"
        assert got.dtype == want.dtype, f"{where}: {got.dtype} where {want.dtype} is right"
        assert all(d in (None, n) for d, n in zip(dims_of(declared), got.shape, strict=True)), f"{where}: {declared}"
        agree(got, want, where)


def vectors(answer: Array, batch: int) -> Array:
    """The answers for each image as one vector; the batch may be any axis."""
    if batch == 1:
        return answer.reshape(1, -1)
    return np.moveaxis(answer, answer.shape.index(batch), 0).reshape(batch, -1)


def agree(got: Array, want: Array, where: str) -> None:
    """The same numbers but for rounding, and different ones for different windows."""
    assert np.isfinite(want).all(), f"{where}: the original answers {want[~np.isfinite(want)][0]}"
    tolerance = tolerance_of(want)
    wrong = np.abs(got.astype(np.float64) - want)
    at = np.unravel_index(wrong.argmax(), wrong.shape)
    assert wrong.max() <= tolerance, f"{where}: {got[at]} where {want[at]} is right, at {tuple(map(int, at))}"
    cells = want.reshape(*want.shape[:2], -1).astype(np.float64)
    distinct = cells.shape[-1] == 1 or np.ptp(cells, axis=-1).max() > DISTINCT * tolerance
    assert distinct, f"{where}: all windows look alike, so that a misplaced one would pass"


def tolerance_of(want: Array) -> float:
    """How far an answer may be from these: rounding for floats, nothing for truth values, indices and counts.

    One step for the 8 bits of quantised networks, where a half may round either way.
    """
    if want.dtype.kind == "f":
        return ROUNDING * float(np.finfo(want.dtype).eps) * float(np.abs(want).max())
    return 1 if want.dtype in (np.int8, np.uint8) else 0
