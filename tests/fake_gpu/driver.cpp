// CUDA's driver, as Triton, Inductor and torch's allocator call it.
#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "device.h"

#undef cuMemGetAddressRange
#undef cuStreamWriteValue32

namespace {
std::mutex mutex;
std::map<CUfunction, std::string> names;  // of kernels that a module was asked for
std::map<std::string, long> launches_by_name;
std::map<CUmemGenericAllocationHandle, size_t> physical;  // bytes of each allocation that a range may hold

CUresult waited() {
  if (fake::capturing()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  fake::counters().waits++;
  return CUDA_SUCCESS;
}

// Whether a variable names this kernel: FAKE_GPU_HANG one that never ends, FAKE_GPU_FAIL one that is not launched.
bool is_named(const char *variable, const std::string &kernel) {
  const char *name = std::getenv(variable);
  return name && kernel == name;
}

CUresult launched(CUfunction function, long x, long y, long z, long threads, long shared_bytes) {
  std::string name;
  {
    std::lock_guard lock(mutex);
    name = names[function];
    launches_by_name[name]++;
  }
  while (is_named("FAKE_GPU_HANG", name)) sleep(1);
  if (is_named("FAKE_GPU_FAIL", name)) return CUDA_ERROR_LAUNCH_FAILED;
  return fake::launch(x, y, z, threads, shared_bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
}  // namespace

extern "C" {
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) {
  *version = fake::kDriverVersion;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *count) {
  *count = fake::num_devices();
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice) {
  std::strncpy(name, fake::specification().name, size);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute asked, CUdevice) {
  const auto &known = fake::specification();
  switch (asked) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = known.major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = known.minor; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = known.multiprocessors; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = fake::kSharedBytesOfBlock; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = fake::kSharedBytesOptIn; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = fake::kSharedBytesOfMultiprocessor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = fake::kRegisters; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = fake::kThreadsOfBlock; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = fake::kWarp; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = known.memory_bus_bits; break;
    default: *value = 1;
  }
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
  if (flags) *flags = 0;
  if (active) *active = 1;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
  *context = reinterpret_cast<CUcontext>(16);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) { return cuDevicePrimaryCtxRetain(context, 0); }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) {
  *device = fake::current_device();
  return CUDA_SUCCESS;
}
CUresult cuCtxGetLimit(size_t *value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
          : error == CUDA_ERROR_INVALID_VALUE ? "invalid argument"
                                              : "an error of the fake device";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult, const char **name) {
  *name = "CUDA_ERROR";
  return CUDA_SUCCESS;
}

// Modules and kernels: any binary will do, none is run.
CUresult cuModuleLoadData(CUmodule *module, const void *) {
  *module = reinterpret_cast<CUmodule>(fake::new_handle());
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
  return cuModuleLoadData(module, image);
}
CUresult cuModuleLoad(CUmodule *module, const char *) { return cuModuleLoadData(module, nullptr); }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *name) {
  *function = reinterpret_cast<CUfunction>(fake::new_handle());
  std::lock_guard lock(mutex);
  names[*function] = name;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute asked, CUfunction) {
  *value = asked == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? fake::kThreadsOfBlock : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int, size_t) {
  *blocks = 1;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) {
  *clusters = 1;
  return CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *how, CUfunction function, void **, void **) {
  long threads = long{how->blockDimX} * how->blockDimY * how->blockDimZ;
  return launched(function, how->gridDimX, how->gridDimY, how->gridDimZ, threads, how->sharedMemBytes);
}
CUresult cuLaunchKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared_bytes, CUstream, void **, void **) {
  return launched(function, grid_x, grid_y, grid_z, long{block_x} * block_y * block_z, shared_bytes);
}
CUresult cuLaunchCooperativeKernel(
    CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared_bytes, CUstream, void **) {
  return launched(function, grid_x, grid_y, grid_z, long{block_x} * block_y * block_z, shared_bytes);
}
CUresult cuStreamSynchronize(CUstream) { return waited(); }

// Triton asks of every tensor whether a kernel can reach it.
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute asked, CUdeviceptr address) {
  if (!fake::is_device(reinterpret_cast<void *>(address))) return CUDA_ERROR_INVALID_VALUE;
  if (asked == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *static_cast<CUdeviceptr *>(value) = address;
  return CUDA_SUCCESS;
}
CUresult cuMemsetD32Async(CUdeviceptr, unsigned, size_t, CUstream) { return CUDA_SUCCESS; }

// Expandable segments: addresses are reserved, and memory is mapped into them.
CUresult cuMemGetAllocationGranularity(
    size_t *bytes, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) {
  *bytes = size_t{2} << 20;
  return CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  void *found = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  fake::note_range(found, bytes);
  *address = reinterpret_cast<CUdeviceptr>(found);
  return CUDA_SUCCESS;
}
CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  fake::forget_range(reinterpret_cast<void *>(address));
  munmap(reinterpret_cast<void *>(address), bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemCreate(
    CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *, unsigned long long) {
  if (!fake::charge(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  fake::counters().allocations++;
  *handle = fake::new_handle();
  std::lock_guard lock(mutex);
  physical[*handle] = bytes;
  return CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  std::lock_guard lock(mutex);
  fake::discharge(physical[handle]);
  physical.erase(handle);
  return CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t, CUmemGenericAllocationHandle, unsigned long long) {
  mprotect(reinterpret_cast<void *>(address), bytes, PROT_READ | PROT_WRITE);
  return CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  madvise(reinterpret_cast<void *>(address), bytes, MADV_DONTNEED);
  mprotect(reinterpret_cast<void *>(address), bytes, PROT_NONE);
  return CUDA_SUCCESS;
}
CUresult cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t) { return CUDA_SUCCESS; }

// For programs that look: launches of the kernels of modules, "name count" a line.
const char *fake_gpu_launches_by_name() {
  static std::string text;
  std::lock_guard lock(mutex);
  text.clear();
  for (const auto &[name, count] : launches_by_name) text += name + " " + std::to_string(count) + "\n";
  return text.c_str();
}
}
