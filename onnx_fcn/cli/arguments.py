"""Arguments that the commands share: numbers and names, preprocessing, and the options of a converted model."""

from __future__ import annotations

import argparse
import contextlib
import re

from onnx_fcn.running.network import formula_in
from onnx_fcn.running.preprocess import PRESETS, Preprocessing, changed

__all__ = [
    "PREPROCESSING",
    "add_network",
    "add_preprocessing",
    "add_providers",
    "count",
    "names",
    "names_in_order",
    "number",
    "numbers",
    "preprocessing",
    "seed",
    "share",
    "share_or_all",
    "size",
    "stride",
]


#: The presets, for the end of a help text.
PREPROCESSING = """\
preprocessing, with pixels from 0 to 255:
  unit      pixel/255
  imagenet  (pixel/255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
  tf        pixel/127.5 - 1
  caffe     BGR, pixel - (103.939, 116.779, 123.68)
  raw       pixels unchanged
"""


def count(text: str) -> int:
    """Parses an integer of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer of at least 1")
    return int(text)


def number(text: str) -> float:
    """0.5, 1e-3 or 1/128 → a float."""
    found = re.fullmatch(r"(-?[\d.]+(?:e-?\d+)?)(?:/([\d.]+))?", text, re.IGNORECASE)
    try:
        if found is None:
            raise ValueError
        return float(found[1]) / float(found[2] or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def share(text: str) -> float:
    """0.02 or 1e-3 → a float between 0 and 1."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if 0 < (found := number(text)) < 1:
            return found
    raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")


def share_or_all(text: str) -> float:
    """0.98 or 1 → a float above 0 and at most 1."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        if 0 < (found := number(text)) <= 1:
            return found
    raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0 and at most 1")


def numbers(text: str) -> tuple[float, ...]:
    """1,1.5,2 → (1.0, 1.5, 2.0)."""
    return tuple(number(part.strip()) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """scores,boxes → ("scores", "boxes")."""
    found = tuple(filter(None, (name.strip() for name in text.split(","))))
    if not found:
        raise argparse.ArgumentTypeError("it contains no name")
    return found


def seed(text: str) -> int:
    """Parses the seed of random numbers."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def size(text: str) -> tuple[int, ...]:
    """Parse a size in pixels: 224x224 → (224, 224)."""
    if not re.fullmatch(r"[1-9]\d{0,5}([x×][1-9]\d{0,5}){0,2}", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size in pixels, such as 224x224")
    return tuple(int(n) for n in re.split("[x×]", text.lower()))


def stride(text: str) -> int | tuple[int, ...]:
    """Parse a stride in pixels: 8 → 8; by axis: 4x16 → (4, 16)."""
    try:
        found = size(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a number of pixels from 1 on, or one for each axis, such as 4x16"
        ) from None
    return found if len(found) > 1 else found[0]


def names_in_order(text: str) -> tuple[str, ...]:
    """cat,dog → ("cat", "dog"); none may be empty, since their places count."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"'{text}' contains an empty name")
    return found


def add_preprocessing(parser: argparse.ArgumentParser, scale: str) -> None:
    """Options of the preprocessing; `scale` is the name of the option for the factor."""
    parser.add_argument("--preprocess", choices=tuple(PRESETS), help="what the network was trained on, see below")
    parser.add_argument(f"--{scale}", type=number, metavar="1/255", help="factor of the pixels")
    parser.add_argument("--mean", type=numbers, metavar="M[,M,M]", help="subtracted after scaling")
    parser.add_argument("--std", type=numbers, metavar="S[,S,S]", help="divides the result")
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="the order that the network reads")


def preprocessing(
    given: argparse.Namespace, scale: float | None, full_scale: float | None = None
) -> str | Preprocessing | None:
    """The preprocessing that the options of `add_preprocessing` ask for; None if there are none.

    Without a preset, numbers change the formula in the model, if there is one. If there is none, `full_scale` says what
    a scale is about.

    Raises:
        ModelError: if the model cannot be read.
    """
    numbers = {"scale": scale, "mean": given.mean, "std": given.std, "order": given.channel_order}
    base = given.preprocess
    if base is None and any(value is not None for value in numbers.values()):
        base = formula_in(given.model)
        if base is None and scale is not None:
            numbers["full_scale"] = full_scale
    return changed(base, **numbers)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Options for the output and the execution providers."""
    parser.add_argument("--output", metavar="NAME", help="the output to use (default: the first)")
    add_providers(parser)


def add_providers(parser: argparse.ArgumentParser) -> None:
    """The option for the execution providers."""
    parser.add_argument(
        "--providers",
        type=names,
        metavar="NAME,…",
        help="execution providers, such as CUDAExecutionProvider (default: CPU)",
    )
