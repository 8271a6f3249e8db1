"""The proof: onnxruntime on the original and on the converted model, and what comes out of comparing them."""
