#!/bin/bash
# What every host of a TPU VM does when it boots: the commands in its metadata, one after
# the other. Each is repeated until it succeeds, or its exit code means that it never will.
# A command is a list of words and meets no shell.
set -uo pipefail
export HOME=/root SPARSECOD_HOST SPARSECOD_SLICE

attribute() {
  curl --fail --silent --show-error --header 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}

until SPARSECOD_HOST=$(attribute agent-worker-number); do sleep 10; done
SPARSECOD_SLICE=$(attribute tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\{0,1\}\([0-9]*\).*/\1/p")
SPARSECOD_SLICE=${SPARSECOD_SLICE:-0}

# The number of restarts, then of each command the number of its words and the words.
mapfile -d '' -t words < <(attribute sparsecod-commands | python3 -c '
import json, sys
described = json.load(sys.stdin)
flat = [described["max_restarts"]]
for argv in described["commands"]:
    flat += [len(argv), *argv]
sys.stdout.buffer.write("".join(f"{word}\0" for word in flat).encode())')
max_restarts=${words[0]:?"the metadata has no commands"}

next=1
while ((next < ${#words[@]})); do
  argv=("${words[@]:next+1:words[next]}")
  next=$((next + 1 + words[next]))
  restarts=0
  while true; do
    "${argv[@]}"
    code=$?
    case $code in
      0) break ;;
      2 | 70 | 76 | 78) ;; # would end so again
      75) sleep 10 && continue ;; # preempted, and saved
      *) ((++restarts <= max_restarts)) && sleep 10 && continue ;;
    esac
    echo "sparsecod: ${argv[0]} ended with $code" >&2
    exit "$code"
  done
done
echo "sparsecod: finished"
