"""Releases signed with The Update Framework: keys, metadata, and their way to the devices."""
