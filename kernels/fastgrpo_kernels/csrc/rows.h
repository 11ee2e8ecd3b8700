// The row pass over logits: log-sum-exp, the target's logprob and the entropy in one read; then the gradient.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace FASTGRPO_ARCH {

// A row is worked on in blocks that stay in the first-level cache, as T whatever the logits are.
constexpr int kBlock = 1024;

template <typename T>
inline void load_block(const Rows<T>& rows, int64_t row, int64_t start, int count, T* block) {
  const int64_t offset = row * rows.row_stride + start;
  if (rows.type == LogitType::kBFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(rows.logits) + offset;
    for (int i = 0; i < count; ++i) block[i] = T(as_float(from[i]));
  } else {
    std::memcpy(block, static_cast<const T*>(rows.logits) + offset, count * sizeof(T));
  }
}

template <typename T>
inline void store_block(LogitType type, void* out, int64_t offset, int count, const T* block) {
  if (type == LogitType::kBFloat16) {
    uint16_t* to = static_cast<uint16_t*>(out) + offset;
    for (int i = 0; i < count; ++i) store_as(to + i, float(block[i]));
  } else {
    std::memcpy(static_cast<T*>(out) + offset, block, count * sizeof(T));
  }
}

template <typename T>
inline T scale_of(const Rows<T>& rows, int64_t row) {
  return rows.inverse_temperatures ? rows.inverse_temperatures[row] : rows.inverse_temperature;
}

// The block as the softmax sees it. `slope`, if not null, is the derivative to the bare logit.
template <typename T>
inline void transform(T* block, int count, T scale, T softcap, T* slope) {
  if (softcap == 0) {
    if (scale != T(1))
      for (int i = 0; i < count; ++i) block[i] *= scale;
    return;
  }
  for (int i = 0; i < count; ++i) {
    const T bent = std::tanh(block[i] / softcap);
    block[i] = softcap * bent * scale;
    if (slope) slope[i] = (1 - bent * bent) * scale;
  }
}

template <typename T>
inline void pad(T* block, int count) {
  for (int i = count; i % Lanes<T>::count != 0; ++i) block[i] = -INFINITY;
}

template <typename T, bool kEntropy>
inline void stats_of_row(const Rows<T>& rows, const RowStats<T>& stats, int64_t row) {
  constexpr int lanes = Lanes<T>::count;
  alignas(64) T block[kBlock];
  const T scale = scale_of(rows, row);
  const int64_t target = rows.target_ids[row];
  T maximum = -INFINITY, target_logit = 0;
  // Of exp(x - maximum), and of (x - maximum) * exp(x - maximum); in double, since a row has many blocks.
  double sum = 0, weighted = 0;
  for (int64_t start = 0; start < rows.vocabulary; start += kBlock) {
    const int count = int(rows.vocabulary - start < kBlock ? rows.vocabulary - start : kBlock);
    load_block(rows, row, start, count, block);
    transform<T>(block, count, scale, rows.softcap, nullptr);
    pad(block, count);
    if (target >= start && target < start + count) target_logit = block[target - start];
    Vector<T> top = load(block);
    for (int i = lanes; i < count; i += lanes) top = max_of(load(block + i), top);
    T highest = top[0];
    for (int i = 1; i < lanes; ++i) highest = highest > top[i] ? highest : top[i];
    if (highest > maximum) {
      const double difference = double(maximum) - double(highest), shrink = std::exp(difference);
      // With x - maximum growing by `difference`: sum(x e) = shrink * (sum(x e) + difference * sum(e)).
      if (kEntropy && maximum != -INFINITY) weighted = (weighted + sum * difference) * shrink;
      sum *= shrink;
      maximum = highest;
    }
    const T base = maximum == -INFINITY ? T(0) : maximum;
    Vector<T> block_sum{}, block_weighted{};
    for (int i = 0; i < count; i += lanes) {
      const Vector<T> x = load(block + i) - base;
      const Vector<T> e = exp_of(x);
      block_sum += e;
      if (kEntropy) block_weighted += e == T(0) ? Vector<T>{} : x * e;  // not -inf * 0
    }
    sum += double(sum_of<T>(block_sum));
    if (kEntropy) weighted += double(sum_of<T>(block_weighted));
  }
  const double log_sum = std::log(sum);
  stats.lse[row] = T(double(maximum) + log_sum);
  stats.logprobs[row] = T(double(target_logit) - double(maximum) - log_sum);
  if (kEntropy) stats.entropy[row] = T(log_sum - weighted / sum);
}

template <typename T>
void row_stats(const Rows<T>& rows, const RowStats<T>& stats, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    if (stats.entropy)
      stats_of_row<T, true>(rows, stats, row);
    else
      stats_of_row<T, false>(rows, stats, row);
}

// d logprob / d logit_j = [j = target] - p_j;  d entropy / d logit_j = -p_j (log p_j + entropy); then the transform's.
template <typename T>
inline void gradient_of_row(const Rows<T>& rows, const RowGradient<T>& gradient, int64_t row) {
  constexpr int lanes = Lanes<T>::count;
  alignas(64) T block[kBlock], slope[kBlock];
  const T scale = scale_of(rows, row), lse = gradient.lse[row], g = gradient.grad_logprobs[row];
  const T h = gradient.grad_entropy ? gradient.grad_entropy[row] : T(0);
  const T entropy = h != 0 ? gradient.entropy[row] : T(0);
  const int64_t target = rows.target_ids[row];
  for (int64_t start = 0; start < rows.vocabulary; start += kBlock) {
    const int count = int(rows.vocabulary - start < kBlock ? rows.vocabulary - start : kBlock);
    if (g == 0 && h == 0) {
      for (int i = 0; i < count; ++i) block[i] = 0;
    } else {
      load_block(rows, row, start, count, block);
      transform<T>(block, count, scale, rows.softcap, slope);
      pad(block, count);
      for (int i = 0; i < count; i += lanes) {
        const Vector<T> log_p = load(block + i) - lse;
        const Vector<T> p = exp_of(log_p);
        Vector<T> d = p * -g;
        if (h != 0) d -= p == T(0) ? Vector<T>{} : p * (log_p + entropy) * h;
        std::memcpy(block + i, &d, sizeof d);
      }
      if (target >= start && target < start + count) {
        const T logprob = gradient.logprobs[row];
        const T entropy_part = h != 0 ? -h * std::exp(logprob) * (logprob + entropy) : T(0);
        block[target - start] = -g * std::expm1(logprob) + entropy_part;  // 1 - p without cancellation
      }
      if (rows.softcap != 0)
        for (int i = 0; i < count; ++i) block[i] *= slope[i];
      else if (scale != T(1))
        for (int i = 0; i < count; ++i) block[i] *= scale;
    }
    store_block(rows.type, gradient.out, row * gradient.out_stride + start, count, block);
  }
}

template <typename T>
void row_gradient(const Rows<T>& rows, const RowGradient<T>& gradient, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) gradient_of_row(rows, gradient, row);
}

}  // namespace FASTGRPO_ARCH
