"""Lifelike values for the OpenAPI page, by wire type; a test reads each with its type."""

from __future__ import annotations

from typing import Any, Final

from api.webhook_example import WEBHOOK_EXAMPLE

_AT: Final = "2026-03-02T09:26:53.589793Z"
_LATER: Final = "2026-03-02T09:31:07.164062Z"
_BY: Final = {"created_by": "Ada Lovelace", "created_at": _AT}
_DIGEST: Final = "sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
_ENV: Final = [{"name": "THRESHOLD", "value": "0.5", "secret": False}]
_REGISTRY: Final = {"registry": "registry.example.com", "repository": "quarantine/3", "tag": "mitosis-3"}

_VERSION: Final[dict[str, Any]] = {
    "id": 9, "number": 2, "digest": _DIGEST, "size_bytes": 3_512_882_176,
    "details": {"architecture": "amd64", "os": "linux", "entrypoint": ["python3", "main.py"], "warnings": []},
    "created_at": _LATER,
}  # fmt: skip
_FAILURE: Final[dict[str, Any]] = {
    "failure_class": "model", "code": "out-of-memory",
    "cause": "out of memory at 15.9 of 16.0 GB on g4dn.xlarge", "mend": "choose g4dn.2xlarge (32 GB)",
    "excerpt": "loading 9 of 12 models", "exit_code": 137,
}  # fmt: skip
_JOB: Final[dict[str, Any]] = {
    "id": 42, "state": "failed", "task_id": "185714", "scan_row_id": 7, "scan_id": "8946136",
    "algorithm_name": "Mitosis count", "container_id": 5, "container_name": "My GPU Container",
    "image_digest": _DIGEST, "instance_type": "g4dn.xlarge", "priority": "clinical", "attempt": 1,
    "node": "gpu-node-1", "failure": _FAILURE, "resources": {"cpu_s": 61.5, "memory_peak_bytes": 17_072_495_001},
    **_BY, "started_at": _AT, "ended_at": _LATER, "queue_position": None,
}  # fmt: skip
_SUBMITTED: Final = {"task_id": "185714", "job_ids": [42], "created": True}
_GEOJSON: Final = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "properties": {"annotation_type": "mitosis"},
            "geometry": {"type": "Polygon", "coordinates": [[[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]]},
        }
    ],
}

_COHORT_ROW: Final[dict[str, Any]] = {
    "row": 1, "id": "S1", "slide": "s3://pathology/lung/S1.svs", "labels": {"stain": "HE"},
}  # fmt: skip
_COHORT: Final[dict[str, Any]] = {
    "id": 7, "key": "lung-2026-11", "name": "Lung, November", "state": "running", "reason": "", "container_id": 5,
    "container_name": "My GPU Container", "algorithm_name": "Mitosis count", "image_digest": _DIGEST,
    "instance_type": "g4dn.xlarge", "manifest": "5a" * 32, "rows": 10_000, "received": 10_000, "canary": 5,
    "skip_known": True, "mixed_formats": False,
    "counts": {
        "pending": 7800, "under_way": 200, "succeeded": 1960, "failed": 12, "cancelled": 0, "duplicate": 28,
        "left_out": 0,
    },
    "forecast": {
        "gpu_s": 118_320.0, "gpu_s_per_slide": 60.0, "gpu_s_left": 480_000.0, "eta_s": 24_000.0,
        "price_per_hour": 0.526, "spent": 17.29, "left": 70.13, "total": 87.42, "currency": "USD",
    },
    **_BY, "started_at": _AT, "ended_at": None,
}  # fmt: skip
_ROW_FAULT: Final = {"row": 17, "column": "slide", "reason": "there is no file /data/slides/S17.svs"}

EXAMPLES: Final[dict[str, Any]] = {
    "CohortIn": {"key": "lung-2026-11", "container": "My GPU Container", "manifest": "5a" * 32, "rows": 10_000},
    "CohortRowsIn": {"rows": [_COHORT_ROW]},
    "CohortStartIn": {"leave_out_bad": False},
    "RowsTakenOut": {"received": 200, "faults": [_ROW_FAULT]},
    "RowFaultOut": _ROW_FAULT,
    "CohortOut": _COHORT,
    "CohortSlideOut": {
        **_COHORT_ROW, "format": "svs", "state": "succeeded", "scan_row_id": 7, "job_id": 42, "failure_class": None,
        "failure_code": None, "cause": "", "gpu_s": 61.2, "ended_at": _LATER,
    },
    "PricesOut": {"currency": "USD", "per_hour": {"g4dn.xlarge": 0.526, "g5.2xlarge": 1.212}},
    "InstanceTypeOut": {"name": "g4dn.xlarge", "vcpu": 4, "memory_gb": 16, "gpu": "T4", "vram_gb": 16},
    "ImageIn": {"name": "Mitosis detector"},
    "ImageVersionOut": _VERSION,
    "ImageOut": {
        "id": 3, "name": "Mitosis detector", "status": "uploaded", "failure_message": "", **_BY,
        "updated_at": _LATER, "current": _VERSION,
    },
    "PushInstructionsOut": {
        **_REGISTRY, "username": "AWS", "password": "eyJ…", "expires_at": _LATER, "tls": True,
        "commands": [
            "docker build -t my-docker-image:latest .",
            "docker tag my-docker-image:latest registry.example.com/quarantine/3:mitosis-3",
            "docker login --username AWS --password eyJ… registry.example.com/quarantine/3",
            "docker push registry.example.com/quarantine/3:mitosis-3",
        ],
        "variants": [{"title": "podman", "commands": ["podman push registry.example.com/quarantine/3:mitosis-3"]}],
    },
    "ContainerIn": {"name": "My GPU Container", "image_id": 3, "instance_type": "g4dn.xlarge", "env": _ENV},
    "ContainerPatch": {"instance_type": "g5.2xlarge", "time_limit_s": 1800},
    "ContainerOut": {
        "id": 5, "name": "My GPU Container", "image_id": 3, "image_name": "Mitosis detector",
        "instance_type": "g4dn.xlarge", "env": _ENV, "time_limit_s": 5400, "retry_exit_codes": [],
        "max_model_retries": 0, **_BY, "updated_at": _LATER,
    },
    "AlgorithmIn": {"name": "Mitosis count", "container_id": 5},
    "AlgorithmPatch": {"name": "Mitosis count, 40x"},
    "AlgorithmOut": {
        "id": 2, "name": "Mitosis count", "provider": "Model Hosting Service", "container_id": 5,
        "container_name": "My GPU Container", **_BY, "updated_at": _AT,
    },
    "ScanIn": {"url": "https://slides.example.com/8946136.svs?X-Amz-Expires=604800&X-Amz-Signature=0"},
    "ScanOut": {
        "id": 7, "scan_id": "8946136", "name": "8946136.svs", "status": "ready", "failure_message": "",
        "source": "url", "size_bytes": 1_938_955_264, "facts": {"format": "aperio", "width": 46000, "height": 32914},
        **_BY, "upload_url": None, "upload_expires_at": None,
    },
    "SignedUrlOut": {"url": "https://blobs.example.com/scans/1/7/slide?sig=0", "expires_at": _LATER},
    "Webhook": WEBHOOK_EXAMPLE,
    "TaskIn": {"algorithm": "Mitosis count", "scan_ids": [7], "case_id": "aHVtYW5DYXNlOjI0MjEzNjY="},
    "SubmittedOut": _SUBMITTED,
    "TaskOut": {
        "task_id": "185714", "task_id_base64": "dGFzazoxODU3MTQ=", "case_id": "aHVtYW5DYXNlOjI0MjEzNjY=",
        "algorithm_id": 2, "algorithm_name": "Mitosis count", "origin": "techcyte", "priority": "clinical",
        "description": "", **_BY, "jobs": [_JOB],
    },
    "JobOut": _JOB,
    "JobEventOut": {
        "seq": 311, "attempt": 1, "event": "placed", "state": "preparing", "at": _AT, "node": "gpu-node-1", "cause": "",
    },
    "ResultsOut": {
        "caseResults": {"mitosisCount": 4, "triage": {"category": "high", "score": 0.93}},
        "scanResults": [
            {
                "scanId": "8946136", "results": {"mitosisCount": 4}, "qcFailReasons": None, "workflow": None,
                "geojson": _GEOJSON, "features": 1, "summary": {"annotations": {"mitosis": 1}}, "jobId": 42,
                "createdAt": _LATER,
            }
        ],
    },
    "DeliveryOut": {
        "id": 12, "task_id": "185714", "scan_id": "8946136", "job_id": 42, "kind": "result", "state": "delivered",
        "detail": "", "tries": 1, "status_code": 201, "not_before": _LATER, "sent_at": _LATER, "ended_at": _LATER,
        "decided_by": "", "created_at": _AT,
    },
    "ResultsBody": {
        "caseResults": {"mitosisCount": 4},
        "scanResults": [{"scanId": "8946136", "geojson": _GEOJSON}],
    },
    "CasePatchBody": {"triage_category": "high", "triage_score": 0.93},
    "EvaluationOut": {
        "id": 31, "sample_id": 8946136, "case_id": 2421366, "task_id": 185714,
        "details": {"report": {"mitosisCount": 4}},
    },
    "TokenOut": {"access_token": "eyJ…", "token_type": "Bearer", "expires_in": 43200},
    "HealthOut": {"ready": True, "parts": {"database": "ok", "blobs": "ok", "registry": "ok", "dispatcher": "ok"}},
    "AliveOut": {"status": "ok"},
    "Problem": {
        "type": "/problems/invalid-input", "title": "The request has faults", "status": 422,
        "detail": "$.instance_type: 'g4dn' is not one of g4dn.xlarge, …",
        "errors": [{"path": "$.instance_type", "message": "'g4dn' is not one of g4dn.xlarge, …"}],
    },
}  # fmt: skip
