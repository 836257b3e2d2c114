"""The REST API: translates requests into calls of the domain services, and rows into documents. It decides nothing."""
