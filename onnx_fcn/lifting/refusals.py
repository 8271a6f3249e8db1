"""Refusals that several rooms make: their codes, reasons and hints."""

from __future__ import annotations

from onnx_fcn.errors import Unsupported

__all__ = [
    "ABOUT_POSITIONS",
    "EVALUATION",
    "PER_POSITION",
    "REORDERED",
    "REPLACE",
    "RUN_THE_REST",
    "SUBGRAPHS",
    "hint_for",
    "product_of_maps",
]


#: Codes of refusals that are about positions. Where attention comes behind one, such as an embedding's Add or the
#: Concat of a class token, it is the attention that cannot slide: the network has no other use for the positions.
ABOUT_POSITIONS = frozenset(
    {
        *("axes-meet", "constant-per-image", "dense-partial-window", "lookup", "mixes-positions", "norm-partial"),
        *("not-channels", "not-spatial", "per-position", "permuted-axes", "reduce-partial-window"),
        *("reshape-cuts-axis", "unfold-too-large", "weight-per-position", "weight-too-large"),
    }
)

#: What to do where a head cannot slide.
RUN_THE_REST = "take the map before it as an output, and run the rest on windows of that"

#: Why positions in another order do not slide, and what to do about that.
REORDERED = (
    "what flips or shuffles each window does not slide: do that to the images, and convert the network without it"
)

#: Why what differs between positions does not slide.
PER_POSITION = (
    "positional embeddings, coordinate channels and normalisations per position have no meaning on a larger image"
)

#: What to do about a network that was exported as it is trained.
EVALUATION = "export it in evaluation mode, with model.eval() before torch.onnx.export"


def product_of_maps(what: str = "positions with positions (attention, bilinear pooling)") -> Unsupported:
    """The refusal of a product of two values that both depend on the image."""
    reason = f"multiplies {what}: only a constant weight can become a convolution"
    return Unsupported(reason, code="product-of-maps", hint=RUN_THE_REST)


#: What to do about an operator that nobody has written a rule for.
REPLACE = "replace it before the export by operators that there are rules for, or open an issue with the model"

#: What to do about operators that have no meaning at every position.
HINTS = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "recurrence runs along positions: take the map before it as an output"),
    **dict.fromkeys(
        ("NonMaxSuppression", "RoiAlign", "MaxRoiPool"),
        "a detector finds objects anywhere already: take the class scores before it as an output",
    ),
}

#: What to do about operators with a subgraph.
SUBGRAPHS = {
    "If": "export only the branch that is wanted",
    **dict.fromkeys(("Loop", "Scan"), "unroll it before the export"),
}


def hint_for(domain: str, operator: str) -> str:
    if domain == "com.microsoft.nchwc":
        return "start from the model before onnxruntime optimised it"
    return HINTS.get(operator, REPLACE)
