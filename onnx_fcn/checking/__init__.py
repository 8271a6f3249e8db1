"""The proof: onnxruntime runs the original and the converted model, and the answers are compared."""
