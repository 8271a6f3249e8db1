"""The command line: arguments → convert → report on the terminal → exit code.

A user's mistake becomes one sentence on stderr; a bug in onnx_fcn keeps its traceback. A terminal gets tables that fit
its width, a pipe gets the same tables as plain text.
"""

from __future__ import annotations

import argparse
import gc
import io
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import onnx_fcn
from onnx_fcn import FcnError, OptionError, Validation, ValidationError
from onnx_fcn.cli.arguments import count, names, seed, share, size, stride
from onnx_fcn.cli.output import StdoutError, json_file, progress_on, write_out
from onnx_fcn.process import INTERRUPTED, Signals, repair_streams, silence
from onnx_fcn.reporting.checks import tables_of, validation_dict
from onnx_fcn.reporting.report import FORMAT
from onnx_fcn.tables import Table, plain

__all__ = ["main"]


DONE, MODEL, USAGE, VALIDATION = 0, 1, 2, 3

#: Separate commands, by the first argument: the module whose `run` takes all arguments and returns the tables to show.
#: A model with the name of a command is passed as ./heatmap.
COMMANDS = dict.fromkeys(("heatmap", "page"), "onnx_fcn.cli.views")
COMMANDS |= {name: f"onnx_fcn.cli.{name}" for name in ("segment", "apply", "fit", "quantize")}

#: The options that say what the answers are. After another tool removed the metadata, they tell --verify so.
ANSWERS = (
    *("head", "output_stride", "outputs", "logits", "cam", "reduce", "full_size", "argmax", "keep_size"),
    *("windows", "window_stride", "slide", "context"),
)

EPILOG = """\
commands on a converted model (onnx-fcn COMMAND --help):
  heatmap out.onnx photo.jpg heat.png     show where a class is, drawn over the picture
  segment out.onnx photo.jpg classes.png  write the best class at every pixel
  page out.onnx photo.jpg page.html       write a page to explore the answers
  apply out.onnx huge.tif map.zarr        compute the answers on an image of any size, tile by tile

  quantize out.onnx images/ fast.onnx     compute in 8 bits, calibrated on images and compared on others

another last layer (onnx-fcn fit --help):
  fit model.onnx images/ labels/ out.onnx train it on labelled pixels: a classifier becomes a segmenter

exit codes:
  0    done
  1    the model cannot be used, or cannot become fully convolutional: every root cause is listed
  2    the arguments do not fit each other or the model, or the output cannot be written
  3    converted or trained, but the numbers disagree with the original
  130  interrupted
  143  terminated
After 1, 2 and 3 nothing has been written, and an existing output is unchanged. After an interruption or termination
the output is either the old file or the complete new one.

examples:
  onnx-fcn model.onnx                          report what it would become
  onnx-fcn model.onnx --sizes 512 768x1024     report what it would cost at these sizes
  onnx-fcn model.onnx out.onnx                 convert, compare with the original, write
  onnx-fcn --verify model.onnx optimized.onnx  compare again after another tool
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    if arguments is not None:
        return _run_guarded(list(arguments))
    gc.disable()  # the process ends after this command, and a collection over a large graph finds nothing
    repair_streams()
    signals = Signals()
    try:
        code = _run_guarded(sys.argv[1:])
    except BaseException:
        if signals.code is None:
            raise
        code = signals.code
    finally:
        signals.done()
    return code if signals.code is None else signals.code


def _run_guarded(words: Sequence[str]) -> int:
    """Run the command, and turn every failure into a sentence and an exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # warnings of dependencies mean nothing to the user
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # do not fail on a terminal without × or →
    command = COMMANDS.get(words[0]) if words else None
    given = argparse.Namespace(verbose=False)
    wrote = command is not None
    try:
        try:
            if command:
                _show(import_module(command).run(words) or ())
            else:
                given = _parse(words)
                wrote = given.output is not None and not given.verify
                _run(given)
        except SystemExit as leaving:  # raised by argparse after help or an error
            wrote = False
            write_out(lambda: None)
            return int(leaving.code or 0)
    except FcnError as error:
        _complain(f"error: {error}")
        if given.verbose and isinstance(error, ValidationError) and isinstance(error.report, Validation):
            _complain(plain(tables_of(error.report, verbose=True)))
        return USAGE if isinstance(error, OptionError) else VALIDATION if isinstance(error, ValidationError) else MODEL
    except StdoutError as error:  # the files are written by then
        _complain(f"{'warning' if wrote else 'error'}: the report cannot be written: {error}")
        return DONE if wrote else USAGE
    except MemoryError:
        remedy = "use smaller images, or a machine with more" if command else "use a machine with more"
        _complain(f"error: there is not enough memory: {remedy}")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def _complain(text: str) -> None:
    """Write a line to stderr, if it can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def _run(given: argparse.Namespace) -> None:
    with (
        json_file(given.json, (given.model, given.output, given.data)) as write_json,
        progress_on(given.quiet) as progress,
    ):
        tables: list[Table]
        how = {"input_size": given.input_size, "input": given.input}
        if given.verify:
            validation = onnx_fcn.validate(
                given.model,
                given.output,
                **how,
                **_answers(given),
                tolerance=given.tolerance,
                stamp=given.stamp,
                data=given.data,
                seed=given.seed,
                progress=progress,
            )
            result = {"version": FORMAT, "validation": validation_dict(validation)}
            tables = list(tables_of(validation, verbose=given.verbose))
            if given.stamp:
                tables.append(Table("", (), (("stamped", f"{given.output}: every command takes it now"),)))
        elif given.explain is not None:
            explanation = onnx_fcn.explain(
                given.model,
                given.explain,
                **how,
                output_stride=given.output_stride,
                windows=given.windows,
                slide=given.slide,
                context=given.context,
            )
            result, tables = explanation.to_dict() if given.json else {}, explanation.tables()
        else:
            report = onnx_fcn.convert(
                given.model,
                given.output,
                **how,
                **_answers(given),
                dynamic_batch=given.dynamic_batch,
                sizes=[s[0] if len(s) == 1 else s for s in given.sizes],
                portable=given.portable,
                fix_size=given.fix_size,
                batch=given.batch,
                external_data={None: None, "inline": False}.get(given.weights, True),
                link_data=given.weights == "link",
                validate=given.output is not None and given.validate,
                data=given.data,
                seed=given.seed,
                progress=progress,
            ).report
            result, tables = report.to_dict() if given.json else {}, report.tables(verbose=given.verbose)
        write_json(result)
    if not given.quiet and given.json != "-":
        _show(tables)


def _answers(given: argparse.Namespace) -> dict[str, Any]:
    """The options that say what the answers are."""
    return {name: getattr(given, name) for name in ANSWERS}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)  # options may stand between the two files
    _check_options(given, parser.error)
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onnx-fcn",
        description="Turn any ONNX classifier into a fully convolutional network, and prove that it is the same\n"
        "network. Without an output it only reports what it would do.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="the classifier, an ONNX file")
    parser.add_argument("output", nargs="?", help="the file to write")
    parser.add_argument("--version", action="version", version=f"onnx-fcn {onnx_fcn.__version__}")
    for add in (_add_reading, _add_answers, _add_storing, _add_checking, _add_report):
        add(parser)
    return parser


def _add_reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model is read")
    group.add_argument(
        "--input-size",
        type=size,
        metavar="N|HxW",
        help="the image size that the network was made for, if the file does not give it (N: along every axis)",
    )
    group.add_argument("--input", metavar="NAME", help="the input that is the image, if there are several")


def _add_answers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the answers are")
    group.add_argument("--dynamic-batch", action="store_true", help="make a fixed batch dynamic")
    group.add_argument(
        "--head",
        choices=("conv", "folded"),
        default="conv",
        help="folded: fold the batch into a spatial axis, which is faster for batches of images of the native size",
    )
    group.add_argument(
        "--output-stride",
        type=stride,
        metavar="S|SxS",
        help="give an answer every S pixels (4x16: by axis); if S is less than the network strides, operators dilate "
        "instead (à trous)",
    )
    group.add_argument(
        "--outputs", type=names, default=(), metavar="NAME,…", help="answer with these outputs or tensors of the graph"
    )
    group.add_argument("--logits", action="store_true", help="remove a final Softmax, LogSoftmax or Sigmoid")
    group.add_argument(
        "--cam",
        action="store_true",
        help="give the class activation map: the layers after a pooling over all positions, at each cell before it",
    )
    group.add_argument(
        "--reduce",
        choices=("mean", "max"),
        help="give one answer for an image of any size: the mean or maximum of the map",
    )
    group.add_argument(
        "--full-size",
        action="store_true",
        help="give the map at the resolution of the image, interpolated between answers",
    )
    group.add_argument("--argmax", action="store_true", help="give the best class instead of the scores")
    group.add_argument(
        "--keep-size", action="store_true", help="replace dense layers by convolutions, and keep all shapes"
    )
    group.add_argument(
        "--windows",
        action="store_true",
        help="run what cannot slide, such as attention, on every window of the last map that does",
    )
    group.add_argument("--window-stride", type=count, metavar="S", help="cut these windows every S pixels")
    group.add_argument(
        "--context",
        choices=("attention",),
        help="let attention in the trunk see the whole of a larger image: answers then depend on all of it",
    )
    group.add_argument(
        "--slide",
        type=names,
        default=(),
        metavar="AXIS,…",
        help="slide along these axes only, such as width, w, or a name in the file; the others keep their size",
    )
    group.add_argument(
        "--portable",
        action="store_true",
        help="write only what all common runtimes read alike: slices instead of a MaxPool that dilates",
    )
    group.add_argument(
        "--fix-size",
        type=size,
        metavar="N|HxW",
        help="take images of this size only: every shape becomes numbers, as accelerators need it",
    )
    group.add_argument("--batch", type=count, metavar="N", help="take so many images at once only")


def _add_storing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the weights are stored").add_mutually_exclusive_group()
    for option, kind, what in (
        ("--external-data", "external", "store large weights in a file beside the output"),
        ("--inline", "inline", "store all weights in the output itself"),
        ("--link-data", "link", "refer to unchanged weights in the data file of the model, which must stay in place"),
    ):
        group.add_argument(option, dest="weights", action="store_const", const=kind, help=what)


def _add_checking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is compared with the original")
    group.add_argument(
        "--verify",
        action="store_true",
        help="compare an existing OUTPUT with MODEL, for example after another tool; the options on answers are for a "
        "file that lost its metadata",
    )
    group.add_argument(
        "--stamp",
        action="store_true",
        help="with --verify: if it passes, write where its answers are into OUTPUT, so that every command takes it",
    )
    group.add_argument(
        "--tolerance",
        type=share,
        metavar="X",
        help="with --verify: the largest difference allowed, relative to the largest answer",
    )
    group.add_argument("--no-validate", dest="validate", action="store_false", help="do not compare with the original")
    group.add_argument("--data", metavar="FILE", help="also compare on these images: .npy, or .npz by input name")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="the seed of the random images to compare on")


def _add_report(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is reported")
    group.add_argument("--explain", metavar="NAME", help="explain a node or tensor, and why it is refused")
    group.add_argument(
        "--sizes", nargs="+", type=size, default=[], metavar="N|HxW", help="report the cost for these image sizes"
    )
    group.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - writes it to stdout, and nothing else"
    )
    group.add_argument("-v", "--verbose", action="store_true", help="report every layer, change, cost and check")
    group.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def _check_options(given: argparse.Namespace, error: Callable[[str], object]) -> None:
    """Check that the options fit together; `error` ends the command with a message."""
    if given.output is None:
        if given.verify:
            error("--verify compares two files: give a model and an output")
        if given.data is not None:
            error("--data requires an output to compare with")
        if given.weights is not None:
            error("options for storing the weights require an output")
    for option, value in (("--stamp", given.stamp), ("--tolerance", given.tolerance)):
        if value and not given.verify:
            error(f"{option} is for --verify, which compares an existing file with its original")
    if given.verify and not given.validate:
        error("--verify and --no-validate contradict each other")
    forms = (given.outputs, given.logits, given.cam, given.reduce, given.full_size, given.argmax, given.keep_size)
    made = (given.dynamic_batch, given.weights, given.sizes, given.portable, given.fix_size, given.batch)
    of_form = (given.head != "conv", given.window_stride, *forms)
    if given.explain is not None and (given.output is not None or any((*made, *of_form))):
        error("--explain reports on one node or tensor, and takes neither an output nor options about one")
    if given.verify and any(made):
        error(
            "--verify converts nothing, and reads sizes and batches from the file: leave out the options about "
            "converting, such as --fix-size and --portable"
        )
    if given.data is not None and not given.validate:
        error("--data and --no-validate contradict each other")


def _show(tables: Sequence[Table]) -> None:
    if tables:
        write_out(lambda: _draw(tables) if sys.stdout.isatty() else print(plain(tables)))


def _draw(tables: Sequence[Table]) -> None:
    """Draw tables on a terminal."""
    import rich.console
    import rich.table
    import rich.text

    console = rich.console.Console(highlight=False)
    for k, table in enumerate(tables):
        if k:
            console.print()
        if table.title:
            console.print(rich.text.Text(table.title, style="bold"))
        drawn = rich.table.Table(
            box=None, show_header=bool(table.columns), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False
        )
        for heading in table.columns or (None,) * len(table.rows[0]):
            is_label = heading is None and not drawn.columns and len(table.rows[0]) > 1
            drawn.add_column(heading or "", style="cyan" if is_label else None, overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(rich.text.Text, row))
        console.print(drawn)
