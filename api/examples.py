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
_REPLAY: Final[dict[str, Any]] = {
    "job_id": 42, "state": "succeeded", "failure_code": None, "task_id": "185714", "scan_id": "8946136",
    "host": "app.techcyte.com", "instance_type": "g4dn.xlarge", "time_limit_s": 5400,
    "image": {
        "reference": f"registry.example.com/trusted/3@{_DIGEST}", "registry": "registry.example.com",
        "repository": "trusted/3", "digest": _DIGEST, "username": "AWS", "password": "…", "tls": True,
    },
    "env": [*_ENV, {"name": "LICENCE", "value": None, "secret": True}],
    "slide": {"name": "biopsy.svs", "sha256": ["5f70bf18a0"], "url": None, "path": "/slides/a.svs"},
    "results_digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
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

_CLIENT: Final[dict[str, Any]] = {
    "id": "mhs-0f3c1a2b4d5e6f70", "company_id": 2, "name": "LIMS", "role": "Lab User", "created_by": "Ada Lovelace",
    "created_at": _AT, "last_used_at": _LATER, "revoked_at": None,
}  # fmt: skip
_COMPANY: Final[dict[str, Any]] = {
    "id": 2, "name": "North Lab", "external_id": "1052", "mhs_enabled": True, "max_active_jobs": None,
    "has_webhook_secret": True, "created_at": _AT,
}  # fmt: skip

_MANIFEST: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_COHORT: Final[dict[str, Any]] = {
    "id": 4, "key": "lung-2026-03", "name": "Lung, March", "state": "running", "reason": "", "container_id": 5,
    "container_name": "My GPU Container", "algorithm_name": "cohorts: My GPU Container", "image_digest": _DIGEST,
    "instance_type": "g4dn.xlarge", "manifest": _MANIFEST, "rows": 5000, "received": 5000, "canary": 3,
    "skip_known": True, "mixed_formats": False,
    "counts": {
        "pending": 3708, "under_way": 8, "succeeded": 1270, "failed": 2, "cancelled": 0, "duplicate": 12, "left_out": 0,
    },
    "forecast": {
        "gpu_s": 111_252.0, "gpu_s_per_slide": 87.6, "gpu_s_left": 325_521.6, "eta_s": 40_690.2,
        "price_per_hour": 0.526, "spent": 16.26, "left": 47.56, "total": 63.82, "currency": "USD",
    },
    **_BY, "started_at": _AT, "ended_at": None,
}  # fmt: skip
_FAULT: Final = {"row": 17, "column": "slide", "reason": "there is no file /data/lung/017.svs"}

EXAMPLES: Final[dict[str, Any]] = {
    "CohortIn": {
        "key": "lung-2026-03", "name": "Lung, March", "container": "My GPU Container", "manifest": _MANIFEST,
        "rows": 5000,
    },
    "CohortOut": _COHORT,
    "CohortRowsIn": {
        "rows": [{"row": 1, "id": "lung-001", "slide": "s3://cohort/lung/001.svs", "labels": {"patient": "P17"}}],
    },
    "RowsTakenOut": {"received": 200, "faults": [_FAULT]},
    "RowFaultOut": _FAULT,
    "CohortStartIn": {"leave_out_bad": False},
    "CohortSlideOut": {
        "row": 1, "id": "lung-001", "slide": "s3://cohort/lung/001.svs", "format": "aperio",
        "labels": {"patient": "P17"},
        "state": "succeeded", "scan_row_id": 7, "job_id": 42, "failure_class": None, "failure_code": None, "cause": "",
        "gpu_s": 87.6, "ended_at": _LATER,
    },
    "PricesOut": {"currency": "USD", "per_hour": {"g4dn.xlarge": 0.526, "g5.2xlarge": 1.212}},
    "MeOut": {
        "client_id": "mhs-0f3c1a2b4d5e6f70", "name": "LIMS", "role": "Lab User", "company_id": 2,
        "company": "North Lab",
    },
    "ClientIn": {"name": "LIMS", "role": "Lab User"},
    "ClientOut": _CLIENT,
    "NewClientOut": {"client": _CLIENT, "client_secret": "shown this once"},
    "WebhookSecretOut": {"secret": "whsec_2_shown-this-once"},
    "CompanyIn": {"name": "North Lab", "external_id": "1052"},
    "CompanyPatch": {"mhs_enabled": False},
    "CompanyOut": _COMPANY,
    "AuditOut": {
        "id": 17, "at": _AT, "who": "Ada Lovelace", "client_id": "mhs-0f3c1a2b4d5e6f70", "action": "create image",
        "target": "/v1/images/3",
    },
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
    "ReplayOut": _REPLAY,
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
    "UsageOut": {
        "since": "2026-03-01", "until": "2026-03-31",
        "items": [{
            "day": "2026-03-02", "company_id": 1, "company": "North Lab", "instance_type": "g5.2xlarge",
            "attempts": 1291, "jobs": 1288, "failed": 7, "gpu_s": 154_210.4, "platform_gpu_s": 31.9,
        }],
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
