"""The whole loop on one machine, in real processes, told as a story."""
