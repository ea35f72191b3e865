#!/usr/bin/env bash
# Sets up, then draws the embedded sample into DIR (runs/sample by default): scripts/demo.sh [DIR]
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
directory="${1:-$PWD/runs/sample}"
case "$directory" in /*) ;; *) directory="$here/$directory" ;; esac
exec .venv/bin/dupr-tf sample "$directory"
