"""Images larger than memory: exact tiles, read and written by region, in runs that can be resumed.

tiling       which pixels give which cells: geometry alone
tiled        a converted file that is run tile by tile
description  what a map says about itself: where its cells lie, and what its channels are
formats      .npy, TIFF, GeoTIFF, OME-TIFF and zarr, written by region
maps         the files of a map, and its journal
choice       the default tile size
application  the run
"""
