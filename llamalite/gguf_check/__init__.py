"""Is this GGUF file safe to hand to llama.cpp, which aborts the process on some that contradict themselves?

    from llamalite.gguf_check import read_header
    header = read_header("model.Q4_K_M.gguf")      # GGUFError names the key or tensor, what is found, what is expected

`read_header` reads what every GGUF file has: keys and a table of tensors.
"""

from llamalite.gguf_check.header import Header, Metadata, TensorInfo, read_header

__all__ = ["Header", "Metadata", "TensorInfo", "read_header"]
