#include "device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace fake {
namespace {

constexpr Specification kKnown[] = {
    {"h100", "Fake H100 80GB HBM3", 84929347584, 9, 0, 132, 50 << 20, 5120},
    {"h200", "Fake H200", 150121545728, 9, 0, 132, 60 << 20, 6144},
    {"a800", "Fake A800-SXM4-80GB", 85097971712, 8, 0, 108, 40 << 20, 5120},
};
constexpr size_t kCopiedOnDevice = 1 << 20;  // larger copies would fill the host's memory with nothing

using Ranges = std::map<const char *, size_t>;
std::mutex mutex;
Ranges device_ranges, pinned_ranges;
size_t used = kContextBytes;

bool within(const Ranges &ranges, const void *address) {
  auto next = ranges.upper_bound(static_cast<const char *>(address));
  if (next == ranges.begin()) return false;
  --next;
  return address < next->first + next->second;
}

const char *setting(const char *name, const char *otherwise) {
  const char *value = std::getenv(name);
  return value && *value ? value : otherwise;
}

Specification chosen() {
  const char *wanted = setting("FAKE_GPU", "h100");
  for (Specification known : kKnown) {
    if (std::strcmp(known.key, wanted)) continue;
    size_t gib = std::atol(setting("FAKE_GPU_GIB", "0"));  // of a smaller one
    if (gib) known.total_bytes = gib << 30;
    return known;
  }
  std::fprintf(stderr, "FAKE_GPU must be h100, h200 or a800, got %s\n", wanted);
  std::exit(2);
}
}  // namespace

const Specification &specification() {
  static const Specification found = chosen();
  return found;
}

int num_devices() {
  static const int count = std::atoi(setting("FAKE_GPU_COUNT", "1"));
  return count;
}

int &current_device() {
  static thread_local int device = 0;
  return device;
}

bool charge(size_t bytes) {
  std::lock_guard lock(mutex);
  if (used + bytes > specification().total_bytes) return false;
  used += bytes;
  return true;
}

void discharge(size_t bytes) {
  std::lock_guard lock(mutex);
  used -= bytes;
}

size_t free_bytes() {
  std::lock_guard lock(mutex);
  return specification().total_bytes - used;
}

void note_range(void *address, size_t bytes) {
  std::lock_guard lock(mutex);
  device_ranges[static_cast<char *>(address)] = bytes;
}

void forget_range(void *address) {
  std::lock_guard lock(mutex);
  device_ranges.erase(static_cast<char *>(address));
}

void *take(size_t bytes) {
  bytes = bytes ? bytes : 1;
  if (!charge(bytes)) return nullptr;
  counters().allocations++;
  // Address space alone: the host pays for the pages that are written.
  void *address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    discharge(bytes);
    return nullptr;
  }
  note_range(address, bytes);
  return address;
}

bool give_back(void *address) {
  size_t bytes;
  {
    std::lock_guard lock(mutex);
    auto found = device_ranges.find(static_cast<char *>(address));
    if (found == device_ranges.end()) return false;
    bytes = found->second;
    device_ranges.erase(found);
    used -= bytes;
  }
  munmap(address, bytes);
  return true;
}

bool is_device(const void *address) {
  std::lock_guard lock(mutex);
  return within(device_ranges, address);
}

void *take_pinned(size_t bytes) {
  void *address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  note_pinned(address, bytes);
  return address;
}

void note_pinned(void *address, size_t bytes) {
  std::lock_guard lock(mutex);
  pinned_ranges[static_cast<char *>(address)] = bytes;
}

void forget_pinned(void *address, bool release) {
  {
    std::lock_guard lock(mutex);
    pinned_ranges.erase(static_cast<char *>(address));
  }
  if (release) std::free(address);
}

bool is_pinned(const void *address) {
  std::lock_guard lock(mutex);
  return within(pinned_ranges, address);
}

void copy(void *target, const void *source, size_t bytes) {
  if (bytes > kCopiedOnDevice && is_device(target) && is_device(source)) return;
  std::memmove(target, source, bytes);
}

void fill(void *target, int value, size_t bytes) {
  if (bytes <= kCopiedOnDevice) std::memset(target, value, bytes);
}

uintptr_t new_handle() {
  static std::atomic<uintptr_t> last{4096};
  return last += 16;
}

Counters &counters() {
  static Counters all;
  return all;
}

bool launch(long x, long y, long z, long threads, long shared_bytes) {
  counters().launches++;
  auto fits = [](long n, long most) { return 0 < n && n <= most; };
  bool runs = fits(x, 2147483647) && fits(y, 65535) && fits(z, 65535) && fits(threads, kThreadsOfBlock) &&
              0 <= shared_bytes && shared_bytes <= kSharedBytesOptIn;
  if (!runs) counters().wrong_launches++;
  return runs;
}

bool &capturing() {
  static thread_local bool now = false;
  return now;
}
}  // namespace fake

extern "C" {
// For programs that look: launches, waits, unpinned copies, allocations, wrong launches, free bytes.
void fake_gpu_counters(long out[6]) {
  auto &all = fake::counters();
  long values[] = {all.launches, all.waits,          all.unpinned_copies,
                   all.allocations, all.wrong_launches, static_cast<long>(fake::free_bytes())};
  std::memcpy(out, values, sizeof values);
}

// A function that no file here answers was called. FAKE_GPU_TRACE names it on stderr.
int fake_unanswered(const char *name) {
  static const bool traced = std::getenv("FAKE_GPU_TRACE") != nullptr;
  if (traced) std::fprintf(stderr, "fake gpu: %s is not answered\n", name);
  return 0;
}
}
