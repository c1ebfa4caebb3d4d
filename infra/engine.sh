#!/usr/bin/env bash
# A private Docker engine on a bare Debian machine, as root: it doesn't change the host's network, and keeps all its files
# in one folder.
#   engine.sh install     installs Debian's docker.io, mmdebstrap, and a Java for Spark where they are missing
#   engine.sh start DIR   starts an engine and prints its DOCKER_HOST
#   engine.sh base DIR    provides python:3.11-slim-bookworm to that engine: pulled, or built from Debian's packages
#   engine.sh stop DIR    removes its containers, stops the engine by its pid, unmounts and deletes DIR
set -euo pipefail
export PATH=/usr/bin:/usr/sbin:/bin:/sbin:$PATH
BASE=python:3.11-slim-bookworm
DIR=$(realpath -m "${2:-.}")
export DOCKER_HOST=unix://$DIR/docker.sock

say() { echo "engine: $*" >&2; }

need() { # need PROGRAM
  command -v "$1" >/dev/null || { say "$1 is not installed; on Debian, as root: infra/engine.sh install"; return 1; }
}

install() {
  local missing=()
  command -v dockerd >/dev/null || missing+=(docker.io)
  command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
  command -v java >/dev/null || missing+=(openjdk-17-jre-headless)
  [ ${#missing[@]} = 0 ] && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "only root on Debian can install ${missing[*]} here"; return 1; }
  say "installing ${missing[*]}"
  local log
  log=$(mktemp)
  { apt "${missing[@]}" || { apt-get update && apt "${missing[@]}"; }; } >"$log" 2>&1 || { tail -3 "$log" >&2; return 1; }
  rm "$log"
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"; }

start() {
  need dockerd
  [ "$(id -u)" = 0 ] || { say "an engine can only be started by root"; return 1; }
  mkdir -p "$DIR"
  setsid nohup dockerd --data-root "$DIR/root" --exec-root "$DIR/exec" --pidfile "$DIR/docker.pid" -H "$DOCKER_HOST" \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false >"$DIR/dockerd.log" 2>&1 </dev/null &
  local waited
  for waited in $(seq 100); do
    docker version >/dev/null 2>&1 && { echo "$DOCKER_HOST"; return; }
    sleep 0.2
  done
  say "no answer after $((waited / 5)) s:"
  tail -5 "$DIR/dockerd.log" >&2
  return 1
}

base() {
  docker image inspect "$BASE" >/dev/null 2>&1 && return
  timeout 60 docker pull -q "$BASE" >/dev/null 2>&1 && return
  say "no registry can be reached; building $BASE from Debian's packages"
  need mmdebstrap
  mmdebstrap --quiet --variant=apt --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=python3,ca-certificates bookworm - 2>"$DIR/mmdebstrap.log" |
    docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$BASE" >/dev/null
}

ours() { # ours PID: true where that process is the engine of DIR
  tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF -- "--pidfile $DIR/docker.pid "
}

stop() {
  if [ -S "$DIR/docker.sock" ]; then
    docker ps -aq 2>/dev/null | xargs -r docker rm -f >/dev/null 2>&1 || true
  fi
  if [ -f "$DIR/docker.pid" ]; then
    local pid
    pid=$(cat "$DIR/docker.pid")
    if ours "$pid"; then kill "$pid" || true; fi
    for _ in $(seq 600); do ours "$pid" || break; sleep 0.1; done
    ! ours "$pid" || { say "the engine, process $pid, does not stop"; return 1; }
  fi
  grep -oE " $DIR/[^ ]+" /proc/mounts | sort -r | xargs -r umount -l 2>/dev/null || true
  ! grep -q " $DIR/" /proc/mounts || { say "something below $DIR is still mounted"; return 1; }
  rm -rf "$DIR"
}

case "${1:-}" in
  install) install ;;
  start | base | stop) [ -n "${2:-}" ] || { say "$1 DIR: which folder?"; exit 2; }; "$1" ;;
  *) say "install, or: start, base or stop DIR"; exit 2 ;;
esac
