"""Whatever holds an image, read by region: the same numbers for all commands.

stored    arrays as they lie in files and in memory: .npy, zarr, sound, pictures
tiff      the same for TIFF: pyramids, planes, orientation, what its numbers mean
channels  which axis holds the channels, and how grey and colours become each other
image     an image as a network takes it; pictures as pixels from 0 to 255
identity  what tells a file, or a store of many, from every other one
"""
