"""The batch door: score a file of rows with the release of this device."""
