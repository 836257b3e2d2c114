"""What devices ask over HTTPS: the authority, enrolment, renewal, and files. A door of its own, beside the operators'.

The server proves itself with the certificate of :mod:`skerry_server.server_identity`. A device may prove itself with
its own; enrolment and renewal need none, because there the token or the old key is the proof.
"""
