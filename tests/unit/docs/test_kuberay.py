"""The RayJob in docs/ against the schema that KubeRay's operator would check it with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
CRD = json.loads((ROOT / "tests/data/rayjob_crd.json").read_text())  # its first lines say where it is from


def strict(schema: Any) -> Any:
    """The schema with keys that it does not name refused: the API server drops them, `kubectl` only warns."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(closed.get("properties"), dict) and "type" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return closed


def manifest() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "docs/kuberay/rayjob.yaml").read_text())
    return copy.deepcopy(read)  # anchors are the same object


def check(found: dict[str, Any]) -> None:
    schema = strict(CRD["schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own, not in the CRD
    jsonschema.Draft202012Validator(schema).validate(found)
    assert found["apiVersion"] == f"{CRD['group']}/{CRD['version']}" and found["kind"] == CRD["kind"]


def test_the_manifest_fits_the_schema() -> None:
    check(manifest())


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("spec", "entryPoint"), "python"),  # a misspelt key
        (("spec", "backoffLimit"), "3"),  # a string for a number
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),  # no such mode
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"), []),
    ],
)
def test_the_check_can_fail(keys: tuple[Any, ...], value: object) -> None:
    broken = manifest()
    place: Any = broken
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(broken)


def test_what_the_schema_cannot_say() -> None:
    """Token, one Ray version, the time to save, mounts that have their volume."""
    from importlib.metadata import version

    spec = manifest()["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"]["mode"] == "token"
    wait = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    pods = [cluster["headGroupSpec"]["template"]["spec"], *(g["template"]["spec"] for g in cluster["workerGroupSpecs"])]
    assert pods[0]["terminationGracePeriodSeconds"] > wait >= 60
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes
