"""Images larger than memory: exact tiles, read and written by region, in runs that can be stopped.

tiling       which pixels give which cells: geometry alone
tiled        a converted file that is run tile by tile
maps         what is written by region, and the journal of it
choice       which tile is taken where none is asked for
application  the run
"""
