"""llama.cpp, with NumPy arrays and exceptions. Internal: users import from `llamalite`."""
