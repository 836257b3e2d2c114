"""The groups of commands, one module per subject of the API."""
