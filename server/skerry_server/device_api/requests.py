"""What the device API accepts and answers. Unknown fields are refused; every size has a bound."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from skerry_server.fleet.authority import PEM_BYTES
from skerry_server.fleet.enrollment import NODE_KEY_BYTES

Pem = Annotated[str, StringConstraints(min_length=1, max_length=PEM_BYTES)]
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class BoundedRequest(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid")


class EnrollRequest(BoundedRequest):
    """A device asks for an identity. The token is the secret."""

    token: str = Field(min_length=1, max_length=200, description="From `skerry device token`; used once.")
    device_id: str = Field(min_length=1, max_length=63, description="1 to 63 characters of a-z, 0-9 and -.")
    device_class: str = Field(default="", max_length=63, description="x86_64, aarch64, jetson, ...")
    labels: dict[LabelText, Annotated[str, StringConstraints(max_length=128)]] = Field(default={}, max_length=32)
    csr: Pem = Field(description="PKCS #10 request for its key on P-256.")
    node_public_key: str = Field(default="", max_length=NODE_KEY_BYTES, description="Of its Flower node, on P-384.")


class RenewRequest(BoundedRequest):
    """A device asks for its next certificate."""

    certificate: Pem = Field(description="The one that it has; it may have ended.")
    csr: Pem = Field(description="PKCS #10 request for its next key on P-256.")
    signature: str = Field(min_length=1, max_length=200, description="Base64, by the key of the certificate.")


class EnrollmentAnswer(BaseModel):
    """What a device needs to connect."""

    model_config = ConfigDict(from_attributes=True)

    device_id: str
    certificate: str = Field(description="Its certificate, PEM.")
    authority: str = Field(description="Certificate of the authority that vouches for every server, PEM.")
    broker_host: str
    broker_port: int = Field(description="MQTT over mutual TLS: control connections.")
    broker_data_port: int = Field(description="MQTT over mutual TLS: data connections.")
    device_api: str = Field(description="URL of this API.")
    superlink_address: str = Field(description="host:port of the Flower SuperLink.")
    release_keys: list[str] = Field(description="Raw Ed25519 public keys that sign releases, hexadecimal.")
    trust_root: str = Field(description="Root of The Update Framework, JSON.")
    reconnect_spread_ms: int = Field(description="Over how long devices spread their reconnection.")


class RenewalAnswer(BaseModel):
    """The next certificate of a device."""

    model_config = ConfigDict(from_attributes=True)

    certificate: str = Field(description="PEM.")
    authority: str = Field(description="Certificate of the authority, PEM.")
