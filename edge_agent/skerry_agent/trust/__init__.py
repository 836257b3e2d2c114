"""Whom this device trusts: signed metadata (The Update Framework) over MQTT, versions that never go back, keys.

Nothing here is imported that costs memory before it is used: python-tuf is loaded by the first refresh. Inference
never depends on this package but for the keys of slots, which are read from a file.
"""
