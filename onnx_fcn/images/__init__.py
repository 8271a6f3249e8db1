"""Images from files and arrays, read by region: every command sees the same numbers.

opening    detects the format and opens the file
stored     an array read in parts, and errors as sentences
formats    .npy, zarr, pictures
sound      WAV: integers and floats
tiff       TIFF: pyramids, planes, orientation, photometric interpretation
channels   which axis is the channels, and conversion between grey and RGB
placement  where the pixels of an image lie: CRS, or physical sizes
image      an image as a network reads it; pictures as pixels from 0 to 255
masks      the class numbers of a mask
folders    the images in a folder
identity   a digest that changes when a file, or a store of many files, changes
"""
