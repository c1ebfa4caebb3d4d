#!/usr/bin/env bash
# Creates .venv from infra/requirements.lock: CPython 3.11, with uv where it can be installed, else with pip. A second
# call with the same lock does nothing. PYTHON=/path/to/python3.11 chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
LOCK=infra/requirements.lock
STAMP=.venv/installed-from

say() { echo "environment: $*" >&2; }

is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3 /usr/bin/python3.11 /usr/bin/python3; do
    if command -v "$candidate" >/dev/null && is_311 "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  say "no CPython 3.11 found. Debian 12: apt-get install python3 python3-venv; elsewhere: pyenv install 3.11,"
  say "or name one: make demo PYTHON=/path/to/python3.11"
  return 1
}

# Folders of wheels that pip's own configuration names and that exist. A CPU build of torch may lie there; uv does not
# read pip's configuration, and stops at a folder that is missing.
find_links() {
  .venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^.*\.find-links='\(.*\)'$/\1/p" |
    sed 's/\\n/\n/g' | tr ' ' '\n' | while read -r folder; do [ -d "$folder" ] && echo "$folder"; done | sort -u || true
}

install() { # install PROGRAM...: the lock, which is complete, and nothing else; then this project itself
  "$@" --no-deps -r "$LOCK" && "$@" --no-deps -e .
}

wanted() { { cat "$LOCK" pyproject.toml; .venv/bin/python -V; } | sha256sum | cut -d' ' -f1; }

if [ -x .venv/bin/python ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted)" ]; then
  exit 0
fi

if ! { [ -x .venv/bin/python ] && is_311 .venv/bin/python; }; then
  python=$(find_python)
  say "creating .venv with $("$python" -V)"
  if ! "$python" -m venv --clear .venv; then
    say "$python cannot create environments. Debian 12: apt-get install python3-venv"
    exit 1
  fi
fi
rm -f "$STAMP"

if uv --version >/dev/null 2>&1; then
  uv=uv
elif .venv/bin/python -m pip install --quiet uv; then
  uv=.venv/bin/uv
else
  uv=""
fi
links=$(find_links | paste -sd, -)
if [ -n "$links" ]; then
  export UV_FIND_LINKS="$links"
fi

say "installing $(grep -c '==' "$LOCK") packages"
if [ -n "$uv" ] && install "$uv" pip install --quiet --compile-bytecode --python .venv/bin/python; then
  :
else
  say "uv is missing or failed; installing with pip, which needs a few minutes"
  install .venv/bin/python -m pip install --quiet
fi
wanted >"$STAMP"
say "ready"
