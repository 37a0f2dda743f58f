#!/usr/bin/env bash
# Train over several nodes: run the same command on every node, or once under Slurm's srun.
#
#   RENDEZVOUS=HOST:PORT NODES=N [AGENTS=PER_NODE] [RESTARTS=N] launch/multinode.sh FILE [--set KEY=VALUE ...] [--resume]
#   RENDEZVOUS=node0:29400 NODES=2 AGENTS=8 launch/multinode.sh configs/imagenet/slowmo.yaml --set data.path=/data/imagenet
#   srun --nodes 2 --ntasks-per-node 1 launch/multinode.sh configs/imagenet/slowmo.yaml
#
# RESTARTS=3 starts all agents again after a fault, three times at most: they go on from the last checkpoint.
# NODES=2:4 begins with two to four nodes, and goes on with those that are left or have come, at least two: each such
# change is a restart; give RESTARTS and --set faults.agents=elastic.
# LAST_CALL=5 waits for nodes beyond the fewest for 5 s, not 30: at the beginning, and after one is lost.
# HOST is one of the nodes: the one whose host name it is keeps the rendezvous store.
# INTERFACE=eth1 keeps the collectives to one network interface, such as that of a private network.
# The results are written by agent 0; checkpoints by every agent, into the same path on each node, which may be a
# shared file system or each node's own disk.
set -euo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi

# Under Slurm the nodes are known: the first one keeps the store, on a port of the job's own.
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    NODES=${NODES:-$SLURM_JOB_NUM_NODES}
    RENDEZVOUS=${RENDEZVOUS:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))}
fi
: "${RENDEZVOUS:?give HOST:PORT of the rendezvous, for instance RENDEZVOUS=node0:29400}"
: "${NODES:?give the number of nodes, for instance NODES=2, or NODES=2:4 for two to four}"

# One agent per GPU, or one per node where there is none.
if [ -z "${AGENTS:-}" ]; then
    AGENTS=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
    if [ "$AGENTS" -eq 0 ]; then AGENTS=1; fi
fi

# Workers get their store from the rendezvous of their own round; a store shared with the agent keeps the addresses
# of processes that have died, and restarted workers try those first.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

if [ -n "${INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$INTERFACE NCCL_SOCKET_IFNAME=$INTERFACE
fi

here=$(cd "$(dirname "$0")/.." && pwd)
torchrun=$(command -v torchrun || echo "$here/.venv/bin/torchrun")

exec "$torchrun" --nnodes "$NODES" --nproc-per-node "$AGENTS" --max-restarts "${RESTARTS:-0}" \
    --rdzv-backend c10d --rdzv-endpoint "$RENDEZVOUS" --rdzv-id "${SLURM_JOB_ID:-dist-lookahead}" \
    --rdzv-conf "last_call_timeout=${LAST_CALL:-30}" \
    -m dist_lookahead train "$@"
