"""How ngclient gets its files: from the mailbox, never from a network of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from skerry_agent.trust.errors import NotListedError
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_contract.errors import WireError
from skerry_contract.topics import TRUST_INDEX, check_trust_name

#: What the file names are relative to; nothing is ever connected to it.
BASE_URL = "mqtt://trust/"


class MqttFetcher(FetcherInterface):
    """Files of one refresh.

    All files together may take until ``deadline``: a broker that names a file and never sends it (slow retrieval) costs
    that much, once.
    """

    def __init__(self, mailbox: TrustMailbox, *, deadline: float, given_up: Callable[[], bool]) -> None:
        """See :meth:`TrustMailbox.get` for the arguments."""
        self._mailbox = mailbox
        self._deadline = deadline
        self._given_up = given_up

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        try:
            if check_trust_name(name, field="url") == TRUST_INDEX:
                raise NotListedError("the index is no file of metadata")
            data = self._mailbox.get(name, deadline=self._deadline, given_up=self._given_up)
        except (NotListedError, WireError) as error:
            raise DownloadHTTPError(str(error), 404) from error
        return iter((data,))

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A whole file; in memory, because the interface's own way needs room on the disk for each.

        Raises:
            DownloadError: It is not there, or longer than ``max_length`` bytes.
        """
        data = b""
        for piece in self.fetch(url):
            if len(data) + len(piece) > max_length:
                raise DownloadLengthMismatchError(f"{url} has more than {max_length} bytes")
            data += piece
        if not data:
            raise DownloadError(f"{url} is empty")
        return data
