// A stand-in for the parts of NCCL and of CUDA's runtime that bench/nccl/broadcast.cpp calls: ranks share one
// thread, memory and time are the host's. It says whether the program is right, never how fast NCCL is.
// NCCL_ON_HOST_GPUS: how many GPUs there seem to be. NCCL_ON_HOST_LOSES: the last byte of every broadcast is lost.
#pragma once
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

enum cudaError_t { cudaSuccess, cudaErrorAny };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
using cudaStream_t = int;
using cudaEvent_t = std::chrono::steady_clock::time_point*;
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  const char* gpus = std::getenv("NCCL_ON_HOST_GPUS");
  return (*count = gpus ? std::atoi(gpus) : 0) ? cudaSuccess : cudaErrorAny;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = 0, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return *event = new std::chrono::steady_clock::time_point, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  return *event = std::chrono::steady_clock::now(), cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop) {
  return *ms = std::chrono::duration<float, std::milli>(*stop - *start).count(), cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return (*memory = std::malloc(bytes)) ? cudaSuccess : cudaErrorAny;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return std::memset(memory, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(target, source, bytes), cudaSuccess;
}

enum ncclResult_t { ncclSuccess, ncclInvalidUsage };
enum ncclDataType_t { ncclUint8, ncclInt32, ncclInt64, ncclFloat16, ncclFloat32, ncclFloat64, ncclBfloat16 };
enum ncclRedOp_t { ncclSum, ncclMax };
struct ncclUniqueId { char internal[128]; };
struct Call { void* buffer; size_t bytes; int root; ncclRedOp_t operation; };  // root -1: an all-reduce of a double
using Calls = std::vector<Call>;
struct Rank { int rank; };
using ncclComm_t = Rank*;
inline int group_depth = 0;
inline std::vector<Calls> pending;  // of every rank, in the group that is open

inline void reduce(size_t k) {
  double result = 0;
  for (const Calls& calls : pending) {
    const double value = *static_cast<double*>(calls[k].buffer);
    result = calls[k].operation == ncclSum ? result + value : std::max(result, value);
  }
  for (const Calls& calls : pending) *static_cast<double*>(calls[k].buffer) = result;
}

inline void broadcast_call(size_t k) {
  const Call& sent = pending[pending[0][k].root][k];
  const size_t bytes = sent.bytes - (std::getenv("NCCL_ON_HOST_LOSES") ? 1 : 0);
  for (const Calls& calls : pending)
    if (calls[k].buffer != sent.buffer) std::memcpy(calls[k].buffer, sent.buffer, bytes);
}

inline const char* ncclGetErrorString(ncclResult_t) { return "invalid usage"; }
inline ncclResult_t ncclGetVersion(int* version) { return *version = 0, ncclSuccess; }
inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return std::memset(id, 0, sizeof *id), ncclSuccess; }
inline ncclResult_t ncclCommInitRank(ncclComm_t*, int, ncclUniqueId, int) { return ncclInvalidUsage; }
inline ncclResult_t ncclCommInitAll(ncclComm_t* comms, int count, const int*) {
  pending.resize(count);
  for (int i = 0; i < count; ++i) comms[i] = new Rank{i};
  return ncclSuccess;
}
inline ncclResult_t ncclCommDestroy(ncclComm_t comm) { return delete comm, ncclSuccess; }
inline ncclResult_t ncclGroupStart() { return ++group_depth, ncclSuccess; }
inline ncclResult_t ncclGroupEnd() {
  if (--group_depth) return ncclSuccess;
  for (const Calls& calls : pending)
    if (calls.size() != pending[0].size()) return ncclInvalidUsage;  // a real NCCL would wait for ever
  for (size_t k = 0; k < pending[0].size(); ++k) pending[0][k].root < 0 ? reduce(k) : broadcast_call(k);
  for (Calls& calls : pending) calls.clear();
  return ncclSuccess;
}
inline ncclResult_t ncclBroadcast(const void*, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                                  cudaStream_t) {
  static const std::map<ncclDataType_t, size_t> itemsizes = {
      {ncclUint8, 1}, {ncclInt32, 4}, {ncclInt64, 8}, {ncclFloat16, 2}, {ncclFloat32, 4}, {ncclBfloat16, 2}};
  pending[comm->rank].push_back({to, count * itemsizes.at(type), root, ncclSum});
  return group_depth ? ncclSuccess : ncclInvalidUsage;
}
inline ncclResult_t ncclAllReduce(const void*, void* to, size_t, ncclDataType_t, ncclRedOp_t operation,
                                  ncclComm_t comm, cudaStream_t) {
  pending[comm->rank].push_back({to, sizeof(double), -1, operation});
  return group_depth ? ncclSuccess : ncclInvalidUsage;
}
