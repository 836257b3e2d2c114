"""The stream door: rows from a local MQTT topic or a sensor go in, predictions come out, for as long as it runs.

It is a process of its own that asks the serving process through shared memory, so whatever comes this way is checked,
counted for drift and open to labels like any other request.
"""
