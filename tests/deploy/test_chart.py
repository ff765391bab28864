"""The Helm chart: linted, rendered with several values, validated strictly, and asked what it must promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.config import load_settings
from tests.deploy.compose import ROOT
from tests.unit.test_docs import wrong_in

HELM = ROOT / "deploy" / "helm"
CHART = HELM / "riskstream"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
SCHEMAS = str(HELM / "schemas" / "{{ .ResourceKind }}{{ .KindSuffix }}.json")
# Helm's own idea of a cluster's version depends on how it was built.
KUBERNETES = ("--kube-version", "1.34.0")
LEAST: dict[str, Any] = {"kafka": {"bootstrapServers": "kafka:9092"}, "redis": {"existingSecret": "redis"}}

pytestmark = pytest.mark.helm
Render = Callable[[dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of helm and kubeconform; built when Go is there, or in CI."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    script = HELM / "tools.sh"
    text = script.read_text(encoding="utf-8")
    versions = [re.search(rf"^{name}=(.+)$", text, re.MULTILINE) for name in ("HELM", "KUBECONFORM")]
    folder = ROOT / ".cache" / "tools" / "-".join(found[1] for found in versions if found)
    if not folder.exists() and not in_ci and shutil.which("go") is None:
        pytest.skip("helm and kubeconform are built by `make deploy-check`")
    subprocess.run([script], check=True)
    return folder


@pytest.fixture
def render(tools: Path, tmp_path: Path) -> Render:
    """The documents that the chart makes of values; what Helm says is the exception's text when it refuses."""

    def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        command = [tools / "helm", "template", "fraud", CHART, *KUBERNETES, "--values", file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ValueError(done.stderr)
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return rendered


def only(documents: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    """The document of this kind that is called like the release, with the suffix."""
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == f"fraud{suffix}"]
    return found


def worker_of(documents: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod template's spec, and its one container."""
    pod = only(documents, "StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def values_of(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


def validate(tools: Path, documents: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """kubeconform in strict mode, without the network: a kind without a schema here is an error."""
    command = [tools / "kubeconform", "-strict", "-summary", "-schema-location", SCHEMAS, "-"]
    return subprocess.run(command, input=yaml.safe_dump_all(documents), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_lint(tools: Path, file: Path) -> None:
    command = [tools / "helm", "lint", "--strict", CHART, *KUBERNETES, "--values", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_kubernetes_would_take_it(tools: Path, render: Render, file: Path) -> None:
    documents = render(values_of(file))
    done = validate(tools, documents)
    assert done.returncode == 0, done.stdout
    assert f"{len(documents)} resources found" in done.stdout
    assert "Skipped: 0" in done.stdout


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pod, container: pod.update(terminationGracePeriod=60),
        lambda pod, container: container.update(readinesProbe={}),
        lambda pod, container: container["ports"][0].pop("containerPort"),
        lambda pod, container: container["securityContext"].update(runAsUser="root"),
    ],
)
def test_what_kubernetes_would_refuse_is_found(tools: Path, render: Render, spoil: Callable[..., Any]) -> None:
    documents = render(LEAST)
    spoil(*worker_of(documents))
    assert validate(tools, documents).returncode == 1


@pytest.mark.parametrize("kind", ["ScaledObject", "ServiceMonitor", "PrometheusRule", "NetworkPolicy"])
def test_wrong_custom_resources_are_found(tools: Path, render: Render, kind: str) -> None:
    documents = render(values_of(CHART / "ci" / "production.yaml"))
    only(documents, kind)["spec"]["surprise"] = 1
    assert validate(tools, documents).returncode == 1


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "no brokers": ({"kafka": {}}, "bootstrapServers"),
    "a broker without a port": ({"kafka": {"bootstrapServers": "kafka"}}, "bootstrapServers"),
    "no secret of Redis": ({"redis": {"existingSecret": ""}}, "existingSecret"),
    "a password of Redis": ({"redis": {"existingSecret": "r", "password": "x"}}, "password"),
    "a secret in the settings": ({"settings": {"redis": {"url": "redis://:secret@r"}}}, "redis"),
    "a password in the settings": ({"settings": {"kafka": {"sasl_password": "x"}}}, "kafka"),
    "a key in the settings": ({"settings": {"scoring": {"signature_key": "x"}}}, "scoring"),
    "a worker id for all": ({"settings": {"kafka": {"worker_id": "worker-0"}}}, "kafka"),
    "an unknown section": ({"settings": {"kafak": {}}}, "kafak"),
    "a secret in the environment": ({"extraEnv": [{"name": "RISKSTREAM_REDIS__URL", "value": "x"}]}, "extraEnv"),
    "no workers": ({"replicas": 0}, "replicas"),
    "a misspelt value": ({"replicaCount": 3}, "replicaCount"),
    "a floating tag": ({"image": {"tag": "latest"}}, "tag"),
    "a grace shorter than a flush": ({"terminationGracePeriodSeconds": 10}, "terminationGracePeriodSeconds"),
    "no memory limit": ({"resources": {"limits": {"memory": None}}}, "memory"),
    "more workers than partitions": ({"replicas": 25}, "25 workers for 24 partitions"),
    "more by lag than partitions": ({"autoscaling": {"enabled": True, "maxReplicas": 48}}, "48 workers for 24"),
    "least above most": ({"autoscaling": {"enabled": True, "minReplicas": 20, "maxReplicas": 10}}, "minReplicas"),
    "SASL without a secret": ({"kafka": {"bootstrapServers": "k:1", "securityProtocol": "SASL_SSL"}}, "saslSecret"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused(render: Render, case: str) -> None:
    change, named = BAD_VALUES[case]
    with pytest.raises(ValueError, match=named):
        render(LEAST | change)


@pytest.mark.parametrize("file", VALUES, ids=lambda file: file.stem)
def test_the_program_reads_these_settings(render: Render, tmp_path: Path, file: Path) -> None:
    """The settings file and the environment that a pod gets, given to the program's own loader."""
    documents = render(values_of(file))
    config = only(documents, "ConfigMap")["data"]
    settings_file = tmp_path / "riskstream.yaml"
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).touch()  # the loader looks whether they are there
    text = config["riskstream.yaml"].replace("/etc/riskstream-tls", str(tmp_path))
    settings_file.write_text(text, encoding="utf-8")
    pod, container = worker_of(documents)
    kinds = {"URL": "redis://redis:6379/0", "KEY_SECRET": "long enough"}
    variables = {
        entry["name"]: entry.get("value") or kinds.get(entry["name"].rpartition("__")[2], "given")
        for entry in container["env"]
        if entry["name"] != "RISKSTREAM_CONFIG"
    }
    settings = load_settings(settings_file, variables, {}).settings
    values = values_of(file)
    assert settings.kafka.bootstrap_servers == values["kafka"]["bootstrapServers"]
    assert settings.kafka.worker_id == "given"
    measured = values.get("quality", {}).get("enabled", True)
    asked = values.get("settings", {}).get("records", {}).get("features", "sample" if measured else "none")
    assert settings.records.features == asked, "the drift of features is measured on a sample"
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", container["ports"][0]["containerPort"])
    assert wrong_in(container["args"]) is None
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert (str(tmp_path) in text) == ("/etc/riskstream-tls" in places)
    for path in (settings.scoring.bundle, settings.scoring.rates, settings.scoring.policy):
        assert path is None or any(str(path).startswith(place + "/") for place in places), path
        if path is not None and str(path).startswith("/etc/riskstream/"):
            assert path.name in config
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_a_workers_promises(render: Render) -> None:
    documents = render(LEAST)
    stateful_set = only(documents, "StatefulSet")["spec"]
    pod, container = worker_of(documents)
    settings = load_settings(None, {}, {}).settings
    longest_flush_s = 3 * settings.redis.timeout_ms / 1000 + settings.kafka.request_timeout_ms / 1000
    assert pod["terminationGracePeriodSeconds"] > longest_flush_s
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/livez"
    assert stateful_set["updateStrategy"] == {"type": "RollingUpdate"}
    worker_id = container["env"][0]
    assert worker_id["name"] == "RISKSTREAM_KAFKA__WORKER_ID"
    assert worker_id["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    labels = stateful_set["template"]["metadata"]["labels"]
    for kind, place in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selector = only(documents, kind)["spec"][place]["matchLabels"]
        assert selector.items() <= labels.items()
    assert only(documents, "Service")["spec"]["selector"].items() <= labels.items()
    assert (
        not only(documents, "Service")["spec"]["selector"].items()
        <= only(documents, "Pod", "-doctor")["metadata"]["labels"].items()
    )
    for constraint in pod["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()


def test_changed_settings_restart_the_workers(render: Render) -> None:
    annotations = [
        only(render(LEAST | change), "StatefulSet")["spec"]["template"]["metadata"]["annotations"]
        for change in ({}, {}, {"settings": {"log": {"level": "debug"}}})
    ]
    assert annotations[0] == annotations[1] != annotations[2]


def test_production(render: Render) -> None:
    """Scaling is left to KEDA and capped; the alerts are Prometheus' own files; no secret is in any document."""
    documents = render(values_of(CHART / "ci" / "production.yaml"))
    assert "replicas" not in only(documents, "StatefulSet")["spec"]
    scaled = only(documents, "ScaledObject")["spec"]
    assert scaled["maxReplicaCount"] == 24
    trigger = scaled["triggers"][0]["metadata"]
    assert (trigger["topic"], trigger["consumerGroup"]) == ("cards.authorisations", "fraud")
    rules = [
        group
        for file in sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    assert rules
    assert only(documents, "PrometheusRule")["spec"]["groups"] == rules
    _, container = worker_of(documents)
    assert re.fullmatch(r"images\.bank\.example/.+@sha256:[0-9a-f]{64}", container["image"])
    jobs = {
        endpoint["relabelings"][0]["replacement"]
        for suffix in ("", "-quality")
        for endpoint in only(documents, "ServiceMonitor", suffix)["spec"]["endpoints"]
    }
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert jobs == {job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]}
    for suffix in ("", "-quality"):
        selector = only(documents, "ServiceMonitor", suffix)["spec"]["selector"]["matchLabels"]
        chosen = [
            d for d in documents if d["kind"] == "Service" and selector.items() <= d["metadata"]["labels"].items()
        ]
        assert [service["metadata"]["name"] for service in chosen] == [f"fraud{suffix}"]
    secret = [entry for entry in container["env"] if re.search("PASSWORD|USERNAME|SECRET|URL|SIGNATURE", entry["name"])]
    assert len(secret) == 5
    assert all("secretKeyRef" in entry["valueFrom"] for entry in secret)


def test_the_readme_is_made_from_the_values(tmp_path: Path) -> None:
    script = HELM / "readme.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0
    copy = tmp_path / "helm"
    shutil.copytree(HELM, copy, ignore=shutil.ignore_patterns("rules"))
    values = copy / "riskstream" / "values.yaml"
    values.write_text(values.read_text(encoding="utf-8").replace("replicas: 2", "replicas: 3"), encoding="utf-8")
    done = subprocess.run([sys.executable, copy / "readme.py", "--check"], check=False, capture_output=True)
    assert done.returncode == 1
