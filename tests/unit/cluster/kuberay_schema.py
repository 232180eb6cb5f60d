"""What KubeRay 1.7 takes, as JSON Schema: the fields of its custom resources, written down from its API types.

Pod templates are looked at with Kubernetes' own published schema (kubernetes-validate).
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
FLAG: dict[str, Any] = {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
ANY: dict[str, Any] = {}


def _closed(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


AUTOSCALER = _closed(
    {
        "resources": {"type": "object"}, "image": TEXT, "imagePullPolicy": TEXT, "securityContext": {"type": "object"},
        "idleTimeoutSeconds": COUNT, "upscalingMode": _one_of("Default", "Aggressive", "Conservative"),
        "version": _one_of("v1", "v2"), "env": {"type": "array"}, "envFrom": {"type": "array"},
        "volumeMounts": {"type": "array"}, "command": {"type": "array"}, "args": {"type": "array"},
    }
)  # fmt: skip
GCS = _closed(
    {
        "backend": _one_of("redis", "rocksdb"), "redisAddress": TEXT, "redisUsername": ANY, "redisPassword": ANY,
        "externalStorageNamespace": TEXT,
        "storage": _closed(
            {
                "claimName": TEXT, "size": {"type": ["string", "integer"]}, "storageClassName": TEXT,
                "accessModes": {"type": "array"}, "subPath": TEXT,
                "deletionPolicy": _one_of("DeleteWithCluster", "Retain"),
            }
        ),
    }
)  # fmt: skip
_GROUP: dict[str, Any] = {"template": {"type": "object"}, "resources": TEXTS, "labels": TEXTS, "rayStartParams": TEXTS}
HEAD = _closed(
    {**_GROUP, "headService": {"type": "object"}, "enableIngress": FLAG, "ingressOptions": ANY, "serviceType": TEXT},
    ("template",),
)
WORKER = _closed(
    {
        **_GROUP, "groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT, "suspend": FLAG,
        "idleTimeoutSeconds": COUNT, "priority": {"type": "integer"}, "numOfHosts": COUNT, "scaleStrategy": ANY,
    },
    ("groupName", "minReplicas", "maxReplicas", "template"),
)  # fmt: skip
CLUSTER = _closed(
    {
        "rayVersion": TEXT, "enableInTreeAutoscaling": FLAG, "autoscalerOptions": AUTOSCALER, "suspend": FLAG,
        "authOptions": _closed(
            {"mode": _one_of("disabled", "token"), "secretName": TEXT, "enableK8sTokenAuth": FLAG}
        ),
        "gcsFaultToleranceOptions": GCS, "headServiceAnnotations": TEXTS, "managedBy": TEXT, "networkPolicy": ANY,
        "tlsOptions": ANY, "historyServerOptions": ANY,
        "upgradeStrategy": _closed({"type": _one_of("Recreate", "None")}),
        "headGroupSpec": HEAD, "workerGroupSpecs": {"type": "array", "items": WORKER},
    },
    ("headGroupSpec",),
)  # fmt: skip
SERVICE = _closed(
    {
        "serveConfigV2": TEXT, "rayClusterConfig": CLUSTER, "serveService": {"type": "object"},
        "upgradeStrategy": _closed({"type": _one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None")}),
        "excludeHeadPodFromServeSvc": FLAG, "rayClusterDeletionDelaySeconds": COUNT,
    },
    ("rayClusterConfig",),
)  # fmt: skip


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _closed(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": {"type": "object"}, "spec": spec},
        ("apiVersion", "kind", "metadata", "spec"),
    )


RESOURCES = {"RayCluster": _resource("RayCluster", CLUSTER), "RayService": _resource("RayService", SERVICE)}
