"""Another laboratory's container: requests with its own trust store, and no heed of proxy variables."""

import os
import tempfile
from pathlib import Path

import certifi
import requests

api = f"https://api.{os.environ['HOST']}/api/v3"
session = requests.Session()
session.trust_env = False
session.verify = certifi.where()
session.headers["Authorization"] = f"Bearer {os.environ['JWT_TOKEN']}"

work = Path(tempfile.mkdtemp())
slide = work / "image.svs"
with requests.get(os.environ["SCAN_URL"], stream=True, verify=certifi.where(), timeout=60) as answer:
    answer.raise_for_status()
    with slide.open("wb") as out:
        for piece in answer.iter_content(1 << 16):
            out.write(piece)
print(f"downloaded {slide.stat().st_size} bytes")

task = os.environ["TASK_ID"]  # as it came: an integer
answer = session.post(
    f"{api}/external/results/{task}",
    json={
        "scanResults": [
            {
                "scanId": os.environ["SCAN_ID"],
                "results": {"size": slide.stat().st_size, "threshold": os.environ["THRESHOLD"]},
            }
        ]
    },
    timeout=60,
)
print("POST", answer.status_code, answer.text)
answer.raise_for_status()
answer = session.get(f"{api}/external/case_evaluations/{task}", timeout=60)
answer.raise_for_status()
print("evaluations", len(answer.json()))
try:
    requests.get("https://example.com/", verify=certifi.where(), timeout=5)
except requests.RequestException as error:
    print("no way out:", type(error).__name__)
else:
    raise SystemExit("reached the internet")
