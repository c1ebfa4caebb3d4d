#!/usr/bin/env bash
# Makes .venv-peers for DeepCTR-Torch, Feast and Polars from the lists in this folder, with the interpreter of .venv; a
# second call with the same lists does nothing. TorchRec needs none: it is in .venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
LISTS=(benchmarks/peers/requirements.txt benchmarks/peers/features.txt)
STAMP=.venv-peers/made-from

if [ -f "$STAMP" ] && cat "${LISTS[@]}" | cmp -s - "$STAMP"; then
  exit 0
fi
.venv/bin/python -m venv --clear .venv-peers
# pip reads its own configuration, which may name a folder that holds a CPU build of torch.
.venv-peers/bin/python -m pip install --quiet --no-deps "${LISTS[@]/#/--requirement=}"
cat "${LISTS[@]}" >"$STAMP"
