// The device that is not there: its memory, and what was asked of it. Kernels do nothing; memory is real and limited.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fake {

// What programs read off a device and act on. Source: CUDA's programming guide and deviceQuery of each.
struct Specification {
  const char *key;  // of the variable FAKE_GPU
  const char *name;
  size_t total_bytes;  // as torch reports it
  int major, minor, multiprocessors, l2_bytes, memory_bus_bits;
};

inline constexpr int kSharedBytesOfBlock = 49152, kSharedBytesOptIn = 232448, kSharedBytesOfMultiprocessor = 233472;
inline constexpr int kThreadsOfBlock = 1024, kThreadsOfMultiprocessor = 2048, kWarp = 32, kRegisters = 65536;
inline constexpr int kDriverVersion = 13000;
inline constexpr size_t kContextBytes = size_t{600} << 20;  // what a process takes before its first tensor
inline constexpr size_t kCommunicatorBytes = size_t{256} << 20;  // NCCL's buffers, for each communicator of several

// Chosen by FAKE_GPU: h100 (default), h200, a800.
const Specification &specification();
int num_devices();  // by FAKE_GPU_COUNT, default 1
int &current_device();  // of this thread

// Device memory. `take` returns nullptr where the device would be full.
void *take(size_t bytes);
bool give_back(void *address);  // false if it is none
bool is_device(const void *address);
size_t free_bytes();
bool charge(size_t bytes);  // memory without an address: false if there is not so much
void discharge(size_t bytes);
// A range of addresses that holds no memory yet: it is charged by what is mapped into it.
void note_range(void *address, size_t bytes);
void forget_range(void *address);

// Pinned host memory.
void *take_pinned(size_t bytes);
void note_pinned(void *address, size_t bytes);
void forget_pinned(void *address, bool release);
bool is_pinned(const void *address);

// Copies what a later read on the host could see: from and to the host always, on the device where it is small.
void copy(void *target, const void *source, size_t bytes);
void fill(void *target, int value, size_t bytes);

uintptr_t new_handle();

struct Counters {
  std::atomic<long> launches{0};
  std::atomic<long> waits{0};  // calls that hold the host until the device is done
  std::atomic<long> unpinned_copies{0};  // asynchronous by their name, and held by the driver for pageable memory
  std::atomic<long> allocations{0};
  std::atomic<long> wrong_launches{0};  // of a grid, block or shared memory that no device takes
};
Counters &counters();
// Counts a launch; false if no device could run it.
bool launch(long grid_x, long grid_y, long grid_z, long block_threads, long shared_bytes);

bool &capturing();  // of this thread: a graph is being captured, in which nothing may wait
}  // namespace fake
