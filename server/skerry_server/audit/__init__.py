"""The hash-chained ledger of every change that a person, a policy or a device caused."""

from skerry_server.audit.ledger import append, head, verify

__all__ = ["append", "head", "verify"]
