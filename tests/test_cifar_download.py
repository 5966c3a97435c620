"""The download of CIFAR-10 from a server of our own: whole or not at all, and nowhere but where it belongs."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from reslib.data.cifar import FOLDER, TEST_FILES, TRAIN_FILES, download
from reslib.errors import UserError

FILES = {f"{FOLDER}/{name}": name.encode() * 50 for name in (*TRAIN_FILES, *TEST_FILES, "batches.meta")}


def archive(files, *members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
        for info in members:
            tar.addfile(info)
    return out.getvalue()


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def serve():
    """serve(body, length, status) -> url of a server that sends `body` and promises `length` bytes."""
    servers = []

    def serve(body, length=None, status=200, stall=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.server.asked += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)
                if stall:
                    self.wfile.flush()
                    stall.wait(5)

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        server.asked = 0
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}/cifar.tar.gz"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def md5(raw):
    return hashlib.md5(raw).hexdigest()


def quiet(text):
    pass


def everything(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def refused(root, url, digest, **options) -> str:
    with pytest.raises(UserError) as caught:
        download(root, url, digest, say=quiet, **options)
    assert url in str(caught.value) or str(root) in str(caught.value)
    return str(caught.value)


def test_download_and_unpack(serve, tmp_path, monkeypatch):
    raw = archive(FILES)
    server, url = serve(raw)
    told = []
    monkeypatch.setenv("RESLIB_CIFAR10_URL", url)
    assert download(tmp_path / "new", md5=md5(raw), say=told.append) == tmp_path / "new" / FOLDER
    for name, contents in FILES.items():
        assert (tmp_path / "new" / name).read_bytes() == contents
    assert len(everything(tmp_path / "new")) == 2 + len(FILES) and url in told[0] and "MiB" in told[-1]
    # Again: the archive is there and whole, damaged batches are replaced
    (tmp_path / "new" / FOLDER / "data_batch_1").write_bytes(b"half")
    (tmp_path / "new" / FOLDER / "test_batch").unlink()
    download(tmp_path / "new", md5=md5(raw), say=quiet)
    assert server.asked == 1
    assert all((tmp_path / "new" / name).read_bytes() == contents for name, contents in FILES.items())
    assert len(everything(tmp_path / "new")) == 2 + len(FILES)
    # A damaged archive is fetched again
    (tmp_path / "new" / "cifar-10-python.tar.gz").write_bytes(raw[:100])
    download(tmp_path / "new", md5=md5(raw), say=quiet)
    assert server.asked == 2


def test_wrong_md5(serve, tmp_path):
    raw = archive(FILES)
    _, url = serve(raw)
    text = refused(tmp_path, url, "0" * 32)
    assert md5(raw) in text and "expected " + "0" * 32 in text and "nothing was kept" in text
    assert everything(tmp_path) == []


def test_truncated_and_interrupted(serve, tmp_path):
    raw = archive(FILES)
    _, url = serve(raw[:99], length=len(raw))  # the connection ends early
    text = refused(tmp_path, url, md5(raw))
    assert "cannot be downloaded" in text and "99 of" in text
    assert everything(tmp_path) == []
    stall = threading.Event()
    _, url = serve(raw[:99], length=len(raw), stall=stall)
    assert "timed out" in refused(tmp_path, url, md5(raw), timeout=0.3)
    stall.set()
    assert everything(tmp_path) == []


def test_a_slow_server_is_given_up(serve, tmp_path):
    body = archive(FILES)
    server, url = serve(body, length=10**12)
    with pytest.raises(UserError, match="would take .* minutes at this speed, more than"):
        download(tmp_path, url, hashlib.md5(body).hexdigest(), say=lambda text: None, patience=0.01)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(serve, tmp_path):
    raw = archive(FILES)
    _, url = serve(raw)

    def interrupt(text):
        if "MiB" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(tmp_path, url, md5(raw), say=interrupt)
    assert everything(tmp_path) == []


def test_servers_that_do_not_answer(serve, tmp_path):
    server, url = serve(b"", status=404)
    assert "cannot be downloaded: Not Found" in refused(tmp_path, url, "0" * 32)
    server.shutdown()
    server.server_close()
    assert "Connection refused" in refused(tmp_path, url, "0" * 32)
    for url in ("http://", "nonsense", "nonsense://x", "file:///nowhere/cifar.tar.gz"):
        assert "cannot be downloaded" in refused(tmp_path, url, "0" * 32)
    assert everything(tmp_path) == []


def test_unwritable_root(serve, tmp_path):
    raw = archive(FILES)
    _, url = serve(raw)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(tmp_path / "file", url, md5(raw))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_not_made(serve, tmp_path, kind):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.write_text("mine")
    files = {name: contents for name, contents in FILES.items() if "test_batch" not in name}
    raw = archive(files, link(f"{FOLDER}/test_batch", "../../outside", kind))
    _, url = serve(raw)
    assert f"{FOLDER}/test_batch is not in it as a file" in refused(root, url, md5(raw))
    assert everything(root) == ["cifar-10-python.tar.gz"] and outside.read_text() == "mine"


def test_an_archive_cannot_write_elsewhere(serve, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    evil = {
        "../outside/a": b"x",
        f"{FOLDER}/../../outside/b": b"x",
        f"{outside}/c": b"x",
        f"/{FOLDER}/test_batch": b"x",
        f"{FOLDER}/sub/test_batch": b"x",
        f"{FOLDER}/other": b"x",
        f"x/../{FOLDER}/test_batch": b"x",
    }
    # A link to the folder outside, then a file through it
    links = [link(FOLDER, str(outside), tarfile.SYMTYPE), link(f"{FOLDER}/data_batch_1", str(outside), tarfile.SYMTYPE)]
    raw = archive({**FILES, **evil}, *links)
    _, url = serve(raw)
    assert download(root, url, md5(raw), say=quiet) == root / FOLDER
    assert everything(outside) == [] and not (root / FOLDER).is_symlink()
    assert everything(root) == sorted(["cifar-10-python.tar.gz", FOLDER, *FILES])
    assert all((root / name).read_bytes() == contents for name, contents in FILES.items())


def test_what_is_no_archive(serve, tmp_path):
    for raw in (b"", b"not an archive", archive(FILES)[:-200], archive({})):
        _, url = serve(raw)
        assert "cannot be unpacked" in refused(tmp_path, url, md5(raw))
        assert everything(tmp_path) == ["cifar-10-python.tar.gz"]  # as promised by its MD5
        (tmp_path / "cifar-10-python.tar.gz").unlink()
