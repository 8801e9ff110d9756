"""Record digests of llama.cpp's files for the tests' checkpoints, in tests/data/llama_cpp_digests.json.

    python tests/record_digests.py LLAMA_CPP_SOURCE LLAMA_QUANTIZE

LLAMA_CPP_SOURCE is vendor/llama.cpp of the pinned llama-cpp-python's sdist, LLAMA_QUANTIZE the program built from it;
transformers and torch must be installed. Run it when the pin is raised, or when a checkpoint is added.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
DATA = Path(__file__).parent / "data" / "llama_cpp_digests.json"
# The toy vocabularies are in no table of known hashes: this gives the name of their pre-tokenizer, which is Llama 3's.
RUN_CONVERTER = """
import sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    source, quantize = Path(sys.argv[1]), sys.argv[2]
    DATA.write_text('{"files": {}}')
    import test_conversion_parity as tests
    import toy_checkpoint

    recorded: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in tests.SHAPES.items():
            folder = toy_checkpoint.write_checkpoint(Path(scratch) / "toy" / name, **shape)
            outtype = {"BF16": "bf16", "F16": "f16"}.get(shape.get("dtype", "BF16"), "f32")
            step1, step2 = Path(scratch) / "step1.gguf", Path(scratch) / "step2.gguf"
            subprocess.run(
                [sys.executable, "-c", RUN_CONVERTER, source / "convert_hf_to_gguf.py", folder, "--outtype", outtype,
                 "--outfile", step1],
                check=True, env=os.environ | {"PYTHONPATH": str(source / "gguf-py")},
            )  # fmt: skip
            subprocess.run([quantize, step1, step2, outtype.upper()], check=True)
            recorded[name] = {"outtype": outtype, "sha256": hashlib.sha256(step2.read_bytes()).hexdigest()}
    command = "python tests/record_digests.py LLAMA_CPP_SOURCE LLAMA_QUANTIZE"
    DATA.write_text(json.dumps({"command": command, "files": recorded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
