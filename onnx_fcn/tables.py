"""Tables of text, the same in a terminal, a pipe and a notebook, and numbers as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from onnx_fcn.errors import printable

__all__ = ["Table", "bytes_of", "count_of", "percent", "pixels", "plain", "size_text"]


#: The width of a sentence in plain text.
WIDTH = 100


@dataclass(frozen=True)
class Table:
    """Rows of text under a title. Without columns, a row is a label and its text, or only a text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))


def plain(tables: Iterable[Table]) -> str:
    """Tables as aligned text."""
    return "\n\n".join("\n".join(_lines(table)) for table in tables)


def _lines(table: Table) -> Iterator[str]:
    if table.title:
        yield table.title
    rows = [table.columns, *table.rows] if table.columns else list(table.rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    indent = "  " if table.title else ""
    for row in rows:
        line = (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip()
        if table.columns or len(line) <= WIDTH:
            yield line
        else:  # a sentence, perhaps with a label
            first = indent + "".join(cell.ljust(width + 2) for cell, width in zip(row[:-1], widths))
            yield from textwrap.wrap(row[-1], WIDTH, initial_indent=first, subsequent_indent=" " * len(first))


def pixels(sizes: Sequence[float], *, square: bool = False) -> str:
    """A size in pixels, such as ``32×16 pixels``; with `square`, one number if all sides are equal."""
    if square and len(set(sizes)) == 1:
        sizes = sizes[:1]
    return f"{size_text(sizes)} {'pixel' if tuple(sizes) == (1,) else 'pixels'}"


def size_text(sizes: Sequence[float]) -> str:
    """A size: ``224×224``."""
    return "×".join(f"{s:g}" if s != int(s) else str(int(s)) for s in sizes)


def percent(share: float, other: float, digits: int = 1) -> str:
    """A share in percent, ``98.3%``, with as many digits as tell it from another one."""
    while share != other and digits < 15 and f"{share:.{digits}%}" == f"{other:.{digits}%}":
        digits += 1
    return f"{share:.{digits}%}"


def bytes_of(count: int) -> str:
    """A number of bytes: ``1.2 kB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def count_of(number: int) -> str:
    """A large number to three digits: ``714 M``."""
    for factor, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.{0 if number >= 100 * factor else 1 if number >= 10 * factor else 2}f} {unit}"
    return str(number)
