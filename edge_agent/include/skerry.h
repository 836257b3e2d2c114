/* skerry.h - ask the Skerry agent on this machine, over shared memory. C99, also C++; Linux; no dependencies.
 *
 * Compile skerry.c with the application:
 *
 *     struct skerry_client client;
 *     struct skerry_answer answer;
 *     if (skerry_connect(&client, "/var/lib/skerry-agent", 1, 1) != SKERRY_OK) { puts(client.error); return 1; }
 *     memcpy(skerry_input(&client, 0), samples, client.row_bytes);
 *     if (skerry_infer(&client, 0, 1, 5000, NULL, &answer) == SKERRY_OK)
 *         printf("%s\n", skerry_class_name(&client, skerry_best_class(&client, &answer, 0)));
 *     skerry_disconnect(&client);
 *
 * A client is used by one thread at a time. docs/shared-memory.md describes the bytes and what each status means.
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef SKERRY_H
#define SKERRY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SKERRY_VERSION 1
#define SKERRY_MAX_SLOTS 8
#define SKERRY_MAX_ROWS 64
#define SKERRY_MAX_RANK 8
#define SKERRY_TIMEOUT_SECONDS 10

/* What became of a request or a connection. Below 100: said by the agent. */
enum skerry_status {
    SKERRY_OK = 0,
    SKERRY_INVALID = 1,       /* the request is wrong; the same request never succeeds */
    SKERRY_NO_RELEASE = 2,    /* the device has no model yet */
    SKERRY_DEADLINE = 3,      /* the deadline cannot be met; nothing was computed */
    SKERRY_OVERLOADED = 4,    /* too many clients or too much memory; try again later */
    SKERRY_FAILED = 5,        /* the agent could not compute the answer */
    SKERRY_MODEL_CHANGED = 6, /* another release has taken over: call skerry_agree, then look at shape and classes */
    SKERRY_PROTOCOL = 7,      /* the agent speaks another version */
    SKERRY_FORBIDDEN = 8,     /* this process is not of the agent's user or group */
    SKERRY_DISCONNECTED = 100 /* no agent there, or it went away: call skerry_connect again */
};

struct skerry_client {
    /* What the model takes and gives. */
    uint32_t rank;                   /* dimensions of one row of input */
    uint32_t shape[SKERRY_MAX_RANK]; /* the dimensions; float32, row-major */
    uint32_t row_bytes;              /* size of one row of input */
    uint32_t rows;                   /* most rows of one request */
    uint32_t slots;                  /* requests that may be under way at the same time */
    uint32_t classes;                /* scores of one row */
    uint32_t features;               /* drift features of one row */
    float minimum, maximum;          /* range of input values */
    char task[65];
    char release_id[65];             /* release at the last agreement; each answer names its own */
    char error[512];                 /* after a status other than SKERRY_OK: why, as text */
    /* Of the implementation. */
    int socket_fd;
    uint32_t wanted_rows, wanted_slots, sequence;
    uint32_t pending[SKERRY_MAX_SLOTS]; /* sequence of the request under way in a slot, 0: none */
    uint8_t done[SKERRY_MAX_SLOTS];
    uint8_t *memory;
    uint64_t memory_bytes, first_slot, slot_bytes, input_offset, scores_offset, features_offset;
    uint32_t names_bytes;
};

struct skerry_answer {
    uint32_t rows;
    const float *scores;   /* [rows][classes], logits; valid until the slot is used again */
    const float *features; /* [rows][features] */
    double latency_us;     /* time that the engine took */
    uint32_t rung;         /* place of the network on the release's ladder; 0: its own network */
    char request_id[129];  /* as given, or generated; labels name it */
    char release_id[65];   /* release that answered */
    char variant[65];      /* served form, such as int8-x86 */
};

/* Connect. rows: most rows of one request, 1 to 64; slots: requests at the same time, 1 to 8. */
int skerry_connect(struct skerry_client *client, const char *data_dir, uint32_t rows, uint32_t slots);

/* Lay the memory out for the release that is active now; requests under way are lost. */
int skerry_agree(struct skerry_client *client);

/* Where the input of a slot is to be written: room for client->rows rows. NULL without a connection. */
float *skerry_input(struct skerry_client *client, uint32_t slot);

/* Start the request in a slot. deadline_us: how long the answer may take, 0: the device decides.
 * request_id: at most 128 bytes of UTF-8; NULL asks for a generated one. */
int skerry_submit(struct skerry_client *client, uint32_t slot, uint32_t rows, uint64_t deadline_us,
                  const char *request_id);

/* Wait for the answer of a slot, at most SKERRY_TIMEOUT_SECONDS; after that the connection is closed. */
int skerry_receive(struct skerry_client *client, uint32_t slot, struct skerry_answer *answer);

/* Both. */
int skerry_infer(struct skerry_client *client, uint32_t slot, uint32_t rows, uint64_t deadline_us,
                 const char *request_id, struct skerry_answer *answer);

/* Index of the largest score of a row. */
uint32_t skerry_best_class(const struct skerry_client *client, const struct skerry_answer *answer, uint32_t row);

/* Name of a class, or an empty text. */
const char *skerry_class_name(const struct skerry_client *client, uint32_t index);

/* Hang up. Harmless when it has been done. */
void skerry_disconnect(struct skerry_client *client);

#ifdef __cplusplus
}
#endif
#endif /* SKERRY_H */
