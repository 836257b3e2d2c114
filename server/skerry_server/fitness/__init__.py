"""Which form of a release is fastest on which devices, learned from what devices measured and signed."""
