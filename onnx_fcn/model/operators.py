"""Tables of operators, each with its use; what an operator means is in its rule."""

from __future__ import annotations

__all__ = [
    "AFFINE",
    "ATTENTION",
    "BOUNDED",
    "BROADCASTS",
    "CARRYING",
    "CHANNELS_FIRST",
    "CHOOSING",
    "CONVOLUTIONS",
    "COUNTED",
    "DENSE",
    "ELEMENTWISE",
    "FACTORS",
    "GLOBAL",
    "HIDING",
    "LINEAR",
    "ORDINARY",
    "PER_IMAGE",
    "PLACES",
    "PROBABILITIES",
    "PRODUCTS",
    "RANDOM",
    "REORDERS",
    "RESHAPES",
    "SHAPED_BY_VALUES",
    "SLIDING",
    "SPREADS",
    "STAND_INS",
    "SUMS",
    "THROUGH",
    "UNCHANGED",
    "UNCOUNTED",
]


#: Operators that compute with places: if a trunk has any, the check of a long image may cost more.
PLACES = frozenset({"CumSum", "GridSample", "NonZero", "Range", "Resize", "Upsample"})

#: Operators whose results saturate or discard: what enters them is compared too.
HIDING = frozenset(
    {
        *("ArgMax", "ArgMin", "Binarizer", "Clip", "Equal", "Erf", "Greater", "GreaterOrEqual", "Hardmax"),
        *("HardSigmoid", "Less", "LessOrEqual", "LinearClassifier", "LinearRegressor", "LogSoftmax", "QLinearSigmoid"),
        *("QLinearSoftmax", "Sigmoid", "Sign", "Softmax", "Softsign", "Tanh", "TopK"),
    }
)

#: Operators whose results are in [0, 1] and have an absolute rounding error, not a relative one. If their inputs are
#: compared too, results below a hundredth are compared absolutely.
BOUNDED = frozenset({"Softmax", "Sigmoid", "HardSigmoid"})

#: Operators that add up products with weights.
SUMS = frozenset({"Gemm", "MatMul", "Conv"})

#: Operators that only move or cast values: they may be between a closing Softmax and the output.
THROUGH = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose"})

#: Operators that give the values of their operand another shape, and keep their order.
RESHAPES = THROUGH - {"Cast", "Transpose"}

#: `THROUGH`, and operators that add, scale or average: they turn sums of products into sums of products.
AFFINE = THROUGH | {"Add", "Sub", "Mul", "Div", "BatchNormalization", "ReduceMean", "GlobalAveragePool", "AveragePool"}

#: Convolutions, with the index of the operand that is a kernel (outputs, channels of a group, *taps), for their cost.
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1}

#: Operators that sum over the last axis of their first operand, or if that is transposed, over the one before. Their
#: cost follows from it.
PRODUCTS = frozenset(
    {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedGemm", "FusedMatMul", "QGemm", "MatMulNBits"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)

#: Linear models of ai.onnx.ml, whose coefficients are attributes.
LINEAR = frozenset({"LinearClassifier", "LinearRegressor"})

#: Operators whose multiply-accumulates are counted.
COUNTED = frozenset({*CONVOLUTIONS, *PRODUCTS, *LINEAR, "ConvTranspose", "Einsum"})

#: Layers with kernels (outputs, channels in a group, *window): the first one shows the channels and axes of the image.
SLIDING = frozenset({"Conv", "ConvInteger", "FusedConv", "QLinearConv"})

#: Layers whose weights are matrices: the first one shows how many values an image has.
DENSE = frozenset({"FusedGemm", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "QGemm", "QLinearMatMul"})

#: Operators that return their operand unchanged, perhaps in another type.
UNCHANGED = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})

#: Operators whose result differs from run to run.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

#: Fused attention: the refusal names it even if other nodes on the path of the image are refused too.
ATTENTION = frozenset(
    {
        *("Attention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "GroupQueryAttention"),
        *("LongformerAttention", "MultiHeadAttention", "PackedAttention", "PackedMultiHeadAttention", "QAttention"),
        "SparseAttention",
    }
)

#: Operators that do much work which is not counted.
UNCOUNTED = ATTENTION | {"GRU", "LSTM", "RNN"}

#: Products, with the indices of the operands that are the factors.
FACTORS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("Einsum", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
}

#: Operators that pick elements of an axis, in any order.
REORDERS = frozenset({"ArrayFeatureExtractor", "Gather", "GatherElements", "GatherND", "ReverseSequence", "Slice"})

#: Operators that may repeat one value over the positions of a map: the walk remembers this value.
SPREADS = frozenset({"Expand", "Resize", "Tile", "Upsample"})

#: Operators whose later operands determine the shape of the result.
SHAPED_BY_VALUES = frozenset(
    {
        *("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK", "Unsqueeze", "Upsample"),
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
    }
)

_FIRST, _BOTH, _QUANTIZED = slice(1), slice(2), slice(0, 4, 3)

#: Operators of onnxruntime and ai.onnx.ml without shape inference in onnx: an operator with the same shapes, and its
#: operands.
STAND_INS = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), ("Identity", _FIRST)),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), ("Identity", _FIRST)),
    **dict.fromkeys(("Binarizer", "Normalizer", "Scaler"), ("Identity", _FIRST)),
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

#: Operators for which axis 1 is the channels, and the axes after it are positions.
CHANNELS_FIRST = frozenset(
    {
        *("BatchNormalization", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization"),
        *("ImageScaler", "InstanceNormalization", "LRN"),
    }
)

#: Operators that compute each image of a batch, their first axis, by itself, whatever their attributes.
PER_IMAGE = frozenset(
    {
        *("Abs", "Add", "Affine", "AveragePool", "Cast", "Ceil", "Celu", "Clip", "Conv", "ConvTranspose", "Div"),
        *("Elu", "Erf", "Exp", "Floor", "Gelu", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "HardSigmoid"),
        *("HardSwish", "Identity", "InstanceNormalization", "LRN", "LeakyRelu", "Log", "LpPool", "Max", "MaxPool"),
        *("Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign"),
        *("Softplus", "Softsign", "Sqrt", "Sub", "Tanh", "Where", "Dropout", "ImageScaler", "ScaledTanh"),
    }
)

#: Operators of `PER_IMAGE` that compute each element from those in the same place.
ELEMENTWISE = PER_IMAGE - {
    *("Affine", "AveragePool", "Conv", "ConvTranspose", "Dropout", "GlobalAveragePool", "GlobalLpPool"),
    *("GlobalMaxPool", "ImageScaler", "InstanceNormalization", "LRN", "LpPool", "MaxPool"),
}

#: Operators of `PER_IMAGE`, and the product, whose operands may have different numbers of axes.
BROADCASTS = frozenset({"Add", "Div", "MatMul", "Max", "Min", "Mul", "Pow", "Sub", "Where"})

#: Operators that turn logits into probabilities.
PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

#: For each pooling, the operator that pools the whole map: a kernel of the map's size means it on a larger image.
GLOBAL = {
    "AveragePool": "GlobalAveragePool",
    "LpPool": "GlobalLpPool",
    "MaxPool": "GlobalMaxPool",
    "QLinearAveragePool": "QLinearGlobalAveragePool",
}

#: Operators that return class numbers, with the indices of these outputs: their answers are not scores.
CHOOSING = {"ArgMax": (0,), "ArgMin": (0,), "TopK": (1,)}

#: Operators whose results are values of their operands, moved or cast: class numbers stay class numbers through them.
CARRYING = frozenset(
    {"Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)

#: Operators with a rule that belong to none of the tables above: read these before you add an operator here.
ORDINARY = frozenset(
    {
        *("Acos", "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot"),
        *("BitwiseOr", "BitwiseXor", "Cos", "Cosh", "DepthToSpace", "DynamicQuantizeLinear", "IsInf"),
        *("IsNaN", "LayerNormalization", "LpNormalization", "Mean", "MeanVarianceNormalization", "Mod"),
        *("Not", "Or", "RMSNormalization", "Shape", "Shrink", "Sin", "Sinh", "Size", "SpaceToDepth", "Sum"),
        *("Swish", "Tan", "ThresholdedRelu", "Xor"),
    }
)
