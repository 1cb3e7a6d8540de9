#!/bin/sh
# Makes sure that what `make setup` needs from the system is there: installs it as root on Debian and
# its relatives, otherwise says what is missing.
set -eu
python=${PYTHON:-python3}
missing=""
need() { missing="$missing $1"; }

command -v g++ >/dev/null || need g++
command -v cmake >/dev/null || need cmake
command -v git >/dev/null || need git
if command -v "$python" >/dev/null; then
  "$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
  "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || need python3-dev
else
  need "python3 python3-venv python3-dev"
fi
has_header() { [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ]; }
has_header nlohmann/json.hpp || need nlohmann-json3-dev
has_header gtest/gtest.h || need libgtest-dev
# Tests open the reports in it.
command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
  command -v google-chrome >/dev/null || need chromium
has_header benchmark/benchmark.h || need libbenchmark-dev

# Programs that only some targets use, and that are packages of the same name.
for program in ${ALSO:-}; do
  command -v "$program" >/dev/null || need "$program"
done

[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing system packages:$missing"
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "[setup] expected these system packages; found none of:$missing" >&2
  echo "        install them (Debian: sudo apt-get install$missing) and run make again" >&2
  exit 1
fi
