"""Arithmetic of aggregation: streaming means, spooled updates and what is computed over their columns."""

from skerry_server.federation.aggregation.mean import StreamingMean
from skerry_server.federation.aggregation.spool import UpdateSpool

__all__ = ["StreamingMean", "UpdateSpool"]
