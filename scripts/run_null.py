"""Hold two matrices against random re-pairings: `saejax null` for launchers that start a Python file.

python scripts/run_null.py --x X.npy --y Y.npy --scheme uniform --out result.json
"""

import sys

from saejax.cli import main

if __name__ == "__main__":
    main(["null", *sys.argv[1:]])
