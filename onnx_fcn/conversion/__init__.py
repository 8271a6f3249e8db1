"""From a model to its conversion, readable top to bottom.

converting  open, lift, assemble, validate, save
verifying   any converted file beside its original, also after other tools; the stamp
fixing      a conversion for images of one size, or in one batch
comparing   the verdict on the numbers
blaming     whom to blame for what fails unexpectedly
"""
