#!/usr/bin/env bash
# Sets up, then lint, format and the default tests. Arguments go to pytest: scripts/test.sh -m slow
# Tests marked `data` read research images from $DUPR_DATA (or ../shared/data) and are skipped without them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
if [ -z "${DUPR_DATA:-}" ] && [ -d ../shared/data ]; then
  DUPR_DATA="$(cd ../shared/data && pwd)"
fi
export DUPR_DATA="${DUPR_DATA:-}"
if [ ! -d "$DUPR_DATA" ]; then
  echo "test: no research data (${DUPR_DATA:-DUPR_DATA is not set}): tests marked 'data' are skipped"
fi

bin=.venv/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
exec "$bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "$@"
