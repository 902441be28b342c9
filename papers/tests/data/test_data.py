"""Data files are checked and never changed; the splits are what they say, always the same."""

import gzip
import hashlib
import http.server
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from flatwise.study.tasks.classification import DataError
from flatwise_papers.data import mnist
from flatwise_papers.data.files import DataFile, read_file
from flatwise_papers.data.mnist import load_mnist

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
RAW = SHARED / "mnist" / "MNIST" / "raw"
IMAGES = "train-images-idx3-ubyte.gz"
needs_mnist = pytest.mark.skipif(not (RAW / IMAGES).is_file(), reason="no MNIST in ../shared/data beside the checkout")

CONTENT = b"some published bytes"
FILE = DataFile(
    name="set.bin", sha256=hashlib.sha256(CONTENT).hexdigest(), folders=("inner/raw", "raw", ""), mirrors=()
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    """Neither the machine's FLATWISE_DATA nor its cache may decide a test."""
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)


def put(folder, content=CONTENT, inner=""):
    (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / inner / FILE.name).write_bytes(content)
    return folder


# Where a file is looked for


@pytest.mark.parametrize("inner", FILE.folders)
def test_file_is_found_in_every_layout(tmp_path, inner):
    assert read_file(FILE, put(tmp_path, inner=inner)) == CONTENT


def test_environment_variable_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATWISE_DATA", str(put(tmp_path / "env")))
    assert read_file(FILE) == CONTENT


def test_home_in_the_environment_variable_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    put(tmp_path / "env")
    monkeypatch.setenv("FLATWISE_DATA", "~/env")
    assert read_file(FILE) == CONTENT


def test_explicit_folder_wins_and_there_is_no_second_guess(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATWISE_DATA", str(put(tmp_path / "env", b"other bytes")))
    assert read_file(FILE, put(tmp_path / "explicit")) == CONTENT

    monkeypatch.setenv("FLATWISE_DATA", str(put(tmp_path / "env")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"set\.bin.*data_dir"):
        read_file(FILE, tmp_path / "empty")


def test_missing_file_names_the_places_looked_at_and_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FLATWISE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        read_file(FILE)
    message = str(caught.value)
    assert "\n" not in message
    assert "FLATWISE_DATA" in message
    for inner in FILE.folders:
        assert f"'{tmp_path / inner / FILE.name}'" in message


@pytest.mark.parametrize("is_file", [False, True])
def test_data_folder_that_is_none(tmp_path, is_file):
    folder = tmp_path / "absent"
    if is_file:
        folder.write_text("")
    with pytest.raises(DataError, match=r"data_dir names the folder '.*absent', which is not there"):
        read_file(FILE, folder)


def test_unreadable_file_is_told_apart_from_a_missing_one(tmp_path):
    (tmp_path / FILE.name).mkdir()  # a folder in the file's place: unreadable even for root
    with pytest.raises(DataError, match=r"set\.bin' cannot be read \(.+\): make it readable"):
        read_file(FILE, tmp_path)


def test_folder_that_may_not_be_entered(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        read_file(FILE, tmp_path)


def test_corrupt_file_is_named_with_both_checksums_and_left_alone(tmp_path):
    flipped = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    put(tmp_path, flipped)
    with pytest.raises(DataError) as caught:
        read_file(FILE, tmp_path)
    for part in (str(tmp_path / FILE.name), FILE.sha256, hashlib.sha256(flipped).hexdigest()):
        assert part in str(caught.value)
    assert (tmp_path / FILE.name).read_bytes() == flipped


def test_nothing_is_written_to_a_users_folder(tmp_path):
    put(tmp_path)
    os.chmod(tmp_path, 0o555)
    try:
        assert read_file(FILE, tmp_path) == CONTENT
        assert [path.name for path in tmp_path.iterdir()] == [FILE.name]
    finally:
        os.chmod(tmp_path, 0o755)


# Download


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine: ``server.files`` maps paths to contents, ``server.asked`` lists the requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            content = self.server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.files, running.asked = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def on_mirrors(server, *names):
    mirrors = tuple(f"{server.url}/{name}/" for name in names)
    return DataFile(name=FILE.name, sha256=FILE.sha256, folders=FILE.folders, mirrors=mirrors)


def test_download_goes_to_the_cache_once(server, tmp_path):
    server.files["/a/set.bin"] = CONTENT
    file = on_mirrors(server, "a", "b")
    assert read_file(file) == CONTENT
    assert (tmp_path / "cache/flatwise/inner/raw/set.bin").read_bytes() == CONTENT
    assert read_file(file) == CONTENT
    assert server.asked == ["/a/set.bin"]


@pytest.mark.parametrize("first", [None, b"corrupt"])
def test_mirrors_are_tried_in_order(server, first):
    if first is not None:
        server.files["/a/set.bin"] = first
    server.files["/b/set.bin"] = CONTENT
    assert read_file(on_mirrors(server, "a", "b")) == CONTENT
    assert server.asked == ["/a/set.bin", "/b/set.bin"]


def test_failed_download_says_why_and_what_to_do_and_leaves_no_file(server, tmp_path):
    server.files["/a/set.bin"] = b"corrupt"
    with pytest.raises(DataError) as caught:
        read_file(on_mirrors(server, "a", "b"))
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"{server.url}/a/set.bin: SHA256", f"{server.url}/b/set.bin: 404", "data_dir", "FLATWISE_DATA"):
        assert part in message
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_no_network_is_a_data_error(server):
    file = on_mirrors(server, "a")
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="could not be downloaded"):
        read_file(file)


def test_cache_that_cannot_be_written_is_a_data_error(server, tmp_path):
    server.files["/a/set.bin"] = CONTENT
    (tmp_path / "cache").write_text("a file where the folder should go")
    with pytest.raises(DataError, match="could not be downloaded"):
        read_file(on_mirrors(server, "a"))


def test_corrupt_file_in_the_cache_is_not_replaced(server, tmp_path):
    server.files["/a/set.bin"] = CONTENT
    put(tmp_path / "cache/flatwise", b"corrupt", inner="inner/raw")
    with pytest.raises(DataError, match="corrupt"):
        read_file(on_mirrors(server, "a"))
    assert (tmp_path / "cache/flatwise/inner/raw/set.bin").read_bytes() == b"corrupt"
    assert server.asked == []


def test_no_download_when_the_user_gave_a_folder(server, tmp_path):
    server.files["/a/set.bin"] = CONTENT
    with pytest.raises(DataError):
        read_file(on_mirrors(server, "a"), tmp_path)
    assert server.asked == []


# idx files


def idx(values, magic=None):
    values = np.asarray(values, dtype=np.uint8)
    header = bytes([0, 0, 8, values.ndim]) if magic is None else magic
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def test_idx_values_and_their_order():
    values = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(mnist.parse_idx(gzip.compress(idx(values)), (2, 3, 4), "x.gz"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(gzip.compress(idx(np.ones(500)))[:-9], "not a whole gzip file", id="truncated"),
        pytest.param(b"plain text", "not a whole gzip file", id="not-gzip"),
        pytest.param(gzip.compress(b""), "starts with '', expected '00000801'", id="empty"),
        pytest.param(gzip.compress(idx(np.ones((500, 1)))), "starts with '00000802'", id="dimensions"),
        pytest.param(gzip.compress(idx(np.ones(500), b"\0\0\x0d\1")), "starts with '00000d01'", id="type"),
        pytest.param(gzip.compress(idx(np.ones(500))[:6]), "ends inside its header", id="header"),
        pytest.param(gzip.compress(idx(np.ones(499))), r"shape is \(499,\), expected \(500,\)", id="shape"),
        pytest.param(gzip.compress(idx(np.ones(500))[:-1]), "holds 499 values, expected 500", id="short"),
        pytest.param(gzip.compress(idx(np.ones(500)) + b"\0"), "holds 501 values, expected 500", id="long"),
    ],
)
def test_broken_idx_file(content, message):
    with pytest.raises(DataError, match=rf"^'labels\.gz' .*{message}.*: get the file again\.$"):
        mnist.parse_idx(content, (500,), "labels.gz")


def test_flipped_byte_in_the_compressed_stream():
    content = bytearray(gzip.compress(idx(np.arange(500) % 7)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"not a whole gzip file"):
        mnist.parse_idx(bytes(content), (500,), "labels.gz")


# MNIST


@pytest.fixture(scope="module")
def real_mnist():
    return load_mnist(SHARED)


def test_mnist_split_is_disjoint_complete_and_pinned():
    train, val = mnist.split_indices()
    assert len(train) == 50_000
    assert len(val) == 10_000
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(60_000))
    # The split is part of what published numbers mean: a change must be seen.
    assert hashlib.sha256(val.astype("<i8").tobytes()).hexdigest().startswith("8d84fa8d3e0cad8f")


@needs_mnist
def test_mnist_shapes_and_normalisation(real_mnist):
    for split, size in (("train", 50_000), ("val", 10_000), ("test", 10_000)):
        x, y = getattr(real_mnist, f"{split}_x"), getattr(real_mnist, f"{split}_y")
        assert (x.shape, x.dtype) == ((size, 784), torch.float32)
        assert (y.shape, y.dtype) == ((size,), torch.int64)
        assert y.unique().tolist() == list(range(10))
    assert real_mnist.train_x.mean().item() == pytest.approx(0, abs=1e-5)
    assert real_mnist.train_x.std().item() == pytest.approx(1, abs=1e-5)


@needs_mnist
def test_mnist_images_and_labels_stay_together(real_mnist):
    raw = mnist.read_mnist(SHARED)
    assert raw.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as in every MNIST tutorial
    train, val = mnist.split_indices()
    for indices, x, y in ((train, real_mnist.train_x, real_mnist.train_y), (val, real_mnist.val_x, real_mnist.val_y)):
        assert np.array_equal(y.numpy(), raw.train_labels[indices])
        for position in (0, 1234, len(indices) - 1):
            pixels = raw.train_images[indices[position]].reshape(-1) / 255
            assert np.allclose(x[position].numpy(), (pixels - 0.1307) / 0.3081, atol=0.01)  # the known statistics


@needs_mnist
@pytest.mark.parametrize("folder", [SHARED, SHARED / "mnist", SHARED / "mnist" / "MNIST", RAW])
def test_mnist_layouts(folder, monkeypatch):
    monkeypatch.setenv("FLATWISE_DATA", str(folder))
    assert mnist.read_mnist().train_images.shape == (60_000, 28, 28)


@needs_mnist
@pytest.mark.parametrize(("size", "flip"), [(-1000, None), (None, 5_000_000)], ids=["truncated", "flipped"])
def test_mnist_that_is_damaged(tmp_path, size, flip):
    for path in RAW.glob("*.gz"):
        content = bytearray(path.read_bytes())
        if path.name == IMAGES:
            content = content[:size]
            if flip is not None:
                content[flip] ^= 1
        (tmp_path / path.name).write_bytes(content)
    with pytest.raises(DataError, match=f"{IMAGES}' is corrupt: expected SHA-256 {mnist.SHA256[IMAGES]}"):
        load_mnist(tmp_path)


@needs_mnist
def test_mnist_download(server, monkeypatch, tmp_path):
    monkeypatch.setattr(mnist, "MIRRORS", (f"{server.url}/mnist/",))
    server.files.update({f"/mnist/{path.name}": path.read_bytes() for path in RAW.glob("*.gz")})
    assert mnist.read_mnist().test_labels[0] == 7
    assert len(list((tmp_path / "cache/flatwise/MNIST/raw").iterdir())) == 4


def test_loading_leaves_the_global_random_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    mnist.split_indices()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
