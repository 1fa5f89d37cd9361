/* A library with the interface of NVIDIA's NVML, for the functions that the agent calls, which plays a script instead of asking a driver.
 *
 * The script is the file `script` beside the library and is read anew by every call, so that a test changes the machine by writing it:
 *
 *   driver VERSION
 *   gpu UUID MINOR BUS-ID MEMORY-MIB MAJOR.MINOR MIG(0|1) MODEL...
 *   nvlink UUID REMOTE-BUS-ID COUNT        links of a GPU to a bus: that of another GPU, or of a switch
 *   level UUID UUID NUMBER                 the common ancestor of two GPUs, as NVML numbers them
 *   xid UUID NUMBER                        an error report; each line is told once
 *   read UUID NAME NUMBER                  a reading of a GPU (names below); one that is not given is not supported
 *   process UUID PID MIB                   a program that has that much of the GPU's memory
 *   hang UUID                              readings of the GPU do not come back while this is there
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
enum { INSUFFICIENT_SIZE = 7 };
enum { GPUS_MAX = 64, LINKS_MAX = 18, PROCESSES_MAX = 16, EVENT_XID = 8 };

/* What can be read, in the order of `names`. */
enum reading {
    TEMPERATURE, SLOWDOWN, POWER, POWER_LIMIT, ENERGY, UTILIZATION, MEMORY_UTILIZATION, USED_MIB, SM_CLOCK, MEMORY_CLOCK,
    CORRECTED, UNCORRECTED, CORRECTED_EVER, UNCORRECTED_EVER, THROTTLE, REPLAYS, MEMORY_TEMPERATURE, RETIRED_CORRECTED,
    RETIRED_UNCORRECTED, RETIRING, REMAPPED_CORRECTED, REMAPPED_UNCORRECTED, REMAPPING, REMAP_FAILED, RECOVERY, READINGS
};
static const char *const names[READINGS] = {
    "temperature", "slowdown", "power", "power-limit", "energy", "utilization", "memory-utilization", "used-mib", "sm-clock",
    "memory-clock", "corrected", "uncorrected", "corrected-ever", "uncorrected-ever", "throttle", "replays", "memory-temperature",
    "retired-corrected", "retired-uncorrected", "retiring", "remapped-corrected", "remapped-uncorrected", "remapping", "remap-failed",
    "recovery"
};
/* The numbers of those that are read as fields. */
static const struct { unsigned field; enum reading reading; } fields[] = {
    {29, RETIRED_CORRECTED}, {30, RETIRED_UNCORRECTED}, {31, RETIRING}, {82, MEMORY_TEMPERATURE}, {142, REMAPPED_CORRECTED},
    {143, REMAPPED_UNCORRECTED}, {144, REMAPPING}, {145, REMAP_FAILED}, {230, RECOVERY}
};

struct gpu {
    char uuid[96], bus[32], model[96];
    unsigned minor, major_version, minor_version, mig;
    unsigned long long mib;
    char remotes[LINKS_MAX][32];
    unsigned links;
    int lost, hangs;
    char known[READINGS];
    unsigned long long readings[READINGS];
    struct { unsigned pid; unsigned long long mib; } processes[PROCESSES_MAX];
    unsigned process_count;
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
struct utilization { unsigned gpu, memory; };
struct process { unsigned pid; unsigned long long used; unsigned instance, compute; };
struct field {
    unsigned id, scope;
    long long timestamp, latency;
    unsigned type;
    int result;
    union { double d; unsigned u; unsigned long ul; unsigned long long ull; long long sll; } value;
};

static int find(const struct machine *m, const char *uuid) {
    for (unsigned i = 0; i < m->count; i++)
        if (!strcmp(m->gpus[i].uuid, uuid)) return (int)i;
    return -1;
}

static void line(struct machine *m, char *text) {
    char a[96], b[96];
    unsigned long long number;
    unsigned pid;
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
    } else if (sscanf(text, "read %95s %95s %llu", a, b, &number) == 3 && (i = find(m, a)) >= 0) {
        for (j = 0; j < READINGS; j++)
            if (!strcmp(b, names[j])) { m->gpus[i].readings[j] = number; m->gpus[i].known[j] = 1; }
    } else if (sscanf(text, "process %95s %u %llu", a, &pid, &number) == 3 && (i = find(m, a)) >= 0) {
        if (m->gpus[i].process_count < PROCESSES_MAX) {
            m->gpus[i].processes[m->gpus[i].process_count].pid = pid;
            m->gpus[i].processes[m->gpus[i].process_count++].mib = number;
        }
    } else if (sscanf(text, "hang %95s", a) == 1 && (i = find(m, a)) >= 0) m->gpus[i].hangs = 1;
    else if (sscanf(text, "lost %95s%n", a, &at) == 1 && (i = find(m, a)) >= 0) m->gpus[i].lost = 1;
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

/* Readings: of a GPU that hangs they come back when it does not any more. */
#define READ(handle, name, body)                                                                \
    for (;;) {                                                                                  \
        struct machine *m = machine();                                                          \
        uintptr_t place = (uintptr_t)(handle) - 1;                                              \
        int result = m->broken ? UNKNOWN : place >= m->count ? INVALID : SUCCESS;               \
        if (result == SUCCESS && m->gpus[place].hangs) { free(m); usleep(10000); continue; }    \
        if (result == SUCCESS && m->gpus[place].lost) result = LOST;                            \
        if (result == SUCCESS && !m->gpus[place].known[name]) result = NOT_SUPPORTED;           \
        if (result == SUCCESS) {                                                                \
            unsigned long long number = m->gpus[place].readings[name]; (void)number; body       \
        }                                                                                       \
        free(m);                                                                                \
        return result;                                                                          \
    }

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
    WITH_GPU(device, memory->total = gpu->mib << 20; memory->used = gpu->readings[USED_MIB] << 20; memory->reserved = 0;
             memory->free = memory->total - memory->used;);
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

int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *out) { (void)sensor; READ(device, TEMPERATURE, *out = number;); }
int nvmlDeviceGetTemperatureThreshold(void *device, unsigned which, unsigned *out) {
    if (which != 1) return NOT_SUPPORTED;
    READ(device, SLOWDOWN, *out = number;);
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { READ(device, POWER, *out = number;); }
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *out) { READ(device, POWER_LIMIT, *out = number;); }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) { READ(device, ENERGY, *out = number;); }
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *out) {
    READ(device, UTILIZATION, out->gpu = number; out->memory = m->gpus[place].readings[MEMORY_UTILIZATION];);
}
int nvmlDeviceGetClockInfo(void *device, unsigned which, unsigned *out) {
    int name = which == 1 ? SM_CLOCK : MEMORY_CLOCK;
    READ(device, name, *out = number;);
}
int nvmlDeviceGetTotalEccErrors(void *device, unsigned type, unsigned counter, unsigned long long *out) {
    int name = counter == 0 ? (type == 0 ? CORRECTED : UNCORRECTED) : (type == 0 ? CORRECTED_EVER : UNCORRECTED_EVER);
    READ(device, name, *out = number;);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) { READ(device, THROTTLE, *out = number;); }
int nvmlDeviceGetPcieReplayCounter(void *device, unsigned *out) { READ(device, REPLAYS, *out = number;); }
int nvmlDeviceGetFieldValues(void *device, int count, struct field *values) {
    WITH_GPU(device, for (int i = 0; i < count; i++) {
        values[i].result = NOT_SUPPORTED;
        for (unsigned j = 0; j < sizeof fields / sizeof *fields; j++)
            if (fields[j].field == values[i].id && gpu->known[fields[j].reading]) {
                values[i].result = SUCCESS;
                values[i].type = 1;
                values[i].value.u = (unsigned)gpu->readings[fields[j].reading];
            }
    });
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *out) {
    WITH_GPU(device, unsigned room = *count; *count = gpu->process_count;
             if (room < gpu->process_count) result = INSUFFICIENT_SIZE;
             else for (unsigned i = 0; i < gpu->process_count; i++) {
                 memset(&out[i], 0, sizeof out[i]);
                 out[i].pid = gpu->processes[i].pid;
                 out[i].used = gpu->processes[i].mib << 20;
                 out[i].instance = out[i].compute = 0xFFFFFFFF;
             });
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct process *out) {
    (void)out;
    WITH_GPU(device, *count = 0;);
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
