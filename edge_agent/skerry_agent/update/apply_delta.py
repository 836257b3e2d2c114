"""``python -m skerry_agent.update.apply_delta DELTA BASE TEMPORARY SHA256 SIZE``: make a file in a process of its own.

Exit status: 0 written and flushed, 3 the delta does not lead to the file (one line of JSON has ``error``), 1 the disk
failed (the line has ``errno`` and ``file`` too), 2 wrong arguments. A process of its own, so that NumPy leaves with it
and a base that the disk cannot read (SIGBUS in its memory map) takes only that down.

Memory is a few segments of the delta, whatever the size of the file.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Generator
from pathlib import Path

from skerry_agent.files import DISK, Disk
from skerry_agent.update.delta_work import MACHINE, MADE, REFUSED, USAGE, DeltaError, DeltaWork
from skerry_contract.delta import pieces, read_header
from skerry_contract.delta_coding import Buffer
from skerry_contract.errors import WireError


class InProcessApplier:
    """See :class:`skerry_agent.update.ports.DeltaApplier`: each poll makes one piece, at most a megabyte."""

    def __init__(self, disk: Disk = DISK) -> None:
        self._disk = disk
        self._steps: Generator[None, None, None] | None = None

    def start(self, work: DeltaWork) -> None:
        """See :class:`DeltaApplier`."""
        self.stop()
        self._steps = _write(work, self._disk)

    def poll(self) -> bool:
        """See :class:`DeltaApplier`."""
        if self._steps is None:
            raise RuntimeError("nothing was started")
        steps, self._steps = self._steps, None
        try:
            next(steps)
        except StopIteration:
            return True
        except WireError as error:
            raise DeltaError(str(error)) from error
        self._steps = steps
        return False

    def stop(self) -> None:
        """See :class:`DeltaApplier`."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None


def _write(work: DeltaWork, disk: Disk) -> Generator[None, None, None]:
    """Write and flush the file, piece by piece; raises WireError and OSError."""
    delta, base = _mapped(work.delta), _mapped(work.base)
    header = read_header(delta)
    if (header.target_sha256, header.target_size) != (work.sha256, work.size):
        raise WireError("delta.target", expected=work.sha256.hex(), got=header.target_sha256.hex())
    descriptor = disk.create(work.temporary)
    try:
        offset = 0
        for piece in pieces(delta, base):
            disk.write(descriptor, piece, offset)
            offset += len(piece)
            yield
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def _mapped(path: Path) -> Buffer:
    """The bytes of a file that nobody changes, without reading them into memory."""
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            return b""
        # Not closed here: it goes with the last view of it.
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def main(arguments: list[str], disk: Disk = DISK) -> int:
    """Make one file; returns the exit status."""
    try:
        delta, base, temporary, sha256, size = arguments
        work = DeltaWork(Path(delta), Path(base), Path(temporary), bytes.fromhex(sha256), int(size))
    except ValueError:
        print("usage: python -m skerry_agent.update.apply_delta DELTA BASE TEMPORARY SHA256 SIZE", file=sys.stderr)
        return USAGE
    applier = InProcessApplier(disk)
    applier.start(work)
    try:
        while not applier.poll():
            pass
    except DeltaError as error:
        print(json.dumps({"error": error.reason}))
        return REFUSED
    except OSError as error:
        print(json.dumps({"error": str(error), "errno": error.errno, "file": error.filename}, default=str))
        return MACHINE
    return MADE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
