"""``python -m skerry_server.api DATA_DIR``: REST, console, gRPC and device API in one process."""

from __future__ import annotations

import sys

from skerry_server.api.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
