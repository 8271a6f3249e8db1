"""A converted file that is to be run on images: how they go in, what comes out, and whether tiles of them can be exact.

All of it is read from the file alone: metadata says where the answers are, the graph how the image lies.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from onnx_fcn import storage
from onnx_fcn.errors import ModelError, OptionError, in_one_line
from onnx_fcn.geometry import SIZE_NAMES, Answers
from onnx_fcn.metadata import PREFIX, read_geometry
from onnx_fcn.tiles.tiling import Tiling, approximate_answers, tiling_of

__all__ = ["Converted", "Pixels", "Runner", "open_converted"]

Array = np.ndarray[Any, Any]

#: What may be made of a map, and is still one answer for each cell: tiles of it are tiles of the whole.
TILED_FORMS = ("map", "argmax")

#: Paddings that make up what they pad with of what lies inside.
MIRRORS = ("reflect", "edge")


@dataclass(frozen=True)
class Pixels:
    """What a network wants pixels as: (pixel·scale - mean)/std; mean and std one number, or one for each channel.

    Without any of them pixels go in as they are.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def is_identity(self) -> bool:
        """Are pixels left as they are?"""
        return self.scale == 1 and not any(self.mean) and all(s == 1 for s in self.std)

    def __call__(self, crop: Array) -> Array:
        """(C, *space), of any type -> the same in float32."""
        pixels = crop.astype(np.float32) * np.float32(self.scale)
        shape = (-1,) + (1,) * (crop.ndim - 1)
        pixels -= np.array(self.mean, np.float32).reshape(shape)
        pixels /= np.array(self.std, np.float32).reshape(shape)
        return pixels


#: A session: crops (C, *space) of one size, and what becomes of their pixels -> their maps (N, C, *cells).
Runner = Callable[[Sequence[Array], Pixels], Array]


@dataclass(frozen=True)
class Converted:
    """One output of a converted file.

    Attributes:
        path: the file.
        native: the size that the network was made for.
        answers: where the answers are.
        image: the input.
        axes: the role of each of its axes: ``batch``, ``channels``, or the number of an axis of the image.
        channels: of the image; 1 where the input has no axis for them.
        batch: images that a run takes; None for any number.
        image_type: of the pixels.
        output: its name.
        width: channels of the map; None where the best one of them was chosen.
        output_type: of the answers.
        obstacle: why tiles cannot be exact; empty where they can.
        mirrors: does the network pad with what it finds inside?
    """

    path: str
    native: tuple[int, ...]
    answers: Answers
    image: str
    axes: tuple[str | int, ...]
    channels: int
    batch: int | None
    image_type: np.dtype[Any]
    output: str
    width: int | None
    output_type: np.dtype[Any]
    obstacle: str
    mirrors: bool

    @property
    def rank(self) -> int:
        """Axes of the image."""
        return len(self.answers.window)

    def tiling(self, size: Sequence[int], tile: int, *, approximate: bool = False) -> Tiling:
        """The tiles of an image of that size.

        Raises:
            OptionError: they cannot be exact, and approximate ones were not asked for; the image is too small.
        """
        if self.obstacle and not approximate:
            raise OptionError(f"tiles cannot be exact: {self.obstacle}; --approximate takes tiles nevertheless")
        answers = approximate_answers(self.answers) if self.obstacle else self.answers
        return tiling_of(answers, self.native, size, tile, mirrors=self.mirrors)

    def map_shape(self, cells: Sequence[int]) -> tuple[int, ...]:
        """The shape of a map of one image."""
        return (*cells,) if self.width is None else (self.width, *cells)

    def check(self, pixels: Pixels, dtype: np.dtype[Any], name: str) -> None:
        """Raises OptionError: pixels of that type cannot become what the model takes."""
        for option, values in (("mean", pixels.mean), ("std", pixels.std)):
            if len(values) not in (1, self.channels):
                raise OptionError(f"--{option} has {len(values)} values, and the model takes {self.channels} channels")
        if 0 in pixels.std:
            raise OptionError("--std divides pixels, so it cannot be 0")
        if dtype.kind not in "uifb":
            raise OptionError(f"{name} holds values of type {dtype}, which are no pixels")
        if self.image_type.kind == "f":
            return
        if not pixels.is_identity:
            raise OptionError(f"the model takes pixels of type {self.image_type}, so they cannot be scaled")
        if not np.can_cast(dtype, self.image_type):
            raise OptionError(f"{name} has pixels of type {dtype}, and the model takes {self.image_type}")

    def runner(self) -> Runner:
        """A session.

        Nothing is kept between runs but the weights: no arena, which would keep the largest size that it ever had.

        Raises:
            ModelError: onnxruntime does not load or run it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        try:
            session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ModelError(f"onnxruntime does not load '{self.path}': {in_one_line(error)}") from None

        def run(crops: Sequence[Array], pixels: Pixels) -> Array:
            images = np.stack([self._input(crop, pixels) for crop in crops])
            if "batch" in self.axes:
                images = np.moveaxis(images, 0, self.axes.index("batch"))
            else:
                (images,) = images
            try:
                (maps,) = session.run([self.output], {self.image: np.ascontiguousarray(images)})
            except Exception as error:
                size = "×".join(map(str, crops[0].shape[1:]))
                raise ModelError(f"onnxruntime does not run the model on {size} pixels: {in_one_line(error)}") from None
            cells = tuple(count(n) for count, n in zip(self.answers.count, crops[0].shape[1:]))
            if maps.shape != (len(crops), *self.map_shape(cells)):
                raise ModelError(f"the map of the model has shape {maps.shape}, where its metadata says {cells} cells")
            return np.asarray(maps)

        return run

    def _input(self, crop: Array, pixels: Pixels) -> Array:
        """(C, *space) -> one image as the input has it, without the batch."""
        image = crop if pixels.is_identity else pixels(crop)
        places: list[str | int] = ["channels", *range(self.rank)]
        if "channels" not in self.axes:
            image, places = image[0], places[1:]
        image = image.transpose([places.index(axis) for axis in self.axes if axis != "batch"])
        return image.astype(self.image_type, copy=False)

    def digest(self) -> str:
        """SHA-256 of the file and its external data: what tells this model from every other one."""
        _, store = storage.read(self.path)
        digest = hashlib.sha256()
        for location in sorted(store.sources):
            digest.update(store.sources[location].data)
        return digest.hexdigest()


def open_converted(path: str | os.PathLike[str], output: str | None = None) -> Converted:
    """Read what a converted file says of itself. Weights are not read.

    Raises:
        ModelError: it is no model that onnx_fcn converted, or its graph was changed since.
        OptionError: there is no such output; it is no map, or has an axis of another kind.
    """
    model, _ = storage.read(path)
    geometry = read_geometry(path)
    answers = geometry.of(output)
    name = output or next(iter(geometry.outputs))
    if answers.form not in TILED_FORMS:
        raise OptionError(
            f"the output '{name}' is '{answers.form}', which is not made of answers side by side: convert the original "
            "to the plain map, and make that of the map of the whole image"
        )
    graph = model.graph
    image = _image(model, path)
    others = _stored(graph) | {image.name}
    if others_needed := [repr(i.name) for i in graph.input if i.name not in others]:
        raise OptionError(f"the model takes more than an image: {', '.join(others_needed)}")
    axes, channels, batch = _axes(image, len(answers.window))
    declared = next(o for o in graph.output if o.name == name)
    return Converted(
        os.fspath(Path(path)),
        geometry.window,
        answers,
        image.name,
        axes,
        channels,
        batch,
        _dtype(image),
        name,
        _width(declared, answers),
        _dtype(declared),
        _obstacle(graph, answers),
        any(_padding(node) in MIRRORS for node in graph.node),
    )


def _image(model: ModelProto, path: str | os.PathLike[str]) -> ValueInfoProto:
    name = next((e.value for e in model.metadata_props if e.key == f"{PREFIX}image"), "")
    found: ValueInfoProto | None = next((i for i in model.graph.input if i.name == name), None)
    if found is None:
        raise ModelError(f"'{os.fspath(path)}' has no input '{name}', which its metadata calls the image")
    return found


def _stored(graph: GraphProto) -> set[str]:
    return {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}


def _axes(image: ValueInfoProto, rank: int) -> tuple[tuple[str | int, ...], int, int | None]:
    """(the role of each axis, channels, the batch) of the image, of which conversion names the sizes."""
    dims, sizes = image.type.tensor_type.shape.dim, SIZE_NAMES[rank]
    rest = [k for k, d in enumerate(dims) if d.dim_param not in sizes]
    found = sorted(d.dim_param for d in dims if d.dim_param in sizes)
    if found != sorted(sizes) or len(rest) > 2:
        raise OptionError(f"the input '{image.name}' does not say which of its axes are {' and '.join(sizes)}")
    roles: dict[int, str | int] = {k: sizes.index(d.dim_param) for k, d in enumerate(dims) if d.dim_param in sizes}
    free = [k for k in rest if not dims[k].HasField("dim_value")]
    batched = free[:1] or (rest[:1] if len(rest) == 2 else [])
    roles |= {k: "batch" if k in batched else "channels" for k in rest}
    channels = next((dims[k].dim_value for k in rest if k not in batched), 1)
    if channels < 1:
        raise OptionError(f"the input '{image.name}' does not say how many channels it takes")
    batch = next((dims[k].dim_value for k in batched if dims[k].HasField("dim_value")), None if batched else 1)
    return tuple(roles[k] for k in range(len(dims))), channels, batch


def _width(output: ValueInfoProto, answers: Answers) -> int | None:
    """Channels of the map; None for one without an axis of them."""
    dims, rank = output.type.tensor_type.shape.dim, len(answers.window)
    if answers.form == "argmax" and len(dims) == rank + 1:
        return None
    if len(dims) != rank + 2 or not dims[1].HasField("dim_value"):
        raise OptionError(f"the output '{output.name}' is no map (batch, channels, *cells), so it cannot be tiled")
    return int(dims[1].dim_value)


def _dtype(declared: ValueInfoProto) -> np.dtype[Any]:
    kind = declared.type.tensor_type.elem_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    if dtype.kind not in "uif":
        raise OptionError(
            f"'{declared.name}' is of type {onnx.TensorProto.DataType.Name(kind)}, which files do not hold"
        )
    return dtype


def _obstacle(graph: GraphProto, answers: Answers) -> str:
    """Why tiles cannot be exact."""
    if answers.exactness == "context":
        return answers.reason
    for node in graph.node:
        name = node.name or next(filter(None, node.output), node.op_type)
        if node.op_type in ("Resize", "Upsample") and len(node.input) > 3 and node.input[3]:
            return f"'{name}' resizes a map by as much as the size of the image says"
        if _padding(node) == "wrap":
            return f"'{name}' pads with what lies at the other end of the image"
    return ""


def _padding(node: onnx.NodeProto) -> str:
    """The mode of a Pad; empty for other operators."""
    if node.op_type != "Pad":
        return ""
    return next((a.s.decode() for a in node.attribute if a.name == "mode"), "constant")
