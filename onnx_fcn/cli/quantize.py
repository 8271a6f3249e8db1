"""The command `quantize`: a converted model in 8 bits, compared with the float one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from onnx_fcn.cli.arguments import PREPROCESSING, add_preprocessing, preprocessing, share_or_all
from onnx_fcn.cli.output import json_file, progress_on
from onnx_fcn.running.fidelity import COUNTED, LEAST_RECALL, MOST_NOISE
from onnx_fcn.running.quantizing import Quantized, quantize
from onnx_fcn.tables import Table, bytes_of, percent, size_text

__all__ = ["run"]


EPILOG = f"""\
Every other image is calibrated on, whole and in a window of the native size; the others are compared with the float
model. Both have to contain one at least that is larger than a window. Nothing is written (exit code 3) unless every
output passes three measures:
  agreement  the share of the cells with the same best class (--agreement); a cell with one score has two classes,
             above and below the middle of the scores
  recall     that share of the cells of each class with {COUNTED} cells or more: at least {LEAST_RECALL:g}
  noise      the root mean square of the differences of scores, relative to their standard deviation: at most
             {MOST_NOISE:g}
The exit codes are the same as for onnx-fcn.

{PREPROCESSING}
The default is what the file says; if it says nothing, pixels of a picture become pixel/255, and everything else stays
unchanged. What is given is stored in the quantised file, which is right for that input alone.

example:
  onnx-fcn quantize out.onnx images/ fast.onnx --preprocess imagenet
"""


def run(words: Sequence[str]) -> list[Table]:
    """Run `quantize …`; returns its report.

    Raises:
        FcnError: as `onnx_fcn.quantize` does.
    """
    given = _parse(words)
    with json_file(given.json, (given.model, given.output)) as write_json, progress_on(given.quiet) as progress:
        found = quantize(
            given.model,
            given.images,
            given.output,
            agreement=given.agreement,
            preprocess=preprocessing(given, given.scale),
            progress=progress,
        )
        write_json(found.to_dict())
    return [] if given.quiet or given.json == "-" else [_table(found)]


def _table(found: Quantized) -> Table:
    before, after = found.seconds
    bits = {
        True: "8 bits",
        False: "7 bits, as this processor has no VNNI: with it, 8 bits",
        None: "7 bits, as it is not known whether this processor has VNNI: with it, 8 bits",
    }[found.wide_sums]
    worst = found.worst
    where = f", at output '{worst.output}', the least of {len(found.outputs)}" if len(found.outputs) > 1 else ""
    rows = [
        ("written", f"{found.path}, {bytes_of(found.nbytes[1])} instead of {bytes_of(found.nbytes[0])}"),
        ("weights", f"{bits}, with a scale for each channel; the last layer stays in floats"),
        ("images", f"{found.calibrated} calibrated on, {len(found.compared)} others compared"),
        ("agreement", f"{percent(found.agreement, 1.0, 2)} of the cells {worst.same}{where}"),
    ]
    if found.recall is not None:
        weakest = min((f for f in found.outputs if f.recall is not None), key=lambda f: f.recall or 0.0)
        rows.append(("recall", f"{percent(found.recall, 1.0, 2)} of the cells {weakest.kept}, the least"))
    if found.noise is not None:
        rows.append(("noise", f"{found.noise:.3f} of the spread of the scores (root mean square)"))
    if found.error is not None:
        rows.append(("error", f"{found.error:.3f} of the largest score at most"))
    rows += [
        ("time", f"{after * 1e3:.0f} ms instead of {before * 1e3:.0f} ms at {size_text(found.size)} pixels"),
    ]
    if after > 0.9 * before:
        rows.append(("caveat", "On this processor 8 bits gain nothing: few channels are as fast in floats."))
    return Table("", (), tuple(rows))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="onnx-fcn quantize",
        description="Quantise a converted model to 8 bits, and compare it with the float model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a converted model")
    parser.add_argument("images", help="a folder of images like those that the model will be used on")
    parser.add_argument("output", help="the file to write")
    parser.add_argument(
        "--agreement",
        type=share_or_all,
        default=0.98,
        metavar="X",
        help="the least share of cells with the same best class (default: 0.98)",
    )
    add_preprocessing(parser, "scale")
    parser.add_argument("--json", metavar="FILE", help="write the report for scripts; - for stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser.parse_intermixed_args(words[1:])
