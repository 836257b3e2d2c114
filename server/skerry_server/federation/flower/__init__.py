"""Flower's SuperLink: runs, nodes, the lane beside its messages. flwr is imported here and in strategies only."""
