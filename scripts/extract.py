"""Store a model's activations: `saejax extract` for launchers that start a Python file.

python scripts/extract.py --model checkpoints/seed0 --hooks resid_post.0 --out runs/activations
"""

import sys

from saejax.cli import main

if __name__ == "__main__":
    main(["extract", *sys.argv[1:]])
