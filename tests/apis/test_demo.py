"""The page that compares two models: what it computes, what it refuses, and the page itself in Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.apis import demo, demo_server
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def models(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Config, checkpoint, config, checkpoint; of random weights."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.py").write_text(tiny_config_text)
    init_default_scope("mmseg")
    arguments = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = MODELS.build(Config.fromfile(folder / "tiny.py").model)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        torch.save(model.state_dict(), folder / f"{seed}.pth")
        arguments += [str(folder / "tiny.py"), str(folder / f"{seed}.pth")]
    return arguments


@pytest.fixture(scope="module")
def segmenters(models: list[str]) -> list[Segmenter]:
    return [Segmenter(models[0], models[1], "cpu"), Segmenter(models[2], models[3], "cpu")]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "drop me.png"
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC).save(file)
    return file


def test_two_models_are_compared(segmenters: list[Segmenter], picture: Path) -> None:
    comparison = demo.compare(str(picture), segmenters, ["one", "other"], 10_000)
    pictures, captions = zip(*comparison.pictures, strict=True)
    one, other = (segmenter(picture) for segmenter in segmenters)
    different = one != other
    assert 0 < different.sum() < different.size
    assert captions == ("image, 80 x 60", "one", "other", f"difference: {different.mean():.1%} of the pixels")
    with Image.open(picture) as image:
        np.testing.assert_array_equal(pictures[0], np.array(image))
    np.testing.assert_array_equal((pictures[3] == [255, 0, 168]).all(2), different)
    assert [row[0] for row in comparison.scores] == ["one", "other"]
    assert all(isolated.endswith("%") for _, isolated in comparison.scores)
    assert comparison.classes == sorted({*np.unique(one), *np.unique(other)})
    same = demo.compare(str(picture), [segmenters[0]] * 2, ["a", "a"], 10_000)
    assert same.pictures[3][1] == "difference: 0.0% of the pixels"
    assert same.scores[0] == same.scores[1]


def test_pictures_are_refused_by_their_header(
    segmenters: list[Segmenter], picture: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="80 x 60 pixels; this page takes up to 4,799"):
        demo.compare(str(picture), segmenters, ["a", "b"], 4799)
    # The claim of a huge picture, which nobody decodes.
    header = bytearray(picture.read_bytes()[:60])
    header[16:24] = (12_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(header)
    with pytest.raises(ValueError, match="12000 x 12000 pixels"):
        demo.compare(str(tmp_path / "bomb.png"), segmenters, ["a", "b"], 10_000)
    with Image.open(picture) as image:
        image.save(tmp_path / "disguised.png", format="TIFF")
    with pytest.raises(ValueError, match="is a TIFF file"):
        demo.compare(str(tmp_path / "disguised.png"), segmenters, ["a", "b"], 10_000)
    (tmp_path / "text.png").write_text("<svg>")
    with pytest.raises(ValueError, match="not an image"):
        demo.compare(str(tmp_path / "text.png"), segmenters, ["a", "b"], 10_000)


def test_models_that_cannot_be_compared_are_refused(segmenters: list[Segmenter], models: list[str]) -> None:
    with pytest.raises(UsageError, match="compares two models, got 1"):
        demo.build_page(segmenters[:1], ["a"], 100)
    renamed = Config.fromfile(models[0])
    renamed.test_dataloader.dataset.metainfo.classes = ("x", "y", "z")
    other = Segmenter(renamed, models[1], "cpu")
    with pytest.raises(UsageError, match="different classes"):
        demo.build_page([segmenters[0], other], ["a", "b"], 100)


def test_without_gradio_it_says_what_to_install(
    segmenters: list[Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UsageError, match=r"pip install 'pixeldcl-plugin\[demo\]'"):
        demo.build_page(segmenters, ["a", "b"], 100)


def test_the_page_listens_here_only_unless_asked(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import demo as tool
    finally:
        sys.path.remove(str(ROOT / "tools"))
    args = tool.parse_args(["--models", "a", "b", "c", "d"])
    options = demo_server.launch_options(args.host, args.port, demo_server.Store(tmp_path, 10**6, 10**8))
    assert options["server_name"] == "127.0.0.1"
    assert options["max_file_size"] == 10**6
    assert options["share"] is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    store = demo_server.Store(tmp_path, upload=1, limit=6 * 2**20)
    (tmp_path / "example").write_bytes(bytes(2**20))
    store.keep()
    for age in range(4):
        file = tmp_path / f"upload {age}/x.png"
        file.parent.mkdir()
        file.write_bytes(bytes(2**20))
        os.utime(file, (10**9 - age, 10**9 - age))
    store.make_room(2**20)
    assert len(list(tmp_path.rglob("*.png"))) == 4
    store.make_room(3 * 2**20)
    assert sorted(file.parent.name for file in tmp_path.rglob("*.png")) == ["upload 0", "upload 1"]
    store.make_room(2**30)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["example"]
    with pytest.raises(UsageError, match="--max-disk must be at least 55"):
        demo_server.Store(tmp_path, 10 * 2**20, 2**20)


# --- in the browser -------------------------------------------------------------------------------


@pytest.fixture
def url(models: list[str], tmp_path: Path) -> Iterator[str]:
    """The page, served as the command does, with small limits."""
    pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "tools/demo.py", "--models", *models, "--names", "<b>one</b>", "other"]
    command += [
        "--port",
        port,
        "--max-megabytes",
        1,
        "--max-disk",
        12,
        "--max-pixels",
        10_000,
        "--device",
        "cpu",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env["TMPDIR"] = str(tmp_path)
    server = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)
    try:
        line = server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"the server said {line!r}"
        yield found[0]
    finally:
        server.terminate()
        server.wait(30)
        # Nothing outlives the page.
        assert not list(tmp_path.glob("pixeldcl-demo-*"))


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium that records its requests; nothing is downloaded for it."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    if BROWSER is None or DRIVER is None:
        pytest.skip("Chromium or its driver is not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver

    assert selenium
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.mark.slow
def test_a_picture_is_dropped_on_the_page(
    url: str, browser: Any, segmenters: list[Segmenter], picture: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def all_of(selector: str, count: int) -> list[Any]:
        def ready(_: Any) -> Any:
            found = browser.find_elements(By.CSS_SELECTOR, selector)
            return found if len(found) == count else None

        return WebDriverWait(browser, 60).until(ready)

    def drop(file: Path) -> None:
        all_of("#upload input[type=file]", 1)[0].send_keys(str(file))

    browser.get(url)
    # An example is a picture like any other, and so it may be too large here.
    all_of("#examples img", 3)[0].click()
    WebDriverWait(browser, 60).until(lambda _: "451 x 300 pixels" in browser.page_source)
    browser.refresh()
    # A picture beyond the limit is refused in words, and the page goes on.
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    drop(tmp_path / "large.png")
    message = WebDriverWait(browser, 60).until(lambda _: "takes up to 10,000" in browser.page_source)
    assert message
    browser.refresh()

    drop(picture)
    all_of(".result img", 4)
    cells = [cell.text for cell in all_of("#scores td", 4)]
    expected = demo.compare(str(picture), segmenters, ["<b>one</b>", "other"], 10_000)
    assert cells == [cell for row in expected.scores for cell in row]  # names are not taken for HTML
    captions = [box.get_attribute("value") for box in all_of(".caption input, .caption textarea", 4)]
    assert captions == [caption for _, caption in expected.pictures]
    for image, (pixels, _) in zip(all_of(".result img", 4), expected.pictures, strict=True):
        served = browser.execute_async_script(
            """const [img, done] = arguments; img.decode().then(() => {
                const c = document.createElement("canvas");
                c.width = img.naturalWidth; c.height = img.naturalHeight;
                const g = c.getContext("2d"); g.drawImage(img, 0, 0);
                done([c.height, c.width, ...g.getImageData(0, 0, c.width, c.height).data]); });""",
            image,
        )
        shown = np.array(served[2:], np.uint8).reshape(*served[:2], 4)[..., :3]
        np.testing.assert_array_equal(shown, pixels)

    shot = tmp_path / "page.png"
    assert browser.save_screenshot(str(shot))
    with Image.open(shot) as page:
        assert len(page.convert("RGB").getcolors(2**24) or ()) > 50
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(request.startswith(url) for request in requests)
    foreign = [r for r in requests if not r.startswith((url, "data:", "blob:", "chrome:"))]
    assert foreign == []


@pytest.mark.slow
def test_uploads_of_other_types_or_sizes_are_refused_by_the_server(
    url: str, picture: Path, tmp_path: Path
) -> None:
    client = pytest.importorskip("httpx")

    def upload(name: str, content: bytes) -> Any:
        return client.post(f"{url}/gradio_api/upload", files={"files": (name, content)}, timeout=60)

    assert upload("a.png", picture.read_bytes()).status_code == 200
    assert upload("a.png", bytes(2**20 + 100_000)).status_code == 413
    # Neither many files in a request nor many requests fill the disk.
    many = [("files", (f"{i}.png", os.urandom(2**20 - 100))) for i in range(5)]
    assert client.post(f"{url}/gradio_api/upload", files=many, timeout=60).status_code == 413
    assert all(upload("a.png", os.urandom(2**20 - 100)).status_code == 200 for _ in range(20))
    (folder,) = tmp_path.glob("pixeldcl-demo-*")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12 * 2**20
    policy = client.get(url, timeout=60).headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
