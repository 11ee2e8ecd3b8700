// Vectors of the compiler's own extension (GCC, Clang): the same sums in the same order on every instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace FASTGRPO_ARCH {

template <typename T>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int count = 16;
  typedef float Vector __attribute__((vector_size(64)));
  typedef int32_t Integer __attribute__((vector_size(64)));  // also the type of a comparison
  typedef uint8_t Bytes __attribute__((vector_size(16)));
};

template <>
struct Lanes<double> {
  static constexpr int count = 8;
  typedef double Vector __attribute__((vector_size(64)));
  typedef int64_t Integer __attribute__((vector_size(64)));
  typedef uint8_t Bytes __attribute__((vector_size(8)));
};

template <typename T>
using Vector = typename Lanes<T>::Vector;

template <typename T>
inline Vector<T> broadcast(T value) {
  return Vector<T>{} + value;
}

template <typename V>
inline V max_of(V a, V b) {
  return a > b ? a : b;
}

template <typename V>
inline V min_of(V a, V b) {
  return a < b ? a : b;
}

template <typename T, int kCount>
struct Several {
  typedef T Vector __attribute__((vector_size(kCount * sizeof(T))));
};

// Halves are added to each other as whole vectors: lane by lane the compiler takes them apart.
template <typename T, int kCount>
inline T sum_of_lanes(typename Several<T, kCount>::Vector v) {
  if constexpr (kCount == 1) {
    return v[0];
  } else {
    typename Several<T, kCount / 2>::Vector low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return sum_of_lanes<T, kCount / 2>(low + high);
  }
}

template <typename T>
inline T sum_of(Vector<T> v) {
  return sum_of_lanes<T, Lanes<T>::count>(v);
}

// Sums in double, one a lane, of vectors of T.
template <typename T>
class WideSum {
 public:
  void add(Vector<T> v) {
    low_ += half(v, 0);
    high_ += half(v, 1);
  }
  void add_product(Vector<T> a, Vector<T> b) {
    low_ += half(a, 0) * half(b, 0);
    high_ += half(a, 1) * half(b, 1);
  }
  // Adds the sums of the first `count` lanes to as many numbers.
  void add_to(double* sums, int count) const {
    constexpr int wide = Lanes<double>::count;
    for (int i = 0; i < count; ++i) sums[i] += i < wide ? low_[i] : high_[i - wide];
  }

 private:
  // The first or second half of the lanes; the second half of doubles, which fill a vector, is empty.
  static Vector<double> half(Vector<T> v, int which) {
    if constexpr (sizeof(T) == sizeof(double)) return which == 0 ? v : Vector<double>{};
    typedef float Half __attribute__((vector_size(32)));
    Half of_it;
    std::memcpy(&of_it, reinterpret_cast<const char*>(&v) + which * sizeof of_it, sizeof of_it);
    return __builtin_convertvector(of_it, Vector<double>);
  }
  Vector<double> low_{}, high_{};
};

// Cody and Waite's reduction to |r| <= ln 2 / 2, then the Taylor series to r^7: within 1.5 units in the last place.
// Below -87 the result is 0, and so is that of -inf; NaN stays NaN.
inline Vector<float> exp_of(Vector<float> x) {
  typedef Lanes<float>::Integer Integer;
  const Vector<float> low = broadcast(-87.0f), high = broadcast(88.0f);
  const Vector<float> bounded = x < low ? low : (x > high ? high : x);
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const Vector<float> shifted = bounded * 1.44269504088896341f + round;
  const Vector<float> n = shifted - round;
  const Vector<float> r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Integer bits, exponent;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof bits);
  return x < low ? Vector<float>{} : (x == x ? p : x);
}

inline Vector<double> exp_of(Vector<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = std::exp(x[i]);
  return x;
}

template <typename T>
inline Vector<T> log_of(Vector<T> x) {
  for (int i = 0; i < Lanes<T>::count; ++i) x[i] = std::log(x[i]);
  return x;
}

// exp(x) - 1 without the cancellation near 0.
inline Vector<float> expm1_of(Vector<float> x) {
  const Vector<float> series = x + x * x * (0.5f + x * (1.0f / 6.0f + x * (1.0f / 24.0f + x * (1.0f / 120.0f))));
  const Vector<float> magnitude = x < 0.0f ? -x : x;
  return magnitude < 0.125f ? series : exp_of(x) - 1.0f;
}

inline Vector<double> expm1_of(Vector<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = std::expm1(x[i]);
  return x;
}

inline float as_float(float value) { return value; }

inline float as_float(uint16_t value) {  // of bfloat16
  const uint32_t bits = uint32_t(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void store_as(float* to, float value) { *to = value; }

inline void store_as(uint16_t* to, float value) {  // to the nearest bfloat16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *to = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// A copy of a constant size is one instruction, one of a variable size a call.
template <typename T>
inline Vector<T> load_some(const T* from, int count, T otherwise) {
  if (count == Lanes<T>::count) return load(from);
  Vector<T> v = broadcast(otherwise);
  std::memcpy(&v, from, count * sizeof(T));
  return v;
}

template <typename T>
inline void store_some(T* to, Vector<T> v, int count) {
  if (count == Lanes<T>::count)
    std::memcpy(to, &v, sizeof v);
  else
    std::memcpy(to, &v, count * sizeof(T));
}

}  // namespace FASTGRPO_ARCH
