"""Training the last layers of a converted network, and exchanging its weights.

codes      what all labels answer: the class code at each pixel of a box
rasters    labels in a mask
shapes     points, lines, areas and runs, and the pixels that they cover
drawings   labels drawn as shapes
geojson    ... in GeoJSON, as QuPath exports it
coco       ... in COCO's JSON
points     ... as points in CSV
pairing    which labels belong to which image
labels     labels opened for images
classes    which classes there are
choice     which labelled pixels are taken

network    a classifier, its plain conversion, and the trained file
candidates which maps a layer may read
features   their values at pixels
solver     the layer, trained by scikit-learn
sampling   samples of labelled images: pixels with features
search     which maps are taken, by folds
fitted     the result and its report
fit        from files to the trained file

weights    weights of a converted file exchanged on disk
"""
