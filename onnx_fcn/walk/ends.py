"""The ends of a walk: the image as a map, the outputs as (N, C, *grid), and the names of what a rule emitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from onnx_fcn.lifting.facts import Fact, Unmapped, Whole
from onnx_fcn.lifting.folding import restore_batch
from onnx_fcn.lifting.layouts import settle, unfold
from onnx_fcn.lifting.lifted import Lifted
from onnx_fcn.lifting.program import Image, Rewind
from onnx_fcn.lifting.site import Site
from onnx_fcn.walk.dense import as_map

__all__ = ["as_image_map", "check_meeting", "delivered", "named", "on_grid"]


def as_image_map(site: Site, image: Image) -> Lifted:
    """The image as a map: one Transpose if it is not channels-first."""
    if image.is_channels_first:
        return image.lifted(image.name)
    order = [image.batch, image.channels, *image.space]
    missing = [k for k, axis in enumerate(order) if axis is None]
    perm = [axis for axis in order if axis is not None]
    name = image.name if perm == sorted(perm) else site.emit([image.name], "Transpose", perm=perm)
    return image.lifted(site.unsqueeze(name, missing) if missing else name)


def delivered(site: Site, x: Lifted) -> Lifted:
    """An output as (N, C, *grid), with its axes in the order of the image's: the map of a dense one.

    Raises:
        Unsupported: if the map of a dense output has its positions in another order, or a window cannot be unfolded.
    """
    return on_grid(site, as_map(site, x) if x.is_dense else settle(site, unfold(site, restore_batch(site, x))))


def on_grid(site: Site, x: Lifted) -> Lifted:
    """A map (N, C, *space) as (N, C, *grid): without axes that only make up the rank, and in the image's order."""
    extra = [k for k, a in enumerate(x.space) if a.image is None]
    name = site.squeeze(x.map, [2 + k for k in extra]) if extra else x.map
    kept = [a for a in x.space if a.image is not None]
    order = sorted(range(len(kept)), key=lambda k: kept[k].image or 0)
    if order != list(range(len(kept))):
        name = site.emit([name], "Transpose", perm=[0, 1, *(2 + k for k in order)])
    return replace(x, map=name, space=tuple(kept[k] for k in order))


def named(site: Site, facts: Sequence[Fact]) -> list[Fact]:
    """Give the maps that this slot emitted the names of the node's outputs."""
    made = {name for e in site.emissions for name in e.node.outputs}
    renamed = dict(site.aliases)
    for name, fact in zip(site.outputs, facts):
        if isinstance(fact, Lifted | Unmapped | Whole):
            old = fact.map if isinstance(fact, Lifted) else fact.name
            if name and old in made and old not in renamed and name not in renamed.values():
                renamed[old] = name
    if not renamed:
        return list(facts)
    for emission in site.emissions:
        emission.rename(renamed)
    return [_renamed(fact, renamed) for fact in facts]


def _renamed(fact: Fact, names: Mapping[str, str]) -> Fact:
    if isinstance(fact, Lifted):
        return fact.on(names.get(fact.map, fact.map))
    return replace(fact, name=names.get(fact.name, fact.name)) if isinstance(fact, Unmapped | Whole) else fact


def check_meeting(site: Site, facts: Iterable[Fact | None]) -> None:
    """Rewind if a value that was reduced over the window meets a map on which the window is still live."""
    lifted = [f for f in facts if isinstance(f, Lifted)]
    if len(lifted) < 2:
        return
    live = {a.image for f in lifted for a in f.space if a.atoms and a.image is not None}
    for fact in lifted:
        missing = any(not a.atoms and a.image in live for a in fact.space)
        if missing and fact.origins and fact.origins <= site.reductions:
            raise Rewind(fact.origins)
