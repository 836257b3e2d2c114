"""The outbox with several processes that are killed at any moment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from skerry_agent.link.outbox import Outbox
from skerry_contract.v1.telemetry_pb2 import UplinkMessage

#: Adds messages and prints the number of each after it was kept, until it is killed.
WRITER = """
import sys
from pathlib import Path
from skerry_agent.link.outbox import Outbox
from skerry_contract.v1.telemetry_pb2 import UplinkMessage, UpdateEvent

outbox = Outbox(Path(sys.argv[1]), device_id="press-07", message_limit=100000, byte_limit=1 << 26)
count = 0
while count < int(sys.argv[3]):
    number = outbox.enqueue(UplinkMessage(update=UpdateEvent(event=sys.argv[2], detail=str(count))))
    print(number, flush=True)
    count += 1
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True
    )


def opened(path: Path) -> Outbox:
    return Outbox(path, device_id="press-07", message_limit=100_000, byte_limit=1 << 26)


def test_processes_share_the_numbers_and_a_kill_loses_nothing_that_was_kept(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    path = tmp_path / "outbox.sqlite"
    killed, others = writer(path, "killed", 10**9), [writer(path, name, 40) for name in ("a", "b")]
    outbox = opened(path)
    acknowledged: set[int] = set()
    delivered: dict[int, UplinkMessage] = {}

    def drain() -> None:
        batch = outbox.pending(16)
        for message in batch:
            assert message.sequence not in acknowledged, "what was acknowledged came back"
            delivered[message.sequence] = message
        outbox.acknowledge(outbox.outbox_id, [message.sequence for message in batch])
        acknowledged.update(message.sequence for message in batch)

    def killed_has_written() -> bool:
        drain()
        return sum(message.update.event == "killed" for message in delivered.values()) >= 20

    wait_until(killed_has_written, what="twenty messages of the process that will be killed")
    killed.kill()
    told = {int(line) for line in killed.communicate(timeout=30)[0].split()}
    for process in others:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        told |= {int(line) for line in output.split()}
    while outbox.depth():
        drain()
    assert told <= set(delivered), "every number that was printed was kept"
    assert len(set(delivered) - told) <= 1, "at most the message whose number could not be printed any more"
    for name in ("a", "b"):
        details = [message.update.detail for _, message in sorted(delivered.items()) if message.update.event == name]
        assert details == [str(count) for count in range(40)]
    assert sorted(delivered) == list(range(1, len(delivered) + 1))
