"""The cloud trainer: central training of a task on the server's own data, resumable after any kill."""
