/* The functions of CUDA 13 that ONNX Runtime's CUDA provider needs to run a session without a GPU.
 *
 * Device memory is host memory, copies copy, and kernels and matrix products do nothing. Results
 * are meaningless, but tests see whether ONNX Runtime accepts a graph and its options, and the
 * order of its calls. `calls("cudaGraphLaunch")` returns how often a function was called.
 * build.py adds the functions that only have to succeed. Layouts: CUDA 13.0's headers. */
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    long count;
} Call;

static Call called[256];
static int lock;
static char order[4096];
static int keeping;

void note(const char *name) {
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
    }
    int i = 0;
    while (called[i].name && strcmp(called[i].name, name)) i++;
    called[i].name = name;
    called[i].count++;
    if (keeping && strlen(order) + strlen(name) + 2 < sizeof order) {
        strcat(order, name);
        strcat(order, " ");
    }
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

long calls(const char *name) {
    for (int i = 0; called[i].name; i++)
        if (!strcmp(called[i].name, name)) return called[i].count;
    return 0;
}

/* Start or stop recording the names of calls, and return those recorded so far. */
const char *keep(int on) {
    keeping = on;
    return order;
}

#define DO(body)        \
    do {                \
        note(__func__); \
        body;           \
        return 0;       \
    } while (0)

/* ---- the driver */

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { DO(*version = 13000); }
int cuDeviceGetCount(int *count) { DO(*count = 1); }
int cuDeviceGet(int *device, int index) { DO(*device = index); }
int cuDeviceGetName(char *name, int size, int device) { DO(strncpy(name, "Imitation", size)); }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { DO(*bytes = 8ul << 30); }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    DO(*value = attribute == 75 ? 9 : 0);
}

/* ---- the runtime: device */

int cudaGetDeviceCount(int *count) { DO(*count = 1); }
int cudaGetDevice(int *device) { DO(*device = 0); }
int cudaRuntimeGetVersion(int *version) { DO(*version = 13000); }
int cudaDriverGetVersion(int *version) { DO(*version = 13000); }
int cudaMemGetInfo(size_t *left, size_t *all) { DO(*left = *all = 8ul << 30); }
const char *cudaGetErrorName(int error) { return "imitation"; }
const char *cudaGetErrorString(int error) { return "imitation"; }

int cudaGetDeviceProperties(char *found, int device) {
    note(__func__);
    memset(found, 0, 1008);
    strcpy(found, "Imitation");
    *(size_t *)(found + 288) = 8ul << 30;   /* totalGlobalMem */
    *(size_t *)(found + 296) = 48 << 10;    /* sharedMemPerBlock */
    *(int *)(found + 304) = 65536;          /* regsPerBlock */
    *(int *)(found + 308) = 32;             /* warpSize */
    *(int *)(found + 320) = 1024;           /* maxThreadsPerBlock */
    for (int i = 0; i < 3; i++) {
        ((int *)(found + 324))[i] = 1024;   /* maxThreadsDim */
        ((int *)(found + 336))[i] = 65535;  /* maxGridSize */
    }
    *(int *)(found + 360) = 9;              /* major */
    *(int *)(found + 384) = 132;            /* multiProcessorCount */
    *(int *)(found + 604) = 2048;           /* maxThreadsPerMultiProcessor */
    *(size_t *)(found + 624) = 228 << 10;   /* sharedMemPerMultiprocessor */
    *(size_t *)(found + 672) = 227 << 10;   /* sharedMemPerBlockOptin */
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    note(__func__);
    switch (attribute) {
    case 75: *value = 9; break;          /* major */
    case 76: *value = 0; break;          /* minor */
    case 16: *value = 132; break;        /* multiprocessors */
    case 97: *value = 227 << 10; break;  /* opt-in shared memory */
    default: *value = 1024;
    }
    return 0;
}

/* ---- memory */

static int given(void **where, size_t size) {
    *where = aligned_alloc(256, (size + 511) / 256 * 256);
    return *where ? 0 : 2;
}
int cudaMalloc(void **where, size_t size) { note(__func__); return given(where, size); }
int cudaMallocHost(void **where, size_t size) { note(__func__); return given(where, size); }
int cudaHostAlloc(void **where, size_t size, unsigned flags) {
    note(__func__);
    return given(where, size);
}
int cudaMallocFromPoolAsync(void **where, size_t size, void *pool, void *stream) {
    note(__func__);
    return given(where, size);
}
int cudaFree(void *where) { DO(free(where)); }
int cudaFreeHost(void *where) { DO(free(where)); }
int cudaFreeAsync(void *where, void *stream) { DO(free(where)); }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { DO(memmove(to, from, size)); }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    DO(memmove(to, from, size));
}
int cudaMemset(void *where, int value, size_t size) { DO(memset(where, value, size)); }
int cudaMemsetAsync(void *where, int value, size_t size, void *stream) {
    DO(memset(where, value, size));
}
int cudaPointerGetAttributes(int *found, const void *where) {
    note(__func__);
    memset(found, 0, 88);
    found[0] = 2; /* device memory */
    ((const void **)found)[1] = ((const void **)found)[2] = where;
    return 0;
}

/* ---- streams, events, graphs: unique handles */

static int handle(void **made) {
    *made = calloc(1, 64);
    return 0;
}
int cudaStreamCreate(void **made) { note(__func__); return handle(made); }
int cudaStreamCreateWithFlags(void **made, unsigned flags) { note(__func__); return handle(made); }
int cudaEventCreate(void **made) { note(__func__); return handle(made); }
int cudaEventCreateWithFlags(void **made, unsigned flags) { note(__func__); return handle(made); }
int cudaMemPoolCreate(void **made, void *properties) { note(__func__); return handle(made); }
int cudaGraphInstantiate(void **made, void *graph, unsigned long flags) {
    note(__func__);
    return handle(made);
}
int cublasCreate_v2(void **made) { note(__func__); return handle(made); }
int cublasLtCreate(void **made) { note(__func__); return handle(made); }
int cudnnCreate(void **made) { note(__func__); return handle(made); }
size_t cudnnGetVersion(void) { return 91000; }

static __thread int capturing;
int cudaStreamBeginCapture(void *stream, int mode) { DO(capturing = 1); }
int cudaStreamIsCapturing(void *stream, int *status) { DO(*status = capturing); }
int cudaStreamEndCapture(void *stream, void **made) {
    note(__func__);
    capturing = 0;
    return handle(made);
}

/* ---- kernels */

void **__cudaRegisterFatBinary(void *binary) {
    static void *registered;
    return &registered;
}
int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void **stream) {
    *shared = 0;
    *stream = 0;
    return 0;
}
int cudaFuncGetAttributes(void *found, const void *function) { DO(memset(found, 0, 144)); }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                           int size, size_t shared,
                                                           unsigned flags) {
    DO(*blocks = 1);
}
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
    DO(function(argument));
}
