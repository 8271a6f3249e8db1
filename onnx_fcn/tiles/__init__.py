"""Images larger than memory: exact tiles, read and written by region, in runs that can be resumed.

tiling       which pixels give which cells: geometry alone
tiled        a converted file that is run tile by tile
maps         the map, written by region, and its journal
choice       the default tile size
application  the run
"""
