// The ops of the namespace that the build names, against torch's stable ABI: one build serves every torch from 2.10 on.
//
// They write into tensors that native.py made, and check what a wrong call could make them read or write.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "kernels.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

namespace {

enum class Arch { kBaseline, kAvx2, kAvx512 };

Arch best_arch() {
#if defined(FASTGRPO_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    return Arch::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Arch::kAvx2;
#endif
  return Arch::kBaseline;
}

template <typename T>
const Kernels<T>& best() {
#if defined(FASTGRPO_X86)
  static const Kernels<T> kernels = best_arch() == Arch::kAvx512 ? avx512::kernels<T>()
                                    : best_arch() == Arch::kAvx2 ? avx2::kernels<T>()
                                                                 : baseline::kernels<T>();
#else
  static const Kernels<T> kernels = baseline::kernels<T>();
#endif
  return kernels;
}

const DecodeKernels& best_decode() {
#if defined(FASTGRPO_X86)
  static const DecodeKernels kernels = best_arch() == Arch::kAvx512 ? avx512::decode_kernels()
                                       : best_arch() == Arch::kAvx2 ? avx2::decode_kernels()
                                                                    : baseline::decode_kernels();
#else
  static const DecodeKernels kernels = baseline::decode_kernels();
#endif
  return kernels;
}

template <typename T>
constexpr ScalarType dtype_of = sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;

template <typename T>
T* pointer(const Tensor& tensor, int64_t length, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == dtype, name, " has another device or dtype");
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == length, name, " must be contiguous, of ", length,
                  " elements, has ", tensor.numel());
  return static_cast<T*>(tensor.data_ptr());
}

template <typename T>
T* floats(const Tensor& tensor, int64_t length, const char* name) {
  return pointer<T>(tensor, length, dtype_of<T>, name);
}

template <typename T>
T* floats(const Optional& tensor, int64_t length, const char* name) {
  return tensor ? floats<T>(*tensor, length, name) : nullptr;
}

LogitType logit_type(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float:
      return LogitType::kFloat;
    case ScalarType::Double:
      return LogitType::kDouble;
    case ScalarType::BFloat16:
      return LogitType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "logits must be float32, float64 or bfloat16");
  }
}

template <typename T>
Rows<T> rows_of(const Tensor& logits, const Tensor& target_ids, double inverse_temperature, const Optional& inverse_temperatures,
                double softcap) {
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2 && (logits.size(1) < 2 || logits.stride(1) == 1),
                  "logits must be a matrix whose rows are contiguous");
  const int64_t count = logits.size(0), vocabulary = logits.size(1);
  const int64_t* targets = pointer<int64_t>(target_ids, count, ScalarType::Long, "target_ids");
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(targets[i] >= 0 && targets[i] < vocabulary, "target id ", targets[i], " of row ", i,
                    " is outside the vocabulary of ", vocabulary);
  return {logits.data_ptr(), logit_type(logits),         logits.stride(0), vocabulary, targets,
          T(inverse_temperature), floats<T>(inverse_temperatures, count, "inverse temperatures"), T(softcap)};
}

template <typename T>
void typed_row_stats(const Tensor& logits, const Tensor& target_ids, double inverse_temperature, const Optional& inverse_temperatures,
                     double softcap, const Tensor& logprobs, const Tensor& lse, const Optional& entropy) {
  const Rows<T> rows = rows_of<T>(logits, target_ids, inverse_temperature, inverse_temperatures, softcap);
  const int64_t count = logits.size(0);
  const RowStats<T> stats{floats<T>(logprobs, count, "logprobs"), floats<T>(lse, count, "lse"),
                          floats<T>(entropy, count, "entropy")};
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { best<T>().row_stats(rows, stats, begin, end); });
}

// logprobs [R], lse [R] and, where asked for, entropy [R] of logits [R, V].
void row_stats(Tensor logits, Tensor target_ids, double inverse_temperature, Optional inverse_temperatures, double softcap,
               Tensor logprobs, Tensor lse, Optional entropy) {
  const auto typed = logits.scalar_type() == ScalarType::Double ? typed_row_stats<double> : typed_row_stats<float>;
  typed(logits, target_ids, inverse_temperature, inverse_temperatures, softcap, logprobs, lse, entropy);
}

template <typename T>
void typed_row_gradient(const Tensor& logits, const Tensor& target_ids, double inverse_temperature,
                        const Optional& inverse_temperatures, double softcap, const Tensor& logprobs, const Tensor& lse,
                        const Optional& entropy, const Tensor& grad_logprobs, const Optional& grad_entropy,
                        const Tensor& out) {
  const Rows<T> rows = rows_of<T>(logits, target_ids, inverse_temperature, inverse_temperatures, softcap);
  const int64_t count = logits.size(0);
  STD_TORCH_CHECK(out.is_cpu() && out.dim() == 2 && out.size(0) == count && out.size(1) == rows.vocabulary &&
                      out.scalar_type() == logits.scalar_type() && (out.size(1) < 2 || out.stride(1) == 1),
                  "out must have the logits' shape and dtype");
  STD_TORCH_CHECK(!grad_entropy || entropy, "a gradient of the entropy needs the entropy");
  const RowGradient<T> gradient{floats<T>(logprobs, count, "logprobs"), floats<T>(lse, count, "lse"),
                                floats<T>(entropy, count, "entropy"),
                                floats<T>(grad_logprobs, count, "grad_logprobs"),
                                floats<T>(grad_entropy, count, "grad_entropy"), out.data_ptr(), out.stride(0)};
  torch::stable::parallel_for(0, count, 1,
                              [&](int64_t begin, int64_t end) { best<T>().row_gradient(rows, gradient, begin, end); });
}

// The gradient of logits [R, V] from those of logprobs and entropy, into `out`, which may be the logits.
void row_gradient(Tensor logits, Tensor target_ids, double inverse_temperature, Optional inverse_temperatures, double softcap,
                  Tensor logprobs, Tensor lse, Optional entropy, Tensor grad_logprobs, Optional grad_entropy,
                  Tensor out) {
  const auto typed = logits.scalar_type() == ScalarType::Double ? typed_row_gradient<double> : typed_row_gradient<float>;
  typed(logits, target_ids, inverse_temperature, inverse_temperatures, softcap, logprobs, lse, entropy, grad_logprobs, grad_entropy, out);
}

template <typename T>
void typed_exponentials(const Tensor& logits, int64_t first, const Tensor& target_ids, double inverse_temperature,
                        const Optional& inverse_temperatures, const Tensor& offsets, const Tensor& total,
                        const Optional& weighted, const Tensor& target) {
  const int64_t count = logits.size(0);
  const Exponentials<T> of{static_cast<T*>(logits.data_ptr()), logits.stride(1), logits.size(1), first,
                           pointer<int64_t>(target_ids, count, ScalarType::Long, "target_ids"), T(inverse_temperature),
                           floats<T>(inverse_temperatures, count, "inverse temperatures"),
                           floats<T>(offsets, count, "offsets"), floats<double>(total, count, "total"),
                           floats<double>(weighted, count, "weighted"), floats<double>(target, count, "target")};
  constexpr int64_t group = 64;  // rows: whole lines of the cache
  torch::stable::parallel_for(0, (count + group - 1) / group, 1, [&](int64_t begin, int64_t end) {
    best<T>().exponentials(of, begin * group, end * group < count ? end * group : count);
  });
}

// Some columns of the logits [R, V], from `first` on, become exp(logit - offset); adds to total, weighted and target [R].
void exponentials(Tensor logits, int64_t first, Tensor target_ids, double inverse_temperature, Optional inverse_temperatures,
                  Tensor offsets, Tensor total, Optional weighted, Tensor target) {
  const bool wide = logits.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2 && (logits.size(0) < 2 || logits.stride(0) == 1) &&
                      (wide || logits.scalar_type() == ScalarType::Float),
                  "logits must be a float32 or float64 matrix whose columns are contiguous");
  const auto typed = wide ? typed_exponentials<double> : typed_exponentials<float>;
  typed(logits, first, target_ids, inverse_temperature, inverse_temperatures, offsets, total, weighted, target);
}

Objective decode(const Tensor& numbers) {
  constexpr int64_t num_constants = 14;
  STD_TORCH_CHECK(numbers.numel() == num_constants, "this library was built for an objective of ", num_constants,
                  " constants, got ", numbers.numel(), ": rebuild it, `python -m fastgrpo_kernels.build`");
  const double* x = pointer<double>(numbers, num_constants, ScalarType::Double, "objective");
  return {x[0], x[1], x[2], int(x[3]), int(x[4]), x[5], x[6], int(x[7]), x[8], x[9], x[10], int(x[11]), x[12], x[13]};
}

// Sums are added up by parts of a fixed size in a fixed order: the same on any number of threads.
template <typename Work>
void sum_parts(int64_t num_parts, double* sums, const Work& work) {
  std::vector<double> parts(num_parts * kNumSums, 0.0);
  torch::stable::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) work(part, &parts[part * kNumSums]);
  });
  for (int k = 0; k < kNumSums; ++k) sums[k] = 0;
  for (int64_t part = 0; part < num_parts; ++part)
    for (int k = 0; k < kNumSums; ++k) sums[k] += parts[part * kNumSums + k];
}

template <typename T>
void typed_token_objective(const Tensor& logprobs, const Optional& old_logprobs, const Tensor& advantages,
                           const Optional& mask, const Optional& ref_logprobs, const Optional& rollout_logprobs,
                           const Optional& token_weights, const Optional& entropy, const Optional& cu_seqlens,
                           double num_loss_tokens, const Objective& objective, const Tensor& grad_logprobs,
                           const Optional& grad_entropy, const Tensor& ratio, double* sums) {
  const int64_t count = logprobs.numel();
  const bool* inside = mask ? pointer<bool>(*mask, count, ScalarType::Bool, "response_mask") : nullptr;
  const Tokens<T> tokens{floats<T>(logprobs, count, "logprobs"),
                         floats<T>(old_logprobs, count, "old_logprobs"),
                         floats<T>(advantages, count, "advantages"),
                         floats<T>(ref_logprobs, count, "ref_logprobs"),
                         floats<T>(rollout_logprobs, count, "rollout_logprobs"),
                         floats<T>(token_weights, count, "token_weights"),
                         floats<T>(entropy, count, "entropy"),
                         inside,
                         T(1 / num_loss_tokens),
                         floats<T>(grad_logprobs, count, "grad_logprobs"),
                         floats<T>(grad_entropy, count, "grad_entropy"),
                         floats<T>(ratio, count, "ratio")};
  if (objective.ratio != kToken || objective.correction == kSequenceMask) {
    STD_TORCH_CHECK(cu_seqlens, "a sequence-level objective needs cu_seqlens");
    STD_TORCH_CHECK(cu_seqlens->numel() > 0, "cu_seqlens must run from 0 to the tokens");
    const int64_t num_responses = cu_seqlens->numel() - 1;
    const int64_t* starts = pointer<int64_t>(*cu_seqlens, num_responses + 1, ScalarType::Long, "cu_seqlens");
    STD_TORCH_CHECK(num_responses >= 0 && starts[0] == 0 && starts[num_responses] == count,
                    "cu_seqlens must run from 0 to the ", count, " tokens");
    for (int64_t i = 0; i < num_responses; ++i) STD_TORCH_CHECK(starts[i] <= starts[i + 1], "cu_seqlens must not fall");
    sum_parts(num_responses, sums, [&](int64_t i, double* part) {
      best<T>().response(tokens, objective, starts[i], starts[i + 1], part);
    });
    return;
  }
  constexpr int64_t part_tokens = 8192;
  sum_parts((count + part_tokens - 1) / part_tokens, sums, [&](int64_t i, double* part) {
    const int64_t begin = i * part_tokens;
    best<T>().tokens(tokens, objective, begin, begin + part_tokens < count ? begin + part_tokens : count, part);
  });
}

// The derivative of the objective to logprobs [T] and entropy [T], the ratio [T], and the sums of kNumSums.
void token_objective(Tensor logprobs, Optional old_logprobs, Tensor advantages, Optional mask, Optional ref_logprobs,
                     Optional rollout_logprobs, Optional token_weights, Optional entropy, Optional cu_seqlens,
                     double num_loss_tokens, Tensor objective, Tensor grad_logprobs, Optional grad_entropy,
                     Tensor ratio, Tensor sums) {
  const auto typed =
      logprobs.scalar_type() == ScalarType::Double ? typed_token_objective<double> : typed_token_objective<float>;
  typed(logprobs, old_logprobs, advantages, mask, ref_logprobs, rollout_logprobs, token_weights, entropy, cu_seqlens,
        num_loss_tokens, decode(objective), grad_logprobs, grad_entropy, ratio,
        pointer<double>(sums, kNumSums, ScalarType::Double, "sums"));
}

template <typename T>
void typed_group_advantages(const Tensor& rewards, const Groups& groups, int64_t num_groups, const Tensor& advantages) {
  const int64_t count = rewards.numel();
  const T* from = floats<T>(rewards, count, "rewards");
  T* to = floats<T>(advantages, count, "advantages");
  torch::stable::parallel_for(0, num_groups, 1024,
                              [&](int64_t begin, int64_t end) { best<T>().groups(groups, from, to, begin, end); });
}

// advantages [N] of rewards [N]; groups of group_size, or, where cu_groups [G + 1] is given, ragged ones.
void group_advantages(Tensor rewards, Optional cu_groups, int64_t group_size, bool leave_one_out, bool scale,
                      double eps, Tensor advantages) {
  const int64_t count = rewards.numel();
  Groups groups{nullptr, group_size, leave_one_out, scale, eps};
  STD_TORCH_CHECK(cu_groups ? cu_groups->numel() > 0 : group_size > 0, "groups need boundaries or a size above 0");
  int64_t num_groups = cu_groups ? cu_groups->numel() - 1 : count / group_size;
  if (cu_groups) {
    groups.cu_groups = pointer<int64_t>(*cu_groups, num_groups + 1, ScalarType::Long, "cu_groups");
    STD_TORCH_CHECK(groups.cu_groups[0] == 0 && groups.cu_groups[num_groups] == count,
                    "cu_groups must run from 0 to the ", count, " rewards");
    for (int64_t g = 0; g < num_groups; ++g)
      STD_TORCH_CHECK(groups.cu_groups[g] <= groups.cu_groups[g + 1], "cu_groups must not fall");
  }
  const auto typed =
      rewards.scalar_type() == ScalarType::Double ? typed_group_advantages<double> : typed_group_advantages<float>;
  typed(rewards, groups, num_groups, advantages);
}

// The attention [B, H, F] of one new token of each slot, whose key and value go into the cache at its length.
void decode_attention(Tensor query, Tensor key, Tensor value, Tensor keys, Tensor values, Tensor lengths, double scale,
                      int64_t window, Tensor out) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && value.dim() == 3 && keys.dim() == 4 && values.dim() == 4,
                  "query, key and value have 3 dimensions, keys and values 4");
  const ScalarType dtype = query.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16, "query must be float32 or bfloat16");
  const int64_t slots = query.size(0), heads = query.size(1), width = query.size(2);
  const int64_t kv_heads = keys.size(1), capacity = keys.size(2), value_width = values.size(3);
  STD_TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, "heads must be a multiple of the key/value heads");
  const int64_t items = slots * kv_heads;
  const DecodeAttention of{pointer<void>(query, slots * heads * width, dtype, "query"),
                           pointer<void>(key, items * width, dtype, "key"),
                           pointer<void>(value, items * value_width, dtype, "value"),
                           pointer<void>(keys, items * capacity * width, dtype, "keys"),
                           pointer<void>(values, items * capacity * value_width, dtype, "values"),
                           pointer<int64_t>(lengths, slots, ScalarType::Long, "lengths"),
                           heads, kv_heads, capacity, width, value_width, window, float(scale),
                           pointer<void>(out, slots * heads * value_width, dtype, "out")};
  for (int64_t i = 0; i < slots; ++i)
    STD_TORCH_CHECK(of.lengths[i] >= 0 && of.lengths[i] < capacity, "slot ", i, " of ", capacity, " tokens has ",
                    of.lengths[i], ": no room for one more");
  const auto run = dtype == ScalarType::Float ? best_decode().of_float : best_decode().of_bfloat16;
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { run(of, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FASTGRPO_NAMESPACE, m) {
  m.def(
      "row_stats(Tensor logits, Tensor target_ids, float inverse_temperature, Tensor? inverse_temperatures, float softcap, "
      "Tensor(a!) logprobs, Tensor(b!) lse, Tensor(c!)? entropy) -> ()");
  m.def(
      "row_gradient(Tensor logits, Tensor target_ids, float inverse_temperature, Tensor? inverse_temperatures, float softcap, "
      "Tensor logprobs, Tensor lse, Tensor? entropy, Tensor grad_logprobs, Tensor? grad_entropy, Tensor(a!) out) -> ()");
  m.def(
      "exponentials(Tensor(a!) logits, int first, Tensor target_ids, float inverse_temperature, Tensor? inverse_temperatures, "
      "Tensor offsets, Tensor(b!) total, Tensor(c!)? weighted, Tensor(d!) target) -> ()");
  m.def(
      "token_objective(Tensor logprobs, Tensor? old_logprobs, Tensor advantages, Tensor? mask, Tensor? ref_logprobs, "
      "Tensor? rollout_logprobs, Tensor? token_weights, Tensor? entropy, Tensor? cu_seqlens, float num_loss_tokens, "
      "Tensor objective, Tensor(a!) grad_logprobs, Tensor(b!)? grad_entropy, Tensor(c!) ratio, Tensor(d!) sums) -> ()");
  m.def(
      "group_advantages(Tensor rewards, Tensor? cu_groups, int group_size, bool leave_one_out, bool scale, float eps, "
      "Tensor(a!) advantages) -> ()");
  m.def(
      "decode_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values, Tensor lengths, "
      "float scale, int window, Tensor(c!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(FASTGRPO_NAMESPACE, CPU, m) {
  m.impl("row_stats", TORCH_BOX(&row_stats));
  m.impl("row_gradient", TORCH_BOX(&row_gradient));
  m.impl("exponentials", TORCH_BOX(&exponentials));
  m.impl("token_objective", TORCH_BOX(&token_objective));
  m.impl("group_advantages", TORCH_BOX(&group_advantages));
  m.impl("decode_attention", TORCH_BOX(&decode_attention));
}
