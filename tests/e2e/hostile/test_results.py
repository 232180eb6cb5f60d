"""Containers that misuse what they are allowed to do: posting results and one debug file."""

from __future__ import annotations

import io
import zipfile

import pytest

from tests.e2e.hostile.arena import JOBS, MIB, Arena, peak_rss, reset_peak

pytestmark = pytest.mark.engine


def test_a_results_body_of_a_gigabyte_is_refused_and_costs_no_memory(podman_arena: Arena) -> None:
    program = """
        own = "api." + os.environ["HOST"]
        path = "/api/v3/external/results/" + os.environ["TASK_ID"]
        def send(head, pieces):
            s = socket.create_connection(("127.0.0.1", 80), 10)  # without TLS it is over sooner
            s.settimeout(60)
            sent = 0
            try:
                s.sendall(f"POST {path} HTTP/1.1\\r\\nHost: {own}\\r\\nAuthorization: Bearer {os.environ['JWT_TOKEN']}\\r\\n{head}\\r\\n\\r\\n".encode())
                for piece in pieces:
                    s.sendall(piece)
                    sent += len(piece)
            except OSError:
                pass
            try:
                return s.recv(4096).split(b"\\r\\n")[0].decode(), sent >> 20
            except OSError:
                return "closed 000", sent >> 20
        block = b" " * (1 << 20)
        say("told", *send("Content-Length: 1073741824", (block for _ in range(1024))))
        chunk = b"100000\\r\\n" + block + b"\\r\\n"
        say("chunked", *send("Transfer-Encoding: chunked", (chunk if n < 200 else b"0\\r\\n\\r\\n" for n in range(201))))
        say("answer", post())
    """
    reset_peak()
    before = peak_rss()
    ended = podman_arena.run(program, time_limit_s=120)
    assert "413" in ended.said("told")[0]
    assert "413" in ended.said("chunked")[0]
    assert ended.said("answer") == ["201"]
    assert ended.code is None
    assert peak_rss() - before < 700 * MIB


def test_a_million_features_are_stored_or_refused_with_bounded_memory(podman_arena: Arena) -> None:
    program = """
        feature = b'{"type":"Feature","properties":{"annotation_type":"a"},"geometry":{"type":"Point","coordinates":[1,2]}}'
        head = b'{"scanResults":[{"scanId":"' + os.environ["SCAN_ID"].encode() + b'","geojson":{"type":"FeatureCollection","features":['
        tail = b"]}}]}"
        block, count = b",".join([feature] * 1000), 1000
        class Body:
            def __iter__(self):
                yield head
                for n in range(count):
                    yield (b"," if n else b"") + block
                yield tail
        size = len(head) + count * len(block) + count - 1 + len(tail)
        say("size", size >> 20)
        say("answer", call("POST", "/api/v3/external/results/" + os.environ["TASK_ID"], Body(), headers={"Content-Length": str(size)}))
    """
    reset_peak()
    before = peak_rss()
    ended = podman_arena.run(program, time_limit_s=120)
    assert ended.said("answer") in (["201"], ["413"], ["422"])
    assert ended.code in (None, "no-results", "invalid-results")
    assert peak_rss() - before < 1200 * MIB


def test_a_body_that_is_no_result_is_refused_whatever_its_shape(arena: Arena) -> None:
    program = """
        path = "/api/v3/external/results/" + os.environ["TASK_ID"]
        scan = os.environ["SCAN_ID"]
        bodies = {
            "deep": b"[" * 200_000, "deep object": b'{"scanResults":' * 50_000, "nan": b'{"scanResults":[{"scanId":"1","results":{"x":NaN}}]}',
            "utf": b'{"scanResults":[{"scanId":"\\xff"}]}', "number": b"1" * 1_000_000, "nothing": b"", "null": b"null",
            "other scan": b'{"scanResults":[{"scanId":"999999","results":{}}]}', "array": b"[]",
            "surrogate": ('{"scanResults":[{"scanId":"%s","results":{"summary":7}}]}' % scan).encode(),
            "type": ('{"scanResults":[{"scanId":"%s","results":{},"workflow":{"model_name":"a","provider":"b","ruo":true,"report":{"type":"../../etc/passwd"}}}]}' % scan).encode(),
        }
        for name, body in bodies.items():
            say("answer", call("POST", path, body), name)
    """
    ended = arena.run(program)
    answers = [line.split()[0] for line in ended.said("answer")]
    assert len(answers) == 11
    assert set(answers) <= {"400", "413", "422"}, ended.said("answer")
    assert ended.code == "invalid-results"


def test_a_token_is_good_for_its_own_task_and_attempt_only(arena: Arena) -> None:
    other = arena.new_order("pass")
    program = f"""
        own = os.environ["TASK_ID"]
        body = {{"scanResults": [{{"scanId": "{other.scan_number}", "results": {{}}}}]}}
        results = "/api/v3/external/results/"
        say("others task", call("POST", results + "{other.task_number}", body))
        say("others scan", call("POST", results + own, body))
        say("others case", call("PATCH", "/api/v3/external/case/{other.task_number}", {{"triage_score": 1}}))
        say("others evaluations", call("GET", "/api/v3/external/case_evaluations/{other.task_number}"))
        head, payload, mark = os.environ["JWT_TOKEN"].split(".")
        none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"
        for token in ("x", none + "." + payload + ".", head + "." + payload + ".AAAA", head + "." + payload[:-4] + "AAAA." + mark):
            say("forged", call("POST", results + own, body, token=token))
        say("as a client", call("POST", "/api/v3/token", b"grant_type=client_credentials"))
        say("own", post())
        say("again", post({{"summary": "other"}}))
    """
    ended = arena.run(program)
    assert ended.said("others task") == ["403"]
    assert ended.said("others scan")[0] in ("403", "404", "422")
    assert ended.said("others case") == ["403"]
    assert ended.said("others evaluations") == ["403"]
    assert ended.said("forged") == ["401"] * 4
    assert ended.said("as a client")[0] in ("401", "422")
    assert ended.said("own") == ["201"]
    assert ended.said("again") == ["201"]
    assert ended.code is None
    # The attempt is over: what it left behind cannot post any more, even from inside another sandbox.
    dead = arena.run(f"sys.exit(7 if post(token={other.jwt_token!r}) == 403 else 8)")
    assert dead.outcome.exit is not None
    assert dead.outcome.exit.exit_code == 7
    failed = arena.run("say('nothing'); sys.exit(9)")
    late = arena.run(f"""
        body = {{"scanResults": [{{"scanId": "{failed.order.scan_number}", "results": {{}}}}]}}
        say("late", call("POST", "/api/v3/external/results/{failed.order.task_number}", body, token={failed.order.jwt_token!r}))
        sys.exit(7)
    """)
    assert late.said("late") == ["403"]
    arena.end(other, None)


def test_a_debug_file_is_bytes_of_bounded_size_and_nothing_else(arena: Arena) -> None:
    program = """
        import io, zipfile
        def put(data, url=os.environ["DEBUG_FILE_UPLOAD_URL"]):
            try:
                return urllib.request.urlopen(urllib.request.Request(url, data, method="PUT"), timeout=60).status
            except urllib.error.HTTPError as error:
                return error.code
            except OSError as error:
                return "closed"
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("../../../../etc/cron.d/owned", "x")
            link = zipfile.ZipInfo("link")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/shadow")
        url = os.environ["DEBUG_FILE_UPLOAD_URL"]
        say("large", put(bytes(5 << 20)))
        say("unsigned", put(b"x", url.partition("?")[0]))
        say("elsewhere", put(b"x", url.replace("?", "/..%2f..%2fprivate%2fsign.key?")))
        say("as the slide", put(b"x", os.environ["SCAN_URL"]))
        say("good", put(made.getvalue()))
        try:
            urllib.request.urlopen(url)
            say("read back")
        except urllib.error.HTTPError as error:
            pass
        say("answer", post())
    """
    ended = arena.run(program)
    assert ended.said("large")[0] in ("400", "413", "closed")
    assert ended.said("unsigned") == ["403"]
    assert ended.said("elsewhere")[0] in ("403", "404")
    assert ended.said("as the slide") == ["403"]
    assert ended.said("good") == ["200"]
    assert ended.said("read back") == []
    with arena.core.blobs.open(f"jobs/{ended.order.job_id}/attempts/1/debug") as kept:
        data = kept.read()
    assert len(data) < JOBS.max_debug_file
    assert "link" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert ended.code is None
