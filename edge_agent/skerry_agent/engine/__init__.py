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
prove.py              the check of a staged slot, as a process
====================  ================================================================================
"""
