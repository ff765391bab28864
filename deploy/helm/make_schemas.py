"""Writes deploy/helm/schemas: strict JSON Schemas of the Kubernetes kinds that the chart makes, for kubeconform.

kubeconform fetches schemas from the network by default; with these it needs none. Core kinds come from the official
Python client's models (in a virtual environment of its own: `pip install kubernetes==34.1.0`, that is Kubernetes 1.34),
custom resources from the CRD files that their projects publish:

    python deploy/helm/make_schemas.py servicemonitors.yaml prometheusrules.yaml scaledobjects.yaml

Strict: an unknown field is refused, at every depth. Descriptions are left out.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "schemas"
KINDS = {
    "V1StatefulSet": "statefulset-apps-v1",
    "V1Deployment": "deployment-apps-v1",
    "V1Service": "service-v1",
    "V1ServiceAccount": "serviceaccount-v1",
    "V1ConfigMap": "configmap-v1",
    "V1Pod": "pod-v1",
    "V1PodDisruptionBudget": "poddisruptionbudget-policy-v1",
    "V1NetworkPolicy": "networkpolicy-networking-v1",
}
_PLAIN = {
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "datetime": {"type": "string", "format": "date-time"},
    # Everywhere in these kinds, an `object` is the API's int-or-string.
    "object": {"type": ["integer", "string"]},
}


def schema_of(models: Any, text: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of one of the client's type names, such as `list[V1Container]`."""
    if found := re.fullmatch(r"list\[(.+)\]", text):
        return {"type": "array", "items": schema_of(models, found[1], definitions)}
    if found := re.fullmatch(r"dict\(str, (.+)\)", text):
        return {"type": "object", "additionalProperties": schema_of(models, found[1], definitions)}
    if text in _PLAIN:
        return dict(_PLAIN[text])
    if text not in definitions:
        definitions[text] = {}  # before its fields are looked at: types refer to themselves
        definitions[text] = model_schema(models, getattr(models, text), definitions)
    return {"$ref": f"#/definitions/{text}"}


def model_schema(models: Any, model: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """One model of the client. `status` is the server's to write, so it is left out."""
    fields = {name: kind for name, kind in model.openapi_types.items() if name not in ("status", "managed_fields")}
    json_names = model.attribute_map
    properties = {json_names[name]: schema_of(models, kind, definitions) for name, kind in fields.items()}
    required = sorted(json_names[name] for name in fields if "must not be `None`" in _setter(model, name))
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _setter(model: Any, name: str) -> str:
    """The source of a field's setter: it refuses None where the field is required."""
    return inspect.getsource(inspect.getattr_static(model, name).fset)


def strict(schema: Any) -> Any:
    """A CRD's schema without descriptions, refusing unknown fields wherever fields are listed."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: strict(value) for key, value in schema.items() if key != "description" or not isinstance(value, str)}
    if kept.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    kept = {key: value for key, value in kept.items() if not key.startswith("x-kubernetes-")}
    if "properties" in kept and isinstance(kept.get("type"), str):
        kept.setdefault("additionalProperties", False)
    return kept


def write(name: str, schema: dict[str, Any]) -> None:
    text = json.dumps({"$schema": "http://json-schema.org/draft-07/schema#"} | schema, separators=(",", ":"))
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main(crds: list[str]) -> None:
    from kubernetes.client import models  # noqa: PLC0415  # not a dependency of the project

    FOLDER.mkdir(exist_ok=True)
    for kind, name in KINDS.items():
        definitions: dict[str, Any] = {}
        schema = model_schema(models, getattr(models, kind), definitions)
        schema["required"] = sorted({"apiVersion", "kind", "metadata", *schema.get("required", ())})
        write(name, schema | {"definitions": definitions})
    for path in crds:
        spec = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["spec"]
        (version,) = (version for version in spec["versions"] if version.get("storage"))
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"].pop("status", None)
        schema["properties"]["metadata"] = {"type": "object"}
        write(f"{spec['names']['kind'].lower()}-{spec['group'].partition('.')[0]}-{version['name']}", schema)


if __name__ == "__main__":
    main(sys.argv[1:])
