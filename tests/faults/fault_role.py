"""A program with the probes of a role and nothing else, for the tests of the rig.

It is ready `--ready-after` seconds after its start, ends with 0 on SIGTERM, and with 3 when asked for ``/fall``.
"""

import argparse
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Probes(BaseHTTPRequestHandler):
    ready_s = 0.0

    def do_GET(self) -> None:
        if self.path == "/fall":
            print("falls", flush=True)  # noqa: T201  # its log
            os._exit(3)
        ready = self.path != "/ready" or time.monotonic() >= self.ready_s
        self.send_response(200 if ready else 503)
        self.end_headers()
        if self.path == "/metrics":
            self.wfile.write(
                b'# TYPE lag_seconds gauge\nlag_seconds{partition="0"} 0.25\nlag_seconds{partition="1"} 3\n'
            )

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the library's
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--probe-port", type=int, required=True)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--journal")
    chosen = parser.parse_args()
    Probes.ready_s = time.monotonic() + chosen.ready_after
    server = ThreadingHTTPServer(("127.0.0.1", chosen.probe_port), Probes)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"bus {os.environ['TAPEWATCH_BUS']}, journal {chosen.journal}", flush=True)  # noqa: T201  # its log
    server.serve_forever()
    sys.exit(0)


if __name__ == "__main__":
    main()
