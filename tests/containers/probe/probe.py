"""Runs in place of a step in its container and tries actions that must be impossible for a step."""

import json
import os
import socket
import sys
import time
from pathlib import Path


def attempt(action):
    """Returns the outcome of the action: ok, or the error's name."""
    try:
        found = action()
    except Exception as error:
        return type(error).__name__
    return found if isinstance(found, str | int) else "ok"


def write(folder):
    file = Path(folder) / "probe"
    file.write_text("x")
    file.unlink()


def connect(host, port):
    socket.create_connection((host, port), timeout=3).close()


def fork():
    """Counts the children that can be started before the engine says no."""
    children = []
    try:
        for _ in range(5000):
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return len(children)


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name))


request = json.loads(sys.stdin.readline())
asked = request["options"]
if asked.get("memory"):
    held = [bytearray(b"x" * (1 << 24)) for _ in range(1000)]
if asked.get("sleep"):
    print("sleeping", file=sys.stderr, flush=True)
    sys.stdin.read()
    os._exit(143)
found = {
    "write": {folder: attempt(lambda folder=folder: write(folder)) for folder in asked.get("write", [])},
    "read": {place: attempt(lambda place=place: Path(place).stat().st_size) for place in asked.get("read", [])},
    "connect": {
        place: attempt(lambda place=place: connect(*place.rsplit(":", 1))) for place in asked.get("connect", [])
    },
    "chown": attempt(lambda: os.chown(request["output"], 0, 0)),
    "setuid": attempt(lambda: os.setuid(0)),
    "mknod": attempt(lambda: os.mknod("/tmp/zero", 0o20666, os.makedev(1, 5))),
    "children": fork(),
    "uid": os.getuid(),
    "capabilities": status("CapEff"),
    "no_new_privileges": status("NoNewPrivs"),
    "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
    "environment": dict(os.environ),
}
json.dump({"metrics": found, "system": {}, "seconds": {}}, sys.stdout)
