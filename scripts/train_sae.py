"""Train a sparse autoencoder: `saejax train` for launchers that start a Python file.

python scripts/train_sae.py --store runs/activations --hook resid_post.0 --out runs/sae
"""

import sys

from saejax.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
