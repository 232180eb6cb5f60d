"""What KubeRay 1.7 takes, as JSON Schema: the fields of its custom resources, written down from its API types.

Compared field by field with the API reference of KubeRay v1.7.0 and with the published CRDs after it (RayCluster of
commit 12d7c497, RayService of 02a80a6f, without what is newer than v1.7). Where the CRD takes anything and the operator
then refuses it, the schema refuses it too: a count below zero, a type of upgrade that is none.

Pod templates are looked at with Kubernetes' own published schema (kubernetes-validate).
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
COUNT: dict[str, Any] = {**INTEGER, "minimum": 0}
FLAG: dict[str, Any] = {"type": "boolean"}
OBJECT: dict[str, Any] = {"type": "object"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}
_NUMBER = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
QUANTITY: dict[str, Any] = {
    "type": ["string", "integer"], "pattern": rf"^[+-]?{_NUMBER}([KMGTPE]i|[numkMGTPE]|[eE][+-]?{_NUMBER})?$"
}  # fmt: skip


def _closed(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


# Not all that Kubernetes has: these five are kept, others dropped.
METADATA = _closed({"annotations": TEXTS, "finalizers": _list(TEXT), "labels": TEXTS, "name": TEXT, "namespace": TEXT})
POD = _closed({"metadata": METADATA, "spec": {"type": "object", "required": ["containers"]}})
KUBERNETES_SERVICE = _closed({"apiVersion": TEXT, "kind": TEXT, "metadata": METADATA, "spec": OBJECT, "status": OBJECT})
QUANTITIES: dict[str, Any] = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER_RESOURCES = _closed({"claims": _list(OBJECT), "limits": QUANTITIES, "requests": QUANTITIES})
MANAGER = _one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")

AUTOSCALER = _closed(
    {
        "resources": CONTAINER_RESOURCES, "image": TEXT, "imagePullPolicy": TEXT, "securityContext": OBJECT,
        "idleTimeoutSeconds": COUNT, "upscalingMode": _one_of("Default", "Aggressive", "Conservative"),
        "version": _one_of("v1", "v2"), "env": _list(OBJECT), "envFrom": _list(OBJECT), "volumeMounts": _list(OBJECT),
        "command": _list(TEXT), "args": _list(TEXT),
    }
)  # fmt: skip
_CREDENTIAL = _closed({"value": TEXT, "valueFrom": OBJECT})
GCS = _closed(
    {
        "backend": _one_of("redis", "rocksdb"), "redisAddress": TEXT, "redisUsername": _CREDENTIAL,
        "redisPassword": _CREDENTIAL, "externalStorageNamespace": TEXT,
        "storage": _closed(
            {
                "claimName": TEXT, "size": QUANTITY, "storageClassName": TEXT, "accessModes": _list(TEXT),
                "subPath": TEXT, "deletionPolicy": _one_of("DeleteWithCluster", "Retain"),
            }
        ),
    }
)  # fmt: skip
_RULES: dict[str, Any] = {"ingressRules": _list(OBJECT), "egressRules": _list(OBJECT)}
NETWORK_POLICY = _closed(
    {
        "mode": _one_of("DenyAll", "DenyAllIngress", "DenyAllEgress"), "head": _closed(_RULES),
        "worker": _closed(_RULES), "workerGroups": _list(_closed({"groupName": TEXT, **_RULES}, ("groupName",))),
    }
)  # fmt: skip
HISTORY_SERVER = _closed(
    {
        "collectorOptions": _closed(
            {"image": TEXT, "imagePullPolicy": TEXT, "resources": CONTAINER_RESOURCES, "env": _list(OBJECT)}
        )
    }
)
INGRESS = _closed(
    {
        "host": TEXT, "path": TEXT, "pathType": _one_of("Exact", "Prefix", "ImplementationSpecific"),
        "tls": _list(_closed({"hosts": _list(TEXT), "secretName": TEXT})),
    }
)  # fmt: skip
_GROUP: dict[str, Any] = {"template": POD, "resources": TEXTS, "labels": TEXTS, "rayStartParams": TEXTS}
HEAD = _closed(
    {
        **_GROUP, "headService": KUBERNETES_SERVICE, "enableIngress": FLAG, "ingressOptions": INGRESS,
        "serviceType": TEXT,
    },
    ("template",),
)  # fmt: skip
WORKER = _closed(
    {
        **_GROUP, "groupName": TEXT, "replicas": INTEGER, "minReplicas": COUNT, "maxReplicas": COUNT, "suspend": FLAG,
        "idleTimeoutSeconds": COUNT, "priority": INTEGER, "numOfHosts": INTEGER,
        "scaleStrategy": _closed({"workersToDelete": _list(TEXT)}),
    },
    ("groupName", "minReplicas", "maxReplicas", "template"),
)  # fmt: skip
CLUSTER = _closed(
    {
        "rayVersion": TEXT, "enableInTreeAutoscaling": FLAG, "autoscalerOptions": AUTOSCALER, "suspend": FLAG,
        "authOptions": _closed(
            {"mode": _one_of("disabled", "token"), "secretName": TEXT, "enableK8sTokenAuth": FLAG}
        ),
        "gcsFaultToleranceOptions": GCS, "headServiceAnnotations": TEXTS, "managedBy": MANAGER,
        "networkPolicy": NETWORK_POLICY, "tlsOptions": _closed({"enabled": FLAG}),
        "historyServerOptions": HISTORY_SERVER, "upgradeStrategy": _closed({"type": _one_of("Recreate", "None")}),
        "headGroupSpec": HEAD, "workerGroupSpecs": _list(WORKER),
    },
    ("headGroupSpec",),
)  # fmt: skip
UPGRADE = _closed(
    {
        "type": _one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
        "clusterUpgradeOptions": _closed(
            {
                "maxSurgePercent": INTEGER, "stepSizePercent": INTEGER, "intervalSeconds": INTEGER,
                "gatewayClassName": TEXT,
            },
            ("stepSizePercent", "intervalSeconds", "gatewayClassName"),
        ),
    }
)  # fmt: skip
SERVICE = _closed(
    {
        "serveConfigV2": TEXT, "rayClusterConfig": CLUSTER, "serveService": KUBERNETES_SERVICE,
        "upgradeStrategy": UPGRADE, "excludeHeadPodFromServeSvc": FLAG, "rayClusterDeletionDelaySeconds": COUNT,
        "managedBy": MANAGER, "suspend": FLAG,
        "serviceUnhealthySecondThreshold": INTEGER, "deploymentUnhealthySecondThreshold": INTEGER,
    },
    ("rayClusterConfig",),
)  # fmt: skip


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _closed(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": OBJECT, "spec": spec},
        ("apiVersion", "kind", "metadata", "spec"),
    )


RESOURCES = {"RayCluster": _resource("RayCluster", CLUSTER), "RayService": _resource("RayService", SERVICE)}
