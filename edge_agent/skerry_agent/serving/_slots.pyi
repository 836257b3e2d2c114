from skerry_agent.engine.backend import Floats
from skerry_agent.serving.slots import Answered, Rooms, Taken

def take(descriptor: int, rooms: Rooms, least: float, most: float, /) -> Taken | bytes: ...
def give(
    descriptor: int,
    rooms: Rooms,
    slot: int,
    sequence: int,
    scores: Floats,
    features: Floats,
    latency_us: float,
    rung: int,
    request_id: str,
    release_id: str,
    variant: str,
    /,
) -> None: ...
def ask(
    descriptor: int,
    rooms: Rooms,
    slot: int,
    sequence: int,
    rows: int,
    deadline_ns: int,
    request_id: str,
    x: Floats | None,
    /,
) -> Answered | bytes: ...
