"""Tokens, enrolment, renewal and revocation in a prepared data directory without processes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from integration.runtime.identities import Request, new_request
from skerry_server.audit import ledger
from skerry_server.broker import BrokerAccessController
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, RefusedError, SkerryError
from skerry_server.fleet import enrollment, service
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.store.tables import AuditRow, Device, EnrollmentToken, RevokedCertificate


def _token(context: ServerContext, **settings: Any) -> str:
    with context.database.transaction() as session:
        return enrollment.create_token(session, context, actor="ada", **settings)


def _enroll(
    context: ServerContext, token: str, device_id: str = "d1", request: Request | None = None, **settings: Any
) -> enrollment.Enrollment:
    settings.setdefault("csr", (request or new_request()).csr)
    with context.database.transaction() as session:
        return enrollment.enroll(session, context, token=token, device_id=device_id, **settings)


def _sign(key: EllipticCurvePrivateKey, csr: str) -> str:
    der = x509.load_pem_x509_csr(csr.encode()).public_bytes(Encoding.DER)
    return base64.b64encode(key.sign(b"skerry-renew-v1\0" + der, ECDSA(SHA256()))).decode()


def _renew(context: ServerContext, certificate: str, old: Request, new: Request, **changes: str) -> enrollment.Renewal:
    fields = {"certificate": certificate, "csr": new.csr, "signature": _sign(old.key, new.csr)} | changes
    with context.database.transaction() as session:
        return enrollment.renew(session, context, **fields)


def _listed(context: ServerContext) -> set[str]:
    path = context.layout.revocation_list
    return {f"{one.serial_number:x}" for one in x509.load_pem_x509_crl(path.read_bytes())} if path.exists() else set()


def _serial(certificate: str) -> str:
    return f"{x509.load_pem_x509_certificate(certificate.encode()).serial_number:x}"


def _refused(context: ServerContext, error: type[SkerryError], message: str, call: Callable[[], object]) -> None:
    """The call raises; neither the store nor the list of revoked certificates changes."""

    def state() -> tuple[object, ...]:
        with context.database.reading() as session:
            devices = [(one.id, one.certificate_serial, one.revoked, one.labels) for one in session.query(Device)]
            tokens = [(one.token_sha256, one.used_by) for one in session.query(EnrollmentToken)]
            return devices, tokens, session.query(RevokedCertificate).count(), ledger.head(session), _listed(context)

    before = state()
    with pytest.raises(error, match=message):
        call()
    assert state() == before


def test_enrolment_gives_everything_a_device_needs(context: ServerContext) -> None:
    token = _token(context, labels={"site": "north"})
    request = new_request()
    made = _enroll(context, token, request=request, device_class="x86_64", labels={"site": "forged", "line": "3"})
    authority = CertificateAuthority.load(context.layout.pki)
    assert token.startswith("enroll-")
    assert token.endswith("." + authority.fingerprint[:32])
    certificate = authority.check_issued(made.certificate.encode())
    assert (certificate.device_id, certificate.public_key) == ("d1", request.key.public_key())
    assert made.authority.encode() == authority.certificate_pem
    config = context.config
    assert (made.broker_host, made.broker_port) == ("127.0.0.1", config.broker_tls_port)
    assert made.broker_data_port == config.broker_data_port
    assert made.device_api == f"https://127.0.0.1:{config.device_port}"
    assert made.superlink_address == f"127.0.0.1:{config.superlink_port}"
    assert len(bytes.fromhex(made.release_keys[0])) == 32
    assert '"_type": "root"' in made.trust_root or '"_type":"root"' in made.trust_root
    assert made.reconnect_spread_ms > 0
    with context.database.reading() as session:
        device = service.get_device(session, "d1")
        assert device.labels == {"site": "north", "line": "3"}  # the operator's label wins
        assert device.certificate_serial == certificate.serial
        assert device.certificate_not_after_ms == int(certificate.not_after.timestamp()) * 1000
        rows = [(row.actor, row.action, row.subject) for row in session.query(AuditRow).order_by(AuditRow.sequence)]
        assert rows[-1] == ("device:d1", "device.enroll", "d1")
        assert ledger.verify(session) is None
        (stored,) = session.query(EnrollmentToken).all()
        assert token not in stored.token_sha256


def test_an_answer_that_got_lost_is_asked_for_again_until_the_device_was_seen(context: ServerContext) -> None:
    token = _token(context)
    lost = _enroll(context, token)
    again = _enroll(context, token)
    assert _listed(context) == {_serial(lost.certificate)}  # whoever has the lost one cannot use it
    with context.database.transaction() as session:
        device = service.get_device(session, "d1")
        assert device.certificate_serial == _serial(again.certificate)
        device.last_seen_ms = 1
    _refused(context, InvalidRequestError, "used by d1", lambda: _enroll(context, token))


def test_tokens_are_single_use_expire_and_must_be_known(context: ServerContext) -> None:
    used = _token(context)
    _enroll(context, used)
    _refused(context, InvalidRequestError, "used by d1", lambda: _enroll(context, used, "d2"))
    secret, _, fingerprint = used.partition(".")
    for guessed in ("guessed", secret, f"{secret}.{'0' * 32}", f"{secret[:-1]}.{fingerprint}"):
        _refused(context, InvalidRequestError, "an unknown one", partial(_enroll, context, guessed, "d2"))
    expired = _token(context)
    with context.database.transaction() as session:
        for row in session.query(EnrollmentToken).filter_by(used_by=""):
            row.expires_ms = 1
    _refused(context, InvalidRequestError, "an expired one", lambda: _enroll(context, expired, "d2"))
    for ttl_s in (0, -1, 30 * 86_400 + 1):
        _refused(context, InvalidRequestError, "ttl_s", partial(_token, context, ttl_s=ttl_s))


_P256_PEM = new_request().key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"device_id": "server"}, "device_id"),
        ({"device_id": "operator"}, "device_id"),
        ({"device_id": "a/b"}, "device_id"),
        ({"device_id": "+"}, "device_id"),
        ({"device_id": "CN=a"}, "device_id"),
        ({"device_id": ""}, "device_id"),
        ({"device_id": "x" * 64}, "device_id"),
        ({"device_id": "d\n"}, "device_id"),
        ({"device_class": "a b"}, "device_class"),
        ({"labels": {"Key": "x"}}, "labels"),
        ({"labels": {"key": ""}}, "labels.key"),
        ({"labels": {"key": "a\0b"}}, "labels.key"),
        ({"labels": {f"k{n}": "x" for n in range(33)}}, "labels"),
        ({"csr": "nonsense"}, "csr"),
        ({"csr": "ä"}, "csr"),
        ({"node_public_key": "nonsense"}, "node_public_key"),
        ({"node_public_key": _P256_PEM}, "node_public_key"),
        ({"node_public_key": "x" * 2_000}, "node_public_key"),
    ],
)
def test_a_bad_field_is_named_and_the_token_stays_good(
    context: ServerContext, arguments: dict[str, Any], field: str
) -> None:
    token = _token(context)
    _refused(
        context,
        InvalidRequestError,
        f"^{field}: ",
        lambda: _enroll(context, token, **({"device_id": "d2"} | arguments)),
    )
    _enroll(context, token, "d2")


def test_a_node_key_is_kept_in_one_form(context: ServerContext) -> None:
    key = generate_private_key(SECP384R1()).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    _enroll(context, _token(context), node_public_key="a comment\n" + pem.replace("\n", "\r\n"))
    with context.database.reading() as session:
        assert service.get_device(session, "d1").node_public_key == pem


def test_an_enrolled_name_is_taken_until_it_is_revoked(context: ServerContext) -> None:
    first = _enroll(context, _token(context))
    token = _token(context)
    _refused(context, ConflictError, "enrolled already", lambda: _enroll(context, token))
    with context.database.transaction() as session:
        service.get_device(session, "d1").desired_sequence = 7
        enrollment.revoke(session, context, "d1", actor="ada", reason="lost")
    assert _listed(context) == {_serial(first.certificate)}
    second = _enroll(context, token)
    assert _listed(context) == {_serial(first.certificate)}  # the new one is good, the old one stays refused
    with context.database.reading() as session:
        device = service.get_device(session, "d1")
        assert (device.revoked, device.desired_sequence) == (False, 7)  # sequences never go back
        assert device.certificate_serial == _serial(second.certificate)


def test_a_certificate_is_renewed_again_and_again_and_an_answer_may_get_lost(context: ServerContext) -> None:
    keys = [new_request() for _ in range(4)]
    first = _enroll(context, _token(context), request=keys[0]).certificate
    second = _renew(context, first, keys[0], keys[1]).certificate
    authority = CertificateAuthority.load(context.layout.pki)
    assert authority.check_issued(second.encode()).public_key == keys[1].key.public_key()
    # The answer did not arrive: the device still has the first key and asks for another one.
    third = _renew(context, first, keys[0], keys[2]).certificate
    assert _listed(context) == {_serial(second)}
    _refused(context, RefusedError, "was replaced", lambda: _renew(context, second, keys[1], keys[3]))
    fourth = _renew(context, third, keys[2], keys[3]).certificate
    _refused(context, RefusedError, "was replaced", lambda: _renew(context, first, keys[0], keys[1]))
    with context.database.reading() as session:
        device = service.get_device(session, "d1")
        assert (device.certificate_serial, device.certificate_previous_serial) == (_serial(fourth), _serial(third))
        actions = [row.action for row in session.query(AuditRow)]
        assert actions.count("device.renew") == 3


def test_a_certificate_that_ended_can_be_renewed_and_nothing_else_can(context: ServerContext) -> None:
    old, new, other = new_request(), new_request(), new_request()
    _enroll(context, _token(context), request=old)
    authority = CertificateAuthority.load(context.layout.pki)
    long_ago = utc_now().replace(year=utc_now().year - 1)
    ended = authority.issue_device(old.csr.encode(), device_id="d1", now=long_ago).decode()
    with context.database.transaction() as session:
        service.get_device(session, "d1").certificate_serial = _serial(ended)
    foreign = CertificateAuthority.create(now=utc_now()).issue_device(old.csr.encode(), device_id="d1", now=utc_now())
    unknown = authority.issue_device(old.csr.encode(), device_id="ghost", now=utc_now()).decode()
    signature = _sign(old.key, new.csr)

    def renew(certificate: str = ended, **changes: str) -> Callable[[], object]:
        return lambda: _renew(context, certificate, old, new, **changes)

    for error, message, call in [
        (RefusedError, "not made with the key", renew(signature=_sign(other.key, new.csr))),
        (RefusedError, "not made with the key", renew(csr=other.csr, signature=signature)),  # of another request
        (RefusedError, "not made with the key", renew(signature=base64.b64encode(b"x").decode())),
        (InvalidRequestError, "^signature: ", renew(signature="not base64!")),
        (InvalidRequestError, "^csr: ", renew(csr="nonsense", signature=signature)),
        (InvalidRequestError, "^certificate: ", renew(foreign.decode())),
        (InvalidRequestError, "^certificate: ", renew(authority.certificate_pem.decode())),
        (RefusedError, "device ghost is revoked", renew(unknown)),
    ]:
        _refused(context, error, message, call)
    renewed = _renew(context, ended, old, new).certificate
    assert authority.check_issued(renewed.encode()).not_after > utc_now()


def test_a_revoked_device_renews_nothing_and_is_revoked_once(context: ServerContext) -> None:
    old, newer = new_request(), new_request()
    first = _enroll(context, _token(context), request=old).certificate
    second = _renew(context, first, old, newer).certificate
    for _ in range(2):
        with context.database.transaction() as session:
            enrollment.revoke(session, context, "d1", actor="ada", reason="stolen")
    assert _listed(context) == {_serial(first), _serial(second)}
    for certificate, request in ((first, old), (second, newer)):
        _refused(
            context,
            RefusedError,
            "d1 is revoked",
            partial(_renew, context, certificate, request, new_request()),
        )
    with context.database.reading() as session:
        assert [row.action for row in session.query(AuditRow)].count("device.revoke") == 1
    with pytest.raises(NotFoundError), context.database.transaction() as session:
        enrollment.revoke(session, context, "nobody", actor="ada", reason="")


def test_a_transaction_that_is_rolled_back_tells_the_broker_nothing(context: ServerContext) -> None:
    _enroll(context, _token(context))

    def revoke_and_fail() -> None:
        with context.database.transaction() as session:
            enrollment.revoke(session, context, "d1", actor="ada", reason="")
            session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        revoke_and_fail()
    assert not context.layout.revocation_list.exists()
    with context.database.reading() as session:
        assert not service.get_device(session, "d1").revoked


def test_a_full_disk_at_revocation_is_left_to_the_controller(context: ServerContext) -> None:
    made = _enroll(context, _token(context))
    context.layout.revocation_list.mkdir()  # cannot be replaced by a file
    with context.database.transaction() as session:
        enrollment.revoke(session, context, "d1", actor="ada", reason="")
    with context.database.reading() as session:
        assert service.get_device(session, "d1").revoked  # the store is the truth
    context.layout.revocation_list.rmdir()
    BrokerAccessController(context.database, context.config, context.layout).step()
    assert _listed(context) == {_serial(made.certificate)}
