// What the kernels take: plain pointers, and a range of rows, tokens, responses or groups that one thread works on.
#pragma once

#include <cstdint>

enum class LogitType { kFloat, kDouble, kBFloat16 };

// A chunk of logits, a row per token. `T` is the type of everything but the logits: double for double logits.
template <typename T>
struct Rows {
  const void* logits;
  LogitType type;
  int64_t row_stride, vocabulary;
  const int64_t* target_ids;
  T inverse_temperature;
  const T* inverse_temperatures;  // a row each, or null
  T softcap;                      // 0: none
};

template <typename T>
struct RowStats {
  T *logprobs, *lse, *entropy;  // entropy may be null
};

template <typename T>
struct RowGradient {
  const T *logprobs, *lse, *entropy;
  const T *grad_logprobs, *grad_entropy;  // grad_entropy may be null
  void* out;                              // of the logits' type, may be the logits
  int64_t out_stride;
};

// Some columns of the logits, from `first` on, the rows of a column side by side. What they have is added to the sums, of
// which `weighted` may be null.
template <typename T>
struct Exponentials {
  T* logits;  // become the exponentials
  int64_t column_stride, columns, first;
  const int64_t* target_ids;
  T inverse_temperature;
  const T* inverse_temperatures;  // a row each, or null
  const T* offsets;
  double *total, *weighted, *target;
};

// The constants of objective.py's Objective, in its order.
struct Objective {
  double clip_low, clip_high, dual_clip;
  int surrogate, ratio;
  double sapo_positive, sapo_negative;
  int kl;
  double kl_coef, kl_cap, entropy_coef;
  int correction;
  double correction_low, correction_high;
};
enum SurrogateKind { kClipped, kCispo, kSapo, kDppoTv, kDppoKl };
enum Ratio { kToken, kSequence, kGeometricMean };
enum Kl { kK1, kK2, kK3 };
enum Correction { kNone, kTruncate, kIcepop, kSequenceMask };

constexpr int kNumSums = 11;  // the loss, then objective.py's METRICS

template <typename T>
struct Tokens {
  const T *logprobs, *old_logprobs, *advantages, *ref_logprobs, *rollout_logprobs, *token_weights, *entropy;
  const bool* mask;
  T inverse_count;
  T *grad_logprobs, *grad_entropy, *ratio;
};

struct Groups {
  const int64_t* cu_groups;  // null: all of group_size
  int64_t group_size;
  bool leave_one_out, scale;
  double eps;
};

// One new token of each slot; all tensors contiguous, float or bfloat16.
struct DecodeAttention {
  const void *query, *key, *value;  // [B, H, E], [B, K, E], [B, K, F]
  void *keys, *values;              // [B, K, capacity, E or F], which get the token's at its place
  const int64_t* lengths;           // [B] tokens before it
  int64_t heads, kv_heads, capacity, width, value_width, window;  // window 0: none
  float scale;
  void* out;  // [B, H, F]
};

// One set for each instruction set; library.cpp takes the best that the processor has.
template <typename T>
struct Kernels {
  void (*row_stats)(const Rows<T>&, const RowStats<T>&, int64_t begin, int64_t end);
  void (*row_gradient)(const Rows<T>&, const RowGradient<T>&, int64_t begin, int64_t end);
  void (*exponentials)(const Exponentials<T>&, int64_t begin, int64_t end);
  void (*tokens)(const Tokens<T>&, const Objective&, int64_t begin, int64_t end, double* sums);
  void (*response)(const Tokens<T>&, const Objective&, int64_t begin, int64_t end, double* sums);
  void (*groups)(const Groups&, const T* rewards, T* advantages, int64_t begin, int64_t end);
};

struct DecodeKernels {
  void (*of_float)(const DecodeAttention&, int64_t begin, int64_t end);
  void (*of_bfloat16)(const DecodeAttention&, int64_t begin, int64_t end);
};

namespace baseline {
template <typename T>
Kernels<T> kernels();
DecodeKernels decode_kernels();
}
namespace avx2 {
template <typename T>
Kernels<T> kernels();
DecodeKernels decode_kernels();
}
namespace avx512 {
template <typename T>
Kernels<T> kernels();
DecodeKernels decode_kernels();
}
