"""Work that takes long, in processes of its own that may be killed at any moment and are run again."""
