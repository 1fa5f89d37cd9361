/* A library with the interface of NVIDIA's NVML, for the functions that the agent calls, which plays a script instead of asking a driver.
 *
 * The script is the file `script` beside the library and is read anew by every call, so that a test changes the machine by writing it:
 *
 *   driver VERSION
 *   gpu UUID MINOR BUS-ID MEMORY-MIB MAJOR.MINOR MIG(0|1) MODEL...
 *   nvlink UUID REMOTE-BUS-ID COUNT        links of a GPU to a bus: that of another GPU, or of a switch
 *   level UUID UUID NUMBER                 the common ancestor of two GPUs, as NVML numbers them
 *   xid UUID NUMBER                        an error report; each line is told once
 *   lost UUID                              the GPU is not found any more
 *   broken                                 every call fails
 *
 * Only the layout of structures and the numbers of return codes are NVML's, since they are its interface.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15, UNKNOWN = 999 };
enum { GPUS_MAX = 64, LINKS_MAX = 18, EVENT_XID = 8 };

struct gpu {
    char uuid[96], bus[32], model[96];
    unsigned minor, major_version, minor_version, mig;
    unsigned long long mib;
    char remotes[LINKS_MAX][32];
    unsigned links;
    int lost;
};

struct machine {
    int broken;
    char driver[80];
    struct gpu gpus[GPUS_MAX];
    unsigned count;
    unsigned levels[GPUS_MAX][GPUS_MAX];
    struct { unsigned gpu; unsigned long long number; } xids[256];
    unsigned xid_count;
};

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
struct event { void *device; unsigned long long type, data; unsigned instance, compute; };
struct set { unsigned told; };

static int find(const struct machine *m, const char *uuid) {
    for (unsigned i = 0; i < m->count; i++)
        if (!strcmp(m->gpus[i].uuid, uuid)) return (int)i;
    return -1;
}

static void line(struct machine *m, char *text) {
    char a[96], b[96];
    unsigned long long number;
    struct gpu g = {0};
    int at = 0, i, j;
    if (!strncmp(text, "broken", 6)) m->broken = 1;
    else if (sscanf(text, "driver %79s", m->driver) == 1) return;
    else if (sscanf(text, "gpu %95s %u %31s %llu %u.%u %u %95[^\n]", g.uuid, &g.minor, g.bus, &g.mib, &g.major_version,
                    &g.minor_version, &g.mig, g.model) == 8) {
        if (m->count < GPUS_MAX) m->gpus[m->count++] = g;
    } else if (sscanf(text, "nvlink %95s %95s %llu", a, b, &number) == 3 && (i = find(m, a)) >= 0) {
        for (; number > 0 && m->gpus[i].links < LINKS_MAX; number--)
            snprintf(m->gpus[i].remotes[m->gpus[i].links++], 32, "%.31s", b);
    } else if (sscanf(text, "level %95s %95s %llu", a, b, &number) == 3 && (i = find(m, a)) >= 0 && (j = find(m, b)) >= 0)
        m->levels[i][j] = m->levels[j][i] = (unsigned)number;
    else if (sscanf(text, "xid %95s %llu", a, &number) == 2 && (i = find(m, a)) >= 0 && m->xid_count < 256) {
        m->xids[m->xid_count].gpu = (unsigned)i;
        m->xids[m->xid_count++].number = number;
    } else if (sscanf(text, "lost %95s%n", a, &at) == 1 && (i = find(m, a)) >= 0) m->gpus[i].lost = 1;
}

/* The machine as the script says now; to be freed. */
static struct machine *machine(void) {
    struct machine *m = calloc(1, sizeof *m);
    Dl_info info;
    char path[4096], text[512], *slash;
    FILE *file;
    if (!m || !dladdr((void *)machine, &info)) abort();
    snprintf(path, sizeof path - 8, "%s", info.dli_fname);
    slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, "script");
    file = fopen(path, "r");
    if (!file) { m->broken = 1; return m; }
    while (fgets(text, sizeof text, file)) line(m, text);
    fclose(file);
    return m;
}

/* Calls with a GPU in them: handles are places in the script, from 1. */
#define WITH_GPU(handle, body)                                                                  \
    do {                                                                                        \
        struct machine *m = machine();                                                          \
        uintptr_t place = (uintptr_t)(handle) - 1;                                              \
        int result = m->broken ? UNKNOWN : place >= m->count ? INVALID : SUCCESS;               \
        if (result == SUCCESS && m->gpus[place].lost) result = LOST;                            \
        if (result == SUCCESS) { struct gpu *gpu = &m->gpus[place]; (void)gpu; body }           \
        free(m);                                                                                \
        return result;                                                                          \
    } while (0)

int nvmlInit_v2(void) { struct machine *m = machine(); int broken = m->broken; free(m); return broken ? UNKNOWN : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    struct machine *m = machine();
    int broken = m->broken;
    snprintf(version, length, "%s", m->driver);
    free(m);
    return broken ? UNKNOWN : SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct machine *m = machine();
    int broken = m->broken;
    *count = 0;
    for (unsigned i = 0; i < m->count; i++) *count += !m->gpus[i].lost;
    free(m);
    return broken ? UNKNOWN : SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    struct machine *m = machine();
    int result = INVALID;
    for (unsigned i = 0; i < m->count; i++)
        if (!m->gpus[i].lost && index-- == 0) { *device = (void *)(uintptr_t)(i + 1); result = SUCCESS; break; }
    if (m->broken) result = UNKNOWN;
    free(m);
    return result;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    struct machine *m = machine();
    int place = find(m, uuid), result = m->broken ? UNKNOWN : place < 0 ? NOT_FOUND : m->gpus[place].lost ? LOST : SUCCESS;
    *device = (void *)(uintptr_t)(place + 1);
    free(m);
    return result;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) { WITH_GPU(device, snprintf(uuid, length, "%s", gpu->uuid);); }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { WITH_GPU(device, snprintf(name, length, "%s", gpu->model);); }
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) { WITH_GPU(device, *minor = gpu->minor;); }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    WITH_GPU(device, *major = (int)gpu->major_version; *minor = (int)gpu->minor_version;);
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) { WITH_GPU(device, *current = *pending = gpu->mig;); }
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    WITH_GPU(device, memory->total = memory->free = gpu->mib << 20; memory->used = memory->reserved = 0;);
}
int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    WITH_GPU(device, memset(pci, 0, sizeof *pci); snprintf(pci->bus_id, sizeof pci->bus_id, "%s", gpu->bus););
}
int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active) {
    WITH_GPU(device, if (gpu->links == 0) result = NOT_SUPPORTED; else *active = link < gpu->links;);
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, struct pci *pci) {
    WITH_GPU(device, memset(pci, 0, sizeof *pci);
             if (link >= gpu->links) result = INVALID; else snprintf(pci->bus_id, sizeof pci->bus_id, "%s", gpu->remotes[link]););
}
int nvmlDeviceGetTopologyCommonAncestor(void *device, void *other, unsigned *level) {
    WITH_GPU(device, *level = m->levels[place][((uintptr_t)other - 1) % GPUS_MAX];);
}

int nvmlEventSetCreate(struct set **set) { *set = calloc(1, sizeof **set); return *set ? SUCCESS : UNKNOWN; }
int nvmlEventSetFree(struct set *set) { free(set); return SUCCESS; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, struct set *set) {
    WITH_GPU(device, if (types != EVENT_XID || !set) result = INVALID;);
}
int nvmlEventSetWait_v2(struct set *set, struct event *event, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 10) {
        struct machine *m = machine();
        int told = set->told < m->xid_count;
        if (told) {
            memset(event, 0, sizeof *event);
            event->device = (void *)(uintptr_t)(m->xids[set->told].gpu + 1);
            event->type = EVENT_XID;
            event->data = m->xids[set->told++].number;
        }
        free(m);
        if (told) return SUCCESS;
        if (waited >= timeout_ms) return TIMEOUT;
        usleep(10000);
    }
}
