"""Memory that tensors leave goes back to the system at once, where the C library is glibc."""

import ctypes

_MMAP_THRESHOLD = -3  # `M_MMAP_THRESHOLD` of malloc.h
_BYTES = 1 << 22  # for speed: a block that is mapped anew takes time for each of its pages


def return_freed_tensors() -> None:
    """Have blocks of 4 MiB and more mapped one by one, for the whole process; without glibc nothing is done.

    glibc raises that limit to 32 MiB by itself as such blocks are freed. The matrices of a layer then lie in heaps, one
    for each thread, which keep what is freed between other blocks: twice the memory that is in use.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows takes no None
        return
    mallopt(_MMAP_THRESHOLD, _BYTES)
