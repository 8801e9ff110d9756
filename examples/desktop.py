#!/usr/bin/env python3
"""A desktop chat in PySide6: a model picker, an answer that streams in, and a button that stops it.

    pip install PySide6-Essentials
    python examples/desktop.py [MODEL.gguf]

The model works in a thread of its own and sends its text by signals: the window stays responsive while a model is
loaded, a long prompt is read or an answer is written. The Stop button calls `Model.cancel`, which ends reading and
writing within moments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QObject, QThread, Signal, Slot
from PySide6.QtGui import QCloseEvent, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QMainWindow,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from llamalite import ChatSession, LlamaliteError, Model
from llamalite.store import list_models


class Talker(QObject):
    """Loads models and answers in the working thread, and sends the results to the window by signals."""

    loading = Signal(int)  # percent
    loaded = Signal(str)
    said = Signal(str)
    ended = Signal(str)
    failed = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.model: Model | None = None
        self.chat: ChatSession | None = None

    @Slot(str)
    def load(self, path: str) -> None:
        try:
            if self.model:
                self.model.close()
            self.model = Model(path, progress=lambda share: self.loading.emit(int(100 * share)))
            self.chat = ChatSession(self.model, overflow="drop") if self.model.has_chat_template else None
            self.loaded.emit(self.model.path.name)
        except (LlamaliteError, OSError, ValueError) as error:
            self.failed.emit(str(error))

    @Slot(str)
    def answer(self, text: str) -> None:
        try:
            if self.model is None:
                raise ValueError("choose a model first")
            pieces = self.chat.stream(text) if self.chat else self.model.stream(text, max_tokens=400)
            for piece in pieces:
                if piece.text:
                    self.said.emit(piece.text)
                if piece.totals:
                    self.ended.emit(f"{piece.finish_reason}, {piece.totals.tok_per_s:.1f} tok/s")
        except (LlamaliteError, ValueError) as error:
            self.failed.emit(str(error))

    def stop(self) -> None:
        """End the answer; called from the window's thread."""
        if self.model:
            self.model.cancel()

    @Slot()
    def close(self) -> None:
        if self.model:
            self.model.close()


class Window(QMainWindow):
    load_wanted = Signal(str)
    answer_wanted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("llamalite")
        self.resize(720, 520)
        self.models = QComboBox()
        for path in list_models():
            self.models.addItem(path.stem, str(path))
        self.models.setPlaceholderText("Choose a model")
        self.models.setCurrentIndex(-1)
        self.models.activated.connect(lambda _: self.load(self.models.currentData()))
        open_button = self._button("Open…", self.choose_file)
        self.talk = QPlainTextEdit(readOnly=True)
        self.line = QLineEdit(placeholderText="Say something")
        self.line.returnPressed.connect(self.ask)
        self.send = self._button("Send", self.ask)
        self.stop = self._button("Stop", lambda: self.talker.stop())
        top, bottom = QHBoxLayout(), QHBoxLayout()
        for widget, stretch in ((self.models, 1), (open_button, 0)):
            top.addWidget(widget, stretch)
        for widget, stretch in ((self.line, 1), (self.send, 0), (self.stop, 0)):
            bottom.addWidget(widget, stretch)
        page, column = QWidget(), QVBoxLayout()
        column.addLayout(top)
        column.addWidget(self.talk, 1)
        column.addLayout(bottom)
        page.setLayout(column)
        self.setCentralWidget(page)

        self.talker, self.thread_ = Talker(), QThread()
        self.talker.moveToThread(self.thread_)
        self.load_wanted.connect(self.talker.load)
        self.answer_wanted.connect(self.talker.answer)
        self.talker.loading.connect(lambda percent: self.tell(f"loading, {percent} %"))
        self.talker.loaded.connect(lambda name: self.ready(f"{name} is ready"))
        self.talker.said.connect(self.show_text)
        self.talker.ended.connect(self.finish)
        self.talker.failed.connect(lambda why: self.ready(f"error: {why}"))
        self.thread_.start()
        self.busy(False)

    def _button(self, text: str, action: Callable[[], object]) -> QPushButton:
        button = QPushButton(text)
        button.clicked.connect(lambda: action())
        return button

    def choose_file(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", "Models (*.gguf)")
        if path:
            self.load(path)

    def load(self, path: str) -> None:
        self.busy(True)
        self.load_wanted.emit(path)

    def ask(self) -> None:
        text = self.line.text().strip()
        if text and self.send.isEnabled():
            self.line.clear()
            self.show_text(f"You: {text}\n\nModel: ")
            self.busy(True)
            self.tell("answering")
            self.answer_wanted.emit(text)

    def show_text(self, text: str) -> None:
        self.talk.moveCursor(QTextCursor.MoveOperation.End)
        self.talk.insertPlainText(text)
        self.talk.moveCursor(QTextCursor.MoveOperation.End)

    def finish(self, status: str) -> None:
        self.show_text("\n\n")
        self.ready(status)

    def ready(self, status: str) -> None:
        self.tell(status)
        self.busy(False)

    def tell(self, text: str) -> None:
        self.statusBar().showMessage(text)

    def busy(self, working: bool) -> None:
        self.send.setEnabled(not working)
        self.stop.setEnabled(working)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        self.talker.stop()
        self.thread_.quit()
        self.thread_.wait()
        self.talker.close()
        event.accept()


def main() -> int:
    app = QApplication(sys.argv[:1])
    window = Window()
    window.show()
    if len(sys.argv) > 1:
        window.load(str(Path(sys.argv[1])))
    return app.exec()


if __name__ == "__main__":
    sys.exit(main())
