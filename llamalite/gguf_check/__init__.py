"""Is this GGUF file safe to hand to llama.cpp, which aborts the process on some that contradict themselves?

    from llamalite.gguf_check import check, read_header
    header = check("model.Q4_K_M.gguf")    # GGUFError names the key or tensor, what was found and what was expected
    header.architecture, header.n_layer, header.n_vocab, header.bits_per_weight, header.tensors[0].shape

`read_header` reads what every GGUF file has, keys and a table of tensors, and holds it against the file's size. `check`
goes on to what llama.cpp will do with them: the vocabulary, the model's numbers, the tensors' shapes, the other files
of a split model. What passes is not thereby a good model, only one that llama.cpp survives; docs/security.md says how
that was tried. `check_adapter` holds a LoRA adapter against the header of its model.
"""

from llamalite.gguf_check.adapter import check_adapter
from llamalite.gguf_check.header import Header, Metadata, TensorInfo
from llamalite.gguf_check.reader import read_header
from llamalite.gguf_check.rules import check

__all__ = ["Header", "Metadata", "TensorInfo", "check", "check_adapter", "read_header"]
