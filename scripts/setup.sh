#!/usr/bin/env bash
# Makes .venv in the checkout with the pinned requirements and this package (editable).
# Does nothing when it is up to date. PYTHON=… names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3}; do
    if recent "$candidate"; then echo "$candidate"; return; fi
  done
  candidate="${PYTHON:-python3}"
  fail "Expected Python 3.11 or newer, received $("$candidate" --version 2>/dev/null || echo "no working $candidate")." \
    "Fix: install Python 3.11, or name one with PYTHON=/path/to/python3.11."
}

python=.venv/bin/python
stamp=.venv/.setup-sha256
if ! recent "$python" || [ ! -e .venv/bin/pip ]; then
  base="$(find_python)"
  say "creating .venv with $("$base" --version)"
  "$base" -m venv --clear .venv >/dev/null 2>&1 ||
    fail "Expected $base to be able to make a virtual environment, and it failed. Fix: install its venv module (Debian: python3-venv)."
fi

digest="$("$python" -c '
import hashlib, pathlib
print(hashlib.sha256(b"".join(pathlib.Path(p).read_bytes() for p in ("requirements.txt", "pyproject.toml"))).hexdigest())')"
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$digest" ]; then
  exit 0
fi

rm -f "$stamp"
say "installing requirements.txt (the first time takes a minute or two)"
pip=("$python" -m pip install -qq --disable-pip-version-check)
"${pip[@]}" -r requirements.txt
say "installing dupr_tf (editable)"
"${pip[@]}" --no-deps --no-build-isolation -e .
echo "$digest" >"$stamp"
say "ready: .venv"
