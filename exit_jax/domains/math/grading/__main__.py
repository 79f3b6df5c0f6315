"""Start a grading process, which has this folder on its path: ``python -P grading PAIR_SECS WALL_SECS MEMORY_BYTES``."""

import json
import sys

try:
    import worker
except ImportError as error:  # the parent says what is missing
    print(json.dumps({"error": repr(error)}), flush=True)
else:
    worker.main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
