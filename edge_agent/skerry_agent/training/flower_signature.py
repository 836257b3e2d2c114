"""How a Flower node shows that it is who it says: the signed time of every request (flwr 1.41.0, pinned)."""

from __future__ import annotations

import datetime
from base64 import b64encode
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from skerry_agent.training.server_clock import ServerClock

#: A request that was refused is signed again when its time was off by more (seconds); the SuperLink allows 5.
_CLOCK_OFF_S = 4.0


class SignedRequests:
    """Signs the time of every request, as ``NodeAuthHttpInterceptor`` of Flower does, but the SuperLink's time."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, clock: ServerClock) -> None:
        self._key = key
        self._clock = clock
        self._public_key = b64encode(public_key_to_bytes(key.public_key())).decode("ascii")

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Send; once more if the first answer shows that the signed time was wrong."""
        signed_s = self._clock.now()
        response = call_next(self._signed(context, signed_s))
        self._clock.learn(response.headers.get("date"))
        if response.status_code == httpx.codes.UNAUTHORIZED and abs(self._clock.now() - signed_s) > _CLOCK_OFF_S:
            response = call_next(self._signed(context, self._clock.now()))
        return response

    def _signed(self, context: Any, at_s: float) -> Any:
        timestamp = datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat()
        signature = sign_message(self._key, timestamp.encode("ascii"))
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public_key
        context.request.headers[TIMESTAMP_HEADER] = timestamp
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(signature).decode("ascii")
        return context
