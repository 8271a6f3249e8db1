"""Refusals that several modules raise: their codes, reasons and hints."""

from __future__ import annotations

from onnx_fcn.errors import Unsupported

__all__ = [
    "ABOUT_POSITIONS",
    "EVALUATION",
    "OF_FAULTS",
    "ONE_ANSWER",
    "PER_POSITION",
    "REORDERED",
    "REPLACE",
    "RUN_THE_REST",
    "SUBGRAPHS",
    "hint_for",
    "product_of_maps",
]


#: Codes of refusals that are about positions. If attention follows one, such as an embedding's Add or the Concat of a
#: class token, the attention is the cause that is reported: the network has no other use for the positions.
ABOUT_POSITIONS = frozenset(
    {
        *("axes-meet", "constant-per-image", "dense-partial-window", "lookup", "mixes-positions", "norm-partial"),
        *("not-channels", "not-spatial", "per-position", "permuted-axes", "reduce-partial-window"),
        *("reshape-cuts-axis", "unfold-too-large", "weight-per-position", "weight-too-large"),
    }
)

#: Codes of refusals whose model may be damaged, so that it runs nowhere: windows are not proposed for it.
OF_FAULTS = frozenset(
    {
        *("attribute", "broadcast", "dense-size", "dropout-mask", "dtype", "indices", "operands", "rank"),
        *("reshape-size", "size", "type", "unknown-type", "unknown-value"),
    }
)

#: Hint for a head that cannot slide.
RUN_THE_REST = "it can only run on windows of the map before it"

#: What attention between all positions gives if no position is left.
ONE_ANSWER = "one answer for all positions of the image, which attention relates to each other"

#: Why an operator that reorders positions cannot slide, and a hint.
REORDERED = (
    "an operator that flips or shuffles each window cannot slide: apply it to the images, and convert the network "
    "without it"
)

#: Why values that differ between positions cannot slide.
PER_POSITION = (
    "positional embeddings, coordinate channels and normalisations per position have no meaning on a larger image"
)

#: Hint for a network that was exported in training mode.
EVALUATION = "export it in evaluation mode, with model.eval() before torch.onnx.export"


def product_of_maps(what: str = "positions with positions (attention, bilinear pooling)") -> Unsupported:
    """The refusal of a product of two values that both depend on the image."""
    reason = f"multiplies {what}: only a constant weight can become a convolution"
    return Unsupported(reason, code="product-of-maps", hint=RUN_THE_REST)


#: Hint for an operator without a rule.
REPLACE = "before the export, replace it with supported operators, or open an issue with the model"

#: Hints for operators that have no meaning at every position.
HINTS = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), f"recurrence runs along positions: {RUN_THE_REST}"),
    **dict.fromkeys(
        ("NonMaxSuppression", "RoiAlign", "MaxRoiPool"),
        "a detector already finds objects anywhere: take the class scores before it as an output",
    ),
    **dict.fromkeys(
        (
            *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
            *("SequenceInsert", "SequenceLength", "SplitToSequence"),
        ),
        "the length of a sequence, and the places in it, have to be the same for all images: export it without "
        "branches and loops, and with sizes that are numbers",
    ),
}

#: Hints for operators with a subgraph.
SUBGRAPHS = {
    "If": "export only the branch that you need",
    **dict.fromkeys(("Loop", "Scan"), "unroll it before the export"),
}


def hint_for(domain: str, operator: str, reads: str) -> str:
    """The hint for an operator without a rule; `reads` is what it makes an answer of, if it does."""
    if domain == "ai.onnx.ml" and reads:
        return f"leave it out, with --outputs {reads}"
    if domain == "com.microsoft.nchwc":
        return "start from the model before onnxruntime optimised it"
    return HINTS.get(operator, REPLACE)
