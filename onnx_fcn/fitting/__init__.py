"""Training the last layer of a converted network on dense labels.

codes    what all labels answer: the class code at each pixel of a box
rasters  labels in a mask
shapes   points, lines, areas and runs, and the pixels that they cover
drawings labels drawn as shapes
geojson  ... in GeoJSON, as QuPath exports it
coco     ... in COCO's JSON
points   ... as points in CSV
pairing  which labels belong to which image
labels   labels opened for images
classes  which classes there are
choice   which labelled pixels are taken
"""
