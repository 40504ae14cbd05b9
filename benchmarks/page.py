"""Draws docs/demo.png: the page of `colorjax demo` with a colored photo and three more colorings, in a real browser.

    python -m benchmarks page --out=docs/demo.png

It needs Playwright (`pip install playwright`) and Chromium (Debian: `apt-get install chromium`). The photo is
scikit-image's `data.coffee()` (Rachel Michetti, CC0), the colors are those of the weights that ship.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image

from colorjax import Predictor
from colorjax.cli.arguments import Parser
from colorjax.web.server import serving


def add_arguments(parser: Parser) -> None:
    """Adds the arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, PNG")


def run(args: argparse.Namespace) -> None:
    """Opens the page, drops the photo, and takes the picture."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise FileNotFoundError("the page needs Chromium: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Predictor(), port=7861) as url,
        sync_playwright() as playwright,
    ):
        photo = Path(folder) / "coffee.png"
        Image.fromarray(skimage.data.coffee()).save(photo)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 960, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.set_input_files("#photo input[type=file]", photo)
        page.locator("#likeliest .confidence").nth(4).wait_for()
        page.get_by_text("Other colorings", exact=True).click()
        page.get_by_role("button", name="Show other colorings").click()
        page.locator("#gallery .thumbnail-item img").nth(3).wait_for()
        page.wait_for_timeout(2000)  # for the pictures to fade in
        page.screenshot(path=args.out, full_page=True)
        browser.close()
    print(args.out)
