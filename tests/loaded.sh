#!/usr/bin/env bash
# Runs `make test` N times while stress-ng keeps processors and disk busy. One line a run; logs stay in dist/loaded.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=dist/loaded failed=0
mkdir -p "$folder"
stress-ng --quiet --cpu 4 --io 2 --hdd 1 --temp-path "$folder" &
load=$!
trap 'kill "$load" 2>/dev/null; wait "$load" 2>/dev/null' EXIT
for run in $(seq "${N:-5}"); do
    began=$SECONDS
    if make --no-print-directory test >"$folder/run-$run.log" 2>&1; then how=passed; else how=FAILED failed=$((failed + 1)); fi
    kill -0 "$load" || { echo "stress-ng has ended: the run was not under load"; exit 2; }
    printf 'run %d: %s in %d s (load average %s)\n' "$run" "$how" $((SECONDS - began)) "$(cut -d' ' -f1 /proc/loadavg)"
    [ "$how" = passed ] || grep -E '^(FAILED|ERROR) ' "$folder/run-$run.log"
done
[ "$failed" = 0 ]
