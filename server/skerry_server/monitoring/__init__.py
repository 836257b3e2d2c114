"""Monitoring: what devices report is stored (``ingest``), judged (``detector``, ``judge``) and shown (``reports``)."""
