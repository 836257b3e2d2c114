"""The Skerry control plane."""
