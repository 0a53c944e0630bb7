/*
A stand-in for libnvidia-ml.so.1. It answers what the file says that STAND_IN_NVML names: one line a question, `KEY VALUE...`.

`KEY error N` is NVML's error N, and a question without a line is Not Supported. The n-th time a key is asked, its n-th line
answers, and the last one from then on; nvmlInit begins anew. Without a file, no driver is loaded. -DOLD leaves out what drivers
before 510 do not have.
*/
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9 };
enum { LINE = 4096, KEYS = 512, PARTS = 256 };

static struct { char key[64]; int times; } asked[KEYS];
static int num_asked;

static int times_asked(const char *key) {
    for (int i = 0; i < num_asked; i++)
        if (!strcmp(asked[i].key, key)) return ++asked[i].times;
    if (num_asked < KEYS) {
        snprintf(asked[num_asked].key, sizeof asked[0].key, "%s", key);
        asked[num_asked++].times = 1;
    }
    return 1;
}

static int answer(const char *key, char *value, int missing) {
    char line[LINE];
    const char *path = getenv("STAND_IN_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    int wanted = times_asked(key), seen = 0, code;
    size_t length = strlen(key);
    if (!file) return NOT_LOADED;
    while (seen < wanted && fgets(line, LINE, file)) {
        if (strncmp(line, key, length) || line[length] != ' ') continue;
        seen++;
        line[strcspn(line, "\n")] = 0;
        strcpy(value, line + length + 1);
    }
    fclose(file);
    if (!seen) return missing;
    return sscanf(value, "error %d", &code) == 1 ? code : OK;
}

/* A card's handle is its index + 1; that of its MIG part has the part's + 1 above it. */
static int ask(void *handle, const char *what, char *value) {
    char key[64];
    unsigned card = (uintptr_t)handle % PARTS - 1, part = (uintptr_t)handle / PARTS;
    if (part) snprintf(key, sizeof key, "%u.%u.%s", card, part - 1, what);
    else snprintf(key, sizeof key, "%u.%s", card, what);
    return answer(key, value, NOT_SUPPORTED);
}

static int text(int code, const char *value, char *out, unsigned size) {
    if (code == OK) snprintf(out, size, "%s", value);
    return code;
}

static int pair(void *handle, const char *what, unsigned *first, unsigned *second) {
    char value[LINE];
    int code = ask(handle, what, value);
    if (code == OK) sscanf(value, "%u %u", first, second);
    return code;
}

static int number(void *handle, const char *what, unsigned *out) {
    unsigned ignored;
    return pair(handle, what, out, &ignored);
}

int nvmlInitWithFlags(unsigned flags) {
    char value[LINE];
    num_asked = 0;
    return answer("init", value, OK);
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "an error without a name"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    char value[LINE];
    return text(answer("driver", value, NOT_SUPPORTED), value, out, size);
}
int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    char value[LINE];
    return text(answer("library", value, NOT_SUPPORTED), value, out, size);
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    char value[LINE];
    int code = answer("cuda", value, NOT_SUPPORTED);
    if (code == OK) *out = atoi(value);
    return code;
}
int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char key[64], value[LINE];
    snprintf(key, sizeof key, "pid.%u", pid);
    return text(answer(key, value, NOT_FOUND), value, out, size);
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    char value[LINE];
    int code = answer("count", value, NOT_SUPPORTED);
    if (code == OK) *out = atoi(value);
    return code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    char key[64], value[LINE];
    snprintf(key, sizeof key, "%u.handle", index);
    *out = (void *)(uintptr_t)(index + 1);
    return answer(key, value, INVALID);
}
int nvmlDeviceGetName(void *handle, char *out, unsigned size) {
    char value[LINE];
    return text(ask(handle, "name", value), value, out, size);
}
int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    char value[LINE];
    return text(ask(handle, "uuid", value), value, out, size);
}
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    return pair(handle, "capability", (unsigned *)major, (unsigned *)minor);
}
int nvmlDeviceGetEccMode(void *handle, unsigned *now, unsigned *then) { return pair(handle, "ecc", now, then); }
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *then) { return pair(handle, "mig", now, then); }
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *out) { return number(handle, "parts", out); }
int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *out) { return number(handle, "gpu_instance", out); }
int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *out) { return number(handle, "compute_instance", out); }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **out) {
    char value[LINE];
    *out = (void *)((uintptr_t)handle + (uintptr_t)PARTS * (index + 1));
    return ask(*out, "uuid", value) == OK ? OK : NOT_FOUND;
}

/* `memory TOTAL RESERVED USED`: in the second version of the call the total holds what the driver keeps. */
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };

static int memory(void *handle, struct memory_v2 *out) {
    char value[LINE];
    int code = ask(handle, "memory", value);
    if (code != OK) return code;
    sscanf(value, "%llu %llu %llu", &out->total, &out->reserved, &out->used);
    out->free = out->total - out->reserved - out->used;
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *out) {
    struct memory_v2 all = {0};
    int code = memory(handle, &all);
    if (code == OK) *out = (struct memory){all.total - all.reserved, all.free, all.used};
    return code;
}

/* `processes PID:BYTES:INSTANCE ...`, with - for what is not known. */
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };

static int processes(void *handle, const char *what, unsigned *count, struct process *out) {
    char value[LINE], *rest = NULL;
    unsigned found = 0, room = *count;
    int code = ask(handle, what, value);
    if (code != OK) return code;
    for (char *word = strtok_r(value, " ", &rest); word; word = strtok_r(NULL, " ", &rest), found++) {
        char used[32], instance[32];
        unsigned pid;
        if (sscanf(word, "%u:%31[^:]:%31s", &pid, used, instance) != 3) return INVALID;
        if (out && found < room)
            out[found] = (struct process){pid, *used == '-' ? ~0ULL : strtoull(used, NULL, 10),
                                          *instance == '-' ? ~0U : (unsigned)atoi(instance), *instance == '-' ? ~0U : 0};
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, struct process *out) {
    return processes(handle, "processes", count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *count, struct process *out) {
    return processes(handle, "graphics", count, out);
}

#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *out) {
    return processes(handle, "processes", count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, struct process *out) {
    return processes(handle, "graphics", count, out);
}
int nvmlDeviceGetMemoryInfo_v2(void *handle, struct memory_v2 *out) { return memory(handle, out); }
int nvmlDeviceGetDriverModel_v2(void *handle, unsigned *now, unsigned *then) { return pair(handle, "model", now, then); }
#endif
