"""Take scan after scan in one life: one file, needs Python 3.8 and nothing else. Copy it anywhere.

    from mhs_warm import scans

    model = load_model()                 # once
    for scan in scans():                 # the socket is at $MHS_WARM_SOCKET
        with scan:                       # os.environ now holds this scan's SCAN_URL, SCAN_ID, TASK_ID, JWT_TOKEN …
            post_results(model(download(os.environ["SCAN_URL"])))

An exception, or a non-zero `sys.exit`, within `with` fails that scan alone: the next one comes all the same. Let a
process end that can do no more (a broken GPU): its scan fails, and the next one gets a fresh container. What must not
be seen by the next scan (files in /tmp, /output) is yours to remove. Without the socket there is one scan, that of the
environment, and the same program is an ordinary container.
"""

import json
import os
import socket
import sys
import traceback

OF_A_SCAN = ("SCAN_ID", "TASK_ID", "SCAN_URL", "SCAN_URL_ZIP", "JWT_TOKEN", "DEBUG_FILE_UPLOAD_URL")


class Scan:
    """One scan. env: its variables. Left without an error it is done, with one it has failed."""

    def __init__(self, name, env, tell):
        self.name, self.env, self._tell = name, env, tell

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        code, message = 0, ""
        if kind is not None and issubclass(kind, SystemExit):
            code = error.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                message, code = code, 1
            code = 1 if code is True else int(code or 0)
        elif kind is not None:
            if self._tell is None or not issubclass(kind, Exception):
                return False
            traceback.print_exception(kind, error, trace)
            code, message = 1, "%s: %s" % (kind.__name__, error)
        if self._tell is None:
            return False
        sys.stdout.flush()  # so that every line of this scan is in its own log
        sys.stderr.flush()
        self._tell({"failed": self.name, "code": code, "message": message} if code else {"done": self.name})
        return True


def scans(path=None):
    """Yield scans until the platform has no more. path: of the socket."""
    path = path or os.environ.get("MHS_WARM_SOCKET")
    if not path:
        yield Scan("0", {name: os.environ[name] for name in OF_A_SCAN if name in os.environ}, None)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)

        def tell(message):
            client.sendall(json.dumps(message).encode() + b"\n")

        tell({"ready": 1})
        buffer = b""
        while True:
            while b"\n" not in buffer:
                more = client.recv(1 << 16)
                if not more:
                    return
                buffer += more
            line, _, buffer = buffer.partition(b"\n")
            message = json.loads(line)
            if "scan" not in message:
                return
            for name in OF_A_SCAN:
                os.environ.pop(name, None)
            os.environ.update(message["env"])
            yield Scan(message["scan"], message["env"], tell)
