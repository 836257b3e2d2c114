"""What goes down to devices: desired state, and chunks of bundles."""
