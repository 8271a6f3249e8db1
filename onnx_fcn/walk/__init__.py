"""From a document to a finished walk and the edit that it makes: which input is the image, one pass over
the nodes, where the trunk ends, what is made of the outputs.
"""
