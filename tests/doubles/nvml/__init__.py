"""A C library in NVML's place: `double.py` drives it, `nvml_double.h` holds the state they share."""
