/* A stand-in for NVIDIA's libnvidia-ml.so.1 that plays a script. NVML_STUB_SCRIPT names it; tests/nvml_stub.py writes it.
 *
 * One statement a line; what is appended while a program runs counts from then on. KEY is a GPU's index, or
 * GPU/INSTANCE. AT counts milliseconds since this process first initialised NVML, or, after `clock queries`, memory
 * queries of the GPU.
 *
 *   clock ms|queries
 *   latency_us N                              how long each call takes
 *   gpu UUID PCI_BUS_ID TOTAL NAME...         in the order of NVML's indices
 *   mig GPU UUID GPU_INSTANCE COMPUTE_INSTANCE TOTAL
 *   reserved KEY BYTES                        what the driver keeps: version 1 counts it as used, version 2 does not
 *   used KEY AT BYTES                         a staircase
 *   process KEY AT PID|self BYTES|na|gone compute|graphics|both
 *   value KEY NAME AT NUMBER                  a staircase; a name that is not there is not supported
 *   error KEY|* CALL|* FROM UNTIL CODE        UNTIL -1: for good
 *   xid KEY AT CODE
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef unsigned int uint;
typedef unsigned long long u64;
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10,
       VERSION_MISMATCH = 25 };
enum { MAX_DEVICES = 64, COMPUTE = 1, GRAPHICS = 2 };
static const u64 NOT_AVAILABLE = ~0ULL;
static const u64 GONE = ~0ULL - 1;

typedef struct {
    char key[32], uuid[96], pci[32], name[96];
    int parent; /* index of the GPU of a MIG instance, else -1 */
    uint gpu_instance, compute_instance;
    u64 total, reserved;
    long queries; /* memory queries so far */
    int failed_version; /* the version of the memory query that failed last, else 0 */
} Device;

typedef struct { int device; char name[64]; long at; u64 number; } Point; /* "used" and every `value` */
typedef struct { int device; long at; uint pid; u64 bytes; int lists; } Process;
typedef struct { int device; char call[64]; long from, until; int code; } Error; /* device -1: any, and no device */
typedef struct { int device; long at; u64 code; int is_delivered; } Xid;
typedef struct { u64 devices; } EventSet;
typedef struct { uint pid; u64 bytes; uint gpu_instance, compute_instance; } ProcessInfo;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Device devices[MAX_DEVICES];
static int num_devices;
static Point *points; static int num_points;
static Process *processes; static int num_processes;
static Error *errors; static int num_errors;
static Xid *xids; static int num_xids;
static long latency_us;
static int counts_queries;
static long first_init_ms = -1;
static int num_inits;
static pid_t init_pid;
static struct timespec read_at;
static off_t read_size = -1;

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

static int find(const char *key) {
    for (int i = 0; i < num_devices; i++)
        if (!strcmp(devices[i].key, key)) return i;
    return -1;
}

#define APPEND(array, count) (array = realloc(array, (count + 1) * sizeof *array), memset(&array[count], 0, sizeof *array), &array[count++])

static void add_device(Device made) {
    int i = find(made.key);
    if (i < 0) i = num_devices++;
    made.queries = devices[i].queries;
    made.failed_version = devices[i].failed_version;
    devices[i] = made;
}

static void read_line(const char *line) {
    char key[32], word[64], other[64];
    Device device = {.parent = -1};
    long at, until;
    u64 number;
    static int num_gpus;
    if (!line) { num_gpus = 0; return; }
    if (sscanf(line, "clock %63s", word) == 1) counts_queries = !strcmp(word, "queries");
    else if (sscanf(line, "latency_us %ld", &at) == 1) latency_us = at;
    else if (sscanf(line, "gpu %95s %31s %llu %95[^\n]", device.uuid, device.pci, &device.total, device.name) == 4) {
        snprintf(device.key, sizeof device.key, "%d", num_gpus++);
        add_device(device);
    } else if (sscanf(line, "mig %31s %95s %u %u %llu", key, device.uuid, &device.gpu_instance, &device.compute_instance,
                      &device.total) == 5) {
        device.parent = find(key);
        int instance = 0;
        do snprintf(device.key, sizeof device.key, "%.8s/%d", key, instance++);
        while (find(device.key) >= 0 && strcmp(devices[find(device.key)].uuid, device.uuid));
        snprintf(device.pci, sizeof device.pci, "%s", devices[device.parent].pci);
        snprintf(device.name, sizeof device.name, "MIG of GPU %.8s", key);
        add_device(device);
    } else if (sscanf(line, "reserved %31s %llu", key, &number) == 2) devices[find(key)].reserved = number;
    else if (sscanf(line, "used %31s %ld %llu", key, &at, &number) == 3) {
        Point *point = APPEND(points, num_points);
        *point = (Point){.device = find(key), .name = "used", .at = at, .number = number};
    } else if (sscanf(line, "value %31s %63s %ld %llu", key, word, &at, &number) == 4) {
        Point *point = APPEND(points, num_points);
        *point = (Point){.device = find(key), .at = at, .number = number};
        strcpy(point->name, word);
    } else if (sscanf(line, "process %31s %ld %63s %63s", key, &at, word, other) == 4) {
        Process *process = APPEND(processes, num_processes);
        process->device = find(key);
        process->at = at;
        process->pid = strcmp(word, "self") ? (uint)atol(word) : (uint)getpid();
        process->bytes = !strcmp(other, "na") ? NOT_AVAILABLE : !strcmp(other, "gone") ? GONE : strtoull(other, 0, 10);
        process->lists = strstr(line, "graphics") ? GRAPHICS : strstr(line, "both") ? COMPUTE | GRAPHICS : COMPUTE;
    } else if (sscanf(line, "error %31s %63s %ld %ld %llu", key, word, &at, &until, &number) == 5) {
        Error *error = APPEND(errors, num_errors);
        *error = (Error){.device = strcmp(key, "*") ? find(key) : -1, .from = at, .until = until, .code = (int)number};
        strcpy(error->call, word);
    } else if (sscanf(line, "xid %31s %ld %llu", key, &at, &number) == 3) {
        Xid *xid = APPEND(xids, num_xids);
        *xid = (Xid){.device = find(key), .at = at, .code = number};
    } else if (line[0] != '\n' && line[0] != '#') {
        fprintf(stderr, "nvml stub: cannot read %s", line);
        abort();
    }
}

static void read_script(void) {
    const char *path = getenv("NVML_STUB_SCRIPT");
    struct stat now;
    if (!path || stat(path, &now)) return;
    if (now.st_size == read_size && now.st_mtim.tv_sec == read_at.tv_sec && now.st_mtim.tv_nsec == read_at.tv_nsec) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    int old_num_xids = num_xids;
    Xid *old_xids = xids;
    xids = NULL;
    num_points = num_processes = num_errors = num_xids = 0;
    read_line(NULL);
    char line[512];
    while (fgets(line, sizeof line, file) && strchr(line, '\n')) read_line(line);
    fclose(file);
    for (int i = 0; i < old_num_xids && i < num_xids; i++) xids[i].is_delivered = old_xids[i].is_delivered;
    free(old_xids);
    read_size = now.st_size;
    read_at = now.st_mtim;
}

static long position(const Device *device) {
    if (!counts_queries) return first_init_ms < 0 ? 0 : now_ms() - first_init_ms;
    return device && device->queries ? device->queries - 1 : 0;
}

static int error_of(const Device *device, const char *call) {
    long at = position(device);
    for (int i = 0; i < num_errors; i++) {
        const Error *error = &errors[i];
        if (error->device >= 0 && (!device || device - devices != error->device)) continue;
        if (strcmp(error->call, "*") && strcmp(error->call, call)) continue;
        if (at >= error->from && (error->until < 0 || at < error->until)) return error->code;
    }
    return OK;
}

/* The staircase's value now; 0 where it does not say. */
static int value_of(const Device *device, const char *name, u64 *number) {
    long at = position(device), best = -1;
    for (int i = 0; i < num_points; i++)
        if (points[i].device == device - devices && !strcmp(points[i].name, name) && points[i].at <= at && points[i].at >= best) {
            best = points[i].at;
            *number = points[i].number;
        }
    return best >= 0;
}

static void take_time(void) {
    struct timespec pause = {latency_us / 1000000, latency_us % 1000000 * 1000};
    if (latency_us) nanosleep(&pause, NULL);
}

/* Every call begins so: the time it takes, the script as it is now, the error that the script has for it. */
static int begin(const Device *device, const char *call) {
    take_time();
    pthread_mutex_lock(&lock);
    read_script();
    if (!num_inits || init_pid != getpid()) return UNINITIALIZED;
    return error_of(device, call);
}

static int end(int status) {
    pthread_mutex_unlock(&lock);
    return status;
}

#define BEGIN(device) \
    int status = begin(device, __func__); \
    if (status) return end(status)

int nvmlInitWithFlags(uint flags) {
    (void)flags;
    take_time();
    pthread_mutex_lock(&lock);
    read_script();
    int status = error_of(NULL, "nvmlInitWithFlags");
    if (status) return end(status);
    if (init_pid != getpid()) num_inits = 0;
    init_pid = getpid();
    num_inits++;
    if (first_init_ms < 0) first_init_ms = now_ms();
    return end(OK);
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    BEGIN(NULL);
    num_inits--;
    return end(OK);
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stand-in";
}

int nvmlSystemGetDriverVersion(char *text, uint size) {
    BEGIN(NULL);
    snprintf(text, size, "550.00");
    return end(OK);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    BEGIN(NULL);
    *version = 12040;
    return end(OK);
}

int nvmlDeviceGetCount_v2(uint *count) {
    BEGIN(NULL);
    *count = 0;
    for (int i = 0; i < num_devices; i++) *count += devices[i].parent < 0;
    return end(OK);
}
int nvmlDeviceGetCount(uint *count) { return nvmlDeviceGetCount_v2(count); }

int nvmlDeviceGetHandleByIndex_v2(uint index, Device **handle) {
    char key[32];
    snprintf(key, sizeof key, "%u", index);
    pthread_mutex_lock(&lock);
    read_script();
    int i = find(key);
    pthread_mutex_unlock(&lock);
    BEGIN(i < 0 ? NULL : &devices[i]);
    if (i < 0) return end(INVALID);
    *handle = &devices[i];
    return end(OK);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **handle) {
    BEGIN(NULL);
    for (int i = 0; i < num_devices; i++)
        if (!strcmp(devices[i].uuid, uuid)) {
            *handle = &devices[i];
            return end(error_of(*handle, __func__));
        }
    return end(NOT_FOUND);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device **handle) {
    BEGIN(NULL);
    uint wanted[3], has[3];
    if (sscanf(bus_id, "%x:%x:%x", &wanted[0], &wanted[1], &wanted[2]) != 3) return end(INVALID);
    for (int i = 0; i < num_devices; i++)
        if (devices[i].parent < 0 && sscanf(devices[i].pci, "%x:%x:%x", &has[0], &has[1], &has[2]) == 3 &&
            !memcmp(wanted, has, sizeof has)) {
            *handle = &devices[i];
            return end(OK);
        }
    return end(NOT_FOUND);
}

int nvmlDeviceGetIndex(Device *device, uint *index) {
    BEGIN(device);
    *index = atoi(device->key);
    return end(OK);
}
int nvmlDeviceGetName(Device *device, char *text, uint size) {
    BEGIN(device);
    snprintf(text, size, "%s", device->name);
    return end(OK);
}
int nvmlDeviceGetUUID(Device *device, char *text, uint size) {
    BEGIN(device);
    snprintf(text, size, "%s", device->uuid);
    return end(OK);
}

typedef struct { char legacy[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(Device *device, Pci *info) {
    BEGIN(device);
    memset(info, 0, sizeof *info);
    sscanf(device->pci, "%x:%x:%x", &info->domain, &info->bus, &info->device);
    snprintf(info->bus_id, sizeof info->bus_id, "%s", device->pci);
    return end(OK);
}

/* A query that is asked again the older way counts once. */
static void count_query(Device *device, int version) {
    pthread_mutex_lock(&lock);
    if (!(version == 1 && device->failed_version == 2)) device->queries++;
    device->failed_version = 0;
    pthread_mutex_unlock(&lock);
}

static int read_memory(Device *device, int version, const char *call, u64 *used) {
    count_query(device, version);
    int status = begin(device, call);
    *used = 0;
    if (status) device->failed_version = version;
    else value_of(device, "used", used);
    return status;
}

typedef struct { u64 total, free, used; } Memory1;
int nvmlDeviceGetMemoryInfo(Device *device, Memory1 *info) {
    u64 used;
    int status = read_memory(device, 1, __func__, &used);
    if (!status) *info = (Memory1){device->total, device->total - used - device->reserved, used + device->reserved};
    return end(status);
}

typedef struct { uint version; u64 total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory2 *info) {
    u64 used;
    int status = read_memory(device, 2, __func__, &used);
    if (!status && info->version != (sizeof(Memory2) | 2u << 24)) status = VERSION_MISMATCH;
    if (!status)
        *info = (Memory2){info->version, device->total, device->reserved, device->total - used - device->reserved, used};
    return end(status);
}

static int list_processes(Device *device, const char *call, int list, uint *count, ProcessInfo *infos) {
    int status = begin(device, call);
    if (status) return end(status);
    long at = position(device);
    uint found = 0, room = *count;
    for (int i = 0; i < num_processes; i++) {
        const Process *process = &processes[i];
        const Device *owner = &devices[process->device];
        if (owner != device && !(owner->parent >= 0 && &devices[owner->parent] == device)) continue;
        if (process->at > at || !(process->lists & list) || process->bytes == GONE) continue;
        int is_replaced = 0;
        for (int j = 0; j < num_processes; j++)
            is_replaced |= j != i && processes[j].device == process->device && processes[j].pid == process->pid &&
                           processes[j].at <= at && (processes[j].at > process->at || (processes[j].at == process->at && j > i));
        if (is_replaced) continue;
        if (infos && found < room)
            infos[found] = (ProcessInfo){process->pid, process->bytes, owner->parent < 0 ? ~0u : owner->gpu_instance,
                                         owner->parent < 0 ? ~0u : owner->compute_instance};
        found++;
    }
    *count = found;
    return end(found && (!infos || found > room) ? INSUFFICIENT_SIZE : OK);
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, uint *count, ProcessInfo *infos) {
    return list_processes(device, __func__, COMPUTE, count, infos);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, uint *count, ProcessInfo *infos) {
    return list_processes(device, __func__, GRAPHICS, count, infos);
}

static int read_value(Device *device, const char *call, const char *name, u64 *number) {
    int status = begin(device, call);
    if (!status && !value_of(device, name, number)) status = NOT_SUPPORTED;
    return end(status);
}

typedef struct { uint gpu, memory; } Utilization;
int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    u64 number;
    int status = read_value(device, __func__, "utilization_percent", &number);
    if (!status) *rates = (Utilization){(uint)number, 0};
    return status;
}
int nvmlDeviceGetPowerUsage(Device *device, uint *milliwatts) {
    u64 number;
    int status = read_value(device, __func__, "power_mw", &number);
    if (!status) *milliwatts = (uint)number;
    return status;
}
int nvmlDeviceGetTemperature(Device *device, int sensor, uint *celsius) {
    u64 number;
    (void)sensor;
    int status = read_value(device, __func__, "temperature_c", &number);
    if (!status) *celsius = (uint)number;
    return status;
}
int nvmlDeviceGetClockInfo(Device *device, int type, uint *mhz) {
    u64 number;
    int status = read_value(device, __func__, type == 2 ? "memory_clock_mhz" : "sm_clock_mhz", &number);
    if (!status) *mhz = (uint)number;
    return status;
}
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, u64 *reasons) {
    return read_value(device, __func__, "throttle_reasons", reasons);
}
int nvmlDeviceGetTotalEccErrors(Device *device, int type, int counter, u64 *count) {
    (void)counter;
    return read_value(device, __func__, type == 1 ? "ecc_errors" : "ecc_corrected", count);
}

int nvmlDeviceGetPersistenceMode(Device *device, uint *mode) {
    u64 number;
    int status = read_value(device, __func__, "persistence", &number);
    if (!status) *mode = (uint)number;
    return status;
}

static int has_mig(const Device *device) {
    for (int i = 0; i < num_devices; i++)
        if (devices[i].parent == device - devices) return 1;
    return 0;
}
int nvmlDeviceGetMigMode(Device *device, uint *current, uint *pending) {
    BEGIN(device);
    if (!has_mig(device)) return end(NOT_SUPPORTED);
    *current = *pending = 1;
    return end(OK);
}
int nvmlDeviceGetMaxMigDeviceCount(Device *device, uint *count) {
    BEGIN(device);
    *count = has_mig(device) ? 7 : 0;
    return end(OK);
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, uint index, Device **handle) {
    BEGIN(device);
    for (int i = 0; i < num_devices; i++)
        if (devices[i].parent == device - devices && !index--) {
            *handle = &devices[i];
            return end(OK);
        }
    return end(NOT_FOUND);
}
int nvmlDeviceIsMigDeviceHandle(Device *device, uint *answer) {
    BEGIN(device);
    *answer = device->parent >= 0;
    return end(OK);
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *device, Device **handle) {
    BEGIN(device);
    if (device->parent < 0) return end(INVALID);
    *handle = &devices[device->parent];
    return end(OK);
}
int nvmlDeviceGetGpuInstanceId(Device *device, uint *id) {
    BEGIN(device);
    *id = device->gpu_instance;
    return end(device->parent < 0 ? NOT_SUPPORTED : OK);
}
int nvmlDeviceGetComputeInstanceId(Device *device, uint *id) {
    BEGIN(device);
    *id = device->compute_instance;
    return end(device->parent < 0 ? NOT_SUPPORTED : OK);
}

int nvmlDeviceGetSupportedEventTypes(Device *device, u64 *types) {
    BEGIN(device);
    *types = device->parent < 0 ? 8 : 0;
    return end(OK);
}
int nvmlEventSetCreate(EventSet **set) {
    BEGIN(NULL);
    *set = calloc(1, sizeof **set);
    return end(OK);
}
int nvmlEventSetFree(EventSet *set) {
    BEGIN(NULL);
    free(set);
    return end(OK);
}
int nvmlDeviceRegisterEvents(Device *device, u64 types, EventSet *set) {
    BEGIN(device);
    if (device->parent >= 0 || types != 8) return end(NOT_SUPPORTED);
    set->devices |= 1ULL << (device - devices);
    return end(OK);
}

typedef struct { Device *device; u64 type, data; uint gpu_instance, compute_instance; } EventData;
int nvmlEventSetWait_v2(EventSet *set, EventData *data, uint timeout_ms) {
    BEGIN(NULL);
    for (int i = 0; i < num_xids; i++) {
        Xid *xid = &xids[i];
        Device *device = &devices[xid->device];
        if (!(set->devices >> xid->device & 1) || xid->is_delivered || position(device) < xid->at) continue;
        status = error_of(device, __func__);
        if (status) return end(status);
        xid->is_delivered = 1;
        *data = (EventData){device, 8, xid->code, ~0u, ~0u};
        return end(OK);
    }
    pthread_mutex_unlock(&lock);
    usleep(timeout_ms * 1000);
    return TIMEOUT;
}
