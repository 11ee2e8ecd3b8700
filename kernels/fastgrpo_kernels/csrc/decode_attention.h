// Attention of one new token of each sequence over the keys and values that its slot of a cache holds.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels.h"
#include "lanes.h"

namespace FASTGRPO_ARCH {

constexpr int kLanes = Lanes<float>::count;
constexpr int kMostQueries = 8;  // that read a key together, an accumulator each

inline Vector<float> load_wide(const float* from) { return load(from); }

inline Vector<float> load_wide(const uint16_t* from) {
  typedef uint16_t Half __attribute__((vector_size(32)));
  typedef uint32_t Wide __attribute__((vector_size(64)));
  Half half;
  std::memcpy(&half, from, sizeof half);
  const Wide bits = __builtin_convertvector(half, Wide) << 16;
  Vector<float> wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

template <typename S>
inline Vector<float> load_wide(const S* from, int64_t count) {
  if (count >= kLanes) return load_wide(from);
  Vector<float> wide{};
  for (int i = 0; i < count; ++i) wide[i] = as_float(from[i]);
  return wide;
}

// Scores of `kQueries` queries with one key after the other: queries [kQueries, padded], keys [count, width].
template <int kQueries, typename S>
inline void scores_of(const float* queries, int64_t padded, const S* keys, int64_t width, int64_t count, float* scores) {
  for (int64_t t = 0; t < count; ++t) {
    Vector<float> sums[kQueries]{};
    for (int64_t e = 0; e < width; e += kLanes) {
      const Vector<float> key = load_wide(keys + t * width + e, width - e);
      for (int q = 0; q < kQueries; ++q) sums[q] += load(queries + q * padded + e) * key;
    }
    for (int q = 0; q < kQueries; ++q) scores[q * count + t] = sum_of<float>(sums[q]);
  }
}

// Scores to probabilities, in place.
inline void softmax(float* scores, int64_t count) {
  float top = -INFINITY;
  for (int64_t t = 0; t < count; ++t) top = scores[t] > top ? scores[t] : top;
  Vector<float> sums{};
  for (int64_t t = 0; t < count; t += kLanes) {
    const int some = int(count - t < kLanes ? count - t : kLanes);
    const Vector<float> e = exp_of(load_some(scores + t, some, -INFINITY) - top);
    sums += e;
    store_some(scores + t, e, some);
  }
  const float inverse = 1.0f / sum_of<float>(sums);
  for (int64_t t = 0; t < count; ++t) scores[t] *= inverse;
}

// Means of values [count, width] with the probabilities of each query, to out [kQueries, width].
template <int kQueries, typename S>
inline void mix(const float* probabilities, int64_t count, const S* values, int64_t width, S* out) {
  for (int64_t e = 0; e < width; e += kLanes) {
    Vector<float> sums[kQueries]{};
    for (int64_t t = 0; t < count; ++t) {
      const Vector<float> value = load_wide(values + t * width + e, width - e);
      for (int q = 0; q < kQueries; ++q) sums[q] += probabilities[q * count + t] * value;
    }
    for (int q = 0; q < kQueries; ++q)
      for (int i = 0; i < kLanes && e + i < width; ++i) store_as(out + q * width + e + i, sums[q][i]);
  }
}

template <int kQueries, typename S>
void attend(const float* queries, int64_t padded, const S* keys, int64_t width, const S* values, int64_t value_width, int64_t count,
            float* scores, S* out) {
  scores_of<kQueries>(queries, padded, keys, width, count, scores);
  for (int q = 0; q < kQueries; ++q) softmax(scores + q * count, count);
  mix<kQueries>(scores, count, values, value_width, out);
}

template <typename S, int... kCounts>
constexpr auto attend_for(std::integer_sequence<int, kCounts...>) {
  return std::array{&attend<kCounts + 1, S>...};
}

// Items are pairs of a slot and a key/value head.
template <typename S>
void decode_attention(const DecodeAttention& of, int64_t begin, int64_t end) {
  constexpr auto attend_some = attend_for<S>(std::make_integer_sequence<int, kMostQueries>());
  const int64_t group = of.heads / of.kv_heads, padded = (of.width + kLanes - 1) / kLanes * kLanes;
  std::vector<float> queries(group * padded), scores;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t slot = item / of.kv_heads, first_head = slot * of.heads + item % of.kv_heads * group;
    const int64_t length = of.lengths[slot], start = of.window > 0 && length + 1 > of.window ? length + 1 - of.window : 0;
    S* keys = static_cast<S*>(of.keys) + item * of.capacity * of.width;
    S* values = static_cast<S*>(of.values) + item * of.capacity * of.value_width;
    std::memcpy(keys + length * of.width, static_cast<const S*>(of.key) + item * of.width, of.width * sizeof(S));
    std::memcpy(values + length * of.value_width, static_cast<const S*>(of.value) + item * of.value_width,
                of.value_width * sizeof(S));
    for (int64_t q = 0; q < group; ++q)
      for (int64_t e = 0; e < of.width; ++e)
        queries[q * padded + e] = of.scale * as_float(static_cast<const S*>(of.query)[(first_head + q) * of.width + e]);
    const int64_t count = length + 1 - start;
    scores.resize(std::min<int64_t>(group, kMostQueries) * count);
    for (int64_t q = 0; q < group; q += kMostQueries) {
      const int64_t some = std::min<int64_t>(group - q, kMostQueries);
      attend_some[some - 1](queries.data() + q * padded, padded, keys + start * of.width, of.width, values + start * of.value_width,
                            of.value_width, count, scores.data(), static_cast<S*>(of.out) + (first_head + q) * of.value_width);
    }
  }
}

}  // namespace FASTGRPO_ARCH
