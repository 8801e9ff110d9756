"""Speed on this machine: its parts, the speed to expect of a model, and the speed measured.

machine       processor, memory, devices, and how the installed llama.cpp uses them
bandwidth     bytes per second that threads read from memory
forecast      memory and speed to expect of a model before it is loaded, from its sizes and the bandwidth
benchmark     speed measured as llama-bench does
"""
