#!/usr/bin/env bash
# The main job end to end on synthetic scenes: pre-train, fine-tune from that and from random, export, compare.
# scripts/demo.sh [DIR], DIR being runs/demo by default. Run again, it takes up where it stopped.
set -euo pipefail
here="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
run="${1:-$PWD/runs/demo}"
case "$run" in /*) ;; *) run="$here/$run" ;; esac
step() { printf '\n== %s\n' "$*"; }

step "1/5 draw the synthetic sample"
.venv/bin/dupr-tf sample "$run/sample"
step "2/5 pre-train on its unlabelled scenes"
.venv/bin/dupr-tf pretrain configs/demo.yaml --data "$run/sample/unlabeled" --output "$run/pretrained"
step "3/5 fine-tune a RetinaNet from the pre-trained backbone"
.venv/bin/dupr-tf finetune configs/demo_retinanet.yaml --weights "$run/pretrained" --data "$run/sample" --output "$run/from_pretrained"
step "4/5 the same from a random backbone"
.venv/bin/dupr-tf finetune configs/demo_retinanet.yaml --weights random --data "$run/sample" --output "$run/from_random"
step "5/5 export the backbone"
.venv/bin/dupr-tf export "$run/pretrained" --to saved_model --output "$run/saved_model" --overwrite
.venv/bin/python scripts/demo_table.py "$run"
