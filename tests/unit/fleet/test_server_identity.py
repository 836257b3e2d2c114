"""The certificate of the TLS listeners: made once, and again when it does not fit any more."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from skerry_server import server_identity
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.fleet.authority import CertificateAuthority

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _config(**changes: object) -> ServerConfig:
    names = [name for name, field in ServerConfig.model_fields.items() if field.is_required()]
    return ServerConfig.model_validate({name: 1000 + at for at, name in enumerate(names)} | changes)


def _served(layout: ServerLayout) -> x509.Certificate:
    return x509.load_pem_x509_certificate(layout.server_certificate.read_bytes())


def test_it_names_every_way_to_this_machine(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    config = _config(host="0.0.0.0", public_names=["edge.example", "203.0.113.7"])
    assert server_identity.ensure(config, layout, now=NOW)
    names = _served(layout).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert {"localhost", "edge.example", socket.gethostname()} <= set(hosts) | addresses
    assert {"127.0.0.1", "::1", "203.0.113.7"} <= addresses
    assert "0.0.0.0" not in addresses
    assert server_identity.public_host(config) == "edge.example"
    assert server_identity.device_api_url(config) == f"https://edge.example:{config.device_port}"
    assert server_identity.public_host(_config()) == "127.0.0.1"


def test_it_is_kept_until_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    server_identity.ensure(_config(), layout, now=NOW)
    authority, first = layout.authority_certificate.read_bytes(), _served(layout)
    assert not server_identity.ensure(_config(), layout, now=NOW + timedelta(days=549))
    assert _served(layout) == first
    assert server_identity.ensure(_config(), layout, now=NOW + timedelta(days=551))
    assert _served(layout).not_valid_after_utc == NOW + timedelta(days=551 + 825)
    assert layout.authority_certificate.read_bytes() == authority


@pytest.mark.parametrize("damage", ["name", "key", "certificate", "no key", "no certificate", "authority"])
def test_one_that_does_not_fit_is_made_anew(tmp_path: Path, damage: str) -> None:
    layout = ServerLayout(tmp_path)
    server_identity.ensure(_config(), layout, now=NOW)
    first, config = _served(layout), _config()
    other = CertificateAuthority.create(now=NOW)
    match damage:
        case "name":
            config = _config(public_names=["edge.example"])
        case "key":  # as if a start had been killed between the two files
            issued = CertificateAuthority.load(layout.pki).issue_server(["localhost"], now=NOW)
            layout.server_key.write_bytes(issued.key_pem)
        case "certificate":
            layout.server_certificate.write_bytes(b"nonsense")
        case "no key":
            layout.server_key.unlink()
        case "no certificate":
            layout.server_certificate.unlink()
        case "authority":
            other.save(layout.pki)
    assert server_identity.ensure(config, layout, now=NOW)
    assert _served(layout) != first
    assert not server_identity.ensure(config, layout, now=NOW)


def test_a_name_that_cannot_be_in_a_certificate_is_told(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    with pytest.raises(PlatformError, match="public_names"):
        server_identity.ensure(_config(public_names=["bücher.example"]), layout, now=NOW)
    assert not layout.server_certificate.exists()
