"""The model of the chaos run: works a while, posts as a careful client does, and ends as BEHAVIOUR says."""

import json
import os
import random
import sys
import time
import urllib.error
import urllib.request


def post(body):
    url = f"https://api.{os.environ['HOST']}/api/v3/external/results/{os.environ['TASK_ID']}"
    headers = {"Authorization": "Bearer " + os.environ["JWT_TOKEN"], "Content-Type": "application/json"}
    for _ in range(60):
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
            with urllib.request.urlopen(request, timeout=20) as answer:
                print("posted:", answer.status, flush=True)
                return
        except urllib.error.HTTPError as error:
            print("refused:", error.code, flush=True)
            if error.code < 500:
                sys.exit(3)
        except OSError as error:
            print("no answer:", error, flush=True)
        time.sleep(1)
    sys.exit(4)


behaviour = os.environ["BEHAVIOUR"]
with urllib.request.urlopen(os.environ["SCAN_URL"]) as slide:
    slide.read(1000)
time.sleep(random.uniform(0, 2))
if behaviour == "crash":
    raise ValueError("cannot count cells")
if behaviour != "silent":
    body = {"scanResults": [{"scanId": os.environ["SCAN_ID"], "results": {"task": os.environ["TASK_ID"]}}]}
    for _ in range(2 if behaviour == "twice" else 1):
        post(body)
