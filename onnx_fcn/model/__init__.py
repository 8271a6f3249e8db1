"""The model as a file: its graph, where its weights lie, its metadata, onnxruntime on it.

Nothing here knows of windows.
"""
