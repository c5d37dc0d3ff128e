#!/bin/bash
# Two machines of eight GPUs under Slurm:  sbatch experiments/cluster/slurm.sh
#
# One process a machine; each takes all GPUs it sees. TF_CONFIG names the machines.
# Started again (requeued after a pre-emption, a time limit or a lost machine), the
# job goes on from its last checkpoint.
#SBATCH --job-name=mp_loop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM two minutes before the time limit: a checkpoint is written (exit code 143).
#SBATCH --signal=TERM@120

set -uo pipefail
output=${OUTPUT:-runs/cluster}  # only the first worker writes to it
port=$((20000 + SLURM_JOB_ID % 10000))
WORKERS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:$port\"/" | paste -sd,)
export WORKERS
# What the workers share and strangers on the network do not; srun hands it on.
MP_LOOP_CLUSTER_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export MP_LOOP_CLUSTER_TOKEN

flags=(--flagfile=experiments/exp.flags --strategy=multi_worker --batch_size=2048
       --output_dir="$output" --resume=auto)

# --kill-on-bad-exit=0: the others stop by themselves, with a line that says why.
# shellcheck disable=SC2016  # expanded in each task
srun --kill-on-bad-exit=0 bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]},
                       \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    exec python -m mp_loop.train "$@"' train "${flags[@]}"
code=$?

# 75: a worker was lost; 137: killed; 143: the time limit. All go on when started again.
case $code in
75 | 137 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
