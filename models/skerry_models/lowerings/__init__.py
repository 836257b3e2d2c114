"""How one form of a network becomes another: one small pure file per lowering, listed in :mod:`.table`."""
