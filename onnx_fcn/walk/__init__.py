"""From a document to a finished walk and its edit: which input is the image, one pass over the nodes, where the trunk
ends, and the form of the outputs.
"""
