"""Secure aggregation: rounds in which the control plane learns the sum of the updates and none of them.

:class:`~skerry_server.federation.secure_aggregation.secure_round.SecureRound` collects a round over the exchange;
:class:`~skerry_server.federation.secure_aggregation.session.SecureSession` is the protocol without any I/O.
"""
