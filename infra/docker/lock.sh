#!/usr/bin/env bash
# Writes ROLE.lock beside each ROLE.in: exact versions, those of the one lock wherever it has the package, resolved as
# pyproject.toml's [tool.uv] says, which uv finds above this folder. `step-cuda` is `step` with torch from the package
# index, which includes CUDA, and FBGEMM's CUDA build of the same version; the others take CPU builds (see images.py).
set -euo pipefail
cd "$(dirname "$0")"
unset UV_FIND_LINKS

resolve() { # resolve FILE.in
  uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --constraint ../requirements.lock "$1"
}

resolve step.in | sed 's/^fbgemm-gpu-cpu=/fbgemm-gpu=/' >step-cuda.lock
for role in step airflow mlflow notebook; do
  resolve "$role.in" | grep -vE '^(cuda|nvidia|triton)[-=]' >"$role.lock"
done
