"""The way of a scan through the client, with a platform of a few lines."""

import json
import os
import socket
import tempfile
import threading
import unittest
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from unittest import mock

from mhs_warm import scans


class Host:
    """Hands out scans and keeps what it is told."""

    def __init__(self, folder, count):
        self.path, self.told = str(Path(folder) / "s"), []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, args=(count,))
        self.thread.start()

    def serve(self, count):
        client, _ = self.listener.accept()
        lines = client.makefile()
        for number in range(count + 1):
            self.told.append(json.loads(lines.readline()))
            answer = {"scan": str(number), "env": {"SCAN_ID": f"id {number}"}} if number < count else {"end": "done"}
            client.sendall(json.dumps(answer).encode() + b"\n")
        client.close()
        self.listener.close()


class WarmTest(unittest.TestCase):
    def test_each_scan_has_its_variables_and_fails_alone(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"SCAN_URL_ZIP": "of no scan"}):
            host, seen = Host(folder, 4), []
            with redirect_stderr(StringIO()) as shown:
                for scan in scans(host.path):
                    with scan:
                        seen.append((os.environ["SCAN_ID"], "SCAN_URL_ZIP" in os.environ))
                        if scan.name == "1":
                            raise ValueError("no nuclei")
                        if scan.name == "2":
                            raise SystemExit(3)
                        if scan.name == "3":
                            raise SystemExit(0)
            host.thread.join()
        self.assertEqual(seen, [(f"id {n}", False) for n in range(4)])
        self.assertIn("ValueError: no nuclei", shown.getvalue())
        self.assertEqual(
            host.told,
            [
                {"ready": 1},
                {"done": "0"},
                {"failed": "1", "code": 1, "message": "ValueError: no nuclei"},
                {"failed": "2", "code": 3, "message": ""},
                {"done": "3"},
            ],
        )

    def test_without_a_socket_there_is_the_one_scan_of_the_environment(self):
        with mock.patch.dict(os.environ, {"SCAN_ID": "7"}):
            os.environ.pop("MHS_WARM_SOCKET", None)
            names = [scan.env["SCAN_ID"] for scan in scans()]
            self.assertEqual(names, ["7"])
            with self.assertRaises(SystemExit):
                for scan in scans():
                    with scan:
                        raise SystemExit(3)


if __name__ == "__main__":
    unittest.main()
