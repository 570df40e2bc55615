"""`tox -e screenshot`: docs/report.png, the first screen of the page that the committed CPU run makes."""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from lowbit_vit.report.page import build_report
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.workspace import Workspace

ROOT = Path(__file__).parents[2]
RUN = ROOT / "reports" / "reference" / "cpu"
PICTURE = ROOT / "docs" / "report.png"
LARGEST = 200_000  # bytes: it stays in the repository for ever
WIDTH, HEIGHT = 1280, 800


def main() -> None:
    """Build the page in a folder of its own, photograph it, and write a picture of 256 colours."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "demo"
        shutil.copytree(RUN, copy)
        workspace = Workspace(root=ROOT, profile="demo", elsewhere=copy)
        page = build_report(load_profile(workspace.profile_file), workspace)
        shot = Path(folder) / "shot.png"
        photograph(page, shot)
        PICTURE.parent.mkdir(exist_ok=True)
        Image.open(shot).convert("RGB").quantize(256).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    if size > LARGEST:
        sys.exit(f"{PICTURE}: {size} bytes, more than {LARGEST}; make HEIGHT smaller")
    sys.stdout.write(f"docs/report.png: {size} bytes\n")


def photograph(page: Path, to: Path) -> None:
    """The page's first screen, as a desk in daylight shows it."""
    with sync_playwright() as playwright:
        # Chromium's sandbox needs what containers do not give to root; the page is our own.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        sheet = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        sheet.goto(page.as_uri())
        sheet.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        sheet.screenshot(path=to)
        browser.close()


if __name__ == "__main__":
    main()
