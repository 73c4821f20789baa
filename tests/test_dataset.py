"""Shards are listed, split, read and downloaded as they should be, and what is wrong with them is said."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset
from tests.vectors_io import load

VECTORS = load("dataloader")


def write_shard(path: Path, row_groups: list[list[str]], column: str = "text") -> None:
    """A parquet file with one row group per list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(column, pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for documents in row_groups:
            writer.write_table(pa.table({column: documents}, schema))


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The (not yet existing) data directory of a fresh base directory, seen by a single rank."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "base_data_climbmix"


@pytest.fixture
def shards(data_dir: Path) -> Path:
    """The data directory with the shards of the vectors."""
    for shard in VECTORS["shards"]:
        write_shard(data_dir / shard["name"], shard["row_groups"])
    return data_dir


def test_constants_equal_the_original(data_dir: Path) -> None:
    assert VECTORS["dataset_constants"] == {
        "max_shard": dataset.MAX_SHARD,
        "filename_7": dataset.index_to_filename(7),
        "data_dir_basename": dataset.get_data_dir().name,
    }
    assert dataset.get_data_dir() == data_dir


def test_only_finished_shards_are_listed_in_order(tmp_path: Path) -> None:
    for name in reversed(VECTORS["list_parquet_filter"]["files"]):
        (tmp_path / name).touch()
    listed = dataset.list_parquet_files(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in listed] == VECTORS["list_parquet_filter"]["result"]


def test_the_data_directory_is_listed_by_default(shards: Path) -> None:
    expected = [str(shards / name) for name in VECTORS["list_parquet_basenames"]]
    assert dataset.list_parquet_files() == expected
    assert sum(len(group) for shard in VECTORS["shards"] for group in shard["row_groups"]) == VECTORS["document_count"]


@pytest.mark.parametrize("case", VECTORS["parquets_iter_batched"])
def test_batches_equal_the_original(shards: Path, case: dict[str, Any]) -> None:
    batches = dataset.parquets_iter_batched(case["split"], case["start"], case["step"])
    assert [[batch[0], len(batch)] for batch in batches] == case["batches_first_doc_and_len"]


def test_ranks_share_the_row_groups_without_overlap(shards: Path) -> None:
    everything = sorted(doc for batch in dataset.parquets_iter_batched("train") for doc in batch)
    for world_size in (2, 3, 7):
        ranks = [dataset.parquets_iter_batched("train", rank, world_size) for rank in range(world_size)]
        assert sorted(doc for rank in ranks for batch in rank for doc in batch) == everything


def test_an_unknown_split_is_refused_as_in_the_original(shards: Path) -> None:
    assert VECTORS["errors"]["iter_bad_split"] == "AssertionError"
    with pytest.raises(AssertionError, match="'test': it must be"):
        next(dataset.parquets_iter_batched("test"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_shards_names_the_command_that_gets_them(data_dir: Path, split: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no parquet shards; run `python -m nanochat\.dataset -n 8`"):
        next(dataset.parquets_iter_batched(split))


def test_a_single_shard_is_for_validation_only(data_dir: Path) -> None:
    write_shard(data_dir / "shard_00000.parquet", [["a"]])
    assert list(dataset.parquets_iter_batched("val")) == [["a"]]
    with pytest.raises(FileNotFoundError, match="the only shard is the validation split"):
        next(dataset.parquets_iter_batched("train"))


def test_a_shard_without_text_is_named_with_its_columns(data_dir: Path) -> None:
    write_shard(data_dir / "shard_00000.parquet", [["a"]], column="body")
    with pytest.raises(ValueError, match=r"shard_00000\.parquet has no `text` column \(its columns: body\)"):
        next(dataset.parquets_iter_batched("val"))


def test_only_the_text_column_is_read(data_dir: Path) -> None:
    data_dir.mkdir()
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"]}), data_dir / "shard_00000.parquet")
    assert list(dataset.parquets_iter_batched("val")) == [["a", "b"]]


@pytest.mark.parametrize("size", [0, 3, 200, -1])
def test_a_truncated_shard_is_named(data_dir: Path, size: int) -> None:
    path = data_dir / "shard_00000.parquet"
    write_shard(path, [["some text"] * 50])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"shard_00000\.parquet cannot be read .*delete it and run"):
        next(dataset.parquets_iter_batched("val"))


def test_a_shard_with_a_damaged_body_is_named(data_dir: Path) -> None:
    """The end of the file, which is read first, is intact here."""
    path = data_dir / "shard_00000.parquet"
    write_shard(path, [[f"text {i}" for i in range(500)]])
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = bytes(196)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"shard_00000\.parquet cannot be read"):
        next(dataset.parquets_iter_batched("val"))


def test_importing_touches_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    modules = "nanochat.dataset, nanochat.dataloader, nanochat.sft, nanochat.packing"
    code = f"import {modules}, sys; print('nanochat.gpt' in sys.modules)"
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr, base.exists()) == ("False\n", "", False)


# Downloads, from a server on the loopback address that answers as scripted.

BODY = b"parquet bytes " * 10_000
Answer = Callable[[BaseHTTPRequestHandler], None]


def whole(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY)


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(BODY)))
    handler.end_headers()
    handler.wfile.write(BODY[:1000])


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def babble(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"this is not HTTP\r\n\r\n")
    handler.close_connection = True


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


class Hub:
    """A server that gives the scripted answers in order, then whole files; it records the paths asked for."""

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                (hub.script.pop(0) if hub.script else whole)(self)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/data"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, in seconds, recorded in place of waiting."""
    waits: list[float] = []
    monkeypatch.setattr(dataset, "sleep", waits.append)
    return waits


def test_download(hub: Hub, tmp_path: Path) -> None:
    path = dataset.download_shard(7, tmp_path / "new", hub.url)
    assert (path, path.read_bytes()) == (tmp_path / "new" / "shard_00007.parquet", BODY)
    assert hub.requests == ["/data/shard_00007.parquet"]
    assert [p.name for p in path.parent.iterdir()] == ["shard_00007.parquet"]


def test_what_is_there_is_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "shard_00007.parquet").write_text("mine")
    assert dataset.download_shard(7, tmp_path, hub.url).read_text() == "mine"
    assert hub.requests == []


@pytest.mark.parametrize(
    "failures",
    [[status(503)], [hang_up], [cut_short], [babble], [status(429), cut_short, status(500), hang_up]],
    ids=["503", "hang up", "cut short", "babble", "four in a row"],
)
def test_failed_attempts_are_repeated_with_growing_waits(
    hub: Hub, waits: list[float], tmp_path: Path, failures: list[Answer]
) -> None:
    hub.script = list(failures)
    assert dataset.download_shard(3, tmp_path, hub.url, backoff=0.5).read_bytes() == BODY
    assert waits == [0.5, 1.0, 2.0, 4.0][: len(failures)]
    assert [p.name for p in tmp_path.iterdir()] == ["shard_00003.parquet"]


def test_nothing_is_left_when_every_attempt_fails(hub: Hub, waits: list[float], tmp_path: Path) -> None:
    hub.script = [cut_short] * 3
    with pytest.raises(ConnectionError, match=r"shard_00003\.parquet in 3 attempt.*received 1000 of 140000 bytes"):
        dataset.download_shard(3, tmp_path, hub.url, attempts=3)
    assert len(waits) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_does_not_exist_is_asked_for_once(hub: Hub, waits: list[float], tmp_path: Path) -> None:
    hub.script = [status(404)] * 2
    with pytest.raises(ConnectionError, match="404"):
        dataset.download_shard(9999, tmp_path, hub.url)
    assert (len(hub.requests), waits) == (1, [])


def test_the_file_appears_only_when_complete(hub: Hub, tmp_path: Path) -> None:
    """A reader that lists the directory during the download must not see the shard."""
    halfway, go_on = threading.Event(), threading.Event()

    def in_two_halves(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY[:50_000])
        halfway.set()
        go_on.wait(10)
        handler.wfile.write(BODY[50_000:])

    hub.script = [in_two_halves]
    thread = threading.Thread(target=dataset.download_shard, args=(3, tmp_path, hub.url))
    thread.start()
    assert halfway.wait(10)
    listed = dataset.list_parquet_files(tmp_path)
    go_on.set()
    thread.join()
    assert listed == []
    assert dataset.list_parquet_files(tmp_path) == [str(tmp_path / "shard_00003.parquet")]


def test_attempts_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`attempts` is 0"):
        dataset.download_shard(0, tmp_path, attempts=0)


@pytest.fixture
def command(hub: Hub, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command line talks to the local server; returns the data directory."""
    monkeypatch.setattr(dataset, "download_shard", partial(dataset.download_shard, base_url=hub.url, attempts=1))
    return data_dir


def test_command_downloads_the_training_shards_and_the_validation_shard(command: Path) -> None:
    assert dataset.main(["-n", "2", "-w", "2"]) == 0
    assert sorted(p.name for p in command.iterdir()) == [
        "shard_00000.parquet",
        "shard_00001.parquet",
        "shard_06542.parquet",
    ]


def test_command_reports_what_failed_and_gets_the_rest(
    command: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.script = [status(404)]
    assert dataset.main(["-n", "1", "-w", "1"]) == 1
    output = capsys.readouterr()
    assert "1 of 2 shards are in" in output.out
    assert "shard_00000.parquet" in output.err
    assert [p.name for p in command.iterdir()] == ["shard_06542.parquet"]


@pytest.mark.parametrize("arguments", [["-n", "6543"], ["-n", "-2"], ["-n", "1", "-w", "0"], ["-n", "many"]])
def test_command_refuses_bad_numbers(command: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        dataset.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1
