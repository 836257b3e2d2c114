"""Drift on the device: counts between the release's fixed edges, one small report per window."""
