"""Google's and Amazon's object stores on this machine, each with a bucket named "bucket", made to fail at times."""

import logging
import re
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import pytest

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


class Faults:
    """Which requests a server answers with 503: each `every`-th, 0 for none."""

    every = seen = struck = 0

    def strike(self) -> bool:
        self.seen += 1
        hit = self.every > 0 and self.seen % self.every == 0
        self.struck += hit
        return hit


def google(patch: pytest.MonkeyPatch, faults: Faults) -> tuple[Callable[[], None], str]:
    """Starts a store for gs://; how to stop it and the variable that tells gcsfs where it is.

    The emulator knows no generations, by which tensorstore tells whether another has written meanwhile: they are
    compared and told here.
    """
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="gs:// needs the emulator gcp-storage-emulator")
    missing = pytest.importorskip("gcp_storage_emulator.exceptions").NotFound
    handle, end_headers = server.Router.handle, server.RequestHandler.end_headers

    def generation(request):
        url = urlsplit(request.path)
        named, uploaded = OBJECT.fullmatch(url.path), UPLOAD.fullmatch(url.path)
        if named is None and uploaded is None:
            return None, {}
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        name = unquote(named[2]) if named else query.get("name", "")
        try:
            return request.storage.get_file_obj((named or uploaded)[1], name)["generation"], query
        except missing:
            return "0", query

    def refused(request):
        now, query = generation(request)
        if query.get("ifGenerationMatch", now) != now:
            return 412
        return 304 if "ifGenerationNotMatch" in query and query["ifGenerationNotMatch"] == now else None

    def handled(router, method):
        request = router._request_handler
        answer = 503 if faults.strike() else refused(request)
        if answer is None:
            return handle(router, method)
        server._read_raw_data(request)
        request.send_response(answer)
        request.end_headers()

    def headers_ended(request):
        if request.command == "GET" and "alt=media" in request.path:
            request.send_header("x-goog-generation", generation(request)[0])
        end_headers(request)

    patch.setattr(server.Router, "handle", handled)
    patch.setattr(server.RequestHandler, "end_headers", headers_ended, raising=False)
    patch.setattr(server.server.HTTPServer, "handle_error", lambda *_: None)  # clients that hang up
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    emulator = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    emulator.start()
    address = f"http://127.0.0.1:{emulator._api._httpd.server_address[1]}"
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        patch.setenv(name, address)
    patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return emulator.stop, "STORAGE_EMULATOR_HOST"


def amazon(patch: pytest.MonkeyPatch, faults: Faults) -> tuple[Callable[[], None], str]:
    """Starts a store for s3://; how to stop it and the variable that tells s3fs where it is."""
    for library in ("s3fs", "flask", "flask_cors"):
        pytest.importorskip(library, reason="s3:// needs s3fs and the emulator moto with flask and flask-cors")
    server = pytest.importorskip("moto.server", reason="s3:// needs the emulator moto")
    application = pytest.importorskip("moto.moto_server.werkzeug_app").DomainDispatcherApplication
    call = application.__call__

    def handled(self, environ, start_response):
        if not faults.strike():
            return call(self, environ, start_response)
        start_response("503 Service Unavailable", [("Content-Length", "0")])
        return [b""]

    patch.setattr(application, "__call__", handled)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    emulator = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    emulator.start()
    patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*emulator.get_host_and_port()))
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "key"), ("DEFAULT_REGION", "us-east-1")):
        patch.setenv(f"AWS_{name}", value)
    fsspec.filesystem("s3").mkdir("bucket")
    return emulator.stop, "AWS_ENDPOINT_URL"
