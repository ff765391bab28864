"""docker-compose.yml as data, and what can be asked of it without a Docker engine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
Service = Mapping[str, Any]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load() -> dict[str, Any]:
    """The file as Compose reads it: anchors merged, variables replaced by their defaults."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(_VARIABLE.sub(lambda found: found.group(2) or "", text))
    return loaded


def is_ours(service: Service) -> bool:
    """Whether the service runs the project's own image, whose user the Dockerfile sets."""
    return str(service["image"]).startswith("riskstream")


def runs_once(service: Service) -> bool:
    return bool(service["restart"] == "no")


def environment(service: Service) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def mounts(service: Service) -> Iterator[tuple[str, str, str]]:
    """(source, place in the container, mode) of each mount; a source that begins with a dot is a path."""
    for line in service.get("volumes", []):
        source, place, *mode = line.split(":")
        yield source, place, mode[0] if mode else "rw"


def command_words(service: Service) -> list[str]:
    """What `riskstream` is called with; of a shell line, the words behind the program's name."""
    words = [str(word) for word in service["command"]]
    if service.get("entrypoint"):
        return words[-1].partition("riskstream ")[2].split()
    return words


def weaknesses(name: str, service: Service) -> list[str]:
    """What a service lacks of the hardening that every one must have."""
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    ports = [str(port) for port in service.get("ports", [])]
    tag = str(service["image"]).partition(":")[2]
    probed = "test" in service.get("healthcheck", {})
    found = {
        "its image has no version": not re.match(r"v?\d+\.\d+\.\d+", tag),
        "its root file system can be written to": service.get("read_only") is not True,
        "it keeps capabilities": service.get("cap_drop") != ["ALL"],
        "it may gain privileges": "no-new-privileges:true" not in service.get("security_opt", []),
        "it may run as root": not (is_ours(service) or re.match(r"[1-9]\d*:\d+$", str(service.get("user", "")))),
        "it has no limits": not {"cpus", "memory", "pids"} <= set(limits),
        "a port is open beyond loopback": any(not port.startswith("127.0.0.1:") for port in ports),
        "nothing asks after its health": not (probed or runs_once(service) or not ports),
        "it is privileged": bool(service.get("privileged") or service.get("network_mode") or service.get("cap_add")),
    }
    return [f"{name}: {text}" for text, holds in found.items() if holds]


def wrong_waits(services: Mapping[str, Service]) -> list[str]:
    """Dependencies whose condition can never hold, or that nobody declared."""
    found = []
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            target = services.get(other)
            if target is None:
                found.append(f"{name} waits for {other}, which is not there")
            elif condition == "service_healthy" and "test" not in target.get("healthcheck", {}):
                found.append(f"{name} waits for the health of {other}, which has no check")
            elif condition == "service_completed_successfully" and not runs_once(target):
                found.append(f"{name} waits for the end of {other}, which goes on")
            elif target.get("profiles") and not service.get("profiles"):
                found.append(f"{name} waits for {other}, which is in a profile")
    return found
