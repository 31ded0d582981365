"""What users name: files, folders, globs, archives, addresses; and what headers refuse."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasters import NORTH_UP, UTM, noise, only, write

from geoseg.errors import InputError
from geoseg.inputs import expand_inputs
from geoseg.mosaic import open_mosaic
from geoseg.raster import close_files, gdal_env
from geoseg.tiling import Rect


def test_expand_folder_sorted_naturally(tmp_path: Path) -> None:
    for name in ("t_10.tif", "t_2.TIF", ".hidden.tif", "a.tif.tmp", "notes.txt", "t_2.tfw"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.tif").mkdir()
    found = expand_inputs([tmp_path])
    assert [Path(name).name for name in found] == ["t_2.TIF", "t_10.tif"]


def test_expand_globs_gdal_names_and_duplicates(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "a.tfw"):
        (tmp_path / name).write_bytes(b"")
    remote = ["/vsicurl/https://example.org/a b?x=[1].tif", "s3://bucket/key.tif"]
    found = expand_inputs([str(tmp_path / "*"), *remote, tmp_path / "a.tif"])
    assert found == [str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), *remote]


def test_expand_complains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tif: no such file"):
        expand_inputs([tmp_path / "gone.tif"])
    with pytest.raises(InputError, match="no raster in this folder"):
        expand_inputs([tmp_path])
    with pytest.raises(InputError, match="matches no raster"):
        expand_inputs([str(tmp_path / "*.tif")])
    with pytest.raises(InputError, match="no input"):
        expand_inputs([])


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = write(tmp_path / "a.tif", noise((3, 20, 30)))
    (tmp_path / "b.tif").write_text("not a raster")
    write(tmp_path / "c.tif", noise((2, 20, 30)))
    write(tmp_path / "d.tif", noise((3, 20, 30)), crs=None)
    write(tmp_path / "e.tif", noise((3, 20, 30), "uint16"))
    mosaic, problems = open_mosaic([tmp_path])
    assert [source.path for source in mosaic.sources] == [str(good)]
    assert [Path(problem.path).name for problem in problems] == [
        "b.tif",
        "c.tif",
        "d.tif",
        "e.tif",
    ]
    for problem, words in zip(
        problems, ("cannot be opened", "2 bands.*--bands", "no CRS", "uint16.*uint8"), strict=True
    ):
        assert re.search(words, problem.message)
    with pytest.raises(InputError, match=r"(?s)none of the 2.*b\.tif.*c\.tif"):
        open_mosaic([tmp_path / "b.tif", tmp_path / "c.tif"])


def test_bands_of_many(tmp_path: Path) -> None:
    values = noise((7, 9, 8), "uint16", high=60000)
    path = write(tmp_path / "a.tif", values)
    extent = Rect(0, 0, 9, 8)
    assert np.array_equal(only(path).read(extent).values, values[:3])
    assert np.array_equal(only(path, bands=(5, 3, 7)).read(extent).values, values[[4, 2, 6]])
    with pytest.raises(InputError, match=r"a\.tif: has 7 bands, so there is no band 9.*--bands"):
        open_mosaic([path], bands=(1, 2, 9))


def test_vrt_and_zip(tmp_path: Path) -> None:
    import zipfile

    values = noise((3, 20, 30))
    path = write(tmp_path / "a.tif", values)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "inner/a.tif")
    xml = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="30" rasterYSize="20"><SRS>{UTM}</SRS>'
        f"<GeoTransform>500000,0.5,0,4000000,0,-0.5</GeoTransform>{xml}</VRTDataset>"
    )
    for name in (tmp_path / "a.vrt", f"/vsizip/{tmp_path}/a.zip/inner/a.tif"):
        mosaic = only(name)
        assert np.array_equal(mosaic.read(mosaic.extent).values, values)
        assert mosaic.sources[0].size
    # The files behind a VRT count, too.
    before = only(tmp_path / "a.vrt").fingerprint()
    os.utime(path, ns=(10**18 * 9, 10**18 * 9))
    assert only(tmp_path / "a.vrt").fingerprint() != before


def test_over_http(tmp_path: Path) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    values = noise((3, 20, 30))
    write(tmp_path / "a.tif", values)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.tif"
        with gdal_env():
            for name in (url, f"/vsicurl/{url}"):
                mosaic = only(name)  # type: ignore[arg-type]
                assert np.array_equal(mosaic.read(mosaic.extent).values, values)
                assert mosaic.sources[0].size == (tmp_path / "a.tif").stat().st_size
                assert mosaic.sources[0].stamp
    finally:
        close_files()
        server.shutdown()
        server.server_close()


def test_files_beside_a_geotiff_count(tmp_path: Path) -> None:
    """World file and external mask are found without listing the folder, and are part of what a resume compares."""
    import rasterio

    path = tmp_path / "a.tif"
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", width=8, height=6, count=3, dtype="uint8") as dataset:
            dataset.write(noise((3, 6, 8)))
            dataset.write_mask(np.arange(48).reshape(6, 8) >= 8)
    assert (tmp_path / "a.tif.msk").is_file()
    (tmp_path / "a.tfw").write_text("0.5\n0\n0\n-0.5\n400000.25\n5799999.75\n")
    mosaic, problems = open_mosaic([path])
    assert not problems
    assert mosaic.georeferenced
    assert tuple(mosaic.transform)[:6] == (0.5, 0, 400000, 0, -0.5, 5800000)
    assert mosaic.read(mosaic.extent).valid.sum() == 40
    source = mosaic.sources[0]
    names = ("a.tif", "a.tif.msk", "a.tfw")
    assert source.size == sum((tmp_path / name).stat().st_size for name in names)
    for name in names:
        os.utime(tmp_path / name, ns=(10**18, 2 * 10**18))
        assert open_mosaic([path])[0].sources[0].stamp == str(2 * 10**18)
        os.utime(tmp_path / name, ns=(10**18, 10**18))


def test_processes_open_files_as_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        write(tmp_path / f"t{number}.tif", noise((3, 20, 30)), transform=NORTH_UP @ Affine.translation(30 * number, 0))
    (tmp_path / "t4.tif").write_text("not a raster")
    wanted = open_mosaic([tmp_path])
    monkeypatch.setattr("geoseg.inputs.MANY", 3)
    monkeypatch.setattr("geoseg.inputs.CHUNK", 2)
    monkeypatch.setattr("geoseg.inputs.how_many", lambda: 2)
    monkeypatch.setattr("geoseg.inputs._inspect", None)  # of this process
    found = open_mosaic([tmp_path])
    assert found == wanted
    assert len(found[0].sources) == 8
    assert [Path(problem.path).name for problem in found[1]] == ["t4.tif"]
