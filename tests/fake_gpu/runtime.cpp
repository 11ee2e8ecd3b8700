// CUDA's runtime.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstring>

#include "device.h"

namespace {
template <typename Handle>
cudaError_t make(Handle *handle) {
  *handle = reinterpret_cast<Handle>(fake::new_handle());
  return cudaSuccess;
}

cudaError_t waited() {
  if (fake::capturing()) return cudaErrorStreamCaptureUnsupported;
  fake::counters().waits++;
  return cudaSuccess;
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local Configuration pushed;

thread_local cudaError_t last_error = cudaSuccess;
cudaError_t failed(cudaError_t error) { return last_error = error; }
cudaError_t launched(bool runs) { return runs ? cudaSuccess : failed(cudaErrorInvalidConfiguration); }
}  // namespace

extern "C" {
cudaError_t cudaGetDeviceCount(int *count) {
  *count = fake::num_devices();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = fake::current_device();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= fake::num_devices()) return failed(cudaErrorInvalidDevice);
  fake::current_device() = device;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
  *version = fake::kDriverVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = fake::kDriverVersion;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *found, int) {
  const auto &known = fake::specification();
  std::memset(found, 0, sizeof *found);
  std::strncpy(found->name, known.name, sizeof found->name - 1);
  found->totalGlobalMem = known.total_bytes;
  found->major = known.major;
  found->minor = known.minor;
  found->multiProcessorCount = known.multiprocessors;
  found->l2CacheSize = known.l2_bytes;
  found->memoryBusWidth = known.memory_bus_bits;
  found->sharedMemPerBlock = fake::kSharedBytesOfBlock;
  found->sharedMemPerBlockOptin = fake::kSharedBytesOptIn;
  found->sharedMemPerMultiprocessor = fake::kSharedBytesOfMultiprocessor;
  found->regsPerBlock = found->regsPerMultiprocessor = fake::kRegisters;
  found->warpSize = fake::kWarp;
  found->maxThreadsPerBlock = fake::kThreadsOfBlock;
  found->maxThreadsPerMultiProcessor = fake::kThreadsOfMultiprocessor;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->totalConstMem = 65536;
  found->cooperativeLaunch = found->unifiedAddressing = found->managedMemory = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr asked, int device) {
  cudaDeviceProp found;
  cudaGetDeviceProperties(&found, device);
  switch (asked) {
    case cudaDevAttrComputeCapabilityMajor: *value = found.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = found.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = found.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = found.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = found.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrWarpSize: *value = found.warpSize; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = found.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = found.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = found.sharedMemPerMultiprocessor; break;
    case cudaDevAttrL2CacheSize: *value = found.l2CacheSize; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = found.regsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = found.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    default: *value = 1;  // that it can
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
  std::strncpy(id, "0000:00:00.0", size);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *found, const void *) {
  std::memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = fake::kThreadsOfBlock;
  found->numRegs = 32;
  found->ptxVersion = found->binaryVersion = fake::specification().major * 10;
  found->maxDynamicSharedSizeBytes = fake::kSharedBytesOfBlock;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// Memory.
cudaError_t cudaMalloc(void **address, size_t bytes) {
  *address = fake::take(bytes);
  return *address ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t) { return cudaMalloc(address, bytes); }
cudaError_t cudaFree(void *address) {
  if (!address || fake::give_back(address)) return cudaSuccess;
  return failed(cudaErrorInvalidValue);
}
cudaError_t cudaFreeAsync(void *address, cudaStream_t) { return cudaFree(address); }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = fake::free_bytes();
  *total = fake::specification().total_bytes;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned) {
  *address = fake::take_pinned(bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void *address) {
  fake::forget_pinned(address, true);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned) {
  fake::note_pinned(address, bytes);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *address) {
  fake::forget_pinned(address, false);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *found, const void *address) {
  std::memset(found, 0, sizeof *found);
  found->type = fake::is_device(address)   ? cudaMemoryTypeDevice
                : fake::is_pinned(address) ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered;
  found->device = fake::current_device();
  found->devicePointer = const_cast<void *>(address);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  for (const void *side : {static_cast<const void *>(target), source})
    if (!fake::is_device(side) && !fake::is_pinned(side)) fake::counters().unpinned_copies++;
  fake::copy(target, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, cudaMemcpyKind) {
  fake::copy(target, source, bytes);
  return waited();
}
cudaError_t cudaMemcpyPeerAsync(void *target, int, const void *source, int, size_t bytes, cudaStream_t) {
  fake::copy(target, source, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *target, int value, size_t bytes) {
  fake::fill(target, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *target, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(target, value, bytes);
}

// Streams, events, graphs.
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return make(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) { return make(stream); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) {
  *priority = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
  *status = fake::capturing() ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *, const cudaGraphNode_t **,
    const cudaGraphEdgeData **, size_t *) {
  if (id) *id = fake::capturing();
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  fake::capturing() = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
  fake::capturing() = false;
  return make(graph);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t, unsigned long long) { return make(made); }
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t *, size_t *count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  fake::counters().launches++;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return make(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) { return make(event); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) {
  *ms = 1;  // a number to divide by: nothing took any time
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waited(); }
cudaError_t cudaDeviceSynchronize() { return waited(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited(); }

// Launches.
cudaError_t cudaLaunchKernel(const void *, dim3 grid, dim3 block, void **, size_t shared_bytes, cudaStream_t) {
  return launched(fake::launch(grid.x, grid.y, grid.z, long{block.x} * block.y * block.z, shared_bytes));
}
cudaError_t cudaLaunchCooperativeKernel(
    const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *kernel, void **arguments) {
  return cudaLaunchKernel(kernel, how->gridDim, how->blockDim, arguments, how->dynamicSmemBytes, how->stream);
}
// What the compiler writes for kernel<<<grid, block>>>(...), and for a kernel to be known.
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st *stream) {
  pushed = {grid, block, shared_bytes, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared_bytes = pushed.shared_bytes;
  *static_cast<cudaStream_t *>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(void **kernel, const void *function) {
  *kernel = const_cast<void *>(function);
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(
    const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
void **__cudaRegisterFatBinary(void *) {
  static void *nothing = nullptr;
  return &nothing;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterFunction(void **, const char *, char *, const char *, int, void *, void *, void *, void *, int *) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
char __cudaInitModule(void **) { return 1; }
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void *data) {
  function(data);
  return cudaSuccess;
}

// Errors, and the way to the driver.
cudaError_t cudaGetLastError() {
  cudaError_t found = last_error;
  last_error = cudaSuccess;
  return found;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation        ? "out of memory"
         : error == cudaErrorInvalidConfiguration  ? "invalid configuration argument"
         : error == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
                                                      : "an error of the fake device";
}
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult *status) {
  static int (*const nothing)() = [] { return 0; };
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = reinterpret_cast<void *>(nothing);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
}
