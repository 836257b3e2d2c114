"""The trust anchor: root metadata that the enrolment brought, over a channel that its token vouched for."""

from __future__ import annotations

from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk
from skerry_agent.trust.floors import FloorsFile
from skerry_agent.trust.places import TrustPlaces
from skerry_contract.limits import TRUST_FILE_BYTES


def read_root(places: TrustPlaces) -> bytes:
    """The trust anchor.

    Raises:
        DeviceError: It is missing, or cannot be what the enrolment wrote.
    """
    remedy = "enrol the device again"
    try:
        with places.root.open("rb") as stream:
            data = stream.read(TRUST_FILE_BYTES + 1)
    except OSError as error:
        raise DeviceError(f"{places.root} cannot be read ({error.strerror})", remedy=remedy) from error
    if not 0 < len(data) <= TRUST_FILE_BYTES:
        raise DeviceError(f"{places.root} has {len(data)} bytes or more", remedy=remedy)
    return data


def keep_root(places: TrustPlaces, root: bytes, disk: Disk = DISK) -> None:
    """Make ``root`` the trust anchor: the enrolment does.

    The same anchor again keeps what was learnt, unless the floors are damaged. Another one is another control plane, or
    a new life with the same one: metadata, floors and keys of the old one are removed first.

    Raises:
        DeviceError: It is empty or too large.
        OSError: The disk failed; call again.
    """
    if not 0 < len(root) <= TRUST_FILE_BYTES:
        raise DeviceError(f"a trust anchor of {len(root)} bytes", remedy="ask the control plane's operator")
    if _holds(places, root, disk):
        return
    disk.make_folder(places.folder)
    disk.remove_tree(places.metadata)
    for path in (places.floors, places.keys):
        disk.remove_tree(path) if path.is_dir() else disk.unlink(path)
    disk.write_atomically(places.root, root)


def _holds(places: TrustPlaces, root: bytes, disk: Disk) -> bool:
    try:
        if read_root(places) != root:
            return False
        FloorsFile(places, disk).load()
    except DeviceError:
        return False
    return True
