/* The state page that a test writes and the double reads: one mapped file, named by NVML_DOUBLE_STATE.
 *
 * double.py reads this header: the X-macro lists below are the one source of the names and their order on both sides. The
 * library exports the page's size, and double.py refuses to run when its own layout differs.
 */
#ifndef NVML_DOUBLE_H
#define NVML_DOUBLE_H
#include <stdint.h>

#define MAGIC 0x4e564d4c44424c31ull /* "NVMLDBL1" */
#define MAX_DEVICES 16
#define MAX_LINKS 18
#define MAX_FIELDS 320
#define MAX_PAGES 64
#define MAX_RULES 32
#define MAX_MIG 7
#define MAX_EVENTS 1024
#define TEXT 96

/* Numbers of one device, in the units of nvml.h. */
#define NUMBERS(X) \
    X(present) X(lost) X(lost_by_index) X(minor) X(module_id) X(ecc_enabled) \
    X(ecc_volatile_corrected) X(ecc_volatile_uncorrected) X(ecc_aggregate_corrected) X(ecc_aggregate_uncorrected) \
    X(sram_volatile_corrected) X(sram_volatile_parity) X(sram_volatile_secded) \
    X(sram_aggregate_corrected) X(sram_aggregate_parity) X(sram_aggregate_secded) X(sram_threshold_exceeded) \
    X(remap_corrected) X(remap_uncorrected) X(remap_pending) X(remap_failure) \
    X(banks_max) X(banks_high) X(banks_partial) X(banks_low) X(banks_none) \
    X(retired_single_bit) X(retired_double_bit) X(retired_pending) \
    X(fabric_version) X(fabric_state) X(fabric_status) X(fabric_clique) X(fabric_health_mask) X(fabric_health_summary) \
    X(pcie_width) X(pcie_width_max) X(pcie_generation) X(pcie_generation_max) X(pcie_replay) \
    X(temperature) X(memory_temperature) X(margin) \
    X(threshold_shutdown) X(threshold_slowdown) X(threshold_memory_max) X(threshold_gpu_max) \
    X(power_mw) X(power_limit_mw) X(clock_sm) X(clock_memory) X(clock_sm_max) X(clock_memory_max) \
    X(clocks_event_reasons) X(utilization) X(mig_mode) X(mig_mode_pending) X(recovery_action) \
    X(link_count) X(event_types)

/* Texts of one device. fabric_uuid holds 32 hex digits. */
#define TEXTS(X) X(uuid) X(pci) X(serial) X(board_part) X(vbios) X(name) X(fabric_uuid)

/* Per-link numbers of one device: NVML_FI_DEV_NVLINK_GET_STATE and the error counters, by field id. */
#define LINK_NUMBERS(X) \
    X(link_state, 165) X(link_replay, 161) X(link_recovery, 162) X(link_crc, 163) \
    X(link_recovery_failed, 214) X(link_recovery_events, 215)

#define FUNCTIONS(X) \
    X(nvmlInitWithFlags) X(nvmlShutdown) X(nvmlSystemGetDriverVersion) X(nvmlSystemGetNVMLVersion) \
    X(nvmlDeviceGetCount_v2) X(nvmlDeviceGetHandleByIndex_v2) X(nvmlDeviceGetUUID) X(nvmlDeviceGetPciInfo_v3) \
    X(nvmlDeviceGetSerial) X(nvmlDeviceGetBoardPartNumber) X(nvmlDeviceGetVbiosVersion) X(nvmlDeviceGetModuleId) \
    X(nvmlDeviceGetMinorNumber) X(nvmlDeviceGetName) X(nvmlDeviceGetEccMode) X(nvmlDeviceGetTotalEccErrors) \
    X(nvmlDeviceGetSramEccErrorStatus) X(nvmlDeviceGetRemappedRows) X(nvmlDeviceGetRowRemapperHistogram) \
    X(nvmlDeviceGetRetiredPages) X(nvmlDeviceGetRetiredPagesPendingStatus) X(nvmlDeviceGetNvLinkState) \
    X(nvmlDeviceGetGpuFabricInfoV) X(nvmlDeviceGetCurrPcieLinkWidth) X(nvmlDeviceGetCurrPcieLinkGeneration) \
    X(nvmlDeviceGetMaxPcieLinkWidth) X(nvmlDeviceGetMaxPcieLinkGeneration) X(nvmlDeviceGetPcieReplayCounter) \
    X(nvmlDeviceGetTemperatureV) X(nvmlDeviceGetTemperature) X(nvmlDeviceGetTemperatureThreshold) \
    X(nvmlDeviceGetMarginTemperature) X(nvmlDeviceGetPowerUsage) X(nvmlDeviceGetEnforcedPowerLimit) \
    X(nvmlDeviceGetClockInfo) X(nvmlDeviceGetMaxClockInfo) X(nvmlDeviceGetCurrentClocksEventReasons) \
    X(nvmlDeviceGetCurrentClocksThrottleReasons) X(nvmlDeviceGetUtilizationRates) X(nvmlDeviceGetMigMode) \
    X(nvmlDeviceGetMaxMigDeviceCount) X(nvmlDeviceGetMigDeviceHandleByIndex) X(nvmlDeviceGetGpuInstanceId) \
    X(nvmlDeviceGetComputeInstanceId) X(nvmlDeviceGetFieldValues) X(nvmlDeviceGetSupportedEventTypes) \
    X(nvmlEventSetCreate) X(nvmlDeviceRegisterEvents) X(nvmlEventSetWait_v2) X(nvmlEventSetFree)

enum { /* what a rule does */
    RULE_RETURN = 0,
    RULE_HANG = 1,        /* sleeps until released; dies of SIGKILL */
    RULE_HANG_KILLED = 2, /* as HANG, and when killed the process cannot be reaped until released: what D state looks like from outside */
    RULE_SEGV = 3,
    RULE_STALL = 4        /* sleeps delay_us, then answers */
};

#define INDEX(name) F_##name,
enum { FUNCTIONS(INDEX) FUNCTION_COUNT };
#undef INDEX

typedef struct {
    int32_t active, function, device, action, ret, delay_us, skip, count;
} rule_t; /* device -1: any; skip: calls to let pass first; count: calls to hit, 0 for all */

typedef struct {
    int32_t device, gpu_instance, compute_instance, reserved;
    uint64_t type, data;
} event_t;

typedef struct {
    int32_t present, gpu_instance, compute_instance, reserved;
} mig_t;

typedef struct {
#define NUMBER(name) int64_t name;
    NUMBERS(NUMBER)
#undef NUMBER
#define NAMED(name) char name[TEXT];
    TEXTS(NAMED)
#undef NAMED
#define PER_LINK(name, id) int64_t name[MAX_LINKS];
    LINK_NUMBERS(PER_LINK)
#undef PER_LINK
    int64_t field_value[MAX_FIELDS]; /* fields that no number above stands for */
    int32_t field_return[MAX_FIELDS];
    uint8_t unsupported[FUNCTION_COUNT];
    mig_t mig[MAX_MIG];
} device_t;

typedef struct {
    uint64_t magic;
    int32_t init_return;  /* what nvmlInit returns: 9 no driver, 18 mismatch, 4 no permission */
    int32_t every_return; /* when not 0, every other call's answer: a driver gone under open clients */
    int32_t release;      /* counts up: lets hanging calls go */
    int32_t clients;      /* processes between init and shutdown */
    int32_t loads;        /* processes that loaded the library */
    int32_t last_pid;
    uint32_t events_written; /* futex */
    int32_t reserved;
    char driver_version[TEXT], nvml_version[TEXT];
    uint64_t calls[FUNCTION_COUNT];
    rule_t rules[MAX_RULES];
    event_t events[MAX_EVENTS];
    device_t devices[MAX_DEVICES];
} state_t;

#endif
