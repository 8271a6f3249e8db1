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
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser, shape_inference

#: Two ways to sum the same few hundred terms differ by the order of the sum, and that is all: rounding errors grow as
#: √terms × eps, and what follows a sum (exponentials, quotients) enlarges them a few times. Relative to the largest
#: answer.
ROUNDING = 64

#: Answers that differ between windows by less than this many times the tolerance would hide a misplaced window.
DISTINCT = 100

Answer = np.ndarray
Session = Callable[[dict[str, np.ndarray]], list[Answer]]


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
    domains = [f'"": {opset}', *(f'"{d}": 1' for d in ("com.microsoft",) if f"{d}." in body)]
    made = parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{', '.join(domains)}]> g ({image}) => ({outputs}) {{ {body} }}"
    )
    kind = numpy_type(made.graph.input[0])
    tensors = {name: value_of(name, value, kind) for name, value in weights.items()}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    inferred = shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)
    made.graph.ClearField("output")
    made.graph.output.extend(inferred.graph.output)
    onnx.checker.check_model(made)
    return made


def value_of(name: str, value: object, kind: np.dtype) -> np.ndarray:
    """The value of an initializer that is written as `value`; `kind` is the type of the image."""
    if isinstance(value, tuple):
        scale = 1 / np.sqrt(max(value)) if len(value) > 1 else 1
        return (random(name, *value) * scale).astype(kind if kind.kind == "f" else np.float32)
    if isinstance(value, list):
        return np.array(value, np.int64)
    return np.asarray(value, kind if isinstance(value, float) else None)


def random(name: str, *shape: int) -> np.ndarray:
    """Numbers of deviation 1, other ones for each name and the same every time."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def positive(name: str, *shape: int) -> np.ndarray:
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
    trunk = helper.make_node("Conv", [declared.name, f"{inside}/kernel"], [inside], f"{inside}/trunk", strides=[2] * rank)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([trunk, *nodes])
    return made


def halves(original: ModelProto, cut: str) -> tuple[ModelProto, ModelProto]:
    """(trunk, head): the network up to a tensor and from there on."""
    inferred = shape_inference.infer_shapes(original, data_prop=True)
    where = next(v for v in inferred.graph.value_info if v.name == cut)
    inputs = [i.name for i in data_inputs(original)]
    trunk = onnx.utils.Extractor(inferred).extract_model([inputs[0]], [cut])
    head = onnx.utils.Extractor(inferred).extract_model([cut, *inputs[1:]], [o.name for o in original.graph.output])
    assert trunk.graph.output[0] == where
    return trunk, head


def data_inputs(network: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are not weights; the image is the first."""
    weights = {t.name for t in network.graph.initializer}
    return [i for i in network.graph.input if i.name not in weights]


def dims_of(declared: onnx.ValueInfoProto) -> list[int | None]:
    """Declared sizes; None for those that are free."""
    return [d.dim_value if d.HasField("dim_value") else None for d in declared.type.tensor_type.shape.dim]


def numpy_type(declared: onnx.ValueInfoProto) -> np.dtype:
    """The numpy type of a tensor."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type))


def session(network: ModelProto, *, relaxed: Sequence[int] = ()) -> Session:
    """A network to call, as it is written: nothing is optimised. `relaxed`: axes of the image of any size."""
    if relaxed:
        copy = ModelProto()
        copy.CopyFrom(network)
        for axis in relaxed:
            copy.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
        for output in copy.graph.output:
            output.type.tensor_type.ClearField("shape")
        del copy.graph.value_info[:]
        network = copy
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
    cut: str | None = None,
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
        cut: the feature map to take windows of; the image itself unless something pads.
        space: the axes of the image that slide.
        stride: pixels between neighbouring windows.
        step: cells of `cut` between neighbouring windows.
        between: values of the image.

    Raises:
        AssertionError: with the first output and window that differ, and by how much.
    """
    onnx.checker.check_model(converted, full_check=True)
    image, *others = data_inputs(original)
    native = dims_of(image)
    whole, lifted = session(original), session(converted)
    batches = [1, 3] if None in native else [native[0] if len(native) == 2 + len(space) else 1]
    strides = np.broadcast_to(stride, len(space))
    oracle, window, trunk = whole, [native[k] for k in space], None
    if cut is not None:
        first, second = halves(original, cut)
        oracle, trunk = session(second), session(first, relaxed=space)

    for batch in batches:
        feeds = {i.name: noise(i, batch, between) for i in (image, *others)}
        compare(original, converted, windows_of(feeds, image.name, window, space, strides), whole, lifted(feeds), batch)
        larger = list(native)
        for axis, more, pixels in zip(space, (3, 2, 1), strides):
            larger[axis] = native[axis] + more * int(pixels) + (1 if cut is None and pixels > 1 else 0)
        feeds |= {image.name: noise(image, batch, between, larger)}
        answers = lifted(feeds)
        if trunk is not None:
            kept = {k: v for k, v in feeds.items() if k != image.name}
            map_window = [dims_of(head_input(second, cut))[k] for k in space]
            tiles = windows_of(kept | {cut: trunk({image.name: feeds[image.name]})[0]}, cut, map_window, space, [step] * len(space))
        else:
            tiles = windows_of(feeds, image.name, window, space, strides)
        compare(original, converted, tiles, oracle, answers, batch)


def noise(
    declared: onnx.ValueInfoProto, batch: int, between: tuple[float, float], dims: Sequence[int | None] = ()
) -> np.ndarray:
    """A random input of these dims, by default the declared ones."""
    shape = [batch if d is None else d for d in dims or dims_of(declared)]
    kind = numpy_type(declared)
    values = np.random.default_rng(len(shape) + sum(shape)).uniform(*between, shape)
    return np.round(values).astype(kind) if kind.kind in "iu" else values.astype(kind)


def head_input(head: ModelProto, name: str) -> onnx.ValueInfoProto:
    return next(i for i in head.graph.input if i.name == name)


#: The inputs of the oracle for one window, by its place in the grid.
Tiles = dict[tuple[int, ...], dict[str, np.ndarray]]


def windows_of(
    feeds: dict[str, np.ndarray], name: str, window: Sequence[int], space: Sequence[int], strides: Sequence[int]
) -> Tiles:
    """Every window of one of the feeds."""
    values = feeds[name]
    grid = [(values.shape[axis] - size) // stride + 1 for axis, size, stride in zip(space, window, strides)]
    tiles = {}
    for place in np.ndindex(*grid):
        where = [slice(None)] * values.ndim
        for axis, size, stride, at in zip(space, window, strides, place):
            where[axis] = slice(at * stride, at * stride + size)
        tiles[place] = {**feeds, name: np.ascontiguousarray(values[tuple(where)])}
    return tiles


def compare(
    original: ModelProto, converted: ModelProto, tiles: Tiles, oracle: Session, answers: list[Answer], batch: int
) -> None:
    """Every cell of every answer against the oracle's for that window."""
    expected = [[vectors(a, batch) for a in oracle(tile)] for tile in tiles.values()]
    grid = tuple(n + 1 for n in max(tiles))
    for k, (declared, got) in enumerate(zip(converted.graph.output, answers)):
        want = np.stack([cell[k] for cell in expected], axis=-1).reshape(*expected[0][k].shape, *grid)
        where = f"output '{declared.name}' at {grid} windows, batch {batch}"
        assert declared.name == original.graph.output[k].name, where
        assert got.shape == want.shape, f"{where}: shape {got.shape} where {want.shape} is right"
        assert got.dtype == want.dtype, f"{where}: {got.dtype} where {want.dtype} is right"
        assert all(d in (None, n) for d, n in zip(dims_of(declared), got.shape, strict=True)), f"{where}: {declared}"
        agree(got, want, where)


def vectors(answer: Answer, batch: int) -> Answer:
    """The answers for each image as one vector; the batch may be any axis."""
    if batch == 1:
        return answer.reshape(1, -1)
    return np.moveaxis(answer, answer.shape.index(batch), 0).reshape(batch, -1)


def agree(got: Answer, want: Answer, where: str) -> None:
    """The same numbers but for rounding, and different ones for different windows."""
    if got.dtype.kind != "f":
        wrong = got != want
        assert not wrong.any(), f"{where}: {wrong.sum()} of {wrong.size} values differ"
        return
    assert np.isfinite(want).all(), f"{where}: the original answers {want[~np.isfinite(want)][0]}"
    largest = np.abs(want).max()
    tolerance = ROUNDING * np.finfo(got.dtype).eps * largest
    wrong = np.abs(got.astype(np.float64) - want)
    at = np.unravel_index(wrong.argmax(), wrong.shape)
    assert wrong.max() <= tolerance, f"{where}: {got[at]} where {want[at]} is right, at {tuple(map(int, at))}"
    cells = want.reshape(*want.shape[:2], -1)
    assert cells.shape[-1] == 1 or np.ptp(cells, axis=-1).max() > DISTINCT * tolerance, f"{where}: all windows look alike"
