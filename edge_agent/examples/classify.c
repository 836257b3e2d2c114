/* Classify rows of float32 from the standard input with the model that the agent serves.
 *
 *     cc -std=c99 -I ../include -o classify classify.c ../include/skerry.c
 *     ./classify /var/lib/skerry-agent < rows.f32
 *
 * Each row is answered by one line: class, its score, all scores, served form, release. Exit status: 0 all answered,
 * 1 refused or no agent, 2 wrong arguments.
 */
#include "skerry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Microseconds that an answer may take. */
#define DEADLINE_US 1000000

static int classify(struct skerry_client *client) {
    struct skerry_answer answer;
    float *row = (float *)malloc(client->row_bytes);
    uint32_t best, i;
    int status = row == NULL ? SKERRY_FAILED : SKERRY_OK;

    while (status == SKERRY_OK && fread(row, client->row_bytes, 1, stdin) == 1) {
        memcpy(skerry_input(client, 0), row, client->row_bytes);
        status = skerry_infer(client, 0, 1, DEADLINE_US, NULL, &answer);
        if (status == SKERRY_MODEL_CHANGED && (status = skerry_agree(client)) == SKERRY_OK) {
            (void)fprintf(stderr, "another release has taken over: start again\n");
            status = SKERRY_MODEL_CHANGED;
        }
        if (status != SKERRY_OK)
            break;
        best = skerry_best_class(client, &answer, 0);
        (void)printf("%s\t%.9g\t", skerry_class_name(client, best), (double)answer.scores[best]);
        for (i = 0; i < client->classes; i++)
            (void)printf("%s%.9g", i == 0 ? "" : " ", (double)answer.scores[i]);
        (void)printf("\t%s\t%s\n", answer.variant, answer.release_id);
    }
    free(row);
    return status;
}

int main(int argc, char **argv) {
    struct skerry_client client;
    int status;

    if (argc != 2) {
        (void)fprintf(stderr, "usage: classify DATA_DIR < rows.f32\n");
        return 2;
    }
    status = skerry_connect(&client, argv[1], 1, 1);
    if (status == SKERRY_OK)
        status = classify(&client);
    if (status != SKERRY_OK)
        (void)fprintf(stderr, "status %d: %s\n", status, client.error);
    skerry_disconnect(&client);
    return status == SKERRY_OK ? 0 : 1;
}
