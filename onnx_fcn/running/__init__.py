"""Using a converted file: pixels in, answers at their places out."""
