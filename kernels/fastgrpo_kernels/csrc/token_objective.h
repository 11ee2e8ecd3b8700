// The token objective: objective.py's formula and its derivative to the logprob, for a vector of tokens at a time.
#pragma once

#include "kernels.h"
#include "lanes.h"

namespace FASTGRPO_ARCH {

template <typename T>
struct TokenResult {
  Vector<T> loss, through_ratio, direct, ratio;  // `through_ratio` is the derivative to the log-ratio
};

template <typename T>
struct Surrogate {
  Vector<T> value, slope, direct;  // `slope` is the derivative to the log-ratio, `direct` to the logprob, the ratio held
  Vector<T> below, above, far;     // 1 where which bound was met
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

  // What a response's mean is of: GMPO clips before it.
  V averaged_log_ratio() const {
    const V own = log_ratio();
    if (objective_.ratio != kGeometricMean) return own;
    const V low = broadcast(T(-objective_.clip_low)), high = broadcast(T(objective_.clip_high));
    return falls_beyond(own) ? low : (rises_beyond(own) ? high : own);
  }

  // 1 for the tokens that move that mean.
  V moving() const {
    if (objective_.ratio != kGeometricMean) return inside_;
    const V own = log_ratio();
    return falls_beyond(own) | rises_beyond(own) ? V{} : inside_;
  }

  V rollout_log_ratio() const { return old_logprobs - rollout_logprobs; }
  double num_inside() const { return double(sum_of<T>(inside_)); }

  TokenResult<T> evaluate(V log_ratio, V rollout_log_ratio, Sums<T>& sums) const {
    const V zero{};
    const V ratio = bounded_exp<T>(log_ratio);
    const Surrogate<T> bounded = surrogate(ratio, log_ratio);
    V corrected = zero;
    const V correction = correct(rollout_log_ratio, corrected);
    V kl, kl_slope = zero;
    kl = tokens_.ref_logprobs ? divergence(kl_slope) : zero;
    const T kl_coef = T(objective_.kl_coef), entropy_coef = T(objective_.entropy_coef);
    const V loss = weight_ * (kl * kl_coef - correction * bounded.value - entropy * entropy_coef);
    const V parts[kNumSums] = {loss, inside_, bounded.below * inside_, bounded.above * inside_,
                               bounded.far * inside_, ratio * inside_, old_logprobs - logprobs, kl,
                               entropy, correction * inside_, corrected * inside_};
    sums.add(parts);
    return {loss, -correction * bounded.slope * weight_, (kl_slope * kl_coef - correction * bounded.direct) * weight_, ratio * inside_};
  }

  V entropy_gradient() const { return weight_ * T(-objective_.entropy_coef); }

 private:
  V field(const T* from, int64_t start) const {
    const V values = load_some(from + start, count_, T(0));
    return inside_ != V{} ? values : V{};
  }

  Surrogate<T> surrogate(V ratio, V log_ratio) const {
    if (objective_.ratio == kGeometricMean) return geometric_mean(ratio, log_ratio);
    if (objective_.surrogate == kClipped) return clipped(ratio, log_ratio);
    if (objective_.surrogate == kCispo) return cispo(ratio);
    return objective_.surrogate == kSapo ? sapo(ratio, log_ratio) : dppo(ratio);
  }

  static V beyond_exp(V log_ratio) {  // 1 where a ratio has no gradient
    const V magnitude = log_ratio < V{} ? -log_ratio : log_ratio;
    return magnitude > T(20) ? broadcast(T(1)) : V{};
  }

  V within_clip(V ratio) const {
    const V high = broadcast(T(1 + objective_.clip_high)), low = broadcast(T(1 - objective_.clip_low));
    return ratio == ratio ? max_of(min_of(ratio, high), low) : ratio;  // NaN stays
  }

  Surrogate<T> clipped(V ratio, V log_ratio) const {
    const V zero{}, one = broadcast(T(1));
    const T high = T(1 + objective_.clip_high), low = T(1 - objective_.clip_low), dual = T(objective_.dual_clip);
    const V above = (advantages > zero) & (ratio > high) ? one : zero;
    const V below = (advantages < zero) & (ratio < low) ? one : zero;
    const V far = dual != 0 ? ((advantages < zero) & (ratio > dual) ? one : zero) : zero;
    V value = min_of(ratio * advantages, within_clip(ratio) * advantages);
    if (dual != 0) value = advantages < zero ? max_of(value, advantages * dual) : value;
    const V slope = above + below + far + beyond_exp(log_ratio) != zero ? zero : ratio * advantages;
    return {value, slope, zero, below, above, far};
  }

  Surrogate<T> cispo(V ratio) const {
    const V zero{}, one = broadcast(T(1));
    const V above = (advantages != zero) & (ratio > T(1 + objective_.clip_high)) ? one : zero;
    const V below = (advantages != zero) & (ratio < T(1 - objective_.clip_low)) ? one : zero;
    const V direct = within_clip(ratio) * advantages;
    return {direct * logprobs, zero, direct, below, above, zero};
  }

  Surrogate<T> sapo(V ratio, V log_ratio) const {
    const V zero{}, one = broadcast(T(1));
    const V tau = advantages > zero ? broadcast(T(objective_.sapo_positive)) : broadcast(T(objective_.sapo_negative));
    const V distance = tau * (ratio - one);
    const V decay = exp_of(distance < zero ? distance : -distance);
    const V sigmoid = (distance < zero ? decay : one) / (one + decay);
    const V gate = decay * T(4) / ((one + decay) * (one + decay));  // 4 s (1 - s) without cancellation
    const auto closing = (advantages != zero) & (gate < T(0.5));
    return {sigmoid * advantages * T(4) / tau, beyond_exp(log_ratio) != zero ? zero : gate * ratio * advantages, zero,
            closing & (distance < zero) ? one : zero, closing & (distance > zero) ? one : zero, zero};
  }

  Surrogate<T> dppo(V ratio) const {
    const V zero{}, one = broadcast(T(1));
    const V p = exp_of(logprobs), old = exp_of(old_logprobs), moved = p - old;
    V divergence = moved < zero ? -moved : moved;
    if (objective_.surrogate == kDppoKl) {
      // Of the others: 1 - p, which rounding can make negative. verl adds the constant.
      const V others = max_of(-expm1_of(logprobs), zero), old_others = max_of(-expm1_of(old_logprobs), zero);
      divergence = old * (old_logprobs - logprobs) +
                   old_others * (log_of<T>(old_others + T(1e-8)) - log_of<T>(others + T(1e-8)));
    }
    const auto falling = (advantages < zero) & (p < old) & (divergence > T(objective_.clip_low));
    const auto rising = (advantages > zero) & (p > old) & (divergence > T(objective_.clip_high));
    const auto masked = falling | rising;
    const T cap = T(objective_.dual_clip);
    V far = zero;
    if (cap != 0) {
      far = ~masked & (advantages != zero) & (ratio > cap) ? one : zero;
      ratio = ratio > cap ? broadcast(cap) : ratio;
    }
    const V direct = masked ? zero : ratio * advantages;
    return {masked ? zero : direct * logprobs, zero, direct, falling ? one : zero, rising ? one : zero, far};
  }

  // GMPO's ratio is the response's; which tokens were clipped before the mean is seen in their own.
  Surrogate<T> geometric_mean(V ratio, V log_ratio) const {
    const V zero{}, one = broadcast(T(1));
    const V value = ratio * advantages, own = this->log_ratio();
    return {value, beyond_exp(log_ratio) != zero ? zero : value, zero,
            falls_beyond(own) ? one : zero, rises_beyond(own) ? one : zero, zero};
  }

  auto falls_beyond(V log_ratio) const { return (advantages < V{}) & (log_ratio < T(-objective_.clip_low)); }
  auto rises_beyond(V log_ratio) const { return (advantages > V{}) & (log_ratio > T(objective_.clip_high)); }

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
    log_ratio += double(sum_of<T>(block.averaged_log_ratio()));  // 0 outside the mask
    rollout_log_ratio += double(sum_of<T>(block.rollout_log_ratio()));
    length += block.num_inside();
  }
  length = length < 1 ? 1 : length;
  const bool one_ratio = objective.ratio != kToken;
  const Vector<T> shared = broadcast(T(log_ratio / length)), shared_rollout = broadcast(T(rollout_log_ratio / length));
  for (int64_t start = begin; start < end; start += Lanes<T>::count) {
    const int count = count_at<T>(start, end);
    const TokenBlock<T> block(tokens, objective, start, count);
    const TokenResult<T> result =
        block.evaluate(one_ratio ? shared : block.log_ratio(),
                       objective.correction == kSequenceMask ? shared_rollout : block.rollout_log_ratio(), sums);
    if (one_ratio) through_ratio += double(sum_of<T>(result.through_ratio));
    store_some<T>(tokens.grad_logprobs + start, one_ratio ? result.direct : result.through_ratio + result.direct, count);
    store_some<T>(tokens.ratio + start, result.ratio, count);
    if (tokens.grad_entropy) store_some<T>(tokens.grad_entropy + start, block.entropy_gradient(), count);
  }
  if (!one_ratio) return;
  const Vector<T> share = broadcast(T(through_ratio / length));
  for (int64_t start = begin; start < end; start += Lanes<T>::count) {
    const int count = count_at<T>(start, end);
    T* to_gradient = tokens.grad_logprobs + start;
    const Vector<T> moving = TokenBlock<T>(tokens, objective, start, count).moving();
    store_some<T>(to_gradient, load_some(to_gradient, count, T(0)) + (moving != Vector<T>{} ? share : Vector<T>{}), count);
  }
}

}  // namespace FASTGRPO_ARCH
