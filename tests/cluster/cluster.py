"""Helpers for the cluster of kubectl's current context."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SERVICES = (
    "product-service",
    "order-service",
    "inventory-service",
    "notification-service",
    "graphql-service",
    "storefront-service",
)
NAMESPACE = "market"
# Options of deploy.sh that name the images; none on minikube and kind.
DEPLOY = shlex.split(os.environ.get("MARKET_CLUSTER_DEPLOY", ""))


def run(
    *command: str | Path, check: bool = True, seconds: float = 900, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, timeout=seconds, input=stdin, cwd=ROOT
    )
    assert done.returncode == 0 or not check, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def kubectl(*args: str, check: bool = True, stdin: str | None = None, seconds: float = 300) -> str:
    return run("kubectl", "--namespace", NAMESPACE, *args, check=check, stdin=stdin, seconds=seconds).stdout.strip()


def get(*args: str) -> Any:
    return json.loads(kubectl("get", *args, "-o", "json"))


def script(
    name: str, *options: str, check: bool = True, root: Path = ROOT
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run one of our scripts. Return the finished process and the seconds it took."""
    started = time.monotonic()
    done = run(root / "scripts" / name, *options, check=check)
    return done, time.monotonic() - started


def deploy(*options: str, check: bool = True, root: Path = ROOT) -> tuple[subprocess.CompletedProcess[str], float]:
    return script("deploy.sh", *DEPLOY, *options, check=check, root=root)


def pods(name: str) -> list[dict[str, Any]]:
    """Return the pods of a service that are not terminating, oldest first."""
    items = [
        p
        for p in get("pods", "-l", f"app.kubernetes.io/name={name}")["items"]
        if "deletionTimestamp" not in p["metadata"]
    ]
    return sorted(items, key=lambda p: str(p["metadata"]["creationTimestamp"]))


def names(name: str) -> list[str]:
    return [p["metadata"]["name"] for p in pods(name)]


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def restarts(pod: dict[str, Any]) -> int:
    return sum(c["restartCount"] for c in pod["status"].get("containerStatuses", []))


def seconds_until(what: str, condition: Callable[[], Any], seconds: float = 120) -> float:
    """Wait until the condition is true, and return the seconds that it took. Raises AssertionError after `seconds`."""
    started = time.monotonic()
    wait_until(condition, seconds, what, interval=0.5)
    return time.monotonic() - started


def wait_for_rollout(name: str, kind: str = "deployment", seconds: int = 300) -> None:
    kubectl("rollout", "status", f"{kind}/{name}", f"--timeout={seconds}s", seconds=seconds + 30)


def wait_until_all_are_ready() -> None:
    """Wait until every service has its minimum number of ready pods."""
    for name in SERVICES:
        wait_for_rollout(name)
    for hpa in get("hpa")["items"]:
        name, minimum = hpa["spec"]["scaleTargetRef"]["name"], hpa["spec"]["minReplicas"]
        seconds_until(
            f"{name} has {minimum} pods", lambda name=name, minimum=minimum: sum(map(is_ready, pods(name))) >= minimum
        )


def address() -> str:
    found = get("ingress", "market")["status"]["loadBalancer"]["ingress"][0]
    return f"http://{found.get('ip') or found['hostname']}"


def process(pod: dict[str, Any]) -> int | None:
    """Return the pid, on this machine, of the pod's main process; None if the nodes are elsewhere."""
    container_id = next(c["containerID"] for c in pod["status"]["containerStatuses"]).rpartition("/")[2]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if container_id in (entry / "cgroup").read_text():
                    return int(entry.name)
            except OSError:
                continue
    return None


def is_alive(pid: int) -> bool:
    """Return whether the process on this machine still has its sockets: a zombie has none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def send_signal(pod: dict[str, Any], signum: signal.Signals) -> bool:
    """Return False if the pod's process is not on this machine, or this is not root."""
    pid = process(pod)
    if pid is None or os.geteuid() != 0:
        return False
    os.kill(pid, signum)
    return True


@contextmanager
def forwarded(target: str, port: int, local: int) -> Iterator[str]:
    """Forward a local port to a port in the cluster, and yield its URL."""
    command = ["kubectl", "--namespace", NAMESPACE, "port-forward", target, f"{local}:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as forward:
        try:
            assert forward.stdout is not None
            assert "Forwarding" in forward.stdout.readline()
            yield f"http://127.0.0.1:{local}"
        finally:
            forward.kill()
