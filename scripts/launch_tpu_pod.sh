#!/bin/bash
# Train an SAE on all hosts of a TPU pod slice on which `pip install -e ".[tpu]"` has run:
#
#     TPU=name ZONE=us-east5-a scripts/launch_tpu_pod.sh --store /shared/activations --hook resid_post.12 \
#         --out /shared/sae --d-sae 1048576 --data 4 --latent 8 --lanes 4
#
# data x latent is the number of chips of the slice, and each host reads the lanes of its own chips; store and out lie on
# a disk that all hosts see. JAX finds the other hosts by the slice's own metadata. Told to end by Ctrl-C or SIGTERM,
# the run saves and ends on all hosts; started again, the same command goes on from there, or from the last checkpoint.
set -euo pipefail

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$1"
}

# ssh passes no signal on, so another one tells the run.
trap 'on_all_hosts "pkill -TERM -x saejax" || true; ended=0; wait "$!" || ended=$?' INT TERM
on_all_hosts "saejax$(printf ' %q' train --multiprocess "$@")" &
status=0
wait "$!" || status=$?
exit "${ended-$status}"
