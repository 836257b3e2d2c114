/* A request's way through the shared-memory door, compiled: see slots.py, which says what the functions promise and does
 * the same where this file was not compiled. Called with the interpreter's lock held; long copies and waits let it go.
 */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <Python.h>
#include <errno.h>
#include <numpy/arrayobject.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include "../engine/_within.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the layout is little endian"
#endif

/* shared_memory_layout.py says what these are. */
enum { RING = 4, DONE = 5, MESSAGE_BYTES = 1024, ID_BYTES = 128, NAME_BYTES = 64, REQUEST_BYTES = 192 };
/* Where the arrays of all slots lie in a region's rooms. */
enum { HEADERS, INPUTS, SCORES, FEATURES, ROOMS };

struct head {
    uint16_t kind, slot;
    uint32_t sequence;
};

struct request {
    uint32_t rows, id_bytes;
    uint64_t input_bytes, deadline_ns, reserved;
    char id[ID_BYTES];
};

struct answer {
    uint32_t status, rows;
    double latency_us;
    uint32_t rung, reserved[3];
    char id[ID_BYTES], release[NAME_BYTES], variant[NAME_BYTES];
};

_Static_assert(sizeof(struct head) == 8, "head");
_Static_assert(sizeof(struct request) == 160, "request");
_Static_assert(sizeof(struct answer) == 288, "answer");

/* The array of a slot in one of the rooms, or NULL with an error. */
static PyArrayObject *room_of(PyObject *rooms, int which, Py_ssize_t slot)
{
    if (!PyTuple_Check(rooms) || PyTuple_GET_SIZE(rooms) != ROOMS) {
        PyErr_SetString(PyExc_TypeError, "expected the rooms of a region");
        return NULL;
    }
    PyObject *arrays = PyTuple_GET_ITEM(rooms, which);
    if (!PyTuple_Check(arrays) || slot < 0 || slot >= PyTuple_GET_SIZE(arrays)) {
        PyErr_SetString(PyExc_ValueError, "no such slot");
        return NULL;
    }
    PyObject *room = PyTuple_GET_ITEM(arrays, slot);
    int type = which == HEADERS ? NPY_UINT8 : NPY_FLOAT32;
    if (!PyArray_Check(room) || PyArray_TYPE((PyArrayObject *)room) != type || !PyArray_ISCARRAY((PyArrayObject *)room) ||
        (which == HEADERS && PyArray_NBYTES((PyArrayObject *)room) < REQUEST_BYTES + (Py_ssize_t)sizeof(struct answer))) {
        PyErr_SetString(PyExc_TypeError, "expected the rooms of a region");
        return NULL;
    }
    return (PyArrayObject *)room;
}

/* A copy of the request header, each word read once. */
static void read_request(const PyArrayObject *header, struct request *request)
{
    const volatile uint64_t *from = PyArray_DATA((PyArrayObject *)header);
    uint64_t words[sizeof(struct request) / sizeof(uint64_t)];
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        words[i] = from[i];
    memcpy(request, words, sizeof words);
}

/* The request id, "" if the client gave none; NULL without an error if it is not one. */
static PyObject *id_of(const struct request *request)
{
    if (request->id_bytes > ID_BYTES || memchr(request->id, 0, request->id_bytes) != NULL)
        return NULL;
    PyObject *id = PyUnicode_DecodeUTF8(request->id, request->id_bytes, NULL);
    if (id == NULL)
        PyErr_Clear();
    return id;
}

static PyObject *take(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char message[MESSAGE_BYTES];
    struct head head;
    struct request request;

    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "take(descriptor, rooms, least, most)");
        return NULL;
    }
    int descriptor = (int)PyLong_AsLong(args[0]);
    double least = PyFloat_AsDouble(args[2]), most = PyFloat_AsDouble(args[3]);
    if (PyErr_Occurred() || room_of(args[1], HEADERS, 0) == NULL)
        return NULL;
    ssize_t got = recv(descriptor, message, sizeof message, MSG_DONTWAIT);
    if (got < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    memcpy(&head, message, sizeof head);
    if (got != sizeof head || head.kind != RING || head.slot >= PyTuple_GET_SIZE(PyTuple_GET_ITEM(args[1], HEADERS)))
        return PyBytes_FromStringAndSize(message, got);

    PyArrayObject *header = room_of(args[1], HEADERS, head.slot), *room = room_of(args[1], INPUTS, head.slot);
    if (header == NULL || room == NULL)
        return NULL;
    read_request(header, &request);
    npy_intp most_rows = PyArray_NDIM(room) > 0 ? PyArray_DIM(room, 0) : 0;
    if (request.rows < 1 || request.rows > (uint64_t)most_rows ||
        request.input_bytes != request.rows * (uint64_t)(PyArray_NBYTES(room) / most_rows))
        return PyBytes_FromStringAndSize(message, got);
    PyObject *id = id_of(&request);
    if (id == NULL)
        return PyBytes_FromStringAndSize(message, got);

    npy_intp shape[NPY_MAXDIMS];
    memcpy(shape, PyArray_DIMS(room), (size_t)PyArray_NDIM(room) * sizeof *shape);
    shape[0] = request.rows;
    PyArrayObject *copy = (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(room), shape, NPY_FLOAT32);
    if (copy == NULL) {
        Py_DECREF(id);
        return NULL;
    }
    float *target = PyArray_DATA(copy), *source = PyArray_DATA(room);
    Py_ssize_t values = PyArray_SIZE(copy);
    int within = copy_and_check(target, source, values, (float)least, (float)most);
    return Py_BuildValue("HIKNNO", head.slot, head.sequence, (unsigned long long)request.deadline_ns, id, copy,
                         within ? Py_True : Py_False);
}

/* Copies rows of an output into its room; -1 with an error if they do not fit. */
static int put(PyObject *rooms, int which, Py_ssize_t slot, PyObject *object, Py_ssize_t rows)
{
    PyArrayObject *room = room_of(rooms, which, slot), *output = (PyArrayObject *)object;
    if (room == NULL)
        return -1;
    if (!PyArray_Check(object) || PyArray_TYPE(output) != NPY_FLOAT32 || !PyArray_ISCARRAY_RO(output) ||
        PyArray_NDIM(output) != 2 || PyArray_NDIM(room) != 2 || PyArray_DIM(output, 0) != rows ||
        PyArray_DIM(output, 1) != PyArray_DIM(room, 1) || rows > PyArray_DIM(room, 0)) {
        PyErr_SetString(PyExc_ValueError, "the answer does not fit into the slot");
        return -1;
    }
    memcpy(PyArray_DATA(room), PyArray_DATA(output), (size_t)PyArray_NBYTES(output));
    return 0;
}

/* Writes text into a field that zeros fill; `most` bytes, cut between characters. -1 with an error. */
static int write_text(char *field, PyObject *text, Py_ssize_t most)
{
    Py_ssize_t size;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &size);
    if (bytes == NULL)
        return -1;
    if (size > most)
        for (size = most; size > 0 && (bytes[size] & 0xC0) == 0x80; size--)
            ;
    memcpy(field, bytes, (size_t)size);
    return 0;
}

static PyObject *give(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct answer answer = {0};

    if (count != 11) {
        PyErr_SetString(PyExc_TypeError, "give(descriptor, rooms, slot, sequence, scores, features, latency_us, rung, "
                                         "request_id, release_id, variant)");
        return NULL;
    }
    int descriptor = (int)PyLong_AsLong(args[0]);
    Py_ssize_t slot = PyLong_AsSsize_t(args[2]);
    struct head head = {DONE, (uint16_t)slot, (uint32_t)PyLong_AsUnsignedLong(args[3])};
    answer.latency_us = PyFloat_AsDouble(args[6]);
    answer.rung = (uint32_t)PyLong_AsUnsignedLong(args[7]);
    if (PyErr_Occurred())
        return NULL;
    PyArrayObject *header = room_of(args[1], HEADERS, slot), *scores = (PyArrayObject *)args[4];
    if (header == NULL)
        return NULL;
    Py_ssize_t rows = PyArray_Check(args[4]) && PyArray_NDIM(scores) > 0 ? PyArray_DIM(scores, 0) : -1;
    answer.rows = (uint32_t)rows;
    if (write_text(answer.id, args[8], ID_BYTES) < 0 || write_text(answer.release, args[9], NAME_BYTES - 1) < 0 ||
        write_text(answer.variant, args[10], NAME_BYTES - 1) < 0 || put(args[1], SCORES, slot, args[4], rows) < 0 ||
        put(args[1], FEATURES, slot, args[5], rows) < 0)
        return NULL;
    memcpy((char *)PyArray_DATA(header) + REQUEST_BYTES, &answer, sizeof answer);
    if (send(descriptor, &head, sizeof head, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* A copy of an output in its room: rows of it. */
static PyObject *output_of(PyObject *rooms, int which, Py_ssize_t slot, uint32_t rows)
{
    PyArrayObject *room = room_of(rooms, which, slot);
    if (room == NULL)
        return NULL;
    if (PyArray_NDIM(room) != 2 || rows > (uint64_t)PyArray_DIM(room, 0)) {
        PyErr_SetString(PyExc_ValueError, "the answer has more rows than the slot");
        return NULL;
    }
    npy_intp shape[2] = {rows, PyArray_DIM(room, 1)};
    PyObject *copy = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (copy != NULL) {
        memcpy(PyArray_DATA((PyArrayObject *)copy), PyArray_DATA(room), (size_t)PyArray_NBYTES((PyArrayObject *)copy));
        PyArray_CLEARFLAGS((PyArrayObject *)copy, NPY_ARRAY_WRITEABLE);
    }
    return copy;
}

static PyObject *text_of(const char *field, size_t most)
{
    return PyUnicode_DecodeUTF8(field, (Py_ssize_t)strnlen(field, most), "replace");
}

/* Writes the input, unless it is there already, and the request header; -1 with an error. */
static int write_request(PyObject *rooms, Py_ssize_t slot, PyObject *input, const struct request *request)
{
    PyArrayObject *header = room_of(rooms, HEADERS, slot), *room = room_of(rooms, INPUTS, slot);
    if (header == NULL || room == NULL)
        return -1;
    if (input != Py_None) {
        PyArrayObject *x = (PyArrayObject *)PyArray_FROM_OTF(input, NPY_FLOAT32, NPY_ARRAY_CARRAY_RO);
        if (x == NULL)
            return -1;
        int fits = (uint64_t)PyArray_NBYTES(x) == request->input_bytes && PyArray_NBYTES(x) <= PyArray_NBYTES(room);
        if (fits)
            memcpy(PyArray_DATA(room), PyArray_DATA(x), (size_t)PyArray_NBYTES(x));
        Py_DECREF(x);
        if (!fits) {
            PyErr_SetString(PyExc_ValueError, "the input does not fit into the slot");
            return -1;
        }
    }
    memcpy(PyArray_DATA(header), request, sizeof *request);
    return 0;
}

/* Waits for a message; its size, or -1 with an error. A signal is looked at and the wait goes on. */
static ssize_t receive(int descriptor, char *message)
{
    ssize_t got;
    do {
        Py_BEGIN_ALLOW_THREADS
        got = recv(descriptor, message, MESSAGE_BYTES, 0);
        Py_END_ALLOW_THREADS
        if (got >= 0)
            return got;
    } while (errno == EINTR && PyErr_CheckSignals() == 0);
    if (!PyErr_Occurred())
        PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static PyObject *ask(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char message[MESSAGE_BYTES];
    struct request request = {0};
    struct answer answer;
    Py_ssize_t id_bytes;

    if (count != 8) {
        PyErr_SetString(PyExc_TypeError, "ask(descriptor, rooms, slot, sequence, rows, deadline_ns, request_id, input)");
        return NULL;
    }
    int descriptor = (int)PyLong_AsLong(args[0]);
    Py_ssize_t slot = PyLong_AsSsize_t(args[2]);
    struct head head = {RING, (uint16_t)slot, (uint32_t)PyLong_AsUnsignedLong(args[3])}, done;
    request.rows = (uint32_t)PyLong_AsUnsignedLong(args[4]);
    request.deadline_ns = PyLong_AsUnsignedLongLong(args[5]);
    const char *id = PyUnicode_AsUTF8AndSize(args[6], &id_bytes);
    if (id == NULL || PyErr_Occurred())
        return NULL;
    PyArrayObject *room = room_of(args[1], INPUTS, slot);
    if (room == NULL)
        return NULL;
    if (id_bytes > ID_BYTES || PyArray_NDIM(room) < 1 || request.rows > (uint64_t)PyArray_DIM(room, 0)) {
        PyErr_SetString(PyExc_ValueError, "the request does not fit into the slot");
        return NULL;
    }
    request.id_bytes = (uint32_t)id_bytes;
    request.input_bytes = request.rows * (uint64_t)(PyArray_NBYTES(room) / PyArray_DIM(room, 0));
    memcpy(request.id, id, (size_t)id_bytes);
    if (write_request(args[1], slot, args[7], &request) < 0)
        return NULL;
    if (send(descriptor, &head, sizeof head, MSG_NOSIGNAL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    ssize_t got = receive(descriptor, message);
    if (got < 0)
        return NULL;

    memcpy(&done, message, sizeof done);
    memcpy(&answer, (char *)PyArray_DATA(room_of(args[1], HEADERS, slot)) + REQUEST_BYTES, sizeof answer);
    if (got != sizeof done || done.kind != DONE || done.slot != head.slot || done.sequence != head.sequence ||
        answer.status != 0)
        return PyBytes_FromStringAndSize(message, got);
    PyObject *scores = output_of(args[1], SCORES, slot, answer.rows);
    PyObject *features = scores == NULL ? NULL : output_of(args[1], FEATURES, slot, answer.rows);
    if (features == NULL) {
        Py_XDECREF(scores);
        return NULL;
    }
    return Py_BuildValue("NNdINNN", scores, features, answer.latency_us, answer.rung, text_of(answer.id, ID_BYTES),
                         text_of(answer.release, NAME_BYTES), text_of(answer.variant, NAME_BYTES));
}

static PyMethodDef functions[] = {
    {"ask", (PyCFunction)(void (*)(void))ask, METH_FASTCALL, NULL},
    {"take", (PyCFunction)(void (*)(void))take, METH_FASTCALL, NULL},
    {"give", (PyCFunction)(void (*)(void))give, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_slots", "See skerry_agent.serving.slots.", -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__slots(void)
{
    import_array();
    return PyModule_Create(&definition);
}
