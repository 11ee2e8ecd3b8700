// cuBLAS, cuBLASLt, cuDNN and NCCL: handles are made, nothing is computed or sent.
//
// Without their own headers, which need more than the wheels hold: handles are pointers, results are 0 or not.
#include <cstring>

#include "device.h"

namespace {
struct Communicator {
  int rank, size;
};
using ncclComm_t = Communicator *;
using ncclResult_t = int;
struct ncclUniqueId {
  char bytes[128];
};
constexpr ncclResult_t ncclSuccess = 0, ncclUnhandledCudaError = 1, ncclInvalidArgument = 4;
constexpr int kNcclVersion = 22809;

ncclResult_t join(ncclComm_t *communicator, int size, int rank) {
  if (size > 1 && !fake::charge(fake::kCommunicatorBytes)) return ncclUnhandledCudaError;
  *communicator = new Communicator{rank, size};
  return ncclSuccess;
}

ncclResult_t leave(ncclComm_t communicator) {
  // It stays, a few bytes: torch's watchdogs ask after communicators that have ended.
  if (communicator->size > 1) fake::discharge(fake::kCommunicatorBytes);
  communicator->size = 1;
  return ncclSuccess;
}
}  // namespace

extern "C" {
int cublasCreate_v2(uintptr_t *handle) {
  *handle = fake::new_handle();
  return 0;
}
int cublasLtCreate(uintptr_t *handle) { return cublasCreate_v2(handle); }
int cublasLtMatmulAlgoGetHeuristic(
    void *, void *, void *, void *, void *, void *, void *, int, void *results, int *found) {
  std::memset(results, 0, 72);  // sizeof(cublasLtMatmulHeuristicResult_t): an algorithm without a workspace
  *found = 1;
  return 0;
}
int cublasGetMathMode(void *, int *mode) {
  *mode = 0;
  return 0;
}
int cublasGetPointerMode_v2(void *, int *mode) {
  *mode = 0;
  return 0;
}
int cublasGetStream_v2(void *, void **stream) {
  *stream = nullptr;
  return 0;
}
int cublasGetVersion_v2(void *, int *version) {
  *version = 130100;
  return 0;
}
size_t cublasLtGetVersion() { return 130100; }
size_t cublasLtGetCudartVersion() { return fake::kDriverVersion; }
const char *cublasGetStatusString(int) { return "an error of the fake device"; }

// cuDNN is nobody's need: so old a version that torch does not take its attention, which would compile kernels.
size_t cudnnGetVersion() { return 8900; }

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  std::memset(id, 7, sizeof *id);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *communicator, int size, ncclUniqueId, int rank) {
  return join(communicator, size, rank);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *communicator, int size, ncclUniqueId, int rank, void *) {
  return join(communicator, size, rank);
}
ncclResult_t ncclCommInitRankScalable(
    ncclComm_t *communicator, int size, int rank, int, ncclUniqueId *, void *) {
  return join(communicator, size, rank);
}
ncclResult_t ncclCommSplit(ncclComm_t whole, int, int, ncclComm_t *part, void *) {
  return join(part, whole->size, whole->rank);
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t communicator) { return leave(communicator); }
ncclResult_t ncclCommAbort(ncclComm_t communicator) { return leave(communicator); }
ncclResult_t ncclCommCount(ncclComm_t communicator, int *size) {
  *size = communicator->size;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t communicator, int *rank) {
  *rank = communicator->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
ncclResult_t ncclGetVersion(int *version) {
  *version = kNcclVersion;
  return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t) { return "an error of the fake device"; }
const char *ncclGetLastError(ncclComm_t) { return ""; }
ncclResult_t ncclRedOpCreatePreMulSum(int *op, void *, int, int, ncclComm_t) {
  *op = 0;  // a sum
  return ncclSuccess;
}
ncclResult_t ncclMemAlloc(void **address, size_t bytes) {
  *address = fake::take(bytes);
  return *address ? ncclSuccess : ncclUnhandledCudaError;
}
ncclResult_t ncclMemFree(void *address) { return fake::give_back(address) ? ncclSuccess : ncclInvalidArgument; }
}
