"""Signed metadata for tests: the control plane's own planner over keys in a temporary folder, published retained."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
import threading
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from skerry_contract.manifest import parse_manifest
from skerry_contract.topics import TRUST_INDEX, trust_topic
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import TrustIndex
from skerry_server.link import ServerLink
from skerry_server.trust.keys import KeyFolder, KeyRing
from skerry_server.trust.planning import first_root, plan
from skerry_server.trust.repository import Approved, Lifetimes, Repository, TrustFile, Wanted, parse
from unit.update.releases import SIGNER

_LIFETIMES = Lifetimes()


def _now() -> datetime:
    return datetime.now(UTC)


@cache
def trust_anchor() -> tuple[KeyRing, TrustFile]:
    """Keys and the first root, one pair for all rigs of a test run."""
    folder = Path(tempfile.mkdtemp(prefix="sk-keys-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ring = KeyRing(KeyFolder(folder))
    return ring, first_root(ring, threshold=2, of=3, now=_now(), lifetimes=_LIFETIMES)


class SignedMetadata:
    """What one control plane approves."""

    def __init__(self, link: ServerLink) -> None:
        self._link = link
        self._ring, root = trust_anchor()
        self._lock = threading.Lock()
        self._repository: Repository = parse({root.name: root.data})
        self._approved: dict[str, Approved] = {}
        self._plan()

    def approve(self, release: SignedEnvelope, *, again: bool = False) -> None:
        """Approve a release under its task's next number, unless it is approved, and wait until the broker has it."""
        manifest, envelope = parse_manifest(release.payload), release.SerializeToString()
        with self._lock:
            before = self._approved.get(manifest.release_id)
            if before is not None and before.sha256 == hashlib.sha256(envelope).hexdigest() and not again:
                return
            self._approved[manifest.release_id] = Approved(
                task=manifest.task,
                release_id=manifest.release_id,
                version=1 + max((one.version for one in self._approved.values()), default=0),
                length=len(envelope),
                sha256=hashlib.sha256(envelope).hexdigest(),
            )
            self._plan()
        for future in self.publish():
            future.result(timeout=10)

    def publish(self) -> list[Future[None]]:
        """Give the broker everything, retained."""
        index = TrustIndex()
        for file in self._repository.files:
            index.files.add(name=file.name, size=len(file.data))
        files = [*self._repository.files, TrustFile(TRUST_INDEX, index.SerializeToString())]
        return [self._link.publish(trust_topic(file.name), file.data, retain=True) for file in files]

    def _plan(self) -> None:
        wanted = Wanted(tuple(self._approved.values()), (SIGNER.public_key.hex(),))
        files = plan(self._repository, wanted, self._ring, now=_now(), lifetimes=_LIFETIMES)
        self._repository = self._repository.with_files(files)
