"""Types that several modules share, and how values that are made by the ten thousand are defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        return lambda function: function


__all__ = ["Array", "Progress", "record"]


Array = np.ndarray[Any, Any]

#: Called with a few words before each step that may take seconds.
Progress = Callable[[str], None]

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """A dataclass that type checkers take for frozen.

    At run time it has slots, and nothing keeps it from being changed: a frozen one takes five times as long to make,
    and facts about tensors are made for every node.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
