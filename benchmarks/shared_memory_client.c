/* Times the shared-memory door as a C application sees it; inference.py compiles and drives it.
 *
 *     shared_memory_client DATA_DIR ROW_FILE
 *
 * Writes the scores of the row in the file, then for each line "N" of the standard input one line with the nanoseconds of
 * each of N requests, the copy of the input into the shared memory included. For a line "N in place" the input lies in the
 * shared memory before the clock starts, as where a sensor's driver writes to skerry_input() itself.
 */
#define _POSIX_C_SOURCE 200809L
#include "skerry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST 4096

static int64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t ask(struct skerry_client *client, const void *row, int in_place, int *status,
                   struct skerry_answer *answer) {
    int64_t started = now_ns();

    memcpy(skerry_input(client, 0), row, client->row_bytes);
    if (in_place)
        started = now_ns();
    *status = skerry_infer(client, 0, 1, 0, NULL, answer);
    return now_ns() - started;
}

static int serve(struct skerry_client *client, const void *row) {
    static int64_t took[MOST];
    struct skerry_answer answer;
    char line[32];
    int status;

    (void)ask(client, row, 0, &status, &answer);
    for (uint32_t i = 0; status == SKERRY_OK && i < client->classes; i++)
        (void)printf("%.9g ", (double)answer.scores[i]);
    (void)printf("\n");
    (void)fflush(stdout);
    while (status == SKERRY_OK && fgets(line, sizeof line, stdin) != NULL) {
        int wanted = atoi(line), in_place = strstr(line, "in place") != NULL;
        for (int i = 0; status == SKERRY_OK && i < wanted && i < MOST; i++)
            took[i] = ask(client, row, in_place, &status, &answer);
        for (int i = 0; i < wanted && i < MOST; i++)
            (void)printf("%lld ", (long long)took[i]);
        (void)printf("\n");
        (void)fflush(stdout);
    }
    return status;
}

int main(int argc, char **argv) {
    struct skerry_client client;
    FILE *file = argc == 3 ? fopen(argv[2], "rb") : NULL;
    void *row = NULL;
    int status = SKERRY_FAILED;

    if (file == NULL) {
        (void)fprintf(stderr, "usage: shared_memory_client DATA_DIR ROW_FILE\n");
        return 2;
    }
    status = skerry_connect(&client, argv[1], 1, 1);
    if (status == SKERRY_OK && (row = malloc(client.row_bytes)) != NULL && fread(row, client.row_bytes, 1, file) == 1)
        status = serve(&client, row);
    if (status != SKERRY_OK)
        (void)fprintf(stderr, "status %d: %s\n", status, client.error);
    skerry_disconnect(&client);
    free(row);
    (void)fclose(file);
    return status == SKERRY_OK ? 0 : 1;
}
