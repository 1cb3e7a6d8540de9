#!/bin/sh
# fuzz.sh BUILD SECONDS: runs every program of a build that is named *_fuzz for so many seconds. Each
# takes a number of runs and a first seed; a find is a failure before its time is up.
set -eu
build=$1
seconds=$2
seed=$(date +%s)
found=$(find "$build" -type f -name '*_fuzz' -perm -u+x | sort)
[ -n "$found" ] || { echo "[fuzz] expected programs named *_fuzz in $build; found none" >&2; exit 1; }
for fuzzer in $found; do
  echo "$fuzzer 1000000000 $seed for $seconds s"
  status=0
  timeout "$seconds" "$fuzzer" 1000000000 "$seed" || status=$?
  # 124: its time is up.
  [ "$status" = 0 ] || [ "$status" = 124 ] || { echo "[fuzz] $fuzzer failed from seed $seed" >&2; exit 1; }
done
