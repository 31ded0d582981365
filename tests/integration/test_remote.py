"""Imagery behind a web server: the same results as from the disk, and faults of the server named."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import rasterio
from cluster import Cluster
from conftest import blobs, city_arrays, write_tile
from parts import answer, assert_equal_content, required, run, stop

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# A file NAME.broken beside NAME makes the server fail on NAME; NAME.torn makes it fail on all requests for parts of it
# that begin beyond 66 kB.
CONFIG = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log combined;
  default_type image/tiff;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  map $http_range $part {{ default ""; "~^bytes=(6[6-9]|[7-9][0-9])[0-9][0-9][0-9]-|^bytes=[0-9]{{6,}}-" "far"; }}
  server {{
    listen 127.0.0.1:{port};
    root {folder}/www;
    set $fault $part;
    if (-f $request_filename.torn) {{ set $fault "torn $fault"; }}
    if ($fault = "torn far") {{ return 500; }}
    if (-f $request_filename.broken) {{ return 500; }}
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    """A running web server."""

    www: Path
    """The folder that it serves."""
    url: str

    def names(self, *files: str) -> list[str]:
        """Return files as GDAL names them."""
        return [f"/vsicurl/{self.url}/{file}" for file in files]


@pytest.fixture
def server(city: Path, tmp_path: Path) -> Iterator[Server]:
    """An own nginx that serves the tiles."""
    required(NGINX is not None, "nginx")
    folder = tmp_path / "server"
    shutil.copytree(city, folder / "www")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    # As root it would serve as another user, who cannot look into the folder.
    user = "user root; " if os.geteuid() == 0 else ""
    config.write_text(user + CONFIG.format(folder=folder, port=port))
    log = folder / "error.log"
    process = subprocess.Popen([str(NGINX), "-p", str(folder), "-e", str(log), "-c", str(config)])
    try:
        found = Server(folder / "www", f"http://127.0.0.1:{port}")
        for _ in range(200):
            assert process.poll() is None, log.read_text()
            try:
                answer(f"{found.url}/a.tif")
                break
            except HTTPError:
                raise
            except URLError:
                time.sleep(0.05)
        yield found
    finally:
        stop(process)


@pytest.fixture(scope="module")
def local(city: Path, narrow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results from the files on the disk."""
    out = tmp_path_factory.mktemp("local") / "out"
    run(city, out, narrow_model)
    return out


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as the workers do, but ask a failing server again at once."""
    import geoseg.raster

    patient = geoseg.raster.gdal_env

    @contextmanager
    def env() -> Iterator[None]:
        with patient(), rasterio.Env(GDAL_HTTP_MAX_RETRY=1, GDAL_HTTP_RETRY_DELAY=0.01):
            yield

    monkeypatch.setattr(geoseg.raster, "gdal_env", env)


def test_remote_files_give_what_local_files_give(
    server: Server, local: Path, narrow_model: Path, tmp_path: Path
) -> None:
    result = run(server.names("a.tif", "b.tif", "c.tif"), tmp_path / "out", narrow_model)
    assert result.complete
    assert result.buildings > 0
    assert_equal_content(tmp_path / "out", local)
    sizes = {entry["path"]: entry["size"] for entry in result.run["inputs"]}
    assert sizes == {name: (server.www / Path(name).name).stat().st_size for name in sizes}
    asked = (server.www.parent / "access.log").read_text()
    assert all(f"GET /{name}.tif" in asked for name in "abc")


def test_workers_of_a_cluster_read_remote_files(
    server: Server, local: Path, narrow_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.start(2)
        names = server.names("a.tif", "b.tif", "c.tif")
        result = run(names, tmp_path / "out", narrow_model, workers=None, scheduler=str(cluster.file))
    finally:
        cluster.stop()
    assert result.complete
    assert result.run["workers"].endswith(f"workers at {cluster.address}")
    assert_equal_content(tmp_path / "out", local)


def test_missing_file_is_named_and_taken_once_it_is_there(
    server: Server, local: Path, narrow_model: Path, tmp_path: Path
) -> None:
    names = server.names("a.tif", "c.tif", "b.tif")
    (server.www / "c.tif").rename(server.www / "later")
    result = run(names, tmp_path / "out", narrow_model)
    assert [failure["path"] for failure in result.failures] == [names[1]]
    assert "404" in result.failures[0]["message"]
    assert json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["failures"] == list(result.failures)
    with rasterio.open(tmp_path / "out" / "mask.tif") as dataset:
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, city_arrays()[1][:150])
    (server.www / "later").rename(server.www / "c.tif")
    assert run(names, tmp_path / "out", narrow_model).complete
    assert_equal_content(tmp_path / "out", local)


def test_file_that_the_server_fails_on_is_named(server: Server, narrow_model: Path, tmp_path: Path) -> None:
    names = server.names("a.tif", "b.tif", "c.tif")
    (server.www / "b.tif.broken").touch()
    result = run(names, tmp_path / "out", narrow_model)
    assert [failure["path"] for failure in result.failures] == [names[1]]
    assert "500" in result.failures[0]["message"]
    with rasterio.open(tmp_path / "out" / "mask.tif") as dataset:
        expected = city_arrays()[1][:, : dataset.width].copy()
        expected[:150, 130:] = False
        np.testing.assert_array_equal(dataset.dataset_mask() > 0, expected)


@pytest.mark.usefixtures("hasty")
def test_pixels_that_the_server_fails_on_are_named_and_read_later(
    server: Server, narrow_model: Path, tmp_path: Path
) -> None:
    names = server.names("a.tif", "b.tif")
    tall = write_tile(server.www / "b.tif", blobs((700, 101), 3), (0, 130))
    assert tall.stat().st_size > 200_000
    (server.www / "b.tif.torn").touch()
    result = run(names, tmp_path / "out", narrow_model)
    assert {failure["path"] for failure in result.failures} == {names[1]}
    assert all("unreadable" in failure["message"] for failure in result.failures)
    with rasterio.open(tmp_path / "out" / "mask.tif") as dataset:
        found = dataset.dataset_mask() > 0
    np.testing.assert_array_equal(found[:150, :130], city_arrays()[1][:150, :130])
    np.testing.assert_array_equal(found[:, 130:], found[:, 130:131].repeat(101, axis=1))  # strips of whole rows
    kept = int(found[:, 130].sum())
    assert 66_000 // 303 - 27 <= kept < 700
    assert found[:kept, 130].all()
    (server.www / "b.tif.torn").unlink()
    assert run(names, tmp_path / "out", narrow_model).complete
    run([server.www / "a.tif", tall], tmp_path / "expected", narrow_model)
    assert_equal_content(tmp_path / "out", tmp_path / "expected")


def test_file_that_has_changed_is_read_anew(server: Server, narrow_model: Path, tmp_path: Path) -> None:
    names = server.names("a.tif", "b.tif", "c.tif")
    first = run(names, tmp_path / "out", narrow_model)
    with rasterio.open(server.www / "b.tif", "r+") as dataset:
        dataset.write(255 - dataset.read())
    again = run(names, tmp_path / "out", narrow_model)
    assert again.run["counts"]["blocks_resumed"] == 0
    assert again.area_m2 != first.area_m2
    run(server.www, tmp_path / "expected", narrow_model)
    assert_equal_content(tmp_path / "out", tmp_path / "expected")
