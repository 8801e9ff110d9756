"""Is this GGUF file safe to hand to llama.cpp, which aborts the process on some files that contradict themselves?

    from llamalite.gguf_check import checked_header, read_header
    header = checked_header("model.Q4_K_M.gguf")    # GGUFError names the key or tensor, the value found and expected
    header.architecture, header.n_layer, header.n_vocab, header.bits_per_weight, header.tensors[0].shape

`read_header` reads what every GGUF file has, keys and a table of tensors, and checks them against the file's size.
`checked_header` also checks what llama.cpp will do with them: the vocabulary, the model's numbers, the tensors' shapes,
the other files of a split model. A file that passes may be a bad model, but it does not crash llama.cpp;
docs/security.md says how that was tested. `check_adapter` checks a LoRA adapter against the header of its model.
"""

from llamalite.gguf_check.adapter import check_adapter
from llamalite.gguf_check.header import Header, Metadata, TensorInfo
from llamalite.gguf_check.reader import read_header
from llamalite.gguf_check.rules import checked_header

__all__ = ["Header", "Metadata", "TensorInfo", "check_adapter", "checked_header", "read_header"]
