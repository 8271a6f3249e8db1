"""The model as a file: its graph, where its weights lie, its metadata, what it costs, onnxruntime on it; and
what is known of operators apart from their rules.

Nothing here knows of windows.
"""
