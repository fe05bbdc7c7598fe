#!/bin/bash
# One training on the GPUs of one node: each has a worker process, and clients take turns on them. From a login node:
#   sbatch --gpus-per-node=4 --time=12:00:00 scripts/slurm_train.sh experiment=nemo_fl_pgd data.root=DIR
# Settings are those of `ser-fl train`. Shortly before its time is up the job commits the round in flight and queues
# itself again, as often as it takes; the run goes on from its checkpoint, to the bits of a run that was never stopped.
# Also for the partition, the environment (module load, conda activate) and the like: sbatch's own options, or here.
#SBATCH --job-name=ser-fl
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=B:USR1@120
set -u

# A job that was queued again keeps its id, and so its run folder.
ser-fl train executor=processes executor.accelerator=auto "run_dir=runs/slurm-$SLURM_JOB_ID" "$@" resume=true &
training=$!

# SLURM signals this shell (B:), which hands it on. A trap interrupts `wait`, so that one waits again after it.
signalled=no
trap 'signalled=yes; kill -USR1 "$training"' USR1
trap 'signalled=yes; kill -TERM "$training"' TERM
while true; do
    wait "$training"
    code=$?
    [ "$signalled" = no ] && break
    signalled=no
done

# 75: a signal stopped it, its checkpoint is good. Whatever else it ended with, running it again would not help.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
