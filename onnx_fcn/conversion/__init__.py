"""From a model to its conversion, readable top to bottom.

converting  open, lift, assemble, validate, save
verifying   any converted file beside its original, also after other tools; the stamp
comparing   what both do with the numbers: the verdict, and whom to blame
"""
