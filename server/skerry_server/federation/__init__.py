"""Federated campaigns: recruiting devices, rounds over Flower, aggregation, and the journal that survives any kill."""
