"""Where the rows of the built-in tasks come from."""
