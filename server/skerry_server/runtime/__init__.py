"""``python -m skerry_server.runtime DATA_DIR``: the process that runs every controller."""
