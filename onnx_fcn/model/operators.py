"""What is known of operators apart from their rules: small tables, each with its use."""

from __future__ import annotations

__all__ = [
    "AFFINE",
    "AS_IT_IS",
    "ATTENTION",
    "BOUNDED",
    "CARRYING",
    "CHANNELS_FIRST",
    "CHOOSING",
    "CONVOLUTIONS",
    "COUNTED",
    "DENSE",
    "FACTORS",
    "GLOBAL",
    "HIDING",
    "ORDINARY",
    "PLACES",
    "PROBABILITIES",
    "PRODUCTS",
    "RANDOM",
    "REORDERS",
    "SHAPED_BY_VALUES",
    "SLIDING",
    "SPREADS",
    "STAND_INS",
    "SUMS",
    "THROUGH",
]


#: Operators that compute with places: a check that looks far out goes farther where there are such.
PLACES = frozenset({"CumSum", "GridSample", "NonZero", "Range", "Resize", "Upsample"})

#: Operators whose results saturate or discard: what enters them is compared too.
HIDING = frozenset(
    {
        *("ArgMax", "ArgMin", "Clip", "Equal", "Erf", "Greater", "GreaterOrEqual", "Hardmax", "HardSigmoid", "Less"),
        *("LessOrEqual", "LogSoftmax", "QLinearSigmoid", "QLinearSoftmax", "Sigmoid", "Sign", "Softmax", "Softsign"),
        *("Tanh", "TopK"),
    }
)

#: Of these the result is as exact as 1 is, however small it is. Where what enters them is compared, answers below a
#: hundredth are compared absolutely.
BOUNDED = frozenset({"Softmax", "Sigmoid", "HardSigmoid"})

#: Operators that add up products of weights, and those through which each result stays as exact as its terms are.
SUMS = frozenset({"Gemm", "MatMul", "Conv"})

#: Operators that only move values: what may stand between a closing Softmax and the output.
THROUGH = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})

#: These, and operators that add, scale or average: through them a sum of products stays one.
AFFINE = THROUGH | {"Add", "Sub", "Mul", "Div", "BatchNormalization", "ReduceMean", "GlobalAveragePool", "AveragePool"}

#: Operators whose operand of this number is a kernel (outputs, channels of a group, *taps), for their cost.
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}

#: Operators that sum over the last axis of their first operand, or the one before it where that is transposed: their
#: cost follows from it.
PRODUCTS = frozenset(
    {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedGemm", "FusedMatMul", "QGemm", "MatMulNBits"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)

#: Operators whose multiply-accumulates are counted.
COUNTED = frozenset({*CONVOLUTIONS, *PRODUCTS, "ConvTranspose", "Einsum"})

#: Layers whose kernels are (outputs, channels in a group, *window): the first tells an image's channels and axes.
SLIDING = frozenset({"Conv", "ConvInteger", "FusedConv", "QLinearConv"})

#: Layers whose weights are matrices: the first tells how many values an image has.
DENSE = frozenset({"FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QGemm", "QLinearMatMul"})

#: Operators that give what they are given, in another type.
AS_IT_IS = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})

#: Operators that answer something else every time.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

#: Fused attention: the refusal names it, whatever else on the way of the image is refused.
ATTENTION = frozenset(
    {
        *("Attention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "GroupQueryAttention"),
        *("LongformerAttention", "MultiHeadAttention", "PackedAttention", "PackedMultiHeadAttention", "QAttention"),
        "SparseAttention",
    }
)

#: The factors of a product, among an operator's operands.
FACTORS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Einsum", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
}

#: Operators that pick elements of an axis, in any order.
REORDERS = frozenset({"Gather", "GatherElements", "GatherND", "ReverseSequence", "Slice"})

#: Operators that may repeat one value over the positions of a map: what they repeat is remembered.
SPREADS = frozenset({"Expand", "Resize", "Tile", "Upsample"})

#: Operators whose later operands say what shape the result has.
SHAPED_BY_VALUES = frozenset(
    {
        *("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze", "Upsample"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
    }
)

_FIRST, _BOTH, _QUANTIZED = slice(1), slice(2), slice(0, 4, 3)

#: Operators of onnxruntime's that onnx infers no shapes for: what has the same, and which operands it takes.
STAND_INS = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), ("Identity", _FIRST)),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), ("Identity", _FIRST)),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"), ("Identity", _FIRST)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), ("MatMul", _BOTH)),
    "FusedConv": ("Conv", _BOTH),
    "FusedGemm": ("Gemm", _BOTH),
    "FusedMatMul": ("Gemm", _BOTH),  # of vectors; it may transpose them
    "QGemm": ("Gemm", _QUANTIZED),
    "QLinearAdd": ("Add", _QUANTIZED),
    "QLinearAveragePool": ("AveragePool", _FIRST),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", _FIRST),
    "QLinearMul": ("Mul", _QUANTIZED),
}

#: Operators that take axis 1 for the channels, and those behind it for positions.
CHANNELS_FIRST = frozenset(
    {
        *("BatchNormalization", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization"),
        *("InstanceNormalization", "LRN"),
    }
)

#: What makes probabilities of logits.
PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

#: For each pooling the operator that pools the whole map: what a kernel as large as the map means on a larger image.
GLOBAL = {
    "AveragePool": "GlobalAveragePool",
    "LpPool": "GlobalLpPool",
    "MaxPool": "GlobalMaxPool",
    "QLinearAveragePool": "QLinearGlobalAveragePool",
}

#: Operators that give numbers of classes, with their outputs of that kind: an answer of these is no score.
CHOOSING = {"ArgMax": (0,), "ArgMin": (0,), "TopK": (1,)}

#: Operators whose results are values of their operands, elsewhere or of another type: numbers of classes are followed
#: through them.
CARRYING = frozenset(
    {"Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)

#: Operators with a rule that belong into none of the tables above: read them all before you add one here.
ORDINARY = frozenset(
    {
        *("Abs", "Acos", "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd"),
        *("BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Cos", "Cosh", "DepthToSpace", "Dropout"),
        *("DynamicQuantizeLinear", "Elu", "Exp", "Floor", "HardSwish", "IsInf", "IsNaN"),
        *("LayerNormalization", "LeakyRelu", "Log", "LpNormalization", "Max", "Mean"),
        *("MeanVarianceNormalization", "Min", "Mish", "Mod", "Neg", "Not", "Or", "PRelu", "Pow"),
        *("RMSNormalization", "Reciprocal", "Relu", "Round", "Selu", "Shape", "Shrink", "Sin", "Sinh"),
        *("Size", "Softplus", "SpaceToDepth", "Sqrt", "Sum", "Swish", "Tan", "ThresholdedRelu", "Where"),
        "Xor",
    }
)
