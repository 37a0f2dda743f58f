#!/usr/bin/env bash
# Train with several agents on this machine: one process per GPU, or as many CPU processes as asked for.
#
#   [RESTARTS=N] launch/local.sh AGENTS FILE [--set KEY=VALUE ...] [--resume]
#   launch/local.sh 4 configs/digits/slowmo.yaml --set levels.tau=24
#
# RESTARTS=3 starts all agents again after a fault, three times at most: they go on from the last checkpoint.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
agents=$1
shift

# The torchrun that belongs to this package's environment, if that is not activated.
here=$(cd "$(dirname "$0")/.." && pwd)
torchrun=$(command -v torchrun || echo "$here/.venv/bin/torchrun")

# The agents talk inside this machine: their collectives need not listen on its network.
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-lo}"

# Workers get their store from the rendezvous of their own round; a store shared with the agent keeps the addresses
# of processes that have died, and restarted workers try those first.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# --standalone takes a free port for the rendezvous, so that several runs fit on one machine.
exec "$torchrun" --standalone --local-addr localhost --nproc-per-node "$agents" --max-restarts "${RESTARTS:-0}" \
    -m dist_lookahead train "$@"
