"""Reads a cluster file for ``ray up`` as Ray and AWS would, without asking either: what is wrong, where, what to do."""

from __future__ import annotations

import copy
import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mhs_ray.domain.instances import INSTANCE_TYPES, LABEL

_PLACEHOLDER: Final = "REPLACE_"
# Keys that Ray takes in a node_config and resolves before it asks EC2.
_RAYS_OWN: Final = frozenset({"SubnetIds"})


@dataclass(frozen=True, slots=True)
class Finding:
    """where: a path in the file. needed: the cluster cannot work so."""

    where: str
    message: str
    mend: str
    needed: bool = True


def check_cluster_file(path: Path) -> list[Finding]:
    """Return everything that is wrong with the file, as far as it can be known offline."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        return [Finding(str(path), f"cannot be read: {type(error).__name__}", "name a cluster file, cluster/aws.yaml")]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        return [Finding(at, f"is no YAML: {getattr(error, 'problem', error)}", "mend that line; mind the indentation")]
    if not isinstance(config, dict):
        return [Finding(str(path), "holds no mapping", "start from cluster/aws.yaml")]
    if config.get("kind") in {"RayCluster", "RayService"}:
        return [Finding(str(path), "is a manifest for Kubernetes", "kubectl apply --dry-run=server -f it")]
    found = list(_schema(config))
    if not found:
        found += _as_ray_prepares_it(config)
    if not found:
        found += [*_node_types(config), *_launches(config), *_commands(config, path), *_unfilled(config)]
    return found


def _schema(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Ray's own schema, every fault at once."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(config):
        where = "$" + "".join(f".{part}" for part in error.absolute_path)
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            for name in sorted(map(str, error.instance.keys() - known.keys())):
                yield Finding(f"{where}.{name}", "Ray knows no such key", _nearest(name, known))
        else:
            yield Finding(where, error.message[:300], "see Ray's cluster YAML reference")


def _as_ray_prepares_it(config: dict[str, Any]) -> Iterator[Finding]:
    try:
        logging.disable(logging.WARNING)
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:
        yield Finding("$", f"Ray does not take it: {error}", "see Ray's cluster YAML reference")
    finally:
        logging.disable(logging.NOTSET)


def _node_types(config: dict[str, Any]) -> Iterator[Finding]:
    """Whether nodes are what our dispatcher asks for."""
    offered = set()
    for name, node in config.get("available_node_types", {}).items():
        where = f"$.available_node_types.{name}"
        labels, resources = node.get("labels", {}), node.get("resources", {})
        for label in labels:
            if label.startswith("mhs.io/") and label not in {LABEL, "mhs.io/role"}:
                yield Finding(
                    f"{where}.labels.{label}", "nobody asks for this label", _nearest(label, [LABEL, "mhs.io/role"])
                )
        kind = labels.get(LABEL)
        if kind is None:
            if resources.get("GPU", 0):
                yield Finding(f"{where}.labels", f"has a GPU and no label {LABEL}: no job goes there", f"add {LABEL}")
            continue
        if kind not in INSTANCE_TYPES:
            yield Finding(
                f"{where}.labels.{LABEL}", f"{kind} is no instance type of the contract", _nearest(kind, INSTANCE_TYPES)
            )
            continue
        offered.add(kind)
        if resources.get("GPU") != 1:
            yield Finding(f"{where}.resources.GPU", "must be 1: an attempt asks for one GPU", "set GPU: 1")
        asked = node.get("node_config", {}).get("InstanceType")
        if asked is not None and asked != kind:
            yield Finding(
                f"{where}.node_config.InstanceType", f"is {asked}, and its label says {kind}", "make them the same"
            )
        if node.get("max_workers") == 0:
            yield Finding(f"{where}.max_workers", "is 0: no node of it ever starts", "set how many there may be")
    for kind in INSTANCE_TYPES.keys() - offered:
        message = f"no node type is a {kind}: jobs that ask for one fail at once"
        mend = "add one, or leave it out of MHS_CLUSTER__INSTANCE_TYPES"
        yield Finding("$.available_node_types", message, mend, needed=False)


def _launches(config: dict[str, Any]) -> Iterator[Finding]:
    """Whether EC2 would take each node_config, by botocore's own model of the call."""
    if config.get("provider", {}).get("type") != "aws":
        return
    from botocore.validate import ParamValidator

    shape, validator = _run_instances(), ParamValidator()
    for name, node in config.get("available_node_types", {}).items():
        given = {k: v for k, v in node.get("node_config", {}).items() if k not in _RAYS_OWN}
        where = f"$.available_node_types.{name}.node_config"
        for key in sorted(given.keys() - shape.members.keys()):
            yield Finding(f"{where}.{key}", "EC2 knows no such key", _nearest(key, shape.members))
            given.pop(key)
        report = validator.validate({**given, "MinCount": 1, "MaxCount": 1}, shape)
        if report.has_errors():
            yield Finding(where, "EC2 would refuse it: " + report.generate_report(), "mend that value")
        for key in ("ImageId", "InstanceType", "IamInstanceProfile", "KeyName"):
            if key not in given:
                mend = "set it: without it Ray makes one of its own, with more rights than it needs"
                yield Finding(f"{where}.{key}", "is missing", mend)


@cache
def _run_instances() -> Any:
    """Return the parameters of EC2's call; the model is large."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _commands(config: dict[str, Any], path: Path) -> Iterator[Finding]:
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(name, [])
        if commands and not any("ray start" in c for c in commands):
            yield Finding(f"$.{name}", "starts no Ray", "have `ray start …` in it")
    head = " ".join(config.get("head_start_ray_commands", []))
    if head and "--autoscaling-config=" not in head:
        yield Finding("$.head_start_ray_commands", "without --autoscaling-config no node starts", "add it to ray start")
    for target, source in config.get("file_mounts", {}).items():
        if not Path(source).expanduser().exists():
            message = f"{source} is not there, seen from {Path.cwd()}"
            yield Finding(f"$.file_mounts.{target}", message, "call `ray up` where it is", needed=False)


def _unfilled(value: Any, where: str = "$") -> Iterator[Finding]:
    """Values of the example that nobody replaced; each told once."""
    seen: dict[str, str] = {}

    def look(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(inner, f"{where}.{key}")
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                look(inner, f"{where}[{i}]")
        elif isinstance(value, str) and _PLACEHOLDER in value:
            seen.setdefault(value, where)

    look(value, where)
    for text, at in seen.items():
        yield Finding(at, f"is still the example's {text}", "put your own value there")


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f"did you mean {near[0]}?" if near else "remove it"
