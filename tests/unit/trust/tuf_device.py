"""The device's side: python-tuf's own client over a dictionary of files, and a check that versions never go down."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import FetcherInterface, Updater

from skerry_contract.limits import TRUST_FILE_BYTES


class DictionaryFetcher(FetcherInterface):
    """Serves ``files`` by the last part of the URL."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name not in self.files:
            raise DownloadHTTPError(f"{name} is not there", 404)
        yield self.files[name]


@dataclass
class TufDevice:
    """A device that enrolled with the first root and keeps what it verified."""

    folder: Path
    bootstrap: bytes
    versions: dict[str, int] = field(default_factory=dict)

    def refresh(self, files: Mapping[str, bytes], *, now: datetime.datetime | None = None) -> Updater:
        """Verify the newest metadata; raises python-tuf's errors."""
        assert all(len(data) <= TRUST_FILE_BYTES for data in files.values())
        self.folder.mkdir(exist_ok=True)
        updater = Updater(
            str(self.folder), "https://device/", fetcher=DictionaryFetcher(files), bootstrap=self.bootstrap
        )
        if now is not None:
            updater._trusted_set.reference_time = now
        updater.refresh()
        return updater

    def targets(
        self, files: Mapping[str, bytes], paths: list[str], *, now: datetime.datetime | None = None
    ) -> dict[str, TargetFile]:
        """Those of ``paths`` that are approved; also checks that no version that was seen has gone down."""
        updater = self.refresh(files, now=now)
        found = {path: target for path in paths if (target := updater.get_targetinfo(path)) is not None}
        for path in sorted(self.folder.glob("*.json")):
            metadata: Metadata[Any] = Metadata.from_bytes(path.read_bytes())
            version = metadata.signed.version
            assert version >= self.versions.get(path.name, 0), f"{path.name} went down to {version}"
            self.versions[path.name] = version
        return found

    def copy(self, folder: Path) -> TufDevice:
        """The same device at this moment."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return TufDevice(folder, self.bootstrap, dict(self.versions))


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that a folder of metadata holds."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.json")}
