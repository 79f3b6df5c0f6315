"""Start a grading process, which has this folder on its path: ``python -P grading PAIR_SECS WALL_SECS MEMORY_BYTES``."""

import sys

import worker

worker.main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
