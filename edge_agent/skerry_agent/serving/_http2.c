/* One connection of the gRPC door: HTTP/2 by nghttp2, gRPC's framing around it. http2.py says what it promises.
 *
 * Called with the interpreter's lock held, by one thread; no call waits for the peer. Sources: RFC 9113, and gRPC over
 * HTTP/2 (grpc/doc/PROTOCOL-HTTP2.md). Everything the peer sends is bounded: streams, headers, messages and frames that
 * wait to be sent here; PING, SETTINGS, RST_STREAM and CONTINUATION that it floods the connection with by nghttp2.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { PREFIX = 5, PATH = 256, TIMEOUT = 16, ENCODING = 32, TEXT = 1024 };
/* Bytes of one recv(2); of a message that are made room for before they have come; of output that are gathered. */
enum { RECEIVE = 256 << 10, ROOM = 1 << 20, GATHER = 256 << 10, SPARE = 64 << 10 };
/* What the client may send before it is told to go on: a stream, the connection. And the longest frame. */
enum { STREAM_WINDOW = 1 << 20, CONNECTION_WINDOW = 16 << 20, FRAME = 1 << 20 };
/* Frames that may wait to be sent after a receive: many more than the answers of all streams and what nghttp2 says. */
enum { QUEUE = 16 << 10 };
/* What is wrong with a request; http2.Problem. */
enum { NONE, TOO_LARGE, NOT_GRPC, BROKEN };

struct stream {
    struct stream *before, *after; /* in the list of the connection's open streams, oldest first */
    int64_t begun_ns;
    char path[PATH], timeout[TIMEOUT], encoding[ENCODING];
    size_t header_bytes;
    int is_post, is_grpc, problem, told, answered;
    unsigned char prefix[PREFIX];
    size_t prefix_got, length, got;
    PyObject *message, *answer;
    size_t answer_read;
};

typedef struct {
    PyObject_HEAD
    nghttp2_session *session;
    struct stream *first, *last;
    Py_ssize_t message_limit, header_limit;
    Py_ssize_t held;    /* bytes of messages that have not been handed out */
    PyObject *requests; /* of the current call of receive */
    int given_up;       /* whether the client has given up one of them since */
    char *output;       /* gathered, and not sent yet */
    size_t output_size, output_sent;
} Connection;

static char input[RECEIVE]; /* the interpreter's lock is held while it is used */

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct stream *stream_of(Connection *self, int32_t id)
{
    return nghttp2_session_get_stream_user_data(self->session, id);
}

/* ---- what comes ---- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    Connection *self = user;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    stream->begun_ns = now_ns();
    stream->before = self->last;
    *(self->last == NULL ? &self->first : &self->last->after) = stream;
    self->last = stream;
    return nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
}

static void keep(struct stream *stream, char *field, size_t room, const uint8_t *value, size_t size)
{
    if (size < room)
        memcpy(field, value, size);
    else
        stream->problem = BROKEN;
}

static int is(const uint8_t *name, size_t size, const char *wanted)
{
    return size == strlen(wanted) && memcmp(name, wanted, size) == 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t size, uint8_t flags, void *user)
{
    static const char GRPC[] = "application/grpc";
    Connection *self = user;
    struct stream *stream = stream_of(self, frame->hd.stream_id);
    if (stream == NULL || frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    stream->header_bytes += name_size + size + 32; /* as RFC 9113 6.5.2 counts them */
    if (stream->header_bytes > (size_t)self->header_limit)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* ends the stream */
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    if (is(name, name_size, ":path"))
        keep(stream, stream->path, PATH, value, size);
    else if (is(name, name_size, "grpc-timeout"))
        keep(stream, stream->timeout, TIMEOUT, value, size);
    else if (is(name, name_size, "grpc-encoding"))
        keep(stream, stream->encoding, ENCODING, value, size);
    else if (is(name, name_size, ":method"))
        stream->is_post = is(value, size, "POST");
    else if (is(name, name_size, "content-type")) {
        size_t known = sizeof GRPC - 1;
        stream->is_grpc = size >= known && memcmp(value, GRPC, known) == 0 &&
                          (size == known || value[known] == '+' || value[known] == ';');
    }
    return 0;
}

/* Room for `size` bytes of the message: all of it if it is short, else as much again as has come. */
static int make_room(struct stream *stream, size_t size)
{
    size_t room = stream->message == NULL ? 0 : (size_t)PyBytes_GET_SIZE(stream->message);
    if (size <= room)
        return 0;
    room = size > room * 2 ? size : room * 2;
    if (room < ROOM)
        room = ROOM;
    if (room > stream->length)
        room = stream->length;
    if (stream->message == NULL)
        stream->message = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    else
        _PyBytes_Resize(&stream->message, (Py_ssize_t)room);
    return stream->message == NULL ? -1 : 0;
}

static void drop_message(Connection *self, struct stream *stream)
{
    self->held -= (Py_ssize_t)stream->got;
    stream->got = 0;
    Py_CLEAR(stream->message);
}

/* Hand a request to whoever called receive; -1 with an error. */
static int tell(Connection *self, int32_t id, struct stream *stream)
{
    stream->told = 1;
    if (stream->problem != NONE)
        drop_message(self, stream);
    self->held -= (Py_ssize_t)stream->got;
    stream->got = 0;
    PyObject *message = stream->message == NULL ? PyBytes_FromStringAndSize("", 0) : stream->message;
    stream->message = NULL;
    if (message == NULL)
        return -1;
    PyObject *request = Py_BuildValue("iyyyNOiL", (int)id, stream->path, stream->timeout, stream->encoding, message,
                                      stream->prefix[0] ? Py_True : Py_False, stream->problem,
                                      (long long)stream->begun_ns);
    if (request == NULL)
        return -1;
    int failed = PyList_Append(self->requests, request);
    Py_DECREF(request);
    return failed;
}

static int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t size,
                         void *user)
{
    Connection *self = user;
    struct stream *stream = stream_of(self, id);
    if (stream == NULL || stream->told)
        return 0;
    while (size > 0 && stream->problem == NONE) {
        if (stream->prefix_got < PREFIX) {
            stream->prefix[stream->prefix_got++] = *data++;
            size--;
            if (stream->prefix_got < PREFIX)
                continue;
            const unsigned char *p = stream->prefix;
            stream->length = (size_t)p[1] << 24 | (size_t)p[2] << 16 | (size_t)p[3] << 8 | p[4];
            if (p[0] > 1)
                stream->problem = BROKEN;
            else if ((int64_t)stream->length > self->message_limit)
                stream->problem = TOO_LARGE;
            continue;
        }
        if (size > stream->length - stream->got) { /* a second message */
            stream->problem = BROKEN;
            break;
        }
        if (make_room(stream, stream->got + size) < 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        memcpy(PyBytes_AS_STRING(stream->message) + stream->got, data, size);
        stream->got += size;
        self->held += (Py_ssize_t)size;
        break;
    }
    /* The answer need not wait for the rest of what is not taken. */
    return stream->problem != NONE && tell(self, id, stream) < 0 ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    Connection *self = user;
    if (frame->hd.type != NGHTTP2_DATA && frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    struct stream *stream = stream_of(self, frame->hd.stream_id);
    if (stream == NULL || stream->told)
        return 0;
    int whole = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    if (!stream->is_post || !stream->is_grpc)
        stream->problem = NOT_GRPC;
    else if (whole && (stream->prefix_got < PREFIX || stream->got < stream->length))
        stream->problem = BROKEN;
    if (!whole && stream->problem == NONE)
        return 0;
    return tell(self, frame->hd.stream_id, stream) < 0 ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static void free_stream(Connection *self, struct stream *stream)
{
    *(stream->before == NULL ? &self->first : &stream->before->after) = stream->after;
    *(stream->after == NULL ? &self->last : &stream->after->before) = stream->before;
    drop_message(self, stream);
    Py_CLEAR(stream->answer);
    free(stream);
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error, void *user)
{
    Connection *self = user;
    struct stream *stream = stream_of(self, id);
    if (stream != NULL) {
        self->given_up |= stream->told;
        nghttp2_session_set_stream_user_data(session, id, NULL);
        free_stream(self, stream);
    }
    return 0;
}

/* Nobody works for a request that was given up in the same breath ("rapid reset"). */
static int drop_given_up(Connection *self, PyObject *requests)
{
    for (Py_ssize_t i = PyList_GET_SIZE(requests) - 1; i >= 0; i--) {
        long id = PyLong_AsLong(PyTuple_GET_ITEM(PyList_GET_ITEM(requests, i), 0));
        if (stream_of(self, (int32_t)id) == NULL && PyList_SetSlice(requests, i, i + 1, NULL) < 0)
            return -1;
    }
    return 0;
}

static PyObject *failed(ssize_t result)
{
    if (!PyErr_Occurred())
        PyErr_SetString(result == NGHTTP2_ERR_CALLBACK_FAILURE || result == NGHTTP2_ERR_NOMEM ? PyExc_MemoryError
                                                                                             : PyExc_ValueError,
                        nghttp2_strerror((int)result));
    return NULL;
}

/* An answer that was sent before the request had come whole ends the rest of the request. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) && frame->hd.type == NGHTTP2_HEADERS &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    return 0;
}

static PyObject *Connection_receive(Connection *self, PyObject *argument)
{
    int descriptor = PyObject_AsFileDescriptor(argument);
    if (descriptor < 0)
        return NULL;
    ssize_t got = recv(descriptor, input, sizeof input, MSG_DONTWAIT);
    if (got < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (got == 0)
        Py_RETURN_NONE;
    self->requests = PyList_New(0);
    if (self->requests == NULL)
        return NULL;
    self->given_up = 0;
    ssize_t read = nghttp2_session_mem_recv(self->session, (const uint8_t *)input, (size_t)got);
    PyObject *requests = self->requests;
    self->requests = NULL;
    if (read >= 0 && nghttp2_session_get_outbound_queue_size(self->session) > QUEUE)
        read = NGHTTP2_ERR_FLOODED;
    if (read < 0 || (self->given_up && drop_given_up(self, requests) < 0)) {
        Py_DECREF(requests);
        return failed(read);
    }
    return requests;
}

/* ---- what goes ---- */

#define FIELD(name, value, size)                                                                                       \
    {                                                                                                                  \
        (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, (size), NGHTTP2_NV_FLAG_NONE                          \
    }
#define CONSTANT(name, value) FIELD(name, value, sizeof(value) - 1)
#define HEAD CONSTANT(":status", "200"), CONSTANT("content-type", "application/grpc")

static ssize_t read_answer(nghttp2_session *session, int32_t id, uint8_t *target, size_t room, uint32_t *flags,
                           nghttp2_data_source *source, void *user)
{
    struct stream *stream = source->ptr;
    size_t size = (size_t)PyBytes_GET_SIZE(stream->answer), wrote = 0;
    unsigned char prefix[PREFIX] = {0, (unsigned char)(size >> 24), (unsigned char)(size >> 16),
                                    (unsigned char)(size >> 8), (unsigned char)size};
    while (wrote < room && stream->answer_read < PREFIX)
        target[wrote++] = prefix[stream->answer_read++];
    if (wrote < room && stream->answer_read >= PREFIX) {
        size_t start = stream->answer_read - PREFIX, part = size - start < room - wrote ? size - start : room - wrote;
        memcpy(target + wrote, PyBytes_AS_STRING(stream->answer) + start, part);
        wrote += part;
        stream->answer_read += part;
    }
    if (stream->answer_read == PREFIX + size) {
        const nghttp2_nv trailer[] = {CONSTANT("grpc-status", "0")};
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        if (nghttp2_submit_trailer(session, id, trailer, 1) != 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    return (ssize_t)wrote;
}

static PyObject *submitted(int result)
{
    if (result != 0)
        return failed(result);
    Py_RETURN_NONE;
}

/* The stream whose request is answered now; NULL with an error, or without one if the client has given it up. */
static struct stream *to_answer(Connection *self, int32_t id)
{
    struct stream *stream = stream_of(self, id);
    if (stream == NULL)
        return NULL;
    if (!stream->told || stream->answered) {
        PyErr_SetString(PyExc_RuntimeError, "no request of this stream is to be answered");
        return NULL;
    }
    stream->answered = 1;
    return stream;
}

static PyObject *nothing_to_answer(void)
{
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Connection_answer(Connection *self, PyObject *args)
{
    int id;
    PyObject *message;
    if (!PyArg_ParseTuple(args, "iS", &id, &message))
        return NULL;
    if ((uint64_t)PyBytes_GET_SIZE(message) > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a message has less than 4 GiB");
        return NULL;
    }
    struct stream *stream = to_answer(self, id);
    if (stream == NULL)
        return nothing_to_answer();
    stream->answer = Py_NewRef(message);
    const nghttp2_nv head[] = {HEAD, CONSTANT("grpc-accept-encoding", "identity,deflate,gzip")};
    nghttp2_data_provider provider = {{.ptr = stream}, read_answer};
    return submitted(nghttp2_submit_response(self->session, id, head, 3, &provider));
}

static PyObject *Connection_fail(Connection *self, PyObject *args)
{
    int id, status;
    const char *text;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "iis#", &id, &status, &text, &size))
        return NULL;
    if (to_answer(self, id) == NULL)
        return nothing_to_answer();
    /* Percent-encoded, as gRPC over HTTP/2 asks for (Status-Message). */
    static const char HEX[] = "0123456789ABCDEF";
    char message[3 * TEXT], code[12];
    size_t length = 0;
    if (size > TEXT)
        for (size = TEXT; ((unsigned char)text[size] & 0xC0) == 0x80; size--) /* between characters */
            ;
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c <= 0x7E && c != '%') {
            message[length++] = (char)c;
        } else {
            message[length++] = '%';
            message[length++] = HEX[c >> 4];
            message[length++] = HEX[c & 15];
        }
    }
    int digits = snprintf(code, sizeof code, "%d", status);
    const nghttp2_nv head[] = {HEAD, FIELD("grpc-status", code, (size_t)digits), FIELD("grpc-message", message, length)};
    return submitted(nghttp2_submit_response(self->session, id, head, 4, NULL));
}

static PyObject *Connection_refuse(Connection *self, PyObject *args)
{
    int id;
    const char *status;
    if (!PyArg_ParseTuple(args, "is", &id, &status))
        return NULL;
    if (to_answer(self, id) == NULL)
        return nothing_to_answer();
    const nghttp2_nv head[] = {FIELD(":status", status, strlen(status))};
    return submitted(nghttp2_submit_response(self->session, id, head, 1, NULL));
}

/* Fills the output with what nghttp2 has; -1 with an error. */
static int gather(Connection *self)
{
    self->output_size = self->output_sent = 0;
    while (self->output_size < GATHER) {
        const uint8_t *data;
        ssize_t size = nghttp2_session_mem_send(self->session, &data);
        if (size < 0) {
            failed(size);
            return -1;
        }
        if (size == 0)
            return 0;
        if ((size_t)size > GATHER + SPARE - self->output_size) { /* nghttp2 sends 16 KiB of an answer in a frame */
            PyErr_SetString(PyExc_RuntimeError, "a frame that is too long");
            return -1;
        }
        memcpy(self->output + self->output_size, data, (size_t)size);
        self->output_size += (size_t)size;
    }
    return 0;
}

static PyObject *Connection_flush(Connection *self, PyObject *argument)
{
    int descriptor = PyObject_AsFileDescriptor(argument);
    if (descriptor < 0)
        return NULL;
    for (;;) {
        if (self->output_sent == self->output_size && gather(self) < 0)
            return NULL;
        if (self->output_size == 0)
            Py_RETURN_TRUE;
        ssize_t sent = send(descriptor, self->output + self->output_sent, self->output_size - self->output_sent,
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            Py_RETURN_FALSE;
        if (sent < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
        self->output_sent += (size_t)sent;
    }
}

static PyObject *Connection_go_away(Connection *self, PyObject *Py_UNUSED(ignored))
{
    int32_t last = nghttp2_session_get_last_proc_stream_id(self->session);
    return submitted(nghttp2_submit_goaway(self->session, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL, 0));
}

/* ---- the object ---- */

static int open_session(Connection *self, int streams)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    int result = NGHTTP2_ERR_NOMEM;
    if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0)
        goto end;
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_option_set_no_closed_streams(option, 1);
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, (uint32_t)streams},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW},
        {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, FRAME},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, (uint32_t)self->header_limit},
    };
    result = nghttp2_session_server_new2(&self->session, callbacks, self, option);
    if (result == 0)
        result = nghttp2_submit_settings(self->session, NGHTTP2_FLAG_NONE, settings, 4);
    if (result == 0)
        result = nghttp2_session_set_local_window_size(self->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW);
end:
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_option_del(option);
    return result;
}

static PyObject *Connection_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"streams", "message_limit", "header_limit", NULL};
    int streams;
    Py_ssize_t message_limit, header_limit;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "$inn", names, &streams, &message_limit, &header_limit))
        return NULL;
    if (streams < 1 || message_limit < 0 || header_limit < 0 || header_limit > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "expected limits that are not negative, and at least one stream");
        return NULL;
    }
    Connection *self = (Connection *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->message_limit = message_limit;
    self->header_limit = header_limit;
    self->output = malloc(GATHER + SPARE);
    if (self->output == NULL || open_session(self, streams) != 0) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void Connection_dealloc(Connection *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->session != NULL)
        nghttp2_session_del(self->session); /* without telling of the streams that it ends */
    while (self->first != NULL)
        free_stream(self, self->first);
    free(self->output);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *Connection_finished(Connection *self, void *closure)
{
    return PyBool_FromLong(self->output_sent == self->output_size && !nghttp2_session_want_read(self->session) &&
                           !nghttp2_session_want_write(self->session));
}

static PyObject *Connection_open_since_ns(Connection *self, void *closure)
{
    if (self->first == NULL)
        Py_RETURN_NONE;
    return PyLong_FromLongLong(self->first->begun_ns);
}

static PyObject *Connection_idle(Connection *self, void *closure)
{
    return PyBool_FromLong(self->first == NULL && self->output_sent == self->output_size &&
                           !nghttp2_session_want_write(self->session));
}

static PyMethodDef Connection_methods[] = {
    {"receive", (PyCFunction)Connection_receive, METH_O, NULL},
    {"answer", (PyCFunction)Connection_answer, METH_VARARGS, NULL},
    {"fail", (PyCFunction)Connection_fail, METH_VARARGS, NULL},
    {"refuse", (PyCFunction)Connection_refuse, METH_VARARGS, NULL},
    {"flush", (PyCFunction)Connection_flush, METH_O, NULL},
    {"go_away", (PyCFunction)Connection_go_away, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Connection_members[] = {
    {"message_limit", T_PYSSIZET, offsetof(Connection, message_limit), 0, NULL},
    {"held", T_PYSSIZET, offsetof(Connection, held), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Connection_properties[] = {
    {"finished", (getter)Connection_finished, NULL, NULL, NULL},
    {"idle", (getter)Connection_idle, NULL, NULL, NULL},
    {"open_since_ns", (getter)Connection_open_since_ns, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Connection_slots[] = {
    {Py_tp_new, Connection_new},
    {Py_tp_dealloc, Connection_dealloc},
    {Py_tp_methods, Connection_methods},
    {Py_tp_members, Connection_members},
    {Py_tp_getset, Connection_properties},
    {Py_tp_doc, "See skerry_agent.serving.http2."},
    {0, NULL},
};

static PyType_Spec Connection_spec = {
    "skerry_agent.serving._http2.Connection", sizeof(Connection), 0, Py_TPFLAGS_DEFAULT, Connection_slots,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_http2", "See skerry_agent.serving.http2.", -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__http2(void)
{
    PyObject *module = PyModule_Create(&definition), *type = PyType_FromSpec(&Connection_spec);
    if (module == NULL || type == NULL || PyModule_AddObject(module, "Connection", type) < 0) {
        Py_XDECREF(module);
        Py_XDECREF(type);
        return NULL;
    }
    return module;
}
