/* Whether values lie in a range: what _arrays.c and serving/_slots.c have in common. */
#ifndef SKERRY_WITHIN_H
#define SKERRY_WITHIN_H

#include <Python.h>
#include <string.h>

/* Values that are looked at before the result is: 16 KiB, which the nearest cache holds. And values above which other
 * threads may run meanwhile. */
enum { BLOCK = 4096, LONG = 1 << 14 };

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

/* Copies values, which need not be aligned, and checks each block of the copy while it is in the nearest cache. Somebody
 * else may write to the source meanwhile: only what was copied counts. */
static inline int copy_blocks(float *copy, const void *source, Py_ssize_t count, float least, float most)
{
    int within = 1;
    for (Py_ssize_t start = 0; start < count; start += BLOCK) {
        Py_ssize_t length = count - start < BLOCK ? count - start : BLOCK;
        memcpy(copy + start, (const char *)source + start * (Py_ssize_t)sizeof(float), (size_t)length * sizeof(float));
        within &= block_is_within(copy + start, length, least, most);
    }
    return within;
}

/* The same, called with the interpreter's lock held: a long copy lets it go. */
static inline int copy_and_check(float *copy, const void *source, Py_ssize_t count, float least, float most)
{
    if (count <= LONG)
        return copy_blocks(copy, source, count, least, most);
    int within;
    Py_BEGIN_ALLOW_THREADS
    within = copy_blocks(copy, source, count, least, most);
    Py_END_ALLOW_THREADS
    return within;
}

#endif
