"""`tox -e page` and `tox -e screenshot` run this first: exit 1 with one line where there is no chromium."""

import shutil
import sys

if shutil.which("chromium") is None:
    sys.exit("no chromium on PATH: apt install chromium")
