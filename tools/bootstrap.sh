#!/bin/sh
# Make .venv, or bring it up to date: tools/bootstrap.sh local|dev. Quick when there is nothing to do.
# Finds a Python; HEADRACE_PYTHON names one. The rest is tools/install.py.
set -eu
cd "$(dirname "$0")/.."

for name in "${HEADRACE_PYTHON:-}" python3 python python3.14 python3.13 python3.12 python3.11; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        exec "$name" tools/install.py "$@"
    fi
done

found=$(python3 --version 2>/dev/null || echo "no python3")
echo "Headrace needs Python 3.11 or newer; this machine has $found. Install one from python.org or with your" >&2
echo "system's packages, or say where it is: HEADRACE_PYTHON=/path/to/python3.12 make run" >&2
exit 1
