#!/bin/bash
# Train an SAE on all hosts of a TPU pod slice on which `pip install -e ".[tpu]"` has run:
#
#     TPU=name ZONE=us-east5-a scripts/launch_tpu_pod.sh --store /shared/activations --hook resid_post.12 \
#         --out /shared/sae --d-sae 1048576 --data 4 --latent 8 --lanes 4
#
# data x latent is the number of chips of the slice, and each host reads the lanes of its own chips; store and out lie on
# a disk that all hosts see. JAX finds the other hosts by the slice's own metadata. Started again, the same command goes
# on from the last checkpoint.
set -euo pipefail

words=$(printf ' %q' "$@")
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "saejax train --multiprocess$words"
