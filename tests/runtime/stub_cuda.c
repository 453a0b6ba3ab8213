/* A CUDA driver without a GPU, as far as cuda-core asks: two devices whose memory is the host's.

   A stream keeps what it is given until it is synchronised, so that an order, or a buffer that was freed too early,
   shows. Built and loaded as libcuda.so.1 by test_tensorrt_on_a_stub.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ILLEGAL_ADDRESS = 700, UNSUPPORTED = 801 };
enum { MOST = 4096 };

typedef struct Work { int adds; char *to, *from; size_t bytes; struct Work *next; } Work;
typedef struct { Work *first, **last; void *context; } Stream;

/* What the tests read and set. */
long live_device, live_host, live_streams; /* not freed */
long freed_in_use, on_another_device;      /* mistakes */
long allocations_left = -1, failing_syncs; /* -1: any number */

static __thread void *context;
static char contexts[2];
static Stream *streams[MOST];
static void *pinned[MOST];
static int stream_count, pinned_count;

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = 13050; return OK; }
int cuDeviceGetCount(int *count) { *count = 2; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return index < 2 ? OK : INVALID_DEVICE; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stub GPU %d", device); return OK; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, device + 1, 16); return OK; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 6 : 1; /* compute capability 8.6 */
  return OK;
}

int cuDevicePrimaryCtxRetain(void **out, int device) { *out = contexts + device; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxSetCurrent(void *wanted) { context = wanted; return OK; }
int cuCtxGetCurrent(void **out) { *out = context; return OK; }
int cuCtxPushCurrent_v2(void *wanted) { context = wanted; return OK; }
int cuCtxPopCurrent_v2(void **out) { *out = context; context = NULL; return OK; }
int cuCtxGetDevice(int *device) {
  if (!context) return INVALID_CONTEXT;
  *device = (char *)context - contexts;
  return OK;
}
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }

int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  if (!context) return INVALID_CONTEXT;
  Stream *stream = calloc(1, sizeof *stream);
  stream->last = &stream->first;
  stream->context = context;
  *out = streams[stream_count++] = stream;
  live_streams++;
  return OK;
}
int cuStreamDestroy_v2(void *stream) { live_streams--; return OK; }
int cuStreamGetFlags(void *stream, unsigned *flags) { *flags = 1; return OK; }
int cuStreamIsCapturing(void *stream, int *capturing) { *capturing = 0; return OK; }
int cuStreamSynchronize(Stream *stream) {
  if (!context) return INVALID_CONTEXT;
  if ((size_t)stream < 16) return OK; /* the default streams, on which nothing is */
  if (context != stream->context) on_another_device++;
  for (Work *work = stream->first, *next; work; work = next) {
    next = work->next;
    if (failing_syncs) ; /* a GPU that failed does nothing more */
    else if (!work->adds) memcpy(work->to, work->from, work->bytes);
    else for (size_t i = 0; i < work->bytes / 4; i++) ((float *)work->to)[i] = ((float *)work->from)[i] + 1;
    free(work);
  }
  stream->first = NULL;
  stream->last = &stream->first;
  return failing_syncs ? ILLEGAL_ADDRESS : OK;
}
static int enqueue(Stream *stream, int adds, void *to, void *from, size_t bytes) {
  if (!context) return INVALID_CONTEXT;
  if (context != stream->context) on_another_device++;
  Work *work = malloc(sizeof *work);
  *work = (Work){adds, to, from, bytes, NULL};
  *stream->last = work;
  stream->last = &work->next;
  return OK;
}
int cuMemcpyAsync(void *to, void *from, size_t bytes, void *stream) { return enqueue(stream, 0, to, from, bytes); }
int add_one(void *stream, void *to, void *from, size_t bytes) { return enqueue(stream, 1, to, from, bytes); }

static void check_idle(void *memory) {
  for (int i = 0; i < stream_count; i++)
    for (Work *work = streams[i]->first; work; work = work->next)
      if (work->to == memory || work->from == memory) freed_in_use++;
}
int cuMemAllocHost_v2(void **out, size_t bytes) {
  if (!context) return INVALID_CONTEXT;
  *out = pinned[pinned_count++] = malloc(bytes);
  live_host++;
  return OK;
}
int cuMemFreeHost(void *memory) { check_idle(memory); live_host--; free(memory); return OK; }
int cuDeviceGetDefaultMemPool(void **pool, int device) { *pool = contexts; return OK; }
int cuDeviceGetMemPool(void **pool, int device) { *pool = contexts; return OK; }
int cuMemPoolSetAttribute(void *pool, int attribute, void *value) { return OK; }
int cuMemPoolGetAttribute(void *pool, int attribute, void *value) { *(unsigned long long *)value = 0; return OK; }
int cuMemAllocFromPoolAsync(void **out, size_t bytes, void *pool, void *stream) {
  if (allocations_left == 0) return OUT_OF_MEMORY;
  if (allocations_left > 0) allocations_left--;
  *out = malloc(bytes);
  live_device++;
  return OK;
}
int cuMemFreeAsync(void *memory, void *stream) { live_device--; return OK; } /* behind the stream's work */
int cuPointerGetAttributes(unsigned count, int *attributes, void **values, void *memory) {
  int of_host = 0;
  for (int i = 0; i < pinned_count; i++) of_host |= pinned[i] == memory;
  for (unsigned i = 0; i < count; i++)
    *(int *)values[i] = attributes[i] == 2 ? (of_host ? 1 : 2) : 0; /* 2: the kind of memory */
  return OK;
}

int cuGetErrorName(int error, const char **out) {
  static char name[32];
  snprintf(name, sizeof name, "CUDA_ERROR_%d", error);
  *out = name;
  return OK;
}
int cuGetErrorString(int error, const char **out) { *out = "of the stub"; return OK; }

static int unsupported(void) { return UNSUPPORTED; }
int cuGetProcAddress_v2(const char *name, void **out, int version, unsigned long long flags, int *status) {
  static void *self;
  char versioned[200];
  if (!self) {
    Dl_info info;
    dladdr((void *)cuInit, &info);
    self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  }
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  if (!(*out = dlsym(self, versioned)) && !(*out = dlsym(self, name))) *out = (void *)unsupported;
  if (status) *status = 0;
  return OK;
}
int cuGetProcAddress(const char *name, void **out, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
