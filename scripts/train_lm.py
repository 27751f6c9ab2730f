"""Train small language models: `saejax lm train` for launchers that start a Python file.

python scripts/train_lm.py --out runs/lm --seeds 0 1
"""

import sys

from saejax.cli import main

if __name__ == "__main__":
    main(["lm", "train", *sys.argv[1:]])
