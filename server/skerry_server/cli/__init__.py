"""The operator's command line, ``skerry``: does what the API does, through the API."""
