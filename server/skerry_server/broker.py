"""mosquitto: finding it, configuring it, and keeping what it refuses equal to the store.

Three listeners, each with users of its own kind:

=========  ==================  ==============================  ==========================================
listener   address             user is                         client identifier is
=========  ==================  ==============================  ==========================================
plain      loopback only       ``server`` or ``operator``,     the client's choice
                               by password
control    the configured one  a device, by the common name    the user, whatever the client says
                               of its certificate
data       the configured one  ``CN=<device>``, by the whole   the user, whatever the client says
                               subject of its certificate
=========  ==================  ==============================  ==========================================

So a device has exactly two sessions, and no device can take over a session, or provoke the last will, of another: it
cannot present another identifier than its own. The rules of access (the same as skerry_contract.topics says) are
patterns over the user's name, so that enrolling a device changes no file and the broker need not hear of it.

Revoking does: the store is the truth, the list of revoked certificates a projection of it. :func:`publish_access`
writes the list anew and tells mosquitto with SIGHUP, which then refuses those certificates; sessions that live on are
ended by :func:`cut_off`. :class:`BrokerAccessController` does both again, for the process that was killed in between.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.topics import DATA_USER, FROM_DEVICE, ROOT, TRUST_FILTER
from skerry_server import broker_passwords
from skerry_server.broker_sessions import SessionCutError, end_sessions
from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.files import write_atomically
from skerry_server.fleet import revocation
from skerry_server.store.database import Database
from skerry_server.store.tables import Device, RevokedCertificate
from skerry_server.supervision.state_file import ProcessState, read_state

log = logging.getLogger(__name__)

#: Name of the broker among the supervised processes.
PROCESS_NAME = "mosquitto"
#: Overrides where mosquitto is looked for.
PROGRAM_VARIABLE = "SKERRY_MOSQUITTO"
#: Bytes of messages that wait for one client; what does not fit is dropped, and asked for again by the device.
QUEUED_BYTES = 4 << 20
#: Bytes of messages that one client has not acknowledged: two chunks. The broker keeps a copy of each for each client,
#: where messages that wait are kept once for all.
INFLIGHT_BYTES = 256 << 10
#: Where the plain listener is, whatever else is configured.
LOOPBACK = "127.0.0.1"
#: The user of the control plane itself.
SERVER_USER = "server"
#: How long sessions of a revoked device are ended again (milliseconds). A connection that had finished its TLS
#: handshake before the list was read may still become a session, until mosquitto gives up waiting for its CONNECT
#: after 1.5 times 60 s.
CUT_AGAIN_MS = 120_000
#: A device that was enrolled again meanwhile is disturbed only in the last of that time (milliseconds).
_CUT_LAST_MS = 25_000

_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/sbin", "/opt/homebrew/bin")
_HOW_TO_INSTALL = (
    "install it (Debian and Ubuntu: `apt-get install mosquitto`; macOS: `brew install mosquitto`), or set "
    f"{PROGRAM_VARIABLE} to where it is"
)
_BROKEN_VERSIONS = {(2, 0, 16): "it loses messages (eclipse/mosquitto issue 2876)"}


def find_mosquitto() -> Path:
    """Where mosquitto is; also in ``/usr/sbin``, which is not on everybody's path.

    Raises:
        PlatformError: It is not installed, or too old, or a version that is known to be broken.
    """
    wished = os.environ.get(PROGRAM_VARIABLE)
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS])
    found = shutil.which(wished) if wished else shutil.which("mosquitto", path=search)
    if found is None:
        where = f"{wished} ({PROGRAM_VARIABLE}) is not a program" if wished else "mosquitto is not installed"
        raise PlatformError(f"the MQTT broker is missing: {where}", remedy=_HOW_TO_INSTALL)
    version = _version(Path(found))
    if version < (2, 0, 0) or version in _BROKEN_VERSIONS:
        why = _BROKEN_VERSIONS.get(version, "version 2 or later is needed, for MQTT 5")
        number = ".".join(map(str, version))
        raise PlatformError(f"{found} is version {number}: {why}", remedy="install a newer one")
    return Path(found)


def command(program: Path, layout: ServerLayout) -> list[str]:
    """The command line that runs the broker in the foreground."""
    return [str(program), "-c", str(_configuration(layout))]


def write_configuration(config: ServerConfig, layout: ServerLayout) -> None:
    """Write configuration and access rules. The other files are :func:`publish_access`'s.

    Started by root, mosquitto would become the user "mosquitto", who can neither read the files of this data
    directory nor keep the death signal that ties it to its supervisor; so it stays who started it.
    """
    layout.broker.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [
        "# Written by skerry at every start.",
        "per_listener_settings true",
        *(["user root"] if os.geteuid() == 0 else []),
        "persistence true",
        f"persistence_location {layout.broker}/",
        "autosave_interval 30",
        "persistent_client_expiration 14d",
        f"max_packet_size {MESSAGE_BYTES}",
        f"message_size_limit {MESSAGE_BYTES}",
        "max_inflight_messages 256",
        f"max_inflight_bytes {INFLIGHT_BYTES}",
        "max_queued_messages 16384",
        f"max_queued_bytes {QUEUED_BYTES}",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "",
        f"listener {config.broker_port} {LOOPBACK}",
        "allow_anonymous false",
        f"password_file {_passwords(layout)}",
        f"acl_file {_access(layout, 'plain')}",
        "",
        *_tls_listener(config.broker_tls_port, config, layout),
        f"acl_file {_access(layout, 'control')}",
        "use_identity_as_username true",
        "",
        *_tls_listener(config.broker_data_port, config, layout),
        f"acl_file {_access(layout, 'data')}",
        "use_subject_as_username true",
    ]
    write_atomically(_configuration(layout), "\n".join([*lines, ""]).encode())
    for listener, rules in access_rules().items():
        write_atomically(_access(layout, listener), "\n".join([*rules, ""]).encode())


def access_rules() -> dict[str, list[str]]:
    """Access rules of each listener: "plain", "control" and "data". %u is the user's name."""
    made = "# Written by skerry at every start. Patterns hold for every user."
    return {
        "plain": [
            made,
            f"user {SERVER_USER}",
            f"topic readwrite {ROOT}/#",
            "topic read $SYS/#",
            "",
            "user operator",
            f"topic read {ROOT}/#",
            "topic read $SYS/#",
        ],
        "control": [
            made,
            *(f"pattern write {ROOT}/d/%u/{kind.value}" for kind in sorted(FROM_DEVICE)),
            f"pattern read {ROOT}/d/%u/#",
            f"pattern read {TRUST_FILTER}",
        ],
        "data": [made, f"pattern read {ROOT}/d/%u/bulk/+", f"pattern read {ROOT}/bulk/+"],
    }


def read_password(path: Path) -> str:
    """A password that the first start wrote; raises PlatformError."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read ({error.strerror})", remedy="run `skerry up` there first"
        ) from error


def publish_access(database: Database, layout: ServerLayout) -> bool:
    """Make the list of revoked certificates, and the control plane's own users, what they should be.

    Safe in several processes at once. A running broker is told of a change.

    Returns:
        Whether anything had changed.

    Raises:
        PlatformError: A file cannot be written; it is unchanged.
    """
    layout.broker.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with (layout.broker / "access.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever reads the store last also writes last
            listed = revocation.write_list(database, layout)
            changed = _write_passwords(layout) or listed
    except OSError as error:
        raise PlatformError(
            f"the broker's files cannot be written ({error.strerror})", remedy="check the disk and its folder"
        ) from error
    if changed:
        reload(layout)
    return changed


def _write_passwords(layout: ServerLayout) -> bool:
    path = _passwords(layout)
    before = path.read_bytes() if path.exists() else b""
    kept = broker_passwords.parse(before)
    hashes: dict[str, str] = {}
    for user, file in ((SERVER_USER, layout.server_password), ("operator", layout.operator_password)):
        password, hashed = read_password(file), kept.get(user, "")
        hashes[user] = (
            hashed if broker_passwords.matches(password, hashed) else broker_passwords.hash_password(password)
        )
    after = broker_passwords.render(hashes)
    if after != before:
        write_atomically(path, after)
    return after != before


def reload(layout: ServerLayout) -> bool:
    """Let a running broker read its files again; returns whether one was found."""
    process = _process(layout)
    if process is None:
        return False
    try:
        os.kill(process.pid, signal.SIGHUP)
    except ProcessLookupError:
        return False
    return True


def cut_off(config: ServerConfig, layout: ServerLayout, device_ids: list[str]) -> None:
    """End both sessions of some devices, and what is kept for them. Without a broker there is nothing to end.

    Raises:
        SessionCutError: The broker runs and does not do it.
        PlatformError: The password cannot be read.
    """
    if not device_ids or _process(layout) is None:
        return
    clients = [name for device_id in device_ids for name in (device_id, DATA_USER + device_id)]
    password = read_password(layout.server_password)
    end_sessions((LOOPBACK, config.broker_port), clients, username=SERVER_USER, password=password)


def enforce(database: Database, config: ServerConfig, layout: ServerLayout, device_ids: list[str]) -> None:
    """Refuse what is revoked and end the sessions of ``device_ids``, in this order, so that none can come back.

    What fails is logged: :class:`BrokerAccessController` does it again.
    """
    try:
        publish_access(database, layout)
        cut_off(config, layout, device_ids)
    except (PlatformError, SessionCutError, SQLAlchemyError) as error:
        log.warning("a revocation is not in force yet, it is tried again: %s", error)


class BrokerAccessController:
    """Repairs files that are not what the store says, and ends sessions of revoked devices that came through."""

    name = "broker-access"
    period_s = 10.0

    def __init__(self, database: Database, config: ServerConfig, layout: ServerLayout) -> None:
        self._database = database
        self._config = config
        self._layout = layout

    def step(self) -> None:
        """Write the files and tell the broker, if they differ; end sessions of the lately revoked."""
        if publish_access(self._database, self._layout):
            log.info("the broker's files were brought up to date")
        cut_off(self._config, self._layout, self._lately_revoked())

    def _lately_revoked(self) -> list[str]:
        now = now_ms()
        newest = sa.func.max(RevokedCertificate.revoked_ms)
        with self._database.reading() as session:
            rows = session.execute(
                sa.select(RevokedCertificate.device_id, newest, Device.revoked)
                .join(Device, Device.id == RevokedCertificate.device_id)
                .where(RevokedCertificate.revoked_ms > now - CUT_AGAIN_MS)
                .group_by(RevokedCertificate.device_id, Device.revoked)
                .order_by(RevokedCertificate.device_id)
            )
            return [name for name, at, out in rows if out or now - at > CUT_AGAIN_MS - _CUT_LAST_MS]


def _configuration(layout: ServerLayout) -> Path:
    return layout.broker / "mosquitto.conf"


def _passwords(layout: ServerLayout) -> Path:
    return layout.broker / "passwords"


def _access(layout: ServerLayout, listener: str) -> Path:
    return layout.broker / f"access-{listener}"


def _tls_listener(port: int, config: ServerConfig, layout: ServerLayout) -> list[str]:
    return [
        f"listener {port} {config.host}",
        "allow_anonymous false",
        f"cafile {layout.authority_certificate}",
        f"certfile {layout.server_certificate}",
        f"keyfile {layout.server_key}",
        f"crlfile {layout.revocation_list}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_username_as_clientid true",
    ]


def _process(layout: ServerLayout) -> ProcessState | None:
    state = read_state(layout)
    found = None if state is None else next((one for one in state.processes if one.name == PROCESS_NAME), None)
    return found if found is not None and found.alive() else None


def _version(program: Path) -> tuple[int, int, int]:
    try:
        answer = subprocess.run([str(program), "-h"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(f"{program} cannot be run ({error})", remedy=_HOW_TO_INSTALL) from error
    found = re.search(r"mosquitto version (\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
    if found is None:
        raise PlatformError(f"{program} does not say that it is mosquitto", remedy=_HOW_TO_INSTALL)
    return int(found[1]), int(found[2]), int(found[3])
