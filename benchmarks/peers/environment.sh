#!/usr/bin/env bash
# Makes .venv-peers for DeepCTR-Torch from requirements.txt, with the interpreter of .venv; a second call with the same
# list does nothing. TorchRec needs none: it is in .venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
LIST=benchmarks/peers/requirements.txt
STAMP=.venv-peers/made-from

if [ -f "$STAMP" ] && cmp -s "$LIST" "$STAMP"; then
  exit 0
fi
.venv/bin/python -m venv --clear .venv-peers
# pip reads its own configuration, which may name a folder that holds a CPU build of torch.
.venv-peers/bin/python -m pip install --quiet --no-deps -r "$LIST"
cp "$LIST" "$STAMP"
