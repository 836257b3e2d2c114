/* Whether values lie in a range: what _arrays.c and serving/_slots.c have in common. */
#ifndef SKERRY_WITHIN_H
#define SKERRY_WITHIN_H

#include <Python.h>

/* Values that are looked at before the result is: 16 KiB, which the nearest cache holds. */
enum { BLOCK = 4096 };

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif

WIDEST static int block_is_within(const float *value, Py_ssize_t count, float least, float most)
{
    int outside = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        outside |= !(value[i] >= least) | !(value[i] <= most); /* both are false for a NaN */
    return !outside;
}

#endif
