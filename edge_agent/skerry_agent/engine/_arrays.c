/* What a request does with its arrays, compiled: see arrays.py, which says what each function promises and does the
 * same with NumPy where this file was not compiled. Everything here is called with the interpreter's lock held.
 */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>
#include <string.h>

#include "_within.h"


static int is_within(const float *value, Py_ssize_t count, float least, float most)
{
    for (Py_ssize_t start = 0; start < count; start += BLOCK) {
        Py_ssize_t length = count - start < BLOCK ? count - start : BLOCK;
        if (!block_is_within(value + start, length, least, most))
            return 0;
    }
    return 1;
}

static PyArrayObject *as_array(PyObject *object)
{
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != NPY_FLOAT32) {
        PyErr_SetString(PyExc_TypeError, "expected a float32 array");
        return NULL;
    }
    return (PyArrayObject *)object;
}

static PyObject *within(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "within(array, least, most)");
        return NULL;
    }
    double least = PyFloat_AsDouble(args[1]), most = PyFloat_AsDouble(args[2]);
    if (PyErr_Occurred() || as_array(args[0]) == NULL)
        return NULL;
    /* A new reference: the array itself, or a copy of one whose values do not lie side by side. */
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OTF(args[0], NPY_FLOAT32, NPY_ARRAY_CARRAY_RO);
    if (array == NULL)
        return NULL;
    const float *value = PyArray_DATA(array);
    Py_ssize_t size = PyArray_SIZE(array);
    int answer;
    if (size > LONG) {
        Py_BEGIN_ALLOW_THREADS
        answer = is_within(value, size, (float)least, (float)most);
        Py_END_ALLOW_THREADS
    } else {
        answer = is_within(value, size, (float)least, (float)most);
    }
    Py_DECREF(array);
    return PyBool_FromLong(answer);
}

static PyObject *fill(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyArrayObject *target, *source;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "fill(target, source)");
        return NULL;
    }
    if ((target = as_array(args[0])) == NULL || (source = as_array(args[1])) == NULL)
        return NULL;
    if (PyArray_ISCARRAY(target) && PyArray_ISCARRAY_RO(source) && PyArray_SAMESHAPE(target, source))
        memcpy(PyArray_DATA(target), PyArray_DATA(source), (size_t)PyArray_NBYTES(target));
    else if (PyArray_CopyInto(target, source) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *copies(PyObject *module, PyObject *arrays)
{
    if (!PyTuple_Check(arrays)) {
        PyErr_SetString(PyExc_TypeError, "expected a tuple of arrays");
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(arrays);
    PyObject *result = PyTuple_New(count);
    for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
        PyArrayObject *array = as_array(PyTuple_GET_ITEM(arrays, i));
        PyObject *copy = array == NULL ? NULL : PyArray_NewCopy(array, NPY_CORDER);
        if (copy == NULL)
            Py_CLEAR(result);
        else
            PyTuple_SET_ITEM(result, i, copy);
    }
    return result;
}

static PyObject *seal(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyArrayObject *array = as_array(args[i]);
        if (array == NULL)
            return NULL;
        PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
    }
    Py_RETURN_NONE;
}

static PyObject *rows_of(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    npy_intp dims[NPY_MAXDIMS];
    if (count != 5 || !PyBytes_Check(args[0]) || !PyTuple_Check(args[2]) || PyTuple_GET_SIZE(args[2]) > NPY_MAXDIMS) {
        PyErr_SetString(PyExc_TypeError, "rows_of(data, offset, shape, least, most)");
        return NULL;
    }
    Py_ssize_t offset = PyLong_AsSsize_t(args[1]), size = PyBytes_GET_SIZE(args[0]);
    double least = PyFloat_AsDouble(args[3]), most = PyFloat_AsDouble(args[4]);
    int rank = (int)PyTuple_GET_SIZE(args[2]);
    Py_ssize_t values = 1;
    for (int i = 0; i < rank && !PyErr_Occurred(); i++) {
        dims[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[2], i));
        if (dims[i] < 0 || (dims[i] > 0 && values > PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(float) / dims[i]))
            values = -1;
        if (values < 0)
            break;
        values *= dims[i];
    }
    if (PyErr_Occurred())
        return NULL;
    if (values < 0 || offset < 0 || offset > size || values > (size - offset) / (Py_ssize_t)sizeof(float)) {
        PyErr_SetString(PyExc_ValueError, "the data are shorter than the shape");
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)PyArray_SimpleNew(rank, dims, NPY_FLOAT32);
    if (array == NULL)
        return NULL;
    float *target = PyArray_DATA(array);
    const char *source = PyBytes_AS_STRING(args[0]) + offset;
    int inside = copy_and_check(target, source, values, (float)least, (float)most);
    return Py_BuildValue("NO", array, inside ? Py_True : Py_False);
}

static PyMethodDef functions[] = {
    {"rows_of", (PyCFunction)(void (*)(void))rows_of, METH_FASTCALL, NULL},
    {"within", (PyCFunction)(void (*)(void))within, METH_FASTCALL, NULL},
    {"fill", (PyCFunction)(void (*)(void))fill, METH_FASTCALL, NULL},
    {"copies", copies, METH_O, NULL},
    {"seal", (PyCFunction)(void (*)(void))seal, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_arrays", "See skerry_agent.engine.arrays.", -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__arrays(void)
{
    import_array();
    return PyModule_Create(&definition);
}
