// A driver for an H200 that is not there: what Triton loads and launches is checked, and never run.
//
// It refuses what a driver refuses, by NVIDIA's documentation: tensor maps of wrong sizes or
// alignment, more shared memory than was asked for, grids and blocks that are too large, null
// functions, and loading during a capture. A pointer is taken for one of the device.
#include "cuda.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPTIN 232448
#define SHARED_BY_DEFAULT 49152

typedef struct {
  char name[256];
  int registers, dynamic;
} Function;

static int launches, loads, maps, is_capturing;
static char why[512] = "";
static int context;

#define REFUSE(...) return snprintf(why, sizeof why, __VA_ARGS__), CUDA_ERROR_INVALID_VALUE

int launched(void) { return launches; }
int loaded(void) { return loads; }
int mapped(void) { return maps; }
void capture(int begins) { is_capturing = begins; }

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) {
  return *text = why, CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int ordinal) { return *device = ordinal, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *now) { return *now = (CUcontext)&context, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext now) { return CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *now, CUdevice device) {
  return *now = (CUcontext)&context, CUDA_SUCCESS;
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  return *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute what, CUdevice device) {
  switch (what) {
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = OPTIN; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
  default: *value = 1; break;
  }
  return CUDA_SUCCESS;
}

// The cubin is an ELF file; attribute 0x2f of section .nv.info tells the registers of a function.
static int registers_of(const unsigned char *elf) {
  const unsigned char *headers = elf + *(const uint64_t *)(elf + 0x28);
  int count = *(const uint16_t *)(elf + 0x3c), names = *(const uint16_t *)(elf + 0x3e), most = 0;
  const char *table = (const char *)elf + *(const uint64_t *)(headers + 64 * names + 0x18);
  for (const unsigned char *header = headers; header < headers + 64 * count; header += 64) {
    if (strcmp(table + *(const uint32_t *)header, ".nv.info")) continue;
    const unsigned char *at = elf + *(const uint64_t *)(header + 0x18);
    const unsigned char *end = at + *(const uint64_t *)(header + 0x20);
    for (; at < end; at += at[0] == 4 ? 4 + *(const uint16_t *)(at + 2) : 4) {
      int registers = at[1] == 0x2f ? *(const int *)(at + 8) : 0;
      most = registers > most ? registers : most;
    }
  }
  return most;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  if (memcmp(image, "\177ELF", 4)) REFUSE("what is loaded is no cubin");
  if (is_capturing) REFUSE("a module is loaded during a capture");
  ++loads;
  return *module = (CUmodule)image, CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  Function *made = calloc(1, sizeof *made);
  snprintf(made->name, sizeof made->name, "%s", name);
  made->registers = registers_of((const unsigned char *)module);
  if (!made->registers) REFUSE("no function %s", name);
  return *function = (CUfunction)made, CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute what, CUfunction function) {
  Function *its = (Function *)function;
  *value = 0;
  if (what == CU_FUNC_ATTRIBUTE_NUM_REGS) *value = its->registers;
  if (what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) {
    int each = (its->registers + 7) / 8 * 8 * 32, warps = 65536 / each / 4 * 4;
    *value = warps > 32 ? 1024 : 32 * warps;
  }
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute what, int value) {
  if (what == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    if (value > OPTIN) REFUSE("%d bytes of shared memory", value);
    ((Function *)function)->dynamic = value;
  }
  return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute what, CUdeviceptr pointer) {
  return *(CUdeviceptr *)data = pointer, CUDA_SUCCESS;
}
CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *what, void **data,
                                CUdeviceptr pointer) {
  for (unsigned at = 0; at < count; ++at)
    *(CUdeviceptr *)data[at] = pointer;
  return CUDA_SUCCESS;
}

static int element_bytes(CUtensorMapDataType type) {
  switch (type) {
  case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
  case CU_TENSOR_MAP_DATA_TYPE_UINT16:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
  case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
  case CU_TENSOR_MAP_DATA_TYPE_UINT32:
  case CU_TENSOR_MAP_DATA_TYPE_INT32:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
  default: return 8;
  }
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const int widest[] = {1 << 30, 32, 64, 128};
  if ((uintptr_t)map % 64) REFUSE("the map is not aligned to 64 bytes");
  if (rank < 1 || rank > 5) REFUSE("rank %u", rank);
  if ((uintptr_t)address % 16) REFUSE("address %p is not aligned to 16 bytes", address);
  for (unsigned at = 0; at < rank; ++at) {
    if (!sizes[at] || sizes[at] > 1ull << 32) REFUSE("size %lu", (unsigned long)sizes[at]);
    if (!box[at] || box[at] > 256) REFUSE("a box of %u", box[at]);
    if (at + 1 < rank && (strides[at] % 16 || strides[at] >= 1ull << 40))
      REFUSE("stride %lu", (unsigned long)strides[at]);
  }
  unsigned inner = box[0] * element_bytes(type);
  if (inner % 16) REFUSE("a box of %u bytes", inner);
  if (inner > (unsigned)widest[swizzle]) REFUSE("a box of %u bytes, swizzle %d", inner, swizzle);
  ++maps;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function,
                                      const CUlaunchConfig *config) {
  return *count = 1, CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments,
                          void **extra) {
  Function *its = (Function *)function;
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  unsigned allowed = its->dynamic ? its->dynamic : SHARED_BY_DEFAULT;
  if (!its->registers) REFUSE("a function that was not loaded");
  if (threads < 32 || threads > 1024) REFUSE("%s: %u threads", its->name, threads);
  if (config->gridDimX > 2147483647u || config->gridDimY > 65535 || config->gridDimZ > 65535)
    REFUSE("%s: a grid of %u, %u, %u", its->name, config->gridDimX, config->gridDimY,
           config->gridDimZ);
  if (config->sharedMemBytes > allowed)
    REFUSE("%s: %u bytes of shared memory, %u allowed", its->name, config->sharedMemBytes, allowed);
  if ((its->registers + 7) / 8 * 8 * threads > 65536)
    REFUSE("%s: %d registers of %u threads", its->name, its->registers, threads);
  ++launches;
  return CUDA_SUCCESS;
}
