#!/bin/bash
# Train an SAE over the nodes of a Slurm job, one process per node with all of its GPUs:
#
#     sbatch --nodes=4 scripts/launch_slurm.sh --store runs/activations --hook resid_post.12 --out runs/sae \
#         --d-sae 1048576 --data 4 --latent 8 --lanes 4
#
# data x latent is the number of GPUs of all nodes; with a lane for each node, it reads the rows of its own GPUs alone.
# JAX finds the other processes by Slurm's own variables. Slurm sends SIGTERM five minutes before the time is over: the
# run saves, ends well, and is put into the queue again.
#SBATCH --job-name=saejax
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

status=0
srun saejax train --multiprocess "$@" || status=$?

out='' before='' plan=''
for word in "$@"; do
    if [[ $word == --dry-run || $word == --help || $word == -h ]]; then plan=yes; fi
    if [[ $before == --out ]]; then out=$word; fi
    if [[ $word == --out=* ]]; then out=${word#--out=}; fi
    before=$word
done
# 143: SIGTERM came before the run was ready to save. What failed otherwise would fail again.
if [[ -z $plan ]] && { ((status == 143)) || { ((status == 0)) && grep -qs '"status": "running"' "$out/manifest.json"; }; }; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
