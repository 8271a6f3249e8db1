"""Running a converted file: pixels in, answers and their windows out."""
