"""Ask a model on the page of `llamalite serve`, and write what it shows as a PNG, for the README.

    python docs/screenshot.py docs/page.png SmolLM2-135M-Instruct-Q8_0 "What is a llama?" "List three facts about them."

Needs `pip install '.[serve,browser]'` and Chromium. The questions are asked one after the other, with a fixed seed, and
the picture is of the page's end; --dark, --width, --height and --seed change it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys

from playwright.sync_api import Page, sync_playwright


def ask(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.locator(".message:last-child [data-action=again]").wait_for()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("png")
    parser.add_argument("model")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=760)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    command = [sys.executable, "-m", "llamalite", "serve", args.model, "--port", "0", "--seed", str(args.seed)]
    server = subprocess.Popen([*command, "--temp", "0.2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(
                viewport={"width": args.width, "height": args.height}, color_scheme="dark" if args.dark else "light"
            )
            page.set_default_timeout(300_000)
            page.goto(address)
            for question in args.questions:
                ask(page, question)
            page.screenshot(path=args.png)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
