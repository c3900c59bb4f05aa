/* A stand-in for NVIDIA's library (SONAME libnvidia-ml.so.1): the real nvidia-ml-py loads it, a test drives it.
 *
 * Everything it answers comes from the state page (nvml_double.h). Struct layouts are NVML's public ABI; abi_test compares them
 * with pynvml's own. While initialised it holds a file beside the page open, as the real library holds /dev/nvidiactl.
 */
#define _GNU_SOURCE
#include "nvml_double.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25
};

typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef union { double dVal; unsigned uiVal; unsigned long long ullVal; long long sllVal; } nvmlValue_t;
typedef struct {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    unsigned valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;
typedef struct {
    unsigned version;
    unsigned long long aggregateUncParity, aggregateUncSecDed, aggregateCor, volatileUncParity, volatileUncSecDed, volatileCor,
        aggregateUncBucketL2, aggregateUncBucketSm, aggregateUncBucketPcie, aggregateUncBucketMcu, aggregateUncBucketOther;
    unsigned bThresholdExceeded;
} nvmlEccSramErrorStatus_v1_t;
typedef struct { unsigned max, high, partial, low, none; } nvmlRowRemapperHistogramValues_t;
typedef struct {
    unsigned version;
    unsigned char clusterUuid[16];
    nvmlReturn_t status;
    unsigned cliqueId;
    unsigned char state; /* one byte, though nvidia-ml-py declares four */
    unsigned healthMask;
} nvmlGpuFabricInfo_v2_t;
typedef struct {
    unsigned version;
    unsigned char clusterUuid[16];
    nvmlReturn_t status;
    unsigned cliqueId;
    unsigned char state;
    unsigned healthMask;
    unsigned char healthSummary;
} nvmlGpuFabricInfo_v3_t;
typedef struct { nvmlDevice_t device; unsigned long long eventType, eventData; unsigned gpuInstanceId, computeInstanceId; } nvmlEventData_t;
typedef struct { unsigned version, sensorType; int temperature; } nvmlTemperature_v1_t;
typedef struct { unsigned version; int marginTemperature; } nvmlMarginTemperature_v1_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;

typedef struct { const char *name; uint32_t size, version; } abi_entry;
#define ABI(type, number) {#type, sizeof(type), (number) == 0 ? 0 : (unsigned)(sizeof(type) | ((unsigned)(number) << 24))}
const abi_entry nvml_double_abi[] = {
    ABI(nvmlPciInfo_t, 0), ABI(nvmlFieldValue_t, 0), ABI(nvmlEccSramErrorStatus_v1_t, 1),
    ABI(nvmlRowRemapperHistogramValues_t, 0), ABI(nvmlGpuFabricInfo_v2_t, 2), ABI(nvmlGpuFabricInfo_v3_t, 3),
    ABI(nvmlEventData_t, 0), ABI(nvmlTemperature_v1_t, 1), ABI(nvmlMarginTemperature_v1_t, 1), ABI(nvmlUtilization_t, 0), {0, 0, 0}};
uint32_t nvml_double_state_size(void) { return sizeof(state_t); }

static state_t *state;
static int open_handle = -1, refcount = 0;
static int order[MAX_DEVICES], counted; /* NVML index → device, fixed at init */

#define SETS 8
typedef struct { int used; uint32_t cursor; uint64_t mask[MAX_DEVICES]; } event_set;
static event_set sets[SETS];

static void nap(long us) {
    struct timespec t = {us / 1000000, (us % 1000000) * 1000};
    nanosleep(&t, NULL);
}

__attribute__((constructor)) static void map_state(void) {
    const char *path = getenv("NVML_DOUBLE_STATE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return; /* the test process loads the library only to ask for sizes */
    void *page = mmap(NULL, sizeof(state_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED || ((state_t *)page)->magic != MAGIC) {
        fprintf(stderr, "nvml_double: %s is no state page\n", path);
        abort();
    }
    state = page;
    __atomic_add_fetch(&state->loads, 1, __ATOMIC_SEQ_CST);
}

void nvml_double_wake(uint32_t *events_written) { syscall(SYS_futex, events_written, FUTEX_WAKE, 1 << 30, NULL, NULL, 0); }

/* A tracer defers its tracee's death notice to the real parent until it lets go: the killed process stays, as one in D state does. */
static void pin_against_reaping(int released) {
    pid_t me = getpid();
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    if (fork() != 0) return;
    for (int fd = 0; fd < 256; fd++) close(fd);
    if (ptrace(PTRACE_SEIZE, me, NULL, NULL) != 0) _exit(1);
    for (int i = 0; i < 12000 && state->release == released; i++) nap(5000); /* a minute at most, lest a broken test leaks it */
    _exit(0);
}

static void hang(int unreapable) {
    int released = state->release;
    if (unreapable) pin_against_reaping(released);
    while (state->release == released) nap(2000);
}

static int obey(rule_t *rule, nvmlReturn_t *ret) {
    if (rule->skip > 0) { rule->skip--; return 0; }
    if (rule->count > 0 && --rule->count == 0) rule->active = 0;
    switch (rule->action) {
    case RULE_HANG: hang(0); return 0;
    case RULE_HANG_KILLED: hang(1); return 0;
    case RULE_SEGV: raise(SIGSEGV); return 0;
    case RULE_STALL: nap(rule->delay_us); return 0;
    default: *ret = rule->ret; return 1;
    }
}

/* Counts the call; says whether the state page answers it instead of the function. */
static int intercepted(int function, int device, nvmlReturn_t *ret) {
    __atomic_add_fetch(&state->calls[function], 1, __ATOMIC_RELAXED);
    for (int i = 0; i < MAX_RULES; i++) {
        rule_t *rule = &state->rules[i];
        if (rule->active && rule->function == function && (rule->device < 0 || rule->device == device) && obey(rule, ret)) return 1;
    }
    if (state->every_return && function != F_nvmlInitWithFlags && function != F_nvmlShutdown) { *ret = state->every_return; return 1; }
    if (refcount == 0 && function != F_nvmlInitWithFlags) { *ret = UNINITIALIZED; return 1; }
    if (device >= 0 && state->devices[device].lost && function != F_nvmlDeviceGetHandleByIndex_v2) {
        *ret = (nvmlReturn_t)state->devices[device].lost;
        return 1;
    }
    if (device >= 0 && state->devices[device].unsupported[function]) { *ret = NOT_SUPPORTED; return 1; }
    return 0;
}

#define SYSTEM(name) do { nvmlReturn_t answer_; if (intercepted(F_##name, -1, &answer_)) return answer_; } while (0)
#define DEVICE(name, handle) \
    int slot_ = slot_of(handle); \
    if (slot_ < 0) return INVALID_ARGUMENT; \
    device_t *d = &state->devices[slot_]; \
    (void)d; \
    do { nvmlReturn_t answer_; if (intercepted(F_##name, slot_, &answer_)) return answer_; } while (0)

/* Handles are addresses in these arrays: nothing else is a handle. */
static char tokens[MAX_DEVICES], mig_tokens[MAX_DEVICES][MAX_MIG];
static int slot_of(nvmlDevice_t handle) {
    char *token = handle;
    if (token >= tokens && token < tokens + MAX_DEVICES) return (int)(token - tokens);
    char *first = &mig_tokens[0][0];
    if (token >= first && token < first + MAX_DEVICES * MAX_MIG) return (int)((token - first) / MAX_MIG);
    return -1;
}

static nvmlReturn_t copy_text(char *out, unsigned length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!state) return DRIVER_NOT_LOADED;
    SYSTEM(nvmlInitWithFlags);
    if (state->init_return) return state->init_return;
    if (refcount++) return SUCCESS;
    counted = 0;
    for (int slot = 0; slot < MAX_DEVICES; slot++)
        if (state->devices[slot].present) order[counted++] = slot;
    char path[4096];
    snprintf(path, sizeof path, "%s.nvidiactl", getenv("NVML_DOUBLE_STATE"));
    open_handle = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    state->last_pid = getpid();
    __atomic_add_fetch(&state->clients, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    SYSTEM(nvmlShutdown);
    if (--refcount) return SUCCESS;
    close(open_handle);
    memset(sets, 0, sizeof sets);
    __atomic_sub_fetch(&state->clients, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t ret) { (void)ret; return "error of the double"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length) {
    SYSTEM(nvmlSystemGetDriverVersion);
    return copy_text(out, length, state->driver_version);
}
nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned length) {
    SYSTEM(nvmlSystemGetNVMLVersion);
    return copy_text(out, length, state->nvml_version);
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    SYSTEM(nvmlDeviceGetCount_v2);
    *count = (unsigned)counted;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *handle) {
    if (index >= (unsigned)counted) return INVALID_ARGUMENT;
    int slot = order[index];
    nvmlReturn_t answer;
    if (intercepted(F_nvmlDeviceGetHandleByIndex_v2, slot, &answer)) return answer;
    if (state->devices[slot].lost && state->devices[slot].lost_by_index) return (nvmlReturn_t)state->devices[slot].lost;
    *handle = &tokens[slot];
    return SUCCESS;
}

#define TEXT_GETTER(function, member) \
    nvmlReturn_t function(nvmlDevice_t handle, char *out, unsigned length) { \
        DEVICE(function, handle); \
        return copy_text(out, length, d->member); \
    }
TEXT_GETTER(nvmlDeviceGetUUID, uuid)
TEXT_GETTER(nvmlDeviceGetSerial, serial)
TEXT_GETTER(nvmlDeviceGetBoardPartNumber, board_part)
TEXT_GETTER(nvmlDeviceGetVbiosVersion, vbios)
TEXT_GETTER(nvmlDeviceGetName, name)

#define NUMBER_GETTER(function, type, member) \
    nvmlReturn_t function(nvmlDevice_t handle, type *out) { \
        DEVICE(function, handle); \
        *out = (type)d->member; \
        return SUCCESS; \
    }
NUMBER_GETTER(nvmlDeviceGetModuleId, unsigned, module_id)
NUMBER_GETTER(nvmlDeviceGetMinorNumber, unsigned, minor)
NUMBER_GETTER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, retired_pending)
NUMBER_GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, pcie_width)
NUMBER_GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, pcie_generation)
NUMBER_GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned, pcie_width_max)
NUMBER_GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, pcie_generation_max)
NUMBER_GETTER(nvmlDeviceGetPcieReplayCounter, unsigned, pcie_replay)
NUMBER_GETTER(nvmlDeviceGetPowerUsage, unsigned, power_mw)
NUMBER_GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, power_limit_mw)
NUMBER_GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, clocks_event_reasons)
NUMBER_GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, clocks_event_reasons)
NUMBER_GETTER(nvmlDeviceGetSupportedEventTypes, unsigned long long, event_types)

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t handle, nvmlPciInfo_t *out) {
    DEVICE(nvmlDeviceGetPciInfo_v3, handle);
    memset(out, 0, sizeof *out);
    snprintf(out->busId, sizeof out->busId, "%.31s", d->pci);
    sscanf(d->pci, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    DEVICE(nvmlDeviceGetEccMode, handle);
    *current = *pending = (unsigned)d->ecc_enabled;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t handle, unsigned type, unsigned counter, unsigned long long *out) {
    DEVICE(nvmlDeviceGetTotalEccErrors, handle);
    int64_t values[2][2] = {{d->ecc_volatile_corrected, d->ecc_aggregate_corrected}, {d->ecc_volatile_uncorrected, d->ecc_aggregate_uncorrected}};
    if (type > 1 || counter > 1) return INVALID_ARGUMENT;
    *out = (unsigned long long)values[type][counter];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t handle, nvmlEccSramErrorStatus_v1_t *out) {
    DEVICE(nvmlDeviceGetSramEccErrorStatus, handle);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    out->volatileCor = (unsigned long long)d->sram_volatile_corrected;
    out->volatileUncParity = (unsigned long long)d->sram_volatile_parity;
    out->volatileUncSecDed = (unsigned long long)d->sram_volatile_secded;
    out->aggregateCor = (unsigned long long)d->sram_aggregate_corrected;
    out->aggregateUncParity = (unsigned long long)d->sram_aggregate_parity;
    out->aggregateUncSecDed = (unsigned long long)d->sram_aggregate_secded;
    out->bThresholdExceeded = (unsigned)d->sram_threshold_exceeded;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    DEVICE(nvmlDeviceGetRemappedRows, handle);
    *corrected = (unsigned)d->remap_corrected;
    *uncorrected = (unsigned)d->remap_uncorrected;
    *pending = (unsigned)d->remap_pending;
    *failed = (unsigned)d->remap_failure;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t handle, nvmlRowRemapperHistogramValues_t *out) {
    DEVICE(nvmlDeviceGetRowRemapperHistogram, handle);
    *out = (nvmlRowRemapperHistogramValues_t){(unsigned)d->banks_max, (unsigned)d->banks_high, (unsigned)d->banks_partial,
                                              (unsigned)d->banks_low, (unsigned)d->banks_none};
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t handle, unsigned cause, unsigned *count, unsigned long long *addresses) {
    DEVICE(nvmlDeviceGetRetiredPages, handle);
    unsigned pages = (unsigned)(cause ? d->retired_double_bit : d->retired_single_bit);
    unsigned room = *count;
    *count = pages;
    if (!addresses || room < pages) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < pages; i++) addresses[i] = 0x1000ull * (i + 1);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t handle, unsigned link, unsigned *active) {
    DEVICE(nvmlDeviceGetNvLinkState, handle);
    if (link >= (unsigned)d->link_count) return INVALID_ARGUMENT;
    *active = d->link_state[link] != 0;
    return SUCCESS;
}
static void fill_fabric(const device_t *d, nvmlGpuFabricInfo_v2_t *out) {
    for (int i = 0; i < 16; i++) {
        unsigned byte = 0;
        sscanf(d->fabric_uuid + 2 * i, "%2x", &byte);
        out->clusterUuid[i] = (unsigned char)byte;
    }
    out->status = (nvmlReturn_t)d->fabric_status;
    out->cliqueId = (unsigned)d->fabric_clique;
    out->state = (unsigned char)d->fabric_state;
    out->healthMask = (unsigned)d->fabric_health_mask;
}
nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t handle, void *info) {
    DEVICE(nvmlDeviceGetGpuFabricInfoV, handle);
    unsigned version = *(unsigned *)info;
    if (version == (sizeof(nvmlGpuFabricInfo_v3_t) | 3u << 24) && d->fabric_version >= 3) {
        fill_fabric(d, info);
        ((nvmlGpuFabricInfo_v3_t *)info)->healthSummary = (unsigned char)d->fabric_health_summary;
        return SUCCESS;
    }
    if (version != (sizeof(nvmlGpuFabricInfo_v2_t) | 2u << 24)) return VERSION_MISMATCH;
    fill_fabric(d, info);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t handle, nvmlTemperature_v1_t *out) {
    DEVICE(nvmlDeviceGetTemperatureV, handle);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    out->temperature = (int)d->temperature;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t handle, unsigned sensor, unsigned *out) {
    DEVICE(nvmlDeviceGetTemperature, handle);
    if (sensor) return INVALID_ARGUMENT;
    *out = (unsigned)d->temperature;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t handle, unsigned which, unsigned *out) {
    DEVICE(nvmlDeviceGetTemperatureThreshold, handle);
    int64_t values[4] = {d->threshold_shutdown, d->threshold_slowdown, d->threshold_memory_max, d->threshold_gpu_max};
    if (which > 3) return NOT_SUPPORTED;
    *out = (unsigned)values[which];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t handle, nvmlMarginTemperature_v1_t *out) {
    DEVICE(nvmlDeviceGetMarginTemperature, handle);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    out->marginTemperature = (int)d->margin;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t handle, unsigned type, unsigned *out) {
    DEVICE(nvmlDeviceGetClockInfo, handle);
    *out = (unsigned)(type == 2 ? d->clock_memory : d->clock_sm);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t handle, unsigned type, unsigned *out) {
    DEVICE(nvmlDeviceGetMaxClockInfo, handle);
    *out = (unsigned)(type == 2 ? d->clock_memory_max : d->clock_sm_max);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t handle, nvmlUtilization_t *out) {
    DEVICE(nvmlDeviceGetUtilizationRates, handle);
    *out = (nvmlUtilization_t){(unsigned)d->utilization, 0};
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t handle, unsigned *current, unsigned *pending) {
    DEVICE(nvmlDeviceGetMigMode, handle);
    *current = (unsigned)d->mig_mode;
    *pending = (unsigned)d->mig_mode_pending;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t handle, unsigned *count) {
    DEVICE(nvmlDeviceGetMaxMigDeviceCount, handle);
    *count = MAX_MIG;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t handle, unsigned index, nvmlDevice_t *out) {
    DEVICE(nvmlDeviceGetMigDeviceHandleByIndex, handle);
    if (index >= MAX_MIG || !d->mig[index].present) return NOT_FOUND;
    *out = &mig_tokens[slot_][index];
    return SUCCESS;
}
static const mig_t *mig_of(nvmlDevice_t handle) {
    char *token = handle, *first = &mig_tokens[0][0];
    if (token < first || token >= first + MAX_DEVICES * MAX_MIG) return NULL;
    return &state->devices[(token - first) / MAX_MIG].mig[(token - first) % MAX_MIG];
}
nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t handle, unsigned *id) {
    DEVICE(nvmlDeviceGetGpuInstanceId, handle);
    const mig_t *mig = mig_of(handle);
    if (!mig) return INVALID_ARGUMENT;
    *id = (unsigned)mig->gpu_instance;
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t handle, unsigned *id) {
    DEVICE(nvmlDeviceGetComputeInstanceId, handle);
    const mig_t *mig = mig_of(handle);
    if (!mig) return INVALID_ARGUMENT;
    *id = (unsigned)mig->compute_instance;
    return SUCCESS;
}

/* Fields that stand for a number elsewhere on the page, so that both ways of asking agree. */
static const int64_t *field_number(const device_t *d, unsigned id, unsigned scope) {
    switch (id) {
    case 3: return &d->ecc_volatile_corrected;
    case 4: return &d->ecc_volatile_uncorrected;
    case 5: return &d->ecc_aggregate_corrected;
    case 6: return &d->ecc_aggregate_uncorrected;
    case 31: return &d->retired_pending;
    case 82: return &d->memory_temperature;
    case 91: return &d->link_count;
    case 142: return &d->remap_corrected;
    case 143: return &d->remap_uncorrected;
    case 144: return &d->remap_pending;
    case 145: return &d->remap_failure;
    case 230: return &d->recovery_action;
#define LINK_FIELD(name, number) case number: return &d->name[scope];
    LINK_NUMBERS(LINK_FIELD)
#undef LINK_FIELD
    default: return &d->field_value[id];
    }
}
static int is_link_field(unsigned id) {
#define IS_LINK(name, number) if (id == number) return 1;
    LINK_NUMBERS(IS_LINK)
#undef IS_LINK
    return 0;
}
static void answer_field(const device_t *d, nvmlFieldValue_t *entry) {
    entry->nvmlReturn = entry->fieldId >= MAX_FIELDS ? INVALID_ARGUMENT : d->field_return[entry->fieldId];
    if (!entry->nvmlReturn && is_link_field(entry->fieldId) && entry->scopeId >= (unsigned)d->link_count) entry->nvmlReturn = INVALID_ARGUMENT;
    if (entry->nvmlReturn) return;
    int64_t number = *field_number(d, entry->fieldId, entry->scopeId);
    if (number < 0) { /* T.Limit values */
        entry->valueType = 5;
        entry->value.ullVal = 0xdeadbeef00000000ull | (uint32_t)(int32_t)number; /* the upper half is not the caller's to read */
    } else {
        entry->valueType = entry->fieldId < 7 ? 3 : 1;
        entry->value.ullVal = entry->fieldId < 7 ? (unsigned long long)number : 0xdeadbeef00000000ull | (uint32_t)number;
    }
}
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t handle, int count, nvmlFieldValue_t *values) {
    DEVICE(nvmlDeviceGetFieldValues, handle);
    for (int i = 0; i < count; i++) answer_field(d, &values[i]);
    return SUCCESS;
}

static event_set *set_of(void *handle) {
    event_set *set = handle;
    return set >= sets && set < sets + SETS && set->used ? set : NULL;
}
nvmlReturn_t nvmlEventSetCreate(void **out) {
    SYSTEM(nvmlEventSetCreate);
    for (int i = 0; i < SETS; i++) {
        if (sets[i].used) continue;
        memset(&sets[i], 0, sizeof sets[i]);
        sets[i].used = 1;
        sets[i].cursor = __atomic_load_n(&state->events_written, __ATOMIC_ACQUIRE); /* what happened before is not delivered */
        *out = &sets[i];
        return SUCCESS;
    }
    return INSUFFICIENT_SIZE;
}
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t handle, unsigned long long mask, void *set_handle) {
    DEVICE(nvmlDeviceRegisterEvents, handle);
    event_set *set = set_of(set_handle);
    if (!set) return INVALID_ARGUMENT;
    if (mask & ~(unsigned long long)d->event_types) return NOT_SUPPORTED;
    set->mask[slot_] |= mask;
    return SUCCESS;
}
static int next_event(event_set *set, nvmlEventData_t *out) {
    while (set->cursor != __atomic_load_n(&state->events_written, __ATOMIC_ACQUIRE)) {
        event_t *event = &state->events[set->cursor++ % MAX_EVENTS];
        if (!(set->mask[event->device] & event->type)) continue;
        *out = (nvmlEventData_t){&tokens[event->device], event->type, event->type == 8 ? event->data : 0,
                                 (unsigned)event->gpu_instance, (unsigned)event->compute_instance};
        return 1;
    }
    return 0;
}
nvmlReturn_t nvmlEventSetWait_v2(void *set_handle, nvmlEventData_t *out, unsigned timeout_ms) {
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000 + (end.tv_nsec + (long)(timeout_ms % 1000) * 1000000) / 1000000000;
    end.tv_nsec = (end.tv_nsec + (long)(timeout_ms % 1000) * 1000000) % 1000000000;
    SYSTEM(nvmlEventSetWait_v2);
    event_set *set = set_of(set_handle);
    if (!set) return INVALID_ARGUMENT;
    for (;;) {
        uint32_t seen = __atomic_load_n(&state->events_written, __ATOMIC_ACQUIRE);
        if (next_event(set, out)) return SUCCESS;
        for (int slot = 0; slot < MAX_DEVICES; slot++) /* names no device: a naive loop spins on this */
            if (set->mask[slot] && state->devices[slot].lost) return GPU_IS_LOST;
        clock_gettime(CLOCK_MONOTONIC, &now);
        long left_ms = (end.tv_sec - now.tv_sec) * 1000 + (end.tv_nsec - now.tv_nsec) / 1000000;
        if (left_ms <= 0) return TIMEOUT;
        struct timespec left = {left_ms / 1000, (left_ms % 1000) * 1000000};
        syscall(SYS_futex, &state->events_written, FUTEX_WAIT, seen, &left, NULL, 0);
    }
}
nvmlReturn_t nvmlEventSetFree(void *set_handle) {
    SYSTEM(nvmlEventSetFree);
    event_set *set = set_of(set_handle);
    if (!set) return INVALID_ARGUMENT;
    set->used = 0;
    return SUCCESS;
}
