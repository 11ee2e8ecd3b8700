// Broadcasts a model's tensors in place over NCCL from one GPU to all others; measures the speed and checks every byte.
//
//   broadcast LIST [--gpus N] [--root 0] [--warmup 3] [--iterations 10]
//                  [--processes P --process R --id_file PATH]
//
// LIST has a line for each tensor: its name, its dtype as torch calls it, its number of elements. By default one
// process drives the first N GPUs of the node (all, if not given). With --processes, P processes of N GPUs each find
// each other by an id that process 0 writes to PATH, which all of them can read and which must not exist before.
// Each takes the first N GPUs that it sees: on one node, give them different CUDA_VISIBLE_DEVICES.
//
// The last line of output, of process 0 only, is JSON. It has for each of three ways (all tensors in one group, one
// call for each tensor, and as many bytes in one flat buffer): `ms`, the median time from the first call until the
// slowest rank is done; `algbw_gb_per_s`, bytes divided by that time; `busbw_gb_per_s`, the same for a broadcast;
// `wrong_bytes`, over all ranks. Exit code: 0, 1 if a byte is wrong or a call failed, 2 for invalid arguments.

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

void check(ncclResult_t status, const char* call) {
  if (status != ncclSuccess) throw std::runtime_error(std::string(call) + ": " + ncclGetErrorString(status));
}

#define CHECK(call) check((call), #call)

struct Options {
  std::string list;
  std::string id_file;
  int gpus = 0;  // of this process; 0: all that it sees
  int root = 0;
  int warmup = 3;
  int iterations = 10;
  int processes = 1;
  int process = 0;
};

struct Tensor {
  std::string name;
  ncclDataType_t type;
  size_t count;  // elements
  size_t bytes;
};

// One rank: a GPU of this process.
struct Gpu {
  int device;
  int rank;
  ncclComm_t comm;
  cudaStream_t stream;
  cudaEvent_t start, stop;
  double* shared;  // one number, for `largest`
};

using Buffers = std::vector<std::vector<void*>>;  // [GPU of this process][tensor]

struct Measured {
  double median_ms, fastest_ms, slowest_ms;
  double wrong_bytes;
};

Options parse(int argc, char** argv) {
  Options options;
  std::map<std::string, int*> numbers = {
      {"--gpus", &options.gpus},           {"--root", &options.root},           {"--warmup", &options.warmup},
      {"--iterations", &options.iterations}, {"--processes", &options.processes}, {"--process", &options.process}};
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("--", 0) != 0) {
      options.list = argument;
      continue;
    }
    if (i + 1 == argc) throw UsageError(argument + " needs a value");
    const std::string value = argv[++i];
    if (argument == "--id_file") {
      options.id_file = value;
    } else if (numbers.count(argument) && !value.empty() && value.size() < 9 &&
               value.find_first_not_of("0123456789") == std::string::npos) {
      *numbers[argument] = std::stoi(value);
    } else {
      throw UsageError("cannot take " + argument + " " + value);
    }
  }
  if (options.list.empty()) throw UsageError("needs the file of tensors");
  if (options.iterations < 1) throw UsageError("--iterations must be at least 1");
  if (options.process >= options.processes) throw UsageError("--process must be less than --processes");
  if (options.processes > 1 && options.id_file.empty()) throw UsageError("--processes needs --id_file");
  int visible = 0;
  CHECK(cudaGetDeviceCount(&visible));
  if (options.gpus == 0) options.gpus = visible;
  if (options.gpus > visible) throw UsageError("asked for more GPUs than the " + std::to_string(visible) + " visible");
  const int ranks = options.gpus * options.processes;
  if (ranks < 2) throw UsageError("a broadcast needs two GPUs");
  if (options.root >= ranks) throw UsageError("--root must be one of the " + std::to_string(ranks) + " ranks");
  return options;
}

std::vector<Tensor> read_list(const std::string& path) {
  const std::map<std::string, std::pair<ncclDataType_t, size_t>> types = {
      {"float32", {ncclFloat32, 4}}, {"bfloat16", {ncclBfloat16, 2}}, {"float16", {ncclFloat16, 2}},
      {"int64", {ncclInt64, 8}},     {"int32", {ncclInt32, 4}},       {"uint8", {ncclUint8, 1}}};
  std::ifstream file(path);
  if (!file) throw UsageError("cannot read " + path);
  std::vector<Tensor> tensors;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string name, type, rest;
    size_t count = 0;
    if (!(fields >> name >> type >> count) || fields >> rest || count == 0 || !types.count(type))
      throw UsageError(path + ", line " + std::to_string(tensors.size() + 1) + ": not a tensor: " + line);
    const auto [nccl_type, itemsize] = types.at(type);
    tensors.push_back({name, nccl_type, count, count * itemsize});
  }
  if (tensors.empty()) throw UsageError(path + " lists no tensor");
  return tensors;
}

size_t total_bytes(const std::vector<Tensor>& tensors) {
  size_t bytes = 0;
  for (const Tensor& tensor : tensors) bytes += tensor.bytes;
  return bytes;
}

// Process 0 writes the id under another name first, so that no process reads half of it. The others wait for a minute.
ncclUniqueId exchange_id(const Options& options) {
  ncclUniqueId id;
  const std::string unfinished = options.id_file + ".unfinished";
  if (options.process == 0) {
    if (std::filesystem::exists(options.id_file)) throw UsageError(options.id_file + " exists: it may be an old id");
    CHECK(ncclGetUniqueId(&id));
    std::ofstream(unfinished, std::ios::binary).write(id.internal, sizeof id.internal);
    std::filesystem::rename(unfinished, options.id_file);
    return id;
  }
  for (int tenths = 0; !std::filesystem::exists(options.id_file); ++tenths) {
    if (tenths == 600) throw std::runtime_error("no id in " + options.id_file + " after 60 s: is process 0 running?");
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  std::ifstream file(options.id_file, std::ios::binary);
  if (!file.read(id.internal, sizeof id.internal)) throw std::runtime_error(options.id_file + " holds no id");
  return id;
}

std::vector<ncclComm_t> communicators(const Options& options) {
  std::vector<ncclComm_t> comms(options.gpus);
  if (options.processes == 1) {
    CHECK(ncclCommInitAll(comms.data(), options.gpus, nullptr));
    return comms;
  }
  const ncclUniqueId id = exchange_id(options);
  CHECK(ncclGroupStart());
  for (int i = 0; i < options.gpus; ++i) {
    CHECK(cudaSetDevice(i));
    const int rank = options.process * options.gpus + i;
    CHECK(ncclCommInitRank(&comms[i], options.gpus * options.processes, id, rank));
  }
  CHECK(ncclGroupEnd());
  return comms;
}

std::vector<Gpu> connect(const Options& options) {
  const std::vector<ncclComm_t> comms = communicators(options);
  std::vector<Gpu> gpus(options.gpus);
  for (int i = 0; i < options.gpus; ++i) {
    Gpu& gpu = gpus[i];
    gpu.device = i;
    gpu.rank = options.process * options.gpus + i;
    gpu.comm = comms[i];
    CHECK(cudaSetDevice(i));
    CHECK(cudaStreamCreate(&gpu.stream));
    CHECK(cudaEventCreate(&gpu.start));
    CHECK(cudaEventCreate(&gpu.stop));
    CHECK(cudaMalloc(reinterpret_cast<void**>(&gpu.shared), sizeof(double)));
  }
  return gpus;
}

void synchronize(const std::vector<Gpu>& gpus) {
  for (const Gpu& gpu : gpus) {
    CHECK(cudaSetDevice(gpu.device));
    CHECK(cudaStreamSynchronize(gpu.stream));
  }
}

// A number combined over all processes, which is a barrier too.
double agreed(const std::vector<Gpu>& gpus, double value, ncclRedOp_t operation) {
  for (const Gpu& gpu : gpus) {
    CHECK(cudaSetDevice(gpu.device));
    const double mine = operation == ncclSum && &gpu != &gpus.front() ? 0.0 : value;  // a process counts once
    CHECK(cudaMemcpy(gpu.shared, &mine, sizeof mine, cudaMemcpyHostToDevice));
  }
  CHECK(ncclGroupStart());
  for (const Gpu& gpu : gpus)
    CHECK(ncclAllReduce(gpu.shared, gpu.shared, 1, ncclFloat64, operation, gpu.comm, gpu.stream));
  CHECK(ncclGroupEnd());
  synchronize(gpus);
  CHECK(cudaSetDevice(gpus.front().device));
  CHECK(cudaMemcpy(&value, gpus.front().shared, sizeof value, cudaMemcpyDeviceToHost));
  return value;
}

// The content of tensor number `index`: other bytes for every tensor, with no short period (splitmix64).
std::vector<uint64_t> pattern(size_t index, size_t bytes) {
  std::vector<uint64_t> words((bytes + 7) / 8);
  uint64_t state = (index + 1) * 0xD1342543DE82EF95ull;
  for (uint64_t& word : words) {
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    word = z ^ (z >> 31);
  }
  return words;
}

// Allocates every tensor on every GPU by itself: the pattern on the root, zeros elsewhere.
Buffers allocate(const std::vector<Gpu>& gpus, const std::vector<Tensor>& tensors, int root) {
  Buffers buffers(gpus.size(), std::vector<void*>(tensors.size()));
  for (size_t g = 0; g < gpus.size(); ++g) {
    CHECK(cudaSetDevice(gpus[g].device));
    for (size_t t = 0; t < tensors.size(); ++t) {
      CHECK(cudaMalloc(&buffers[g][t], tensors[t].bytes));
      if (gpus[g].rank == root) {
        const auto words = pattern(t, tensors[t].bytes);
        CHECK(cudaMemcpy(buffers[g][t], words.data(), tensors[t].bytes, cudaMemcpyHostToDevice));
      } else {
        CHECK(cudaMemset(buffers[g][t], 0, tensors[t].bytes));
      }
    }
    CHECK(cudaDeviceSynchronize());
  }
  return buffers;
}

void release(const std::vector<Gpu>& gpus, const Buffers& buffers) {
  for (size_t g = 0; g < gpus.size(); ++g) {
    CHECK(cudaSetDevice(gpus[g].device));
    for (void* buffer : buffers[g]) CHECK(cudaFree(buffer));
  }
}

// Number of bytes on this process's GPUs that differ from the root's.
double wrong_bytes(const std::vector<Gpu>& gpus, const std::vector<Tensor>& tensors, const Buffers& buffers) {
  double wrong = 0;
  std::vector<uint8_t> found;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const auto words = pattern(t, tensors[t].bytes);
    const auto* expected = reinterpret_cast<const uint8_t*>(words.data());
    found.resize(tensors[t].bytes);
    for (size_t g = 0; g < gpus.size(); ++g) {
      CHECK(cudaSetDevice(gpus[g].device));
      CHECK(cudaMemcpy(found.data(), buffers[g][t], found.size(), cudaMemcpyDeviceToHost));
      if (std::memcmp(found.data(), expected, found.size()) == 0) continue;
      for (size_t i = 0; i < found.size(); ++i) wrong += found[i] != expected[i];
    }
  }
  return wrong;
}

// The calls of a process's GPUs for the same tensor are always a group, because one thread makes them.
void broadcast(const std::vector<Gpu>& gpus, const std::vector<Tensor>& tensors, const Buffers& buffers, int root,
               bool in_one_group) {
  if (in_one_group) CHECK(ncclGroupStart());
  for (size_t t = 0; t < tensors.size(); ++t) {
    CHECK(ncclGroupStart());
    for (size_t g = 0; g < gpus.size(); ++g) {
      void* buffer = buffers[g][t];
      CHECK(ncclBroadcast(buffer, buffer, tensors[t].count, tensors[t].type, root, gpus[g].comm, gpus[g].stream));
    }
    CHECK(ncclGroupEnd());
  }
  if (in_one_group) CHECK(ncclGroupEnd());
}

// Milliseconds from before the first call until the slowest rank is done.
double broadcast_ms(const std::vector<Gpu>& gpus, const std::vector<Tensor>& tensors, const Buffers& buffers, int root,
                    bool in_one_group) {
  agreed(gpus, 0, ncclMax);
  for (const Gpu& gpu : gpus) {
    CHECK(cudaSetDevice(gpu.device));
    CHECK(cudaEventRecord(gpu.start, gpu.stream));
  }
  broadcast(gpus, tensors, buffers, root, in_one_group);
  for (const Gpu& gpu : gpus) {
    CHECK(cudaSetDevice(gpu.device));
    CHECK(cudaEventRecord(gpu.stop, gpu.stream));
  }
  synchronize(gpus);
  float slowest = 0;
  for (const Gpu& gpu : gpus) {
    float ms = 0;
    CHECK(cudaEventElapsedTime(&ms, gpu.start, gpu.stop));
    slowest = std::max(slowest, ms);
  }
  return agreed(gpus, slowest, ncclMax);
}

Measured measure(const std::vector<Gpu>& gpus, const std::vector<Tensor>& tensors, const Options& options,
                 bool in_one_group) {
  const Buffers buffers = allocate(gpus, tensors, options.root);
  std::vector<double> times;
  for (int i = -options.warmup; i < options.iterations; ++i) {
    const double ms = broadcast_ms(gpus, tensors, buffers, options.root, in_one_group);
    if (i >= 0) times.push_back(ms);
  }
  const double wrong = agreed(gpus, wrong_bytes(gpus, tensors, buffers), ncclSum);
  release(gpus, buffers);
  std::sort(times.begin(), times.end());
  const size_t half = times.size() / 2;
  const double median = times.size() % 2 ? times[half] : (times[half - 1] + times[half]) / 2;
  return {median, times.front(), times.back(), wrong};
}

std::string as_json(const Measured& measured, size_t bytes) {
  const double gb_per_s = bytes / (measured.median_ms * 1e6);
  char text[300];
  std::snprintf(text, sizeof text,
                "{\"ms\": %.6g, \"fastest_ms\": %.6g, \"slowest_ms\": %.6g, \"algbw_gb_per_s\": %.6g, "
                "\"busbw_gb_per_s\": %.6g, \"wrong_bytes\": %.0f}",
                measured.median_ms, measured.fastest_ms, measured.slowest_ms, gb_per_s, gb_per_s,
                measured.wrong_bytes);
  return text;
}

int run(const Options& options) {
  const std::vector<Tensor> tensors = read_list(options.list);
  const size_t bytes = total_bytes(tensors);
  const std::vector<Gpu> gpus = connect(options);
  const Measured grouped = measure(gpus, tensors, options, true);
  const Measured one_by_one = measure(gpus, tensors, options, false);
  const Measured flat = measure(gpus, {{"flat", ncclUint8, bytes, bytes}}, options, true);
  int version = 0;
  CHECK(ncclGetVersion(&version));
  if (options.process == 0)
    std::cout << "{\"num_tensors\": " << tensors.size() << ", \"bytes\": " << bytes
              << ", \"num_ranks\": " << options.gpus * options.processes << ", \"processes\": " << options.processes
              << ", \"iterations\": " << options.iterations << ", \"nccl_version\": " << version
              << ", \"grouped\": " << as_json(grouped, bytes) << ", \"one_by_one\": " << as_json(one_by_one, bytes)
              << ", \"flat\": " << as_json(flat, bytes) << "}" << std::endl;
  for (const Gpu& gpu : gpus) CHECK(ncclCommDestroy(gpu.comm));
  return grouped.wrong_bytes + one_by_one.wrong_bytes + flat.wrong_bytes > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(parse(argc, argv));
  } catch (const UsageError& error) {
    std::cerr << "broadcast: " << error.what() << std::endl;
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "broadcast: " << error.what() << std::endl;
    return 1;
  }
}
