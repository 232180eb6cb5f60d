"""A request as Techcyte's webhook sends it, for the OpenAPI page and the tests."""

from typing import Any, Final

WEBHOOK_EXAMPLE: Final[dict[str, Any]] = {
    "company_id": "1052",
    "scans": {"8946136": "https://slides.example.com/8946136?X-Amz-Expires=604800&X-Amz-Signature=0"},
    "scan_urls": {"8946136": ["https://slides.example.com/8946136?X-Amz-Expires=604800&X-Amz-Signature=0"]},
    "stains": {"8946136": {"value": "hematoxylin_and_eosin", "stain_code": "HE", "label": "H&E"}},
    "case_id": "aHVtYW5DYXNlOjI0MjEzNjY=",
    "task_id": "dGFzazoxODU3MTQ=",
    "model_name": "Mitosis count",
    "jwt_token": "eyJ0eXAiOiJKV1QifQ.e30.0",
}
