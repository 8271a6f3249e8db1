"""The model as a file: its graph, its weights, its metadata, its cost, and onnxruntime sessions on it.

Also tables of operators that do not belong to their rules. Nothing here depends on windows.
"""
