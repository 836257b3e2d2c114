/* skerry.c - the client of the shared-memory door; see skerry.h. Compiles as C99 and as C++.
 *
 * Nothing that the agent says is used before it has been checked: every offset lies inside the memory, every size is
 * bounded. After any doubt the connection is closed.
 * SPDX-License-Identifier: Apache-2.0
 */
#if !defined(_GNU_SOURCE) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif

#include "skerry.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum skerry_kind { SKERRY_HELLO = 1, SKERRY_WELCOME = 2, SKERRY_REFUSED = 3, SKERRY_RING = 4, SKERRY_DONE = 5 };
enum { SKERRY_REQUEST_BYTES = 192, SKERRY_MESSAGE_BYTES = 1024, SKERRY_NAME_BYTES = 64, SKERRY_ID_BYTES = 128 };
/* The messages of docs/shared-memory.md; every field is aligned to its size, so no compiler puts gaps between. */
struct skerry_head {
    uint16_t kind, slot;
    uint32_t sequence;
};
struct skerry_hello {
    struct skerry_head head;
    char magic[4];
    uint16_t version, slots;
    uint32_t rows;
};
struct skerry_welcome {
    struct skerry_head head;
    char magic[4];
    uint16_t version, slots;
    uint32_t rows, rank, classes, features, names_bytes, reserved;
    uint64_t memory_bytes, first_slot, slot_bytes, input_offset, scores_offset, features_offset;
    float minimum, maximum;
    uint32_t shape[SKERRY_MAX_RANK];
    char task[64], release_id[64], input_name[64];
};
struct skerry_refusal {
    struct skerry_head head;
    char magic[4];
    uint16_t version, status;
    uint32_t reserved;
    char error[480];
};
struct skerry_request_header {
    uint32_t rows, id_bytes;
    uint64_t input_bytes, deadline_ns, reserved;
    char id[128];
};
struct skerry_answer_header {
    uint32_t status, rows;
    double latency_us;
    uint32_t rung, reserved[3];
    char id[128], release_id[64], variant[64], error[480];
};
typedef char skerry_check_welcome[sizeof(struct skerry_welcome) == 320 ? 1 : -1];
typedef char skerry_check_refusal[sizeof(struct skerry_refusal) == 500 ? 1 : -1];
typedef char skerry_check_request[sizeof(struct skerry_request_header) == 160 ? 1 : -1];
typedef char skerry_check_answer[sizeof(struct skerry_answer_header) == 768 ? 1 : -1];

static int skerry_fail(struct skerry_client *client, int status, const char *what, const char *detail) {
    (void)snprintf(client->error, sizeof client->error, "%s%s%s", what, detail[0] ? ": " : "", detail);
    return status;
}

/* The connection cannot be trusted any more. */
static int skerry_gone(struct skerry_client *client, const char *what, const char *detail) {
    skerry_disconnect(client);
    return skerry_fail(client, SKERRY_DISCONNECTED, what, detail);
}

static void skerry_copy_text(char *to, const char *from, size_t size) {
    memcpy(to, from, size);
    to[size] = '\0';
}

static void skerry_unmap(struct skerry_client *client) {
    if (client->memory != NULL) {
        (void)munmap(client->memory, (size_t)client->memory_bytes);
        client->memory = NULL;
    }
}

static int skerry_open(struct skerry_client *client, const char *data_dir) {
    struct sockaddr_un address;
    struct timeval limit;
    char folder[4096];
    int written, connected, folder_fd = -1;

    client->socket_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (client->socket_fd < 0)
        return skerry_fail(client, SKERRY_DISCONNECTED, "no socket", strerror(errno));
    limit.tv_sec = SKERRY_TIMEOUT_SECONDS;
    limit.tv_usec = 0;
    (void)setsockopt(client->socket_fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    (void)setsockopt(client->socket_fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    written = snprintf(address.sun_path, sizeof address.sun_path, "%s/door/shared-memory.sock", data_dir);
    if (written < 0 || (size_t)written >= sizeof address.sun_path) {
        /* The path is longer than a socket address: reach it through its folder. */
        written = snprintf(folder, sizeof folder, "%s/door", data_dir);
        if (written < 0 || (size_t)written >= sizeof folder)
            return skerry_gone(client, "the data directory's path is too long", "");
        folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder_fd < 0)
            return skerry_gone(client, "no folder door in the data directory", strerror(errno));
        (void)snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/shared-memory.sock", folder_fd);
    }
    connected = connect(client->socket_fd, (struct sockaddr *)&address, sizeof address);
    written = errno;
    if (folder_fd >= 0)
        (void)close(folder_fd);
    if (connected != 0)
        return skerry_gone(client, "no serving process answers", strerror(written));
    return SKERRY_OK;
}

/* One message, and the descriptor that may come with it (-1: none). Returns its size, 0 or less for an error. */
static ssize_t skerry_read(struct skerry_client *client, void *data, size_t size, int *descriptor) {
    union {
        struct cmsghdr aligned;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message;
    struct iovec part;
    struct cmsghdr *entry;
    ssize_t got;

    *descriptor = -1;
    memset(&message, 0, sizeof message);
    part.iov_base = data;
    part.iov_len = size;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    do
        got = recvmsg(client->socket_fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    entry = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (entry != NULL && entry->cmsg_level == SOL_SOCKET && entry->cmsg_type == SCM_RIGHTS &&
        entry->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(descriptor, CMSG_DATA(entry), sizeof(int));
    return got;
}

/* The status of a refusal, which ends the connection. */
static int skerry_refused(struct skerry_client *client, const void *data, size_t size) {
    struct skerry_refusal refusal;

    if (size != sizeof refusal)
        return skerry_gone(client, "the agent speaks another version", "");
    memcpy(&refusal, data, sizeof refusal);
    if (refusal.head.kind != SKERRY_REFUSED || refusal.status == SKERRY_OK)
        return skerry_gone(client, "the agent speaks another version", "");
    skerry_disconnect(client);
    refusal.error[sizeof refusal.error - 1] = '\0';
    return skerry_fail(client, refusal.status, refusal.error, "");
}

/* Whether everything that the welcome says lies inside the memory. */
static int skerry_fits(const struct skerry_welcome *w, uint64_t row_bytes) {
    uint64_t input_end = w->input_offset + w->rows * row_bytes;
    uint64_t scores_end = w->scores_offset + (uint64_t)w->rows * w->classes * sizeof(float);
    uint64_t features_end = w->features_offset + (uint64_t)w->rows * w->features * sizeof(float);

    return w->input_offset >= SKERRY_REQUEST_BYTES + sizeof(struct skerry_answer_header) &&
           input_end <= w->scores_offset && scores_end <= w->features_offset && features_end <= w->slot_bytes &&
           w->names_bytes <= w->first_slot && w->first_slot + w->slots * w->slot_bytes <= w->memory_bytes;
}

int skerry_agree(struct skerry_client *client) {
    char data[SKERRY_MESSAGE_BYTES];
    struct skerry_hello hello;
    struct skerry_welcome w;
    struct stat memory;
    uint64_t row_bytes = sizeof(float);
    ssize_t got;
    uint32_t i;
    int descriptor;
    void *mapped;

    if (client->socket_fd < 0)
        return skerry_fail(client, SKERRY_DISCONNECTED, "not connected", "");
    skerry_unmap(client);
    memset(client->pending, 0, sizeof client->pending);
    memset(client->done, 0, sizeof client->done);
    memset(&hello, 0, sizeof hello);
    hello.head.kind = SKERRY_HELLO;
    memcpy(hello.magic, "SKRY", 4);
    hello.version = SKERRY_VERSION;
    hello.slots = (uint16_t)client->wanted_slots;
    hello.rows = client->wanted_rows;
    if (send(client->socket_fd, &hello, sizeof hello, MSG_NOSIGNAL) != (ssize_t)sizeof hello)
        return skerry_gone(client, "the agent does not take requests", strerror(errno));
    do { /* answers of requests that were under way come first */
        got = skerry_read(client, data, sizeof data, &descriptor);
    } while (got == (ssize_t)sizeof(struct skerry_head));
    if (got <= 0)
        return skerry_gone(client, "the agent does not answer", got < 0 ? strerror(errno) : "it hung up");
    if (got != (ssize_t)sizeof w || descriptor < 0) {
        if (descriptor >= 0)
            (void)close(descriptor);
        return skerry_refused(client, data, (size_t)got);
    }
    memcpy(&w, data, sizeof w);
    if (w.head.kind == SKERRY_WELCOME && memcmp(w.magic, "SKRY", 4) == 0 && w.version == SKERRY_VERSION &&
        w.rank >= 1 && w.rank <= SKERRY_MAX_RANK && w.slots >= 1 && w.slots <= SKERRY_MAX_SLOTS && w.classes >= 1 &&
        w.rows >= 1 && w.rows <= SKERRY_MAX_ROWS)
        for (i = 0; i < w.rank && row_bytes <= UINT32_MAX; i++)
            row_bytes *= w.shape[i];
    else
        row_bytes = 0;
    if (row_bytes == 0 || row_bytes > UINT32_MAX || !skerry_fits(&w, row_bytes) || fstat(descriptor, &memory) != 0 ||
        (uint64_t)memory.st_size < w.memory_bytes) {
        (void)close(descriptor);
        return skerry_gone(client, "the agent speaks another version", "");
    }
    mapped = mmap(NULL, (size_t)w.memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    (void)close(descriptor);
    if (mapped == MAP_FAILED)
        return skerry_gone(client, "the memory cannot be mapped", strerror(errno));
    client->memory = (uint8_t *)mapped;
    client->memory_bytes = w.memory_bytes;
    client->first_slot = w.first_slot;
    client->slot_bytes = w.slot_bytes;
    client->input_offset = w.input_offset;
    client->scores_offset = w.scores_offset;
    client->features_offset = w.features_offset;
    client->names_bytes = w.names_bytes;
    client->rank = w.rank;
    memcpy(client->shape, w.shape, sizeof client->shape);
    client->row_bytes = (uint32_t)row_bytes;
    client->rows = w.rows;
    client->slots = w.slots;
    client->classes = w.classes;
    client->features = w.features;
    client->minimum = w.minimum;
    client->maximum = w.maximum;
    skerry_copy_text(client->task, w.task, SKERRY_NAME_BYTES);
    skerry_copy_text(client->release_id, w.release_id, SKERRY_NAME_BYTES);
    return SKERRY_OK;
}

int skerry_connect(struct skerry_client *client, const char *data_dir, uint32_t rows, uint32_t slots) {
    int status;

    memset(client, 0, sizeof *client);
    client->socket_fd = -1;
    if (rows < 1 || rows > SKERRY_MAX_ROWS || slots < 1 || slots > SKERRY_MAX_SLOTS)
        return skerry_fail(client, SKERRY_INVALID, "expected 1 to 64 rows and 1 to 8 slots", "");
    client->wanted_rows = rows;
    client->wanted_slots = slots;
    status = skerry_open(client, data_dir);
    return status == SKERRY_OK ? skerry_agree(client) : status;
}

static uint8_t *skerry_slot(const struct skerry_client *client, uint32_t slot) {
    return client->memory + client->first_slot + slot * client->slot_bytes;
}

float *skerry_input(struct skerry_client *client, uint32_t slot) {
    if (client->memory == NULL || slot >= client->slots)
        return NULL;
    return (float *)(void *)(skerry_slot(client, slot) + client->input_offset);
}

int skerry_submit(struct skerry_client *client, uint32_t slot, uint32_t rows, uint64_t deadline_us,
                  const char *request_id) {
    struct skerry_request_header header;
    struct skerry_head ring;
    struct timespec now;
    size_t id_bytes = request_id == NULL ? 0 : strlen(request_id);

    if (client->memory == NULL)
        return skerry_fail(client, SKERRY_DISCONNECTED, "not connected", "");
    if (slot >= client->slots || rows < 1 || rows > client->rows || id_bytes > SKERRY_ID_BYTES)
        return skerry_fail(client, SKERRY_INVALID, "slot, rows or request_id are out of range", "");
    if (client->pending[slot] != 0)
        return skerry_fail(client, SKERRY_OVERLOADED, "a request is under way in this slot", "");
    memset(&header, 0, sizeof header);
    header.rows = rows;
    header.input_bytes = (uint64_t)rows * client->row_bytes;
    header.id_bytes = (uint32_t)id_bytes;
    if (id_bytes != 0)
        memcpy(header.id, request_id, id_bytes);
    if (deadline_us != 0) {
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        header.deadline_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec + deadline_us * 1000u;
    }
    memcpy(skerry_slot(client, slot), &header, sizeof header);
    if (++client->sequence == 0)
        client->sequence = 1;
    ring.kind = SKERRY_RING;
    ring.slot = (uint16_t)slot;
    ring.sequence = client->sequence;
    if (send(client->socket_fd, &ring, sizeof ring, MSG_NOSIGNAL) != (ssize_t)sizeof ring)
        return skerry_gone(client, "the agent went away", strerror(errno));
    client->pending[slot] = ring.sequence;
    client->done[slot] = 0;
    return SKERRY_OK;
}

int skerry_receive(struct skerry_client *client, uint32_t slot, struct skerry_answer *answer) {
    char data[SKERRY_MESSAGE_BYTES];
    struct skerry_answer_header header;
    struct skerry_head done;
    ssize_t got;
    int descriptor;

    memset(answer, 0, sizeof *answer);
    if (client->memory == NULL)
        return skerry_fail(client, SKERRY_DISCONNECTED, "not connected", "");
    if (slot >= client->slots || client->pending[slot] == 0)
        return skerry_fail(client, SKERRY_INVALID, "no request is under way in this slot", "");
    while (!client->done[slot]) {
        got = skerry_read(client, data, sizeof data, &descriptor);
        if (descriptor >= 0)
            (void)close(descriptor);
        if (got <= 0)
            return skerry_gone(client, "the agent went away", got < 0 ? strerror(errno) : "it hung up");
        if (got != (ssize_t)sizeof done)
            return skerry_refused(client, data, (size_t)got);
        memcpy(&done, data, sizeof done);
        if (done.slot < client->slots && done.sequence == client->pending[done.slot])
            client->done[done.slot] = 1;
    }
    client->pending[slot] = 0;
    memcpy(&header, skerry_slot(client, slot) + SKERRY_REQUEST_BYTES, sizeof header);
    if (header.status != SKERRY_OK) {
        header.error[sizeof header.error - 1] = '\0';
        return skerry_fail(client, (int)header.status, header.error, "");
    }
    if (header.rows < 1 || header.rows > client->rows)
        return skerry_gone(client, "the agent speaks another version", "");
    answer->rows = header.rows;
    answer->scores = (const float *)(const void *)(skerry_slot(client, slot) + client->scores_offset);
    answer->features = (const float *)(const void *)(skerry_slot(client, slot) + client->features_offset);
    answer->latency_us = header.latency_us;
    answer->rung = header.rung;
    skerry_copy_text(answer->request_id, header.id, SKERRY_ID_BYTES);
    skerry_copy_text(answer->release_id, header.release_id, SKERRY_NAME_BYTES);
    skerry_copy_text(answer->variant, header.variant, SKERRY_NAME_BYTES);
    return SKERRY_OK;
}

int skerry_infer(struct skerry_client *client, uint32_t slot, uint32_t rows, uint64_t deadline_us,
                 const char *request_id, struct skerry_answer *answer) {
    int status = skerry_submit(client, slot, rows, deadline_us, request_id);

    return status == SKERRY_OK ? skerry_receive(client, slot, answer) : status;
}

uint32_t skerry_best_class(const struct skerry_client *client, const struct skerry_answer *answer, uint32_t row) {
    const float *scores = answer->scores + (size_t)row * client->classes;
    uint32_t best = 0, i;

    for (i = 1; i < client->classes; i++)
        if (scores[i] > scores[best])
            best = i;
    return best;
}

const char *skerry_class_name(const struct skerry_client *client, uint32_t index) {
    const char *name = (const char *)client->memory;
    const char *end = name == NULL ? NULL : name + client->names_bytes;
    const char *zero;

    while (name != NULL && name < end) {
        zero = (const char *)memchr(name, 0, (size_t)(end - name));
        if (zero == NULL)
            break;
        if (index-- == 0)
            return name;
        name = zero + 1;
    }
    return "";
}

void skerry_disconnect(struct skerry_client *client) {
    if (client->socket_fd >= 0) {
        (void)close(client->socket_fd);
        client->socket_fd = -1;
    }
    skerry_unmap(client);
    memset(client->pending, 0, sizeof client->pending);
    memset(client->done, 0, sizeof client->done);
}
