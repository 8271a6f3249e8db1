"""Axes of the image that keep their size: a network slides along the others, and pads along these as the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exports
import law
import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import onnx_fcn
from onnx_fcn import OptionError, UnsupportedModel
from onnx_fcn.dask import apply as apply_dask

#: Times and bands of a spectrogram.
TIMES, BANDS = 40, 24


class Bands(nn.Module):
    """A tagger of spectrograms (N, 1, time, band): each band has a normalisation of its own (PANNs' CNN14)."""

    def __init__(self, pads_late: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.bands = nn.BatchNorm2d(BANDS)
        self.late = nn.Conv2d(12, 12, (1, 3), padding=(0, 1)) if pads_late else nn.Identity()
        self.dense = nn.Linear(12, 5)

    def maps(self, image: Tensor) -> Tensor:
        """(N, 12, time/4), after the mean over the bands."""
        seen = self.bands(image.transpose(1, 3)).transpose(1, 3)
        return self.late(self.trunk(seen)).mean(3)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 5): the mean and the maximum over time, and a dense layer."""
        seen = self.maps(image)
        return self.dense(seen.mean(2) + seen.max(2)[0])

    def along_time(self, image: Tensor) -> Tensor:
        """(N, 5, windows): the same for every window of the maps, in torch."""
        windows = self.maps(image).unfold(2, TIMES // 4, 1)
        return self.dense((windows.mean(3) + windows.amax(3)).transpose(1, 2)).transpose(1, 2)


def tagger(**options: Any) -> Bands:
    """With statistics that differ from band to band."""
    torch.manual_seed(6)
    net = Bands(**options).eval()
    nn.init.normal_(net.bands.running_mean)
    nn.init.uniform_(net.bands.weight, 0.5, 1.5)
    nn.init.normal_(net.bands.bias)
    return net


def sound(times: int, bands: int = BANDS, batch: int = 1) -> np.ndarray[Any, Any]:
    """Noise of (batch, 1, times, bands)."""
    return np.random.default_rng(7).standard_normal((batch, 1, times, bands)).astype(np.float32)


@pytest.mark.parametrize("pads_late", [False, True], ids=["", "pads bands behind the cut"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
def test_a_spectrogram_slides_in_time(dynamo: bool, pads_late: bool, tmp_path: Path) -> None:
    net, out = tagger(pads_late=pads_late), tmp_path / "out.onnx"
    file = exports.export(net, tmp_path / "in.onnx", (TIMES, BANDS), dynamo=dynamo, opset=18)
    with pytest.raises(UnsupportedModel, match="--slide height converts it for images of any height"):
        onnx_fcn.convert(file)
    report = onnx_fcn.convert(file, out, slide=["height"]).report
    assert report.image.after == ("batch", 1, "height", BANDS)
    assert report.outputs[0].after == ("batch", 5, "(height - 40) // 4 + 1", 1)
    seen = sound(TIMES + 27, batch=2)
    with torch.no_grad():
        wanted = net.along_time(torch.from_numpy(seen)).numpy()
    (found,) = law.session(onnx.load(out))({"image": seen})
    law.agree(found, wanted[..., None], "the answers")
    assert all(c.passed for c in onnx_fcn.validate(file, out).checks)
    assert onnx_fcn.explain(file, "scores", slide=["h"]).part == "head"


def test_padding_along_such_an_axis_is_that_of_the_original() -> None:
    """Cells are those of crops, although the bands are padded: a crop pads them in the same way."""
    body = "c = Conv <pads = [0, 1, 0, 1]> (x, k)  f = Flatten (c)  y = MatMul (f, w)"
    model = law.model(body, k=(5, 6, 2, 3), w=(45, 4))
    (answers,) = onnx_fcn.convert(model, slide=["height"]).report.geometry.outputs.values()
    assert (answers.exactness, answers.held) == ("exact", (None, 3))
    (padded,) = onnx_fcn.convert(model).report.geometry.outputs.values()
    assert padded.exactness == "padded"


def test_an_axis_has_a_word_a_letter_and_its_name_in_the_file() -> None:
    model = law.model("f = Flatten (x)  y = MatMul (f, w)", image="float[N,6,4,steps] x", w=(72, 5))
    for name in ("width", "w", "steps", "STEPS"):  # a letter is a name unless the file has given it to another axis
        report = onnx_fcn.convert(model, input_size=(4, 3), slide=[name]).report
        assert report.image.after == ("N", 6, 4, "width")
    assert onnx_fcn.convert(model, input_size=(4, 3), slide=["h", "w"]).report.geometry.of().held == ()
    with pytest.raises(OptionError, match="the image has no axes 'time': --slide takes height, steps, width"):
        onnx_fcn.convert(model, input_size=(4, 3), slide=["time"])


def test_tiles_are_as_wide_as_an_axis_that_keeps_its_size(tmp_path: Path) -> None:
    """A dense map along the held axis: tiles divide the other one only."""
    da = pytest.importorskip("dask.array")
    model = law.model("c = Conv <pads = [1, 1, 1, 1]> (x, k)  y = Relu (c)", image="float[N,3,8,30] x", k=(5, 3, 3, 3))
    out = tmp_path / "out.onnx"
    onnx_fcn.convert(model, out, slide=["height"])
    image = law.random("image", 3, 90, 30).astype(np.float32)
    (wanted,) = law.session(onnx.load(out))({"x": image[None]})
    found = apply_dask(str(out), da.from_array(image, chunks=(3, 16, 16))).compute()
    np.testing.assert_allclose(found, wanted[0], atol=1e-5)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", k=(5, 6, 2, 2), w=(30, 5))
    onnx_fcn.convert(model, out, slide=["width"])
    with pytest.raises(OptionError, match="takes images with a height of 4 pixels, not images of 8×9: resize"):
        onnx_fcn.DenseModel(out).run_tensor(np.zeros((1, 6, 8, 9), np.float32))
    assert onnx_fcn.read_geometry(out).of().held == (4, None)


def test_an_output_stride_is_one_of_the_axis_that_slides() -> None:
    """The held height has a stride of 4, the width one of 2."""
    body = "c = Conv <strides = [4, 2]> (x, k)  f = Flatten (c)  y = MatMul (f, w)"
    model = law.model(body, image="float[N,6,8,11] x", k=(5, 6, 4, 3), w=(50, 4))
    strides = {s: onnx_fcn.convert(model, slide=["width"], output_stride=s).report.stride[1] for s in (1, 2, 4)}
    assert strides == {1: 1, 2: 2, 4: 4}


def test_a_letter_that_the_file_gives_to_another_axis() -> None:
    model = law.model("c = Conv (x, k)  f = Flatten (c)  y = MatMul (f, w)", image="float[N,6,w,h] x",
                      k=(5, 6, 2, 2), w=(30, 5))  # fmt: skip
    held = onnx_fcn.convert(model, input_size=(4, 3), slide=["w"]).report.geometry.of().held
    assert held == (None, 3)


def test_bands_may_become_features() -> None:
    """(N, width, bands·channels): the bands are features of each step."""
    body = "m = Conv <pads = [1, 1, 1, 1]> (x, k)  t = Transpose <perm = [0, 3, 2, 1]> (m)  y = Reshape (t, s)"
    model = law.model(body, image="float[N,3,4,7] x", k=(5, 3, 3, 3), s=[0, 0, 20])
    converted = onnx_fcn.convert(model, slide=["width"]).to_proto()
    image = {"x": law.random("image", 2, 3, 4, 11).astype(np.float32)}
    (found,), (wanted,) = law.session(converted)(image), law.session(law.trunk_of(model, ["y"]))(image)
    law.agree(found, wanted, "the answers")
