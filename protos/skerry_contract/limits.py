"""Bounds on everything that is read from the wire. One place, so that both sides agree."""

from __future__ import annotations

#: Largest MQTT message including framing, so that an AWS IoT bridge can carry it (bytes).
MESSAGE_BYTES = 131_072
#: Payload of a bulk chunk (bytes); leaves room for the digest, the index and MQTT framing.
CHUNK_BYTES = 122_880
#: Largest file of TUF metadata (bytes): one message carries it.
TRUST_FILE_BYTES = MESSAGE_BYTES - 512
#: Most files of metadata that a device keeps or is told of.
TRUST_FILES = 256
#: Most deltas of one file.
DELTAS = 4
#: Largest file of a bundle (bytes).
FILE_BYTES = 4 << 30
#: Largest number of files in a bundle.
BUNDLE_FILES = 64
#: Largest bundle path (characters).
PATH_CHARACTERS = 120
#: Largest number of tensors in one message or file.
TENSORS = 4_096
#: Largest rank of a tensor.
TENSOR_RANK = 8
#: Largest tensor data in one message of the inference interface (bytes).
INFERENCE_BYTES = 64 << 20
#: Longest deadline of an answer that a release names (us): an hour.
DEADLINE_US = 3_600_000_000
#: Largest set of model parameters (bytes).
PARAMETER_BYTES = 4 << 30
#: Most drift features of a task.
FEATURES = 64
#: Most cells of one histogram.
HISTOGRAM_CELLS = 256
#: Most classes of a task.
CLASSES = 1_024
#: Largest count in one histogram cell.
CELL_COUNT = 1 << 53
