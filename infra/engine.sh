#!/usr/bin/env bash
# A Docker engine of one's own on a bare Debian machine, as root: nothing of the host's network is touched, and all that
# it keeps lies in one folder.
#   engine.sh install DIR installs Debian's docker.io and mmdebstrap where they are missing; logs go to DIR
#   engine.sh start DIR   starts an engine, installing it if need be, and prints its DOCKER_HOST
#   engine.sh base DIR    gives that engine a python:3.11-slim-bookworm: pulled, or made of Debian's packages
#   engine.sh stop DIR    ends its containers, the engine by its pid, unmounts, deletes DIR
set -euo pipefail
export PATH=/usr/bin:/usr/sbin:/bin:/sbin:$PATH
BASE=python:3.11-slim-bookworm
DIR=$(realpath -m "${2:?engine.sh COMMAND DIR}")
export DOCKER_HOST=unix://$DIR/docker.sock

say() { echo "engine: $*" >&2; }

need() { # need PROGRAM PACKAGE
  command -v "$1" >/dev/null && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "$1 is not there, and only root on Debian can install it here (apt-get install $2)"
    return 1
  fi
  say "installing $2"
  mkdir -p "$DIR"
  { apt "$2" || { apt-get update && apt "$2"; }; } >"$DIR/apt.log" 2>&1 || { tail -3 "$DIR/apt.log" >&2; return 1; }
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$1"; }

install() {
  need dockerd docker.io
  need mmdebstrap mmdebstrap
}

start() {
  mkdir -p "$DIR"
  need dockerd docker.io
  [ "$(id -u)" = 0 ] || { say "an engine needs root"; return 1; }
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
  say "no registry can be reached; making $BASE of Debian's packages"
  need mmdebstrap mmdebstrap
  mmdebstrap --quiet --variant=apt --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=python3,ca-certificates bookworm - 2>"$DIR/mmdebstrap.log" |
    docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' - "$BASE" >/dev/null
}

stop() {
  if [ -S "$DIR/docker.sock" ]; then
    docker ps -aq 2>/dev/null | xargs -r docker rm -f >/dev/null 2>&1 || true
  fi
  if [ -f "$DIR/docker.pid" ]; then
    local pid
    pid=$(cat "$DIR/docker.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  fi
  grep -oE " $DIR/[^ ]+" /proc/mounts | sort -r | xargs -r umount -l 2>/dev/null || true
  ! grep -q " $DIR/" /proc/mounts || { say "something below $DIR is still mounted"; return 1; }
  rm -rf "$DIR"
}

case "$1" in
  install | start | base | stop) "$1" ;;
  *) say "install, start, base or stop"; exit 2 ;;
esac
