"""Networks of the built-in tasks: ReLU and no normalisation layers, so that INT8 needs no float islands."""
