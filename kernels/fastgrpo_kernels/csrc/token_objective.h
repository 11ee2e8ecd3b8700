// The token objective: objective.py's formula and its derivative to the logprob, for a vector of tokens at a time.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace FASTGRPO_ARCH {

template <typename T>
struct TokenResult {
  Vector<T> loss, through_ratio, direct, ratio;  // `through_ratio` is the derivative to the log-ratio
};

// Sums of at most 64 vectors in their own type, then in double: a micro-batch has too many tokens for float.
template <typename T>
class Sums {
 public:
  explicit Sums(double* to) : to_(to) {}
  ~Sums() { flush(); }

  void add(const Vector<T> (&parts)[kNumSums]) {
    for (int k = 0; k < kNumSums; ++k) held_[k] += parts[k];
    if (++count_ == 64) flush();
  }

 private:
  void flush() {
    for (int k = 0; k < kNumSums; ++k) {
      to_[k] += double(sum_of<T>(held_[k]));
      held_[k] = Vector<T>{};
    }
    count_ = 0;
  }

  double* to_;
  Vector<T> held_[kNumSums]{};
  int count_ = 0;
};

template <typename T>
inline Vector<T> bounded(Vector<T> log_ratio) {
  const Vector<T> held = max_of(min_of(log_ratio, broadcast(T(20))), broadcast(T(-20)));
  return log_ratio == log_ratio ? held : log_ratio;  // NaN stays: a broken model must not look like a fine one
}

template <typename T>
inline Vector<T> bounded_exp(Vector<T> log_ratio) {
  return exp_of(bounded<T>(log_ratio));
}

template <typename T>
class TokenBlock {
 public:
  typedef Vector<T> V;
  static constexpr int lanes = Lanes<T>::count;

  TokenBlock(const Tokens<T>& tokens, const Objective& objective, int64_t start, int count)
      : tokens_(tokens), objective_(objective), count_(count) {
    typename Lanes<T>::Bytes bytes{};
    if (tokens.mask && count == lanes)
      std::memcpy(&bytes, tokens.mask + start, lanes);
    else if (tokens.mask)
      std::memcpy(&bytes, tokens.mask + start, count);
    else
      std::memset(&bytes, 1, count);
    inside_ = __builtin_convertvector(bytes, V);
    // What lies outside the mask may be anything, NaN included: it is replaced before any arithmetic.
    logprobs = field(tokens.logprobs, start);
    old_logprobs = tokens.old_logprobs ? field(tokens.old_logprobs, start) : logprobs;
    advantages = field(tokens.advantages, start);
    ref_logprobs = tokens.ref_logprobs ? field(tokens.ref_logprobs, start) : logprobs;
    rollout_logprobs = tokens.rollout_logprobs ? field(tokens.rollout_logprobs, start) : old_logprobs;
    entropy = tokens.entropy ? field(tokens.entropy, start) : V{};
    V weight = tokens.token_weights ? field(tokens.token_weights, start) : inside_;
    weight_ = weight * tokens.inverse_count;
  }

  V log_ratio() const { return logprobs - old_logprobs; }
  V rollout_log_ratio() const { return old_logprobs - rollout_logprobs; }
  double num_inside() const { return double(sum_of<T>(inside_)); }

  TokenResult<T> evaluate(V log_ratio, V rollout_log_ratio, Sums<T>& sums) const {
    const V zero{}, one = broadcast(T(1));
    const T high = T(1 + objective_.clip_high), low = T(1 - objective_.clip_low), dual = T(objective_.dual_clip);
    const V ratio = bounded_exp<T>(log_ratio);
    const V held = max_of(min_of(ratio, broadcast(high)), broadcast(low));
    const V clipped = ratio == ratio ? held : ratio;  // NaN stays
    V above = (advantages > zero) & (ratio > high) ? one : zero;
    V below = (advantages < zero) & (ratio < low) ? one : zero;
    V far = dual != 0 ? ((advantages < zero) & (ratio > dual) ? one : zero) : zero;
    V surrogate, slope, direct = zero;
    if (objective_.cispo) {
      above = (advantages != zero) & (ratio > high) ? one : zero;
      below = (advantages != zero) & (ratio < low) ? one : zero;
      far = slope = zero;
      direct = clipped * advantages;
      surrogate = direct * logprobs;
    } else {
      surrogate = min_of(ratio * advantages, clipped * advantages);
      if (dual != 0) surrogate = advantages < zero ? max_of(surrogate, advantages * dual) : surrogate;
      const V magnitude = log_ratio < zero ? -log_ratio : log_ratio;
      slope = (above + below + far != zero) | (magnitude > T(20)) ? zero : ratio * advantages;
    }
    V corrected = zero;
    const V correction = correct(rollout_log_ratio, corrected);
    V kl, kl_slope = zero;
    kl = tokens_.ref_logprobs ? divergence(kl_slope) : zero;
    const T kl_coef = T(objective_.kl_coef), entropy_coef = T(objective_.entropy_coef);
    const V loss = weight_ * (kl * kl_coef - correction * surrogate - entropy * entropy_coef);
    const V parts[kNumSums] = {loss,  inside_, below * inside_, above * inside_,
                               far * inside_, ratio * inside_, old_logprobs - logprobs, kl,
                               entropy, correction * inside_, corrected * inside_};
    sums.add(parts);
    return {loss, -correction * slope * weight_, (kl_slope * kl_coef - correction * direct) * weight_, ratio * inside_};
  }

  V entropy_gradient() const { return weight_ * T(-objective_.entropy_coef); }

 private:
  V field(const T* from, int64_t start) const {
    const V values = load_some(from + start, count_, T(0));
    return inside_ != V{} ? values : V{};
  }

  V correct(V log_ratio, V& corrected) const {
    const V zero{}, one = broadcast(T(1));
    if (objective_.correction == kNone) return one;
    const V ratio = bounded_exp<T>(log_ratio);
    const T low = T(objective_.correction_low), high = T(objective_.correction_high);
    if (objective_.correction == kTruncate) {
      corrected = ratio > high ? one : zero;
      return ratio > high ? broadcast(high) : ratio;
    }
    const auto outside = (ratio < low) | (ratio > high);
    corrected = outside ? one : zero;
    const V kept = objective_.correction == kIcepop ? ratio : one;
    return outside ? zero : (ratio == ratio ? kept : ratio);  // NaN stays
  }

  // From the reference: k1, k2 or k3, and its derivative to the logprob.
  V divergence(V& slope) const {
    const V zero{}, one = broadcast(T(1));
    const V raw = logprobs - ref_logprobs;
    const V log_ratio = bounded<T>(raw);
    V kl;
    if (objective_.kl == kK1) {
      kl = log_ratio, slope = one;
    } else if (objective_.kl == kK2) {
      kl = log_ratio * log_ratio * T(0.5), slope = log_ratio;
    } else {
      const V grown = expm1_of(-log_ratio);
      kl = grown + log_ratio, slope = -grown;
    }
    auto flat = (raw != log_ratio);
    if (objective_.kl_cap != 0) {
      const V cap = broadcast(T(objective_.kl_cap));
      flat = flat | (kl > cap) | (kl < -cap);
      kl = max_of(min_of(kl, cap), -cap);
    }
    slope = flat ? zero : slope;
    return kl;
  }

  const Tokens<T>& tokens_;
  const Objective& objective_;
  const int count_;
  V inside_, weight_;

 public:
  V logprobs, old_logprobs, advantages, ref_logprobs, rollout_logprobs, entropy;
};

template <typename T>
inline int count_at(int64_t start, int64_t end) {
  return int(end - start < Lanes<T>::count ? end - start : Lanes<T>::count);
}

template <typename T>
void tokens(const Tokens<T>& tokens, const Objective& objective, int64_t begin, int64_t end, double* to) {
  Sums<T> sums(to);
  for (int64_t start = begin; start < end; start += Lanes<T>::count) {
    const int count = count_at<T>(start, end);
    const TokenBlock<T> block(tokens, objective, start, count);
    const TokenResult<T> result = block.evaluate(block.log_ratio(), block.rollout_log_ratio(), sums);
    store_some<T>(tokens.grad_logprobs + start, result.through_ratio + result.direct, count);
    store_some<T>(tokens.ratio + start, result.ratio, count);
    if (tokens.grad_entropy) store_some<T>(tokens.grad_entropy + start, block.entropy_gradient(), count);
  }
}

// One response whose tokens share their ratio, their correction, or both.
template <typename T>
void response(const Tokens<T>& tokens, const Objective& objective, int64_t begin, int64_t end, double* to) {
  Sums<T> sums(to);
  double log_ratio = 0, rollout_log_ratio = 0, length = 0, through_ratio = 0;
  for (int64_t start = begin; start < end; start += Lanes<T>::count) {
    const int count = count_at<T>(start, end);
    const TokenBlock<T> block(tokens, objective, start, count);
    log_ratio += double(sum_of<T>(block.log_ratio()));  // 0 outside the mask
    rollout_log_ratio += double(sum_of<T>(block.rollout_log_ratio()));
    length += block.num_inside();
  }
  length = length < 1 ? 1 : length;
  const Vector<T> shared = broadcast(T(log_ratio / length)), shared_rollout = broadcast(T(rollout_log_ratio / length));
  for (int64_t start = begin; start < end; start += Lanes<T>::count) {
    const int count = count_at<T>(start, end);
    const TokenBlock<T> block(tokens, objective, start, count);
    const TokenResult<T> result =
        block.evaluate(objective.sequence_ratio ? shared : block.log_ratio(),
                       objective.correction == kSequenceMask ? shared_rollout : block.rollout_log_ratio(), sums);
    if (objective.sequence_ratio) through_ratio += double(sum_of<T>(result.through_ratio));
    store_some<T>(tokens.grad_logprobs + start, objective.sequence_ratio ? result.direct : result.through_ratio + result.direct,
                  count);
    store_some<T>(tokens.ratio + start, result.ratio, count);
    if (tokens.grad_entropy) store_some<T>(tokens.grad_entropy + start, block.entropy_gradient(), count);
  }
  if (!objective.sequence_ratio) return;
  for (int64_t t = begin; t < end; ++t)
    if (!tokens.mask || tokens.mask[t]) tokens.grad_logprobs[t] += T(through_ratio / length);
}

}  // namespace FASTGRPO_ARCH
