"""Which classes there are: those whose codes occur, or those that were named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_fcn.errors import OptionError, did_you_mean
from onnx_fcn.fitting.labels import Labelled
from onnx_fcn.model.entries import MOST_NAME, name_of
from onnx_fcn.running.truth import numbers_of

__all__ = ["Classes", "classes_of"]


@dataclass(frozen=True)
class Classes:
    """The classes, by index.

    Attributes:
        codes: the code of each class in the labels.
        names: its name.
    """

    codes: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)


def classes_of(
    censuses: Sequence[Mapping[int, int]],
    labelled: Sequence[Labelled],
    names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Classes:
    """The classes in labels.

    Args:
        censuses: the number of pixels of each code, for each image.
        labelled: the images, as many.
        names: names of all classes in order: number k of a mask is the class with name k. Without them, the classes are
            the codes that occur, by number, called as in the file, or by the number.
        notes: what was left out of the labels, in sentences.

    Raises:
        OptionError: if fewer than two classes have labels; if a class has no name, or a name no labels; if names are
            other numbers than those of the masks.
    """
    counts: Counter[int] = Counter()
    for census in censuses:
        counts.update(census)
    occurring = sorted(code for code, count in counts.items() if count)
    ignored = next((one.labels.ignored for one in labelled if one.labels.ignored is not None), None)
    if not occurring:
        raise OptionError(
            "no pixel has a label: "
            + ("no shape contains the centre of a pixel" if ignored is None else f"--ignore {ignored} leaves all out")
        )
    own = labelled[0].labels.codes
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise OptionError(f"--names gives '{twice}' twice")
    if not names:
        codes, names = occurring, [own.get(code, str(code)) for code in occurring]
    elif own:
        codes = _codes_by_name(own, names, counts)
    else:
        codes = _numbered(censuses, labelled, names, counts)
    for name in names:
        _check_name(name)
    if len(codes) < 2:
        perhaps = "" if ignored is None else f", and {ignored} stands for no label: --ignore none makes it a class"
        left = "".join(f"; {note}" for note in notes)
        raise OptionError(f"all labelled pixels are '{names[0]}': two classes are needed{perhaps}{left}")
    return Classes(tuple(codes), tuple(names))


def _check_name(name: str) -> None:
    """Raises OptionError if the metadata of a model cannot contain a name."""
    try:
        name_of(name)
    except ValueError as error:
        raise OptionError(
            f"{error} of a class: it is text of 1 to {MOST_NAME} letters, in UTF-8 and without control characters"
        ) from None


def _codes_by_name(own: Mapping[int, str], names: Sequence[str], counts: Mapping[int, int]) -> list[int]:
    """The codes of named classes in the order of the names."""
    for name in own.values():
        if name not in names:
            hint = did_you_mean(name, names)
            raise OptionError(f"the labels have a class '{name}', which is not among the --names{hint}")
    code_of = {name: code for code, name in own.items()}
    for name in names:
        if not counts.get(code_of.get(name, -1)):
            raise OptionError(f"class '{name}' has no labels: label some pixels, or leave it out of --names")
    return [code_of[name] for name in names]


def _numbered(
    censuses: Sequence[Mapping[int, int]], labelled: Sequence[Labelled], names: Sequence[str], counts: Mapping[int, int]
) -> list[int]:
    """The numbers of a mask, which are the indices of the names."""
    wrong = next((index for number, index in numbers_of(names).items() if number != index), None)
    if wrong is not None:
        raise OptionError(
            f"--names calls number {wrong} of the masks '{names[wrong]}', but names that are numbers stand for the "
            "numbers of a mask: give other names, or leave --names out"
        )
    for one, census in zip(labelled, censuses):
        for code in sorted(code for code, count in census.items() if count):
            if code >= len(names):
                given = (
                    f"--names gives {len(names)} names, for 0 to {len(names) - 1}"
                    if len(names) > 1
                    else ("--names gives one name, for 0")
                )
                raise OptionError(f"value {code} in {one.labels.name} has no name: {given}")
    for code, name in enumerate(names):
        if not counts.get(code):
            raise OptionError(f"class '{name}' has no labels: no pixel has the value {code}")
    return list(range(len(names)))
