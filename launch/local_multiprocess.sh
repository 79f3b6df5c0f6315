#!/usr/bin/env bash
# N processes of one run on this machine, as N hosts would run it: to try several hosts without any.
#
#   launch/local_multiprocess.sh [--dry-run] N -- arguments of exit_jax.main
#
#   JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 launch/local_multiprocess.sh 2 -- --config configs/smoke.py
#
# Ctrl-C and SIGTERM go to every process. If one fails, the others are ended, and its status is this script's.
#
# Settings, from the environment:
#   PYTHON  interpreter  [python]             MODULE  what it runs  [exit_jax.main]
#   PORT    of the coordinator  [a free one]  LOGS    folder of the logs  [runs/local]
#   GRACE   seconds that the others get to end after a failure  [10]

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
[[ $command =~ ^[1-9][0-9]*$ ]] || fail "the number of processes is '$command', not a positive number (see $0 --help)"
((${#arguments[@]})) || fail "no arguments of exit_jax.main: $0 $command -- --config configs/..."
num_processes="$command" PYTHON="${PYTHON:-python}" LOGS="${LOGS:-runs/local}"
PORT="${PORT:-$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')}"

# Set words to the command of process $1.
process() {
  words=(env JAX_COORDINATOR_ADDRESS="127.0.0.1:$PORT" JAX_NUM_PROCESSES="$num_processes" JAX_PROCESS_ID="$1"
    "$PYTHON" -m "${MODULE:-exit_jax.main}" "${arguments[@]}")
}

if ((dry_run)); then
  for ((id = 0; id < num_processes; id++)); do process "$id" && quoted "${words[@]}"; done
  exit 0
fi

pids=() forwarded=0

# Send a signal to all processes that are left.
signal() {
  kill -"$1" "${pids[@]}" 2> /dev/null || true
}
trap 'forwarded=1; signal INT' INT
trap 'forwarded=1; signal TERM' TERM

mkdir -p "$LOGS"
set -m # a process group each: without it bash starts them deaf to SIGINT
for ((id = 0; id < num_processes; id++)); do
  process "$id"
  "${words[@]}" > "$LOGS/process$id.log" 2>&1 < /dev/null &
  pids[id]=$!
done
set +m
echo "$num_processes processes, coordinator 127.0.0.1:$PORT; follow with: tail -F $LOGS/process*.log"

# Polling, since a trap or wait -n does not tell which process has ended.
status=0 deadline=""
while ((${#pids[@]})); do
  for id in "${!pids[@]}"; do
    kill -0 "${pids[id]}" 2> /dev/null && continue
    code=0
    wait "${pids[id]}" 2> /dev/null || code=$?
    unset "pids[id]"
    if ((code && !status)); then
      status=$code
      ((forwarded)) && continue # all were told to end, and may take their time to save
      echo "error: process $id ended with status $code; the others are ended. The end of $LOGS/process$id.log:" >&2
      tail -n 20 "$LOGS/process$id.log" >&2
      signal TERM
      deadline=$((SECONDS + ${GRACE:-10})) # they wait for the lost one in a collective, and may never heed SIGTERM
    fi
  done
  [[ -z $deadline ]] || ((SECONDS < deadline)) || signal KILL
  sleep 0.1
done
exit "$status"
