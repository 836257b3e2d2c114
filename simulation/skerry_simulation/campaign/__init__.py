"""Simulated campaigns: production's campaign run over simulated devices."""
