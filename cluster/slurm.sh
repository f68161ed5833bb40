#!/bin/bash
# A run on Slurm, from the repository's root: sbatch cluster/slurm.sh configs/mnist.yaml [OPTIONS]
# with options of dp-ray train. After a crash or at the time limit give the same again: it goes on.
#SBATCH --job-name=dp-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# For GPUs also --gpus-per-node=N: there is a worker for each, otherwise one for each node.
# Exclusive, because Ray's ports are fixed, and at the end each Ray of yours on these nodes is stopped.
set -euo pipefail

config=${1:?the configuration: sbatch cluster/slurm.sh configs/mnist.yaml}
shift

runs=${DP_RAY_RUNS:-$PWD/runs} # where all nodes see it
name=${DP_RAY_NAME:-$(basename "$config" .yaml)}
resume=()
if [[ -e $runs/$name/private ]]; then
    resume=(--resume)
fi

umask 077 # what Ray leaves on the nodes is nobody else's business
export PATH=${DP_RAY_VENV:-$PWD/.venv}/bin:$PATH
export RAY_TMPDIR=/tmp/dp-ray-$SLURM_JOB_ID
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # 30 s are short for imports from a shared disk

# Nodes and driver ask one another for a token, which all find in the shared home folder.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null

# This script runs on the job's first node: Ray's head. The others must reach the address.
head=$(hostname --ip-address | tr ' ' '\n' | grep --max-count=1 --fixed-strings .)
if [[ $head == 127.* && $SLURM_JOB_NUM_NODES -gt 1 ]]; then
    echo "$(hostname) calls itself $head, where other nodes cannot reach it; set head" >&2
    exit 2
fi

gpus=${SLURM_GPUS_ON_NODE:-0}
per_node=$((gpus > 0 ? gpus : 1))

# Ray starts on every node, dp-ray on the head; when it ends, Ray is stopped everywhere.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" -- \
    dp-ray train "$config" --name "$name" "${resume[@]}" \
    --set cluster.address=auto \
    --set cluster.num_workers=$((per_node * SLURM_JOB_NUM_NODES)) \
    --set cluster.cpus_per_worker=$((SLURM_CPUS_PER_TASK / per_node)) \
    --set cluster.gpus_per_worker=$((gpus > 0)) \
    --set cluster.max_failures=3 \
    --set train.storage_path="$runs" \
    "$@"
