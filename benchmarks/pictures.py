"""The pictures of the documentation: the demo's report as a browser shows it, light and dark, wide and narrow.

Runs the commands, or takes the report of an earlier run, and needs Chromium or Chrome on the path.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCHEMES = {"": 1, "-dark": 0}  # endings of files and what the browser calls the colours of the system


def picture(browser: str, page: Path, file: Path, width: int, height: int, scheme: int) -> None:
    """Write what the browser shows of a page in a window of this size, at three pixels for two units."""
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1.5",
        f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},{height}",
        f"--screenshot={file.resolve()}", page.resolve().as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    if not file.is_file():
        raise RuntimeError(f"{browser} wrote no {file}")


def compressed(folder: Path) -> Path:
    """Run the demo and return its report."""
    command = [sys.executable, "-m", "simprune", "compress", "recipe=digits", f"hydra.run.dir={folder}"]
    code = subprocess.run(command, check=False).returncode
    report = folder / "bundle" / "report.html"
    if not report.is_file():
        raise RuntimeError(f"the demo ended with {code} and wrote no {report}")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="report.html of an earlier run; without it the demo runs")
    parser.add_argument("--to", type=Path, default=Path("docs"), help="folder of the pictures (docs)")
    wanted = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        parser.error(f"no browser on the path; install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        page = wanted.report or compressed(Path(folder))
        for ending, scheme in SCHEMES.items():
            picture(browser, page, wanted.to / f"report{ending}.png", 1100, 1160, scheme)
        picture(browser, page, wanted.to / "report-phone.png", 400, 1160, SCHEMES[""])


if __name__ == "__main__":
    main()
