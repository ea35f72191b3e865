#!/usr/bin/env bash
# Sets up, adds the peers to .venv, and runs the benchmarks on a machine that should do nothing else.
# scripts/bench.sh [NAME …] [--data PHOTOS]; see .venv/bin/python -m benchmarks --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
if ! .venv/bin/python -c 'import albumentations, cv2, torchvision' 2>/dev/null; then
  echo "bench: installing the peers: PyTorch, torchvision, albumentations, OpenCV (gigabytes, once)"
  .venv/bin/python -m pip install -qq --disable-pip-version-check -e '.[peers]'
fi
exec .venv/bin/python -m benchmarks "$@"
