"""Generated from the .proto files beside it; see `make proto`."""
