"""mosquitto: finding it, configuring it, and keeping its users equal to the devices of the store.

The store is the truth and the password file a projection of it: after a device was enrolled or revoked,
:func:`publish_users` writes the file anew and tells mosquitto with SIGHUP, which also ends the connections of users
that are gone. :class:`BrokerUsersController` does the same now and then, for the process that was killed in between.

What each user may do (the same as skerry_contract.topics says): ``server`` everything below the root; ``operator``
read all of it and ``$SYS``; a device publish its own reported, presence, up and need, and read its own subtree and
bulk.
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

from skerry_contract.limits import MESSAGE_BYTES
from skerry_contract.topics import FROM_DEVICE, ROOT
from skerry_server import broker_passwords
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.files import write_atomically
from skerry_server.store.database import Database
from skerry_server.store.tables import Device
from skerry_server.supervision.state_file import read_state

log = logging.getLogger(__name__)

#: Name of the broker among the supervised processes.
PROCESS_NAME = "mosquitto"
#: Overrides where mosquitto is looked for.
PROGRAM_VARIABLE = "SKERRY_MOSQUITTO"
#: Bytes of messages that wait for one client; what does not fit is dropped, and asked for again by the device.
QUEUED_BYTES = 4 << 20
#: Bytes of messages that one client has not acknowledged.
INFLIGHT_BYTES = 1 << 20

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
    """Write configuration and access rules. The password file is :func:`publish_users`'s.

    Started by root, mosquitto would become the user "mosquitto", who can neither read the files of this data
    directory nor keep the death signal that ties it to its supervisor; so it stays who started it.
    """
    layout.broker.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [
        "# Written by skerry at every start.",
        f"listener {config.broker_port} {config.host}",
        "allow_anonymous false",
        f"password_file {_passwords(layout)}",
        f"acl_file {_access(layout)}",
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
    ]
    write_atomically(_configuration(layout), "\n".join([*lines, ""]).encode())
    write_atomically(_access(layout), _access_rules().encode())


def read_password(path: Path) -> str:
    """A password that the first start wrote; raises PlatformError."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read ({error.strerror})", remedy="run `skerry up` there first"
        ) from error


def publish_users(database: Database, layout: ServerLayout) -> bool:
    """Make the broker's users equal to the devices of the store; returns whether anything had changed.

    Safe in several processes at once. The broker is told only if it runs.

    Raises:
        PlatformError: The file cannot be written; it is unchanged.
    """
    layout.broker.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with (layout.broker / "passwords.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever reads the store last also writes last
            with database.reading() as session:
                rows = session.execute(
                    sa.select(Device.id, Device.broker_password_hash).where(
                        Device.revoked.is_(False), Device.broker_password_hash != ""
                    )
                )
                hashes = {str(name): str(hashed) for name, hashed in rows}
            path = _passwords(layout)
            before = path.read_bytes() if path.exists() else b""
            kept = broker_passwords.parse(before)
            for user, file in (("server", layout.server_password), ("operator", layout.operator_password)):
                password = read_password(file)
                hashed = kept.get(user, "")
                hashes[user] = hashed if broker_passwords.matches(password, hashed) else _hash(password)
            after = broker_passwords.render(hashes)
            if after == before:
                return False
            write_atomically(path, after)
    except OSError as error:
        raise PlatformError(
            f"the broker's password file cannot be written ({error.strerror})", remedy="check the disk and its folder"
        ) from error
    reload(layout)
    return True


def reload(layout: ServerLayout) -> bool:
    """Let a running broker read its users and rules again; returns whether one was found."""
    state = read_state(layout)
    process = None if state is None else next((one for one in state.processes if one.name == PROCESS_NAME), None)
    if process is None or not process.alive():
        return False
    try:
        os.kill(process.pid, signal.SIGHUP)
    except ProcessLookupError:
        return False
    return True


class BrokerUsersController:
    """Repairs a password file that is not what the store says."""

    name = "broker-users"
    period_s = 10.0

    def __init__(self, database: Database, layout: ServerLayout) -> None:
        self._database = database
        self._layout = layout

    def step(self) -> None:
        """Write the file and tell the broker, if they differ."""
        if publish_users(self._database, self._layout):
            log.info("the broker's users were brought up to date")


def _hash(password: str) -> str:
    return broker_passwords.hash_password(password)


def _configuration(layout: ServerLayout) -> Path:
    return layout.broker / "mosquitto.conf"


def _passwords(layout: ServerLayout) -> Path:
    return layout.broker / "passwords"


def _access(layout: ServerLayout) -> Path:
    return layout.broker / "access"


def _access_rules() -> str:
    own = [f"pattern write {ROOT}/d/%u/{kind.value}" for kind in sorted(FROM_DEVICE)]
    return "\n".join(
        [
            "# Written by skerry at every start. Patterns hold for every user; %u is the user's name.",
            "user server",
            f"topic readwrite {ROOT}/#",
            "topic read $SYS/#",
            "",
            "user operator",
            f"topic read {ROOT}/#",
            "topic read $SYS/#",
            "",
            *own,
            f"pattern read {ROOT}/d/%u/#",
            f"pattern read {ROOT}/bulk/#",
            "",
        ]
    )


def _version(program: Path) -> tuple[int, int, int]:
    try:
        answer = subprocess.run([str(program), "-h"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformError(f"{program} cannot be run ({error})", remedy=_HOW_TO_INSTALL) from error
    found = re.search(r"mosquitto version (\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
    if found is None:
        raise PlatformError(f"{program} does not say that it is mosquitto", remedy=_HOW_TO_INSTALL)
    return int(found[1]), int(found[2]), int(found[3])
