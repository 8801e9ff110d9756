"""Speed on this machine: what it has, how fast a model is expected to be on it, and how fast one was measured to be.

machine       processor, memory, devices, and what the installed llama.cpp makes of them
bandwidth     bytes per second that threads read from memory
forecast      memory and speed to expect of a model before it is loaded, from its sizes and the bandwidth
benchmark     speed measured as llama-bench does
"""
