#!/usr/bin/env bash
# Train with several agents on this machine: one process per GPU, or as many CPU processes as asked for.
#
#   launch/local.sh AGENTS FILE [--set KEY=VALUE ...] [--resume]
#   launch/local.sh 4 configs/digits/slowmo.yaml --set levels.tau=24
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
agents=$1
shift

# The torchrun that belongs to this package's environment, if that is not activated.
here=$(cd "$(dirname "$0")/.." && pwd)
torchrun=$(command -v torchrun || echo "$here/.venv/bin/torchrun")

# The agents talk inside this machine: their collectives need not listen on its network.
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-lo}"

# --standalone takes a free port for the rendezvous, so that several runs fit on one machine.
exec "$torchrun" --standalone --nproc-per-node "$agents" -m dist_lookahead train "$@"
