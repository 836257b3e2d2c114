"""Inference: backends behind one protocol, the choice of a variant, the golden check, hot swap.

====================  ================================================================================
file                  what it decides or does
====================  ================================================================================
backend.py            the protocol that an inference runtime implements
backends.py           which backends there are
golden.py             does a loaded model reproduce the outputs that came with the release? (pure)
chooser.py            which variant answers on this device? (decision pure, measuring apart)
loader.py             slot -> loaded release
engine.py             the library: validate, run, count; swap releases under load
active.py             the release that answers: its networks, what each takes now, who is turned away
ladder_machine.py     when another network of a release takes over, as a table (pure)
ladder.py             which network answers: p99, heat, power mode, deadline (pure)
live_cost.py          what an answer of a network takes now (pure)
latency_contract.py   the owner's settings; feeds the ladder once a second
admission.py          how many requests are computed at a time, how many may wait
turn.py               how a request with a deadline gets its turn
counters.py           counts, and latencies of each form with examples
prove.py              the check of a staged slot, as a process
====================  ================================================================================
"""
