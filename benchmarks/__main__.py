"""`python -m benchmarks`, and nothing else."""

import sys

from benchmarks.run import main

if __name__ == "__main__":
    sys.exit(main())
