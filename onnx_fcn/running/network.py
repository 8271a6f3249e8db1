"""A converted file as a network: its input, its session, and its map.

    converted = open_converted("out.onnx")
    session = converted.session(providers=["CPUExecutionProvider"])
    maps = session.run(images)                          # (N, C, *space) → (N, K, *cells)

Everything is read from the file, without its weights: the metadata gives the name of the image input, and the layouts
of the image and the outputs, such as ``NCHW`` or ``NHWC``; the graph gives their types. Names and sizes of axes that
other tools have written do not matter, except the number of channels.

Nothing here imports the converter; onnxruntime is imported with the first session.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from onnx_fcn._types import Array
from onnx_fcn.errors import ModelError, OptionError, in_one_line
from onnx_fcn.geometry import AXES, Answers
from onnx_fcn.model import graphs, storage
from onnx_fcn.model.metadata import asked_of, geometry_in, labels_in, preprocessing_in, trained_in
from onnx_fcn.model.operators import CARRYING, CHOOSING
from onnx_fcn.running.preprocess import Preprocessing, check_trained, for_stored

__all__ = [
    "CPU",
    "Converted",
    "Session",
    "converted_in",
    "formula_in",
    "inference_session",
    "lean_options",
    "open_converted",
    "run_session",
]


Source = str | os.PathLike[str] | ModelProto

CPU = ("CPUExecutionProvider",)

#: Forms of an output that still has one answer per cell.
FORMS = ("map", "argmax", "cam", "cam argmax")

#: onnxruntime's messages for a lack of memory.
OUT_OF_MEMORY = ("Failed to allocate memory", "std::bad_alloc", "bad allocation", "CUDA out of memory")


@dataclass(frozen=True)
class Converted:
    """One output of a converted model.

    Attributes:
        source: the file, or the model.
        native: the input size of the original network, in pixels.
        answers: the geometry of the output.
        image: the name of the input that is the image.
        layout: the axes of that input, such as ``NCHW``.
        channels: number of channels of the image; 1 if the input has no axis for them.
        batch: number of images per run; None for any.
        fixed: for each axis the only size that the file takes, if it was fixed; None for any size.
        image_type: dtype of the input.
        others: the names of the other inputs.
        output: the name of the output.
        width: number of channels of the map; None if it contains the best class.
        output_type: dtype of the output.
        tells_classes: does the output contain class indices, not scores?
        labels: the names of the classes, if the file has them; otherwise empty.
        preprocessing: how pixels become the input, if the file says so.
        is_trained: was its last layer trained on pixels, so that it answers for pixels, not for windows?
    """

    source: str | ModelProto
    native: tuple[int, ...]
    answers: Answers
    image: str
    layout: str
    channels: int
    batch: int | None
    fixed: tuple[int | None, ...]
    image_type: np.dtype[Any]
    others: tuple[str, ...]
    output: str
    width: int | None
    output_type: np.dtype[Any]
    tells_classes: bool
    labels: tuple[str, ...]
    preprocessing: Preprocessing | None
    is_trained: bool

    @property
    def rank(self) -> int:
        """Axes of the image: 2 for a picture."""
        return len(self.native)

    def map_shape(self, cells: Sequence[int]) -> tuple[int, ...]:
        """The shape of the map of one image."""
        return (*cells,) if self.width is None else (self.width, *cells)

    def size_of(self, tensor: Array) -> tuple[int, ...]:
        """The size in pixels of an input tensor."""
        return tuple(tensor.shape[self.layout.index(letter)] for letter in AXES[self.rank])

    def check_size(self, size: Sequence[int]) -> None:
        """Raises OptionError if the file takes images of another size only."""
        self.answers.check_held(size)
        if any(only not in (None, n) for only, n in zip(self.fixed, size)):
            only = "×".join("any" if n is None else str(n) for n in self.fixed)
            raise OptionError(
                f"the file takes images of {only} pixels, to which its size was fixed, not of "
                f"{'×'.join(map(str, size))}: use apply, which runs it tile by tile, or a file of any size"
            )

    def arrange(self, images: Array) -> Array:
        """(N, C, *space) → the layout and dtype of the input; rounded if it reads integers.

        An input without a batch axis takes a single image.
        """
        if self.image_type.kind != "f" and images.dtype.kind == "f":
            limits = np.iinfo(self.image_type)
            images = np.rint(images).clip(limits.min, limits.max)
        tensor = _to_layout(images.astype(self.image_type, copy=False), "NC" + AXES[self.rank], self.layout)
        return np.ascontiguousarray(tensor)

    def session(self, providers: Sequence[Any] | None = None, options: Any = None) -> Session:
        """The model in an onnxruntime session.

        Args:
            providers: execution providers; the CPU by default.
            options: an `onnxruntime.SessionOptions`.

        Raises:
            ModelError: if onnxruntime does not load it.
            OptionError: if onnxruntime has no such provider.
        """
        model = self.source if isinstance(self.source, str) else self.source.SerializeToString()
        return Session(self, inference_session(model, providers, options))

    def preprocessing_for(
        self, wanted: str | Preprocessing | None, dtype: np.dtype[Any], white: float, name: str
    ) -> Preprocessing:
        """How pixels of this dtype and full scale become the input; `name` is the image's in messages.

        What is not asked for is as the file says.

        Raises:
            OptionError: if the network cannot read them.
        """
        if dtype.kind not in "uif":
            raise OptionError(f"{name} contains values of type {dtype}, which are not pixels")
        reads_integers = self.image_type.kind != "f"
        if wanted is None:
            if self.is_trained:
                check_trained(self.preprocessing, dtype, self.rank, self.channels, name)
            wanted = self.preprocessing
        formula = for_stored(wanted, dtype, white, self.rank, self.channels, reads_integers)
        formula.check(self.channels)
        if reads_integers and not formula.keeps_values:
            raise OptionError(f"the model takes pixels of type {self.image_type}, so they cannot be scaled")
        if reads_integers and not np.can_cast(dtype, self.image_type):
            raise OptionError(f"{name} has pixels of type {dtype}, but the model takes {self.image_type}")
        return formula


@dataclass(frozen=True)
class Session:
    """A converted model in onnxruntime."""

    converted: Converted
    inference: Any

    def run(self, images: Array, feeds: Mapping[str, Array] | None = None) -> Array:
        """The maps of images of one size: (N, C, *space) → (N, K, *cells), or (N, *cells) of best classes.

        Args:
            images: of any dtype; rounded if the network reads integers.
            feeds: values of the other inputs, by name.

        Raises:
            ModelError: if onnxruntime does not run the model, or its map has another shape than the metadata says.
            OptionError: if the file takes images of another size only, or there is not enough memory.
        """
        return self.run_tensor(self.converted.arrange(images), feeds)

    def run_tensor(self, tensor: Array, feeds: Mapping[str, Array] | None = None) -> Array:
        """As `run`, for a tensor in the layout and dtype of the input.

        Raises:
            ModelError: as `run` does.
            OptionError: as `run` does.
        """
        converted = self.converted
        size = converted.size_of(tensor)
        converted.check_size(size)
        (values,) = run_session(self.inference, [converted.output], {**(feeds or {}), converted.image: tensor}, size)
        wanted = AXES[converted.rank] if converted.width is None else "C" + AXES[converted.rank]
        maps = _to_layout(np.asarray(values), converted.answers.layout, "N" + wanted)
        images = tensor.shape[converted.layout.index("N")] if "N" in converted.layout else 1
        shape = (images, *converted.map_shape(converted.answers.grid(*size).shape))
        if maps.shape != shape:
            raise ModelError(f"output '{converted.output}' has the shape {maps.shape}, but its metadata says {shape}")
        return maps


def lean_options(folder: str = "", *, arena: bool = False) -> Any:
    """Session options for runs that are work in themselves, one after another.

    Threads that wait do not spin: between runs they would take processor time from what reads and writes. Without an
    arena only the weights are kept between runs. An arena stays at its largest size, and holds up to 1.6 times as much
    during a run; in return no run waits for the system to clear its memory, which is up to half of the time.

    Args:
        folder: that of external data, for a model that is given as bytes.
        arena: is the memory of a run kept for the next one?
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena, options.enable_mem_pattern = arena, False
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return options


def inference_session(model: str | bytes, providers: Sequence[Any] | None = None, options: Any = None) -> Any:
    """An `onnxruntime.InferenceSession`, on the CPU by default.

    Raises:
        ModelError: if onnxruntime does not load the model.
        OptionError: if onnxruntime has no such provider.
    """
    import onnxruntime

    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
    wanted, available = list(providers or CPU), onnxruntime.get_available_providers()
    for provider in wanted:
        if (name := provider if isinstance(provider, str) else provider[0]) not in available:
            raise OptionError(f"this onnxruntime has no provider '{name}': it has {', '.join(available)}")
    try:
        return onnxruntime.InferenceSession(model, options, providers=wanted, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ModelError(f"onnxruntime does not load the model: {in_one_line(error)}") from error


def run_session(
    session: Any, outputs: Sequence[str] | None, feeds: Mapping[str, Array], size: Sequence[int]
) -> list[Array]:
    """What a session answers; `size` is that of the image, for messages.

    Raises:
        ModelError: if onnxruntime does not run the model.
        OptionError: if there is not enough memory.
    """
    try:
        return [np.asarray(value) for value in session.run(outputs, feeds)]
    except Exception as error:
        pixels = "×".join(map(str, size))
        if any(words in str(error) for words in OUT_OF_MEMORY):
            raise OptionError(
                f"there is not enough memory to run the model on {pixels} pixels at once: apply and fit run it tile by "
                "tile, and --tile makes tiles smaller"
            ) from None
        raise ModelError(f"onnxruntime does not run the model on {pixels} pixels: {in_one_line(error)}") from error


def open_converted(source: Source, output: str | None = None) -> Converted:
    """Read one output of a converted model from its metadata and graph. Weights are not read.

    Args:
        source: the file, or the model.
        output: the name of the output; by default the first that is on a grid.

    Raises:
        ModelError: if onnx_fcn did not convert the model, or its graph was changed since.
        OptionError: if there is no such output, or it is not a map.
    """
    return converted_in(storage.read(source)[0], source, output)


def converted_in(model: ModelProto, source: Source, output: str | None = None) -> Converted:
    """As `open_converted`, for a model, or its skeleton, that was read from `source` already.

    Raises:
        ModelError: as `open_converted` does.
        OptionError: as `open_converted` does.
    """
    geometry, graph = geometry_in(model), model.graph
    if not geometry.outputs and asked_of(model).get("keep_size"):
        raise OptionError(
            "the model answers images of one size only: it was made with --keep-size from a network that cannot slide"
        )
    answers = geometry.of(output)
    name = next(iter(geometry.outputs)) if output is None else output
    if answers.form not in FORMS:
        form = " ".join(f"--reduce {word}" if word in ("mean", "max") else f"--{word}" for word in answers.form.split())
        raise OptionError(f"output '{name}' was made with {form}, which is not a map: convert without that option")
    if not answers.layout:
        raise OptionError(f"output '{name}' has other axes than a batch, channels and cells, so it is not a map")
    image = next(i for i in graph.input if i.name == geometry.image)
    stored = graphs.stored_names(graph)
    layout, declared = geometry.layout, next(o for o in graph.output if o.name == name)
    channels = _size(image, layout, "C") if "C" in layout else 1
    output_type = _dtype(declared, "answers with")
    is_best = "argmax" in answers.form.split()
    return Converted(
        source if isinstance(source, ModelProto) else os.fspath(source),
        geometry.window,
        answers,
        image.name,
        layout,
        channels,
        _axis_size(image, layout, "N") if "N" in layout else 1,
        tuple(_axis_size(image, layout, letter) for letter in AXES[len(geometry.window)]),
        _dtype(image, "reads"),
        tuple(i.name for i in graph.input if i.name not in {*stored, image.name}),
        name,
        None if is_best else _size(declared, answers.layout, "C") if "C" in answers.layout else 1,
        output_type,
        is_best or (output_type.kind in "iu" and output_type.itemsize > 1) or _has_classes(graph, name),
        labels_in(model),
        _formula(model),
        trained_in(model) is not None,
    )


def formula_in(source: Source) -> Preprocessing | None:
    """How pixels become the input of a converted model, if its file says so. Weights are not read.

    Raises:
        ModelError: if it is not a model, or its entry cannot be read.
    """
    return _formula(storage.read(source)[0])


def _formula(model: ModelProto) -> Preprocessing | None:
    values = preprocessing_in(model)
    return None if values is None else Preprocessing.from_json(values)


def _has_classes(graph: GraphProto, name: str) -> bool:
    """Does an output contain class indices, of any dtype? Integer scores have 8 bits and are computed, not chosen."""
    makers = {output: node for node in graph.node for output in node.output if output}
    waiting, seen = [name], set()
    while waiting:
        tensor = waiting.pop()
        node = makers.get(tensor)
        if node is None or tensor in seen:
            continue
        seen.add(tensor)
        if list(node.output).index(tensor) in CHOOSING.get(node.op_type, ()):
            return True
        if node.op_type in CARRYING:
            # a Gather may look up the labels of class indices
            waiting += node.input if node.op_type in ("Concat", "Gather") else node.input[:1]
    return False


def _axis_size(tensor: ValueInfoProto, layout: str, letter: str) -> int | None:
    """The size of an axis; None if it is dynamic.

    Raises:
        ModelError: if the metadata gives another number of axes.
    """
    dims = tensor.type.tensor_type.shape.dim
    if len(dims) != len(layout):
        raise ModelError(
            f"the metadata says that the axes of '{tensor.name}' are {layout}, but it has {len(dims)}: convert the "
            "original again"
        )
    dim = dims[layout.index(letter)]
    return int(dim.dim_value) if dim.HasField("dim_value") else None


def _size(tensor: ValueInfoProto, layout: str, letter: str) -> int:
    size = _axis_size(tensor, layout, letter)
    if size is None or size < 1:
        raise ModelError(f"'{tensor.name}' does not say how many channels it has: convert the original again")
    return size


def _dtype(tensor: ValueInfoProto, verb: str) -> np.dtype[Any]:
    kind = tensor.type.tensor_type.elem_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except (KeyError, TypeError):
        dtype = np.dtype(object)
    if dtype.kind not in "fiu":
        name = onnx.TensorProto.DataType.Name(kind).lower() if kind in onnx.TensorProto.DataType.values() else kind
        raise OptionError(f"the network {verb} {name} values in '{tensor.name}', which are neither pixels nor scores")
    return dtype


def _to_layout(values: Array, have: str, wanted: str) -> Array:
    """An array in another layout; axes that only one of the layouts has are of size 1."""
    index = tuple(slice(None) if letter in wanted else 0 for letter in have)
    kept = [letter for letter in have if letter in wanted]
    values = values[index].transpose([kept.index(letter) for letter in wanted if letter in kept])
    return values[tuple(slice(None) if letter in kept else None for letter in wanted)]
