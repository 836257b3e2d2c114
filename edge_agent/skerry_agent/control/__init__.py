"""The control process: link, updates, outbox, health, campaigns. One loop owns all of its state."""
