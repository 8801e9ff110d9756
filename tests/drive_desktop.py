"""Drives the window of examples/desktop.py, offscreen: ``drive_desktop.py EXAMPLE [SCREENSHOT]``.

The models folder holds one model. The script loads it, asks a question, waits for text, stops the answer, and says so
on its last line.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable

from PySide6.QtWidgets import QApplication

spec = importlib.util.spec_from_file_location("desktop", sys.argv[1])
assert spec is not None
assert spec.loader is not None
desktop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(desktop)

app = QApplication([])
window = desktop.Window()
window.resize(720, 460)
window.show()


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 100
    while not condition():
        app.processEvents()
        assert time.monotonic() < end, f"waited for this in vain: {what}"
        time.sleep(0.01)


def status() -> str:
    return str(window.statusBar().currentMessage())


assert window.models.count() == 1
window.models.setCurrentIndex(0)
window.load(window.models.itemData(0))
until(lambda: "is ready" in status(), "the model is loaded")
model = window.talker.model
ends = {i: -float("inf") for i in range(model.native.n_vocab) if model.native.is_eog(i)}
model.defaults = model.defaults.replace(logit_bias=ends, temperature=0.0)
if window.talker.chat:
    window.talker.chat.params = model.defaults
window.line.setText("Once upon a time, a little dog")
window.ask()
assert not window.send.isEnabled()
assert status() == "answering"
n_asked = len(window.talk.toPlainText())
until(lambda: len(window.talk.toPlainText()) > n_asked + (600 if len(sys.argv) > 2 else 5), "text streams in")
if len(sys.argv) > 2:
    window.grab().save(sys.argv[2])
window.stop.click()
until(lambda: window.send.isEnabled(), "the answer is stopped")
assert status().startswith("cancelled"), status()
window.close()
sys.stdout.write("loaded, chatted, stopped\n")
sys.stdout.flush()
os._exit(0)
