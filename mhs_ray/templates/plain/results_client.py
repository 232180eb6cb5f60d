"""A small client of the results API, https://api.{HOST}/api/v3."""

import os
import time
from urllib.parse import quote

import requests

CONNECT_TRIES = 5


class ResultsError(Exception):
    """The API could not be reached or did not take what was sent; holds no token."""


class ResultsClient:
    """host: without scheme, e.g. app.techcyte.com. token: a bearer token good for task_id."""

    def __init__(self, host, task_id, token):
        self.base = f"https://api.{host}/api/v3"
        self.task_id = task_id
        self._token = token

    @classmethod
    def from_env(cls):
        """Use HOST, TASK_ID and JWT_TOKEN, or API_KEY_ID and API_KEY_SECRET for tests on your own machine."""
        env = os.environ
        missing = [name for name in ("HOST", "TASK_ID") if not env.get(name)]
        if missing:
            raise ResultsError(f"{' and '.join(missing)} not set")
        token = env.get("JWT_TOKEN")
        if not token:
            if not (env.get("API_KEY_ID") and env.get("API_KEY_SECRET")):
                raise ResultsError("neither JWT_TOKEN nor API_KEY_ID and API_KEY_SECRET are set")
            token = fetch_token(env["HOST"], env["API_KEY_ID"], env["API_KEY_SECRET"])
        return cls(env["HOST"], env["TASK_ID"], token)

    def post_results(self, results):
        """Post {"caseResults": …, "scanResults": […]}. Posting twice makes two evaluations: do it once."""
        self._call("POST", f"/external/results/{quote(self.task_id, safe='')}", json=results)

    def patch_case(self, triage_category=None, triage_score=None):
        """Change the triage of the task's case; what is None stays as it is."""
        changes = {"triage_category": triage_category, "triage_score": triage_score}
        body = {name: value for name, value in changes.items() if value is not None}
        self._call("PATCH", f"/external/case/{quote(self.task_id, safe='')}", json=body)

    def _call(self, method, path, **what):
        return _request(method, self.base + path, headers={"Authorization": f"Bearer {self._token}"}, **what)


def fetch_token(host, key_id, key_secret):
    """Trade an API key for a token."""
    form = {"grant_type": "client_credentials"}
    answer = _request("POST", f"https://api.{host}/api/v3/token", auth=(key_id, key_secret), data=form)
    try:
        return answer.json()["access_token"]
    except (ValueError, KeyError, TypeError):
        raise ResultsError("the token endpoint answered without an access_token") from None


def _request(method, url, **what):
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            answer = requests.request(method, url, timeout=(10, 120), **what)
            break
        except requests.ConnectTimeout as error:
            failure = error
        except requests.ConnectionError as error:
            failure = error
            # Only what never reached the server may be sent again: results must not be stored twice.
            if "NewConnectionError" not in str(error):
                tries_left = 0
        except requests.RequestException as error:
            failure, tries_left = error, 0
        if not tries_left:
            raise ResultsError(f"{method} {url}: {type(failure).__name__}: {failure}") from None
        time.sleep(1)
    if answer.status_code >= 400:
        # A 422 says which part of the results is wrong.
        raise ResultsError(f"{method} {url}: HTTP {answer.status_code} {answer.text[:4000]}")
    return answer
