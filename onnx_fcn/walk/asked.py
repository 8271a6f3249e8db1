"""What a conversion is asked for: one value that checks itself, and that is stored in the converted file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnx_fcn.errors import ModelError, OptionError

__all__ = ["Asked"]


#: The options that are given or not.
FLAGS = ("folds", "logits", "cam", "full_size", "argmax", "keep_size", "windows", "portable")


@dataclass(frozen=True)
class Asked:
    """What the answers shall be.

    Attributes:
        folds: fold the batch into a spatial axis around the head.
        output_stride: pixels between answers, or one number for each axis that slides: if fewer than the network
            strides, operators dilate (à trous); if more, answers are left out.
        outputs: names of the outputs to answer with, or of other tensors; empty for all outputs.
        logits: drop a closing Softmax, LogSoftmax or Sigmoid.
        cam: the layers after the pooling at each cell of the map, instead of once for each window.
        reduce: ``mean`` or ``max`` of the map; empty for the map itself.
        full_size: at the resolution of the image.
        argmax: the index of the best class, as uint8 up to 256 classes, else as int64.
        keep_size: for images of the native size only, in the shapes of the original.
        windows: run what cannot slide on every window.
        window_stride: pixels between these windows; None for the network's own.
        slide: names of the axes of the image that slide; empty if the network decides.
        context: what of the trunk may see the whole image, besides reductions: ``attention``, or nothing.
        portable: use only operators that all common runtimes read alike.
    """

    folds: bool = False
    output_stride: int | Sequence[int] | None = None
    outputs: tuple[str, ...] = ()
    logits: bool = False
    cam: bool = False
    reduce: str = ""
    full_size: bool = False
    argmax: bool = False
    keep_size: bool = False
    windows: bool = False
    window_stride: int | None = None
    slide: tuple[str, ...] = ()
    context: str = ""
    portable: bool = False

    @classmethod
    def of(
        cls,
        *,
        head: str,
        outputs: Sequence[str],
        reduce: str | None,
        slide: Sequence[str],
        context: str | None,
        **others: Any,
    ) -> Asked:
        """What the options of `convert` and `validate` ask for; `others` are attributes by their names.

        Raises:
            OptionError: if there is no such head, or the options contradict each other.
        """
        if head not in ("conv", "folded"):
            raise OptionError(f"there is no head '{head}': it is 'conv' or 'folded'")
        return cls(
            folds=head == "folded",
            outputs=(outputs,) if isinstance(outputs, str) else tuple(outputs),
            reduce=reduce or "",
            slide=tuple(name.lower() for name in ([slide] if isinstance(slide, str) else slide)),
            context=context or "",
            **others,
        )

    def __post_init__(self) -> None:
        """Raises OptionError if the options contradict each other."""
        if self.window_stride is not None and not _are_pixels([self.window_stride]):
            raise OptionError(f"--window-stride is a number of pixels from 1 on, not {self.window_stride!r}")
        if self.output_stride is not None and not _are_pixels(self.output_strides):
            raise OptionError(
                f"--output-stride is a number of pixels from 1 on, or one for each axis, not {self.output_stride!r}"
            )
        if self.reduce not in ("", "mean", "max"):
            raise OptionError(f"a map is reduced to its mean or its max, not to '{self.reduce}'")
        asked = [name for name, value in self._forms() if value]
        for name in ("keep-size", "reduce"):
            others = [n for n in asked if n != name and not (name == "reduce" and n == "argmax")]
            if name in asked and others:
                raise OptionError(f"--{name} and --{others[0]} contradict each other: an output has one shape")
        if self.keep_size and self.output_stride is not None:
            raise OptionError("--keep-size and --output-stride contradict each other: one image has one answer")
        if self.window_stride is not None and not self.windows:
            raise OptionError("--window-stride is the distance of the windows that --windows cuts: give that, too")
        if self.windows and self.folds:
            raise OptionError("--head folded and --windows contradict each other: windows keep the head as it is")
        if self.windows and self.cam:
            raise OptionError("--windows and --cam contradict each other: a window that is run alone has one answer")
        if self.context not in ("", "attention"):
            raise OptionError(f"--context is attention or left out, not '{self.context}'")
        others = [name for name, given in (("windows", self.windows), ("keep-size", self.keep_size)) if given]
        if self.context and others:
            seen = "a window" if self.windows else "the native size"
            raise OptionError(
                f"--context {self.context} and --{others[0]} contradict each other: attention sees all of a larger "
                f"image, or {seen} only"
            )

    def _forms(self) -> list[tuple[str, object]]:
        return [
            ("keep-size", self.keep_size),
            ("reduce", self.reduce),
            ("cam", self.cam),
            ("full-size", self.full_size),
            ("argmax", self.argmax),
        ]

    @property
    def output_strides(self) -> tuple[int, ...]:
        """The requested pixels between answers: one number for all axes, one for each, or none."""
        given = self.output_stride
        return () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)

    @property
    def form(self) -> str:
        """The form of the output, such as ``full-size argmax``; ``map`` for the map itself."""
        words = [self.reduce] if self.reduce else []
        words += [name for name, value in self._forms() if value and name != "reduce"]
        return " ".join(words) or "map"

    @property
    def as_map(self) -> Asked:
        """The same without a form: the map itself."""
        return replace(self, cam=False, reduce="", full_size=False, argmax=False, keep_size=False)

    def needed(self, *, windows: bool, attention: bool) -> Asked:
        """The same without what a network did not need: windows, or attention that sees the whole image."""
        asked = self if windows else replace(self, windows=False, window_stride=None)
        return asked if attention else replace(asked, context="")

    @property
    def is_whole(self) -> bool:
        """Are all outputs wanted, unchanged?"""
        return not (self.outputs or self.logits or self.cam)

    @property
    def keeps_shape(self) -> bool:
        """Do the outputs keep the shapes that they had?"""
        return self.keep_size or bool(self.reduce and not self.argmax)

    def to_json(self) -> dict[str, Any]:
        """The options that differ from the plain map."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, asked: Mapping[str, Any]) -> Asked:
        """Read what `to_json` wrote, which may have been changed since.

        Raises:
            ModelError: if a value has the wrong type.
            OptionError: if the options contradict each other.
        """
        outputs, slide = asked.get("outputs", []), asked.get("slide", [])
        strides: dict[str, Any] = {name: asked.get(name) for name in ("output_stride", "window_stride")}
        lists = isinstance(outputs, list) and isinstance(slide, list)
        if not lists or not all(isinstance(n, int | None | list) for n in strides.values()):
            raise ModelError(f"the metadata of the converted model cannot be read: it was asked for {asked}")
        flags: dict[str, Any] = {name: bool(asked.get(name)) for name in FLAGS}
        reduce, context, named = str(asked.get("reduce", "")), str(asked.get("context", "")), tuple(map(str, outputs))
        return cls(outputs=named, reduce=reduce, context=context, slide=tuple(map(str, slide)), **strides, **flags)


def _are_pixels(strides: Sequence[object]) -> bool:
    return len(strides) > 0 and all(type(n) is int and n > 0 for n in strides)
